import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from autocompress.core.config import Part
from autocompress.core.heads import Regression
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS, TASKS
from autocompress.core.task import logits_by_head
from autocompress.distill.base import Activations, Batch
from autocompress.distill.kernels import SoftTarget, SoftTargetConfig
from autocompress.errors import UsageError
from autocompress.measure import Subject, layer_costs, measure
from autocompress.measure.cost import count_flops
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.prune import StructuredConfig
from autocompress.tasks.module import Module, bring_model, unpack_outputs
from autocompress.tasks.tensors import Tensors

X, Y = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 2


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})


def net(classes=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, classes))


class TestTeacher:
    def test_the_default_student_is_the_module_with_its_weights(self):
        model = net()
        task = Module(model, (X, Y))
        student, fit = task.teacher()
        assert student.name == "from_teacher"
        assert fit.values["epochs"] == 0
        assert torch.equal(task.build(student)(X), model(X))

    def test_each_build_is_a_copy(self):
        task = Module(net(), (X, Y))
        with torch.no_grad():
            task.build(Part("from_teacher"))[0].weight.zero_()
        assert bool(task.build(Part("from_teacher"))[0].weight.any())

    def test_the_users_module_stays_in_training_mode(self):
        model = net().train()
        Module(model, (X, Y))
        assert model.training

    def test_other_families_can_be_students(self):
        task = Module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (torch.randn(90, 1, 8, 8), torch.arange(90) % 10))
        assert task.build(Part.of("cnn", width=4, stages=1, depth=1))(torch.randn(2, 1, 8, 8)).shape == (2, 10)

    def test_a_family_that_needs_a_module_says_so_without_one(self):
        with pytest.raises(UsageError, match="bring_model"):
            STUDENTS.get("from_teacher").build(FromTeacherConfig(), (), {"label": 2})

    def test_the_weights_tell_one_module_from_another(self):
        torch.manual_seed(1)
        other = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        assert (
            Module(net(), (X, Y)).identity_options
            == Module(net(), (X, Y)).identity_options
            != Module(other, (X, Y)).identity_options
        )

    def test_a_module_may_know_more_classes_than_the_data(self):
        task = Module(net(5), Tensors((X, Y), labels=["a", "b"]))
        assert task.heads == {"label": 5}
        assert task.labels == {}

    def test_a_loss_of_ones_own(self):
        task = Module(net(), (X, Y), loss=lambda logits, targets: logits["label"].sum() * 0 + 7)
        assert float(task.loss({"label": torch.zeros(2, 2)}, {"label": Y[:2]})) == 7


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, left, right):
        return self.fc(torch.cat([left, right], 1))


class OneTuple(TwoInputs):
    def forward(self, both):
        return super().forward(*both)


class OneMapping(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["left"], batch["right"])


class Answers(nn.Module):
    """Two heads in whatever form."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Linear(3, 2), nn.Linear(3, 4), form

    def forward(self, x):
        return self.form(self.a(x), self.b(x))


class WithLogits:
    def __init__(self, logits):
        self.logits = logits


class TestForms:
    @pytest.mark.parametrize("kind", [TwoInputs, OneTuple])
    def test_inputs_are_passed_one_by_one_or_as_a_tuple(self, kind):
        task = Module(kind(), ((X, torch.randn(90, 2)), Y))
        assert task.build(Part("from_teacher"))(*task.splits(0).train.inputs).shape[1] == 2

    @pytest.mark.parametrize("kind", [TwoInputs, OneMapping])
    def test_named_inputs_are_passed_as_keywords_or_as_a_mapping(self, kind):
        model, right = kind(), torch.randn(90, 2)
        task = Module(model, ({"right": right, "left": X}, Y))
        expected = TwoInputs.forward(model, X[:4], right[:4])
        assert torch.equal(task.build(Part("from_teacher"))(right[:4], X[:4]), expected)

    @pytest.mark.parametrize(
        "form",
        [
            lambda a, b: {"b": b, "a": a, "more": a},
            lambda a, b: (a, b),
            lambda a, b: WithLogits((a, b)),
            lambda a, b: WithLogits({"a": a, "b": b}),
        ],
        ids=["mapping", "tuple", "logits of a tuple", "logits of a mapping"],
    )
    def test_several_outputs_become_heads(self, form):
        task = Module(Answers(form), (X, {"a": Y, "b": torch.arange(90) % 4}))
        found = logits_by_head(task.build(Part("from_teacher"))(X), task.heads)
        assert {head: logits.shape[1] for head, logits in found.items()} == {"a": 2, "b": 4}

    def test_a_single_head_is_found_in_what_is_returned(self):
        first, second = torch.zeros(1, 2), torch.ones(1, 2)
        for output in ((first, second), {"label": first, "aux": second}, {"logits": first, "aux": second}, first):
            assert unpack_outputs(output, ["label"]) is first


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: nn.Linear(4, 2), r"Linear fails on one example .*\(1, 3\).*mat1 and mat2"),
            (lambda: nn.Unflatten(1, (1, 3, 1)), r"its output for 'label' is \[1, 1, 3, 1\]"),
            (lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), "for a batch of one example"),
            (lambda: Answers(lambda a, b: None), "returned NoneType"),
            (lambda: 3, "the teacher is int"),
        ],
    )
    def test_a_module_that_does_not_fit_the_data(self, model, message):
        with pytest.raises(UsageError, match=message):
            Module(model, (X, Y))

    def test_weights_that_do_not_fit_are_listed(self, tmp_path):
        wrong = {"0.weight": torch.zeros(8, 4), "0.bias": torch.zeros(8), "2.weight": torch.zeros(2, 8), "x": X}
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(
            UsageError, match=r"'2.bias' is missing; 'x' is unknown.*; '0.weight' has the shape \[8, 4\]"
        ):
            Module(net, (X, Y), weights=tmp_path / "w.safetensors")

    def test_weights_that_fit_are_used(self, tmp_path):
        torch.manual_seed(5)
        trained = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        save_file(trained.state_dict(), tmp_path / "w.safetensors")
        task = Module(net, (X, Y), weights=str(tmp_path / "w.safetensors"))
        assert torch.equal(task.build(Part("from_teacher"))(X), trained(X))

    @pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin"])
    def test_pickled_weights_are_not_opened(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        with pytest.raises(UsageError, match="safetensors"):
            Module(net, (X, Y), weights=tmp_path / name)

    def test_a_file_that_cannot_be_read(self, tmp_path):
        (tmp_path / "w.safetensors").write_bytes(b"nothing")
        with pytest.raises(UsageError, match="cannot be read"):
            Module(net, (X, Y), weights=tmp_path / "w.safetensors")

    def test_weights_that_are_not_finite(self):
        model = net()
        with torch.no_grad():
            model[2].bias[0] = torch.nan
        with pytest.raises(UsageError, match=r"'2\.bias' contains values that are not finite"):
            Module(model, (X, Y))


class TestBring:
    def test_it_is_the_task_called_module(self):
        task = bring_model(net(), (X, Y))
        assert TASKS.get("module")() is task
        assert TASKS.get("module")(**task.identity_options) is task

    def test_a_second_one_takes_its_place(self):
        bring_model(net(), (X, Y))
        second = bring_model(net(3), (X, Y))
        assert TASKS.get("module")() is second

    def test_a_run_that_began_with_other_weights_is_refused(self):
        bring_model(net(), (X, Y))
        with pytest.raises(UsageError, match="other weights"):
            TASKS.get("module")(content="0" * 12)

    def test_without_one_the_task_says_how(self):
        with pytest.raises(UsageError, match="--plugin"):
            TASKS.get("module")()


class TestProtectedLayers:
    X, Y = torch.randn(120, 10, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3

    def bring(self, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        return Module(model, (self.X, self.Y), **options)

    def context(self, task):
        inputs = task.splits(0).calibration.inputs
        return Context(task.example(), (inputs,), ignore=task.ignore, float_layers=task.float_layers)

    def test_ignored_layers_keep_their_channels_and_the_others_lose_some(self):
        task = self.bring(ignore=["0"])
        _, state = PRUNE.get("structured").apply(task.model, StructuredConfig(), self.context(task))
        assert state.report["channels"] == {"2": [8, 4]}
        assert state.report["uncut"]["0"] == "'0' is protected by ignore"

    def test_layers_of_32_bits_are_not_quantized(self):
        task = self.bring(precision={"4": 32})
        method = QUANTIZE.get("post_training")
        _, state = method.apply(task.model, method.config(), self.context(task))
        assert set(state.bits) == {"0", "2"}

    def test_a_pattern_without_a_layer_and_another_width_are_refused(self):
        with pytest.raises(UsageError, match="ignore: 'stem' matches no layer"):
            self.bring(ignore=["stem"])
        with pytest.raises(UsageError, match="only 32 is possible"):
            self.bring(precision={"4": 8})


def test_the_example_is_the_longest_of_the_first_texts():
    tokens = torch.tensor([[5, 0, 0, 0], [1, 2, 3, 0], [1, 2, 3, 4], [4, 3, 2, 1]]).repeat(30, 1)
    task = Module(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(16, 3)), (tokens, torch.arange(120) % 3))
    assert task.example()[0].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, targets: outputs["other"].sum(), r"loss fails on .* 'label' \[8, 2\]: KeyError: 'other'"),
        (lambda outputs, targets: 3.0, "loss returns a float; return a tensor with one number"),
        (lambda outputs, targets: outputs["label"], r"loss returns a tensor \[8, 2\]"),
        (lambda outputs, targets: (outputs["label"] - 1e6).log().mean(), "loss is nan on outputs of the teacher"),
        (lambda outputs, targets: outputs["label"].argmax(1).float().mean(), "loss has no gradient in the outputs"),
        (lambda outputs, targets: (outputs["label"] * 0).sqrt().sum(), "loss has a gradient that is not finite"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_before_anything_is_trained(loss, message):
    with pytest.raises(UsageError, match=message):
        Module(net(), (X, Y), loss=loss)


def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MASKS = torch.where(IMAGES[:, 0] > 1.5, 255, (IMAGES[:, 0] > 0).long())
POINTS = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "data", "kind", "primary"),
    [
        (conv(), Tensors((IMAGES, MASKS), kinds="auto", ignored=255), "dense", "accuracy"),
        (net(3), Tensors((POINTS, (POINTS > 0).float()), kinds="auto"), "multilabel", "accuracy"),
        (net(1), (POINTS, (POINTS.sum(1) > 0).long()), "binary", "accuracy"),
        (net(1), (POINTS, 100 * POINTS.sum(1)), "regression", "r2"),
        *(
            (net(1), Tensors((POINTS, 100 * POINTS.sum(1)), kinds=Regression(1, loss_name=loss)), "regression", "r2")
            for loss in ("mae", "huber", "quantile")
        ),
    ],
)
def test_each_kind_of_head_has_a_loss_a_distance_and_scores(model, data, kind, primary):
    task = Module(model, data)
    (head,) = task.heads.values()
    train = task.splits(0).train
    outputs = {"label": model(*train.inputs).detach().requires_grad_()}
    task.loss(outputs, train.targets).backward()
    assert head.kind == kind
    assert task.metrics[0] == primary
    assert bool(outputs["label"].grad.isfinite().all())
    batch = Batch(Activations(outputs), Activations(outputs), train.targets, task.loss, nn.Identity(), task.heads)
    assert SoftTarget().loss(SoftTargetConfig(alpha=1.0), batch).item() == pytest.approx(0, abs=1e-6)
    subject = Subject({"label": outputs["label"].detach()}, train.targets, heads=task.heads)
    scores = measure(subject, set(task.metrics) - {"kl", "agreement", "retention"})
    assert all(math.isfinite(value) for value in scores.values())
    assert ("mean_iou" in scores) == (kind == "dense")


def test_ignored_pixels_count_in_no_score_and_no_loss():
    task = Module(conv(), Tensors((IMAGES, MASKS), kinds="auto", ignored=255))
    train = task.splits(0).train
    logits = torch.nn.functional.one_hot(MASKS.clamp(max=1), 3).movedim(-1, 1).float()[:1]
    targets = {"label": torch.where(MASKS == 255, -100, MASKS)[:1]}
    assert bool((train.targets["label"] == -100).any())
    assert measure(Subject({"label": logits}, targets, heads=task.heads), ["mean_iou"])["mean_iou"] == 1.0
    with torch.no_grad():
        assert task.loss({"label": 50 * logits}, targets) < 1e-6


def test_a_regression_with_settings_is_scaled_by_the_training_targets():
    task = Module(net(1), Tensors((POINTS, 100 * POINTS.sum(1) + 7), kinds=Regression(1, loss_name="huber")))
    head = task.heads["label"]
    assert head.loss_name == "huber"
    assert head.scale[0] == pytest.approx(float((100 * POINTS.sum(1)).std()), rel=0.1)
    assert Module(net(1), Tensors((POINTS, POINTS.sum(1)), kinds=Regression(1, scale=(3.0,)))).heads["label"].scale == (
        3.0,
    )


class PaddedGru(nn.Module):
    """Reads as many steps as a text has tokens; token 0 is padding."""

    def __init__(self):
        super().__init__()
        self.table, self.cells, self.out = nn.Embedding(64, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        lengths = (x != 0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.table(x), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.cells(packed)[1][-1])


def test_costs_are_counted_on_an_example_of_the_data():
    tokens = torch.randint(1, 64, (90, 16), generator=torch.Generator().manual_seed(0))
    task = Module(PaddedGru(), (tokens, torch.arange(90) % 3))
    # 16 steps of three gates, each with 16 inputs and 16 states, and the output layer.
    assert count_flops(layer_costs(task.model, task.example())) == 2 * (16 * 3 * 16 * (16 + 16) + 16 * 3)
