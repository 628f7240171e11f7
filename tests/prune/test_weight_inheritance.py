import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.prune.channels import ChannelGraph, zero_input_channels
from autocompress.prune.weight_inheritance import inherit_weights
from autocompress.training.fit import FitRequest, fit, predict
from tests.prune.toys import EXAMPLE, cnn
from tests.prune.zoo import FOLLOWED, Branching, Mlp, Net, conv


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestTheSameShape:
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_everything_is_taken_over(self, block):
        teacher, student = cnn(seed=1, block=block), cnn(seed=2, block=block)
        found = inherit_weights(student, teacher, EXAMPLE)
        x = torch.randn(3, 1, 8, 8)
        assert torch.equal(student(x), teacher(x))
        assert found.share == 1.0

    @pytest.mark.parametrize(("kind", "example", "layers"), FOLLOWED, ids=[row[0].__name__ for row in FOLLOWED])
    def test_any_model(self, kind, example, layers):
        teacher, student = kind().eval(), kind().eval()
        inherit_weights(student, teacher, example)
        assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())

    def test_a_model_that_cannot_be_traced_takes_over_equal_shapes(self):
        teacher, student = Branching(), Branching()
        found = inherit_weights(student, teacher, (torch.zeros(1, 4),))
        assert found.share == 1.0
        assert torch.equal(student.a.weight, teacher.a.weight)


class TestFewerChannels:
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_channels_that_say_nothing_are_left_behind(self, block):
        """A teacher whose surplus channels are silent, and a student of the size that is left, compute the same."""
        teacher, student = cnn(seed=1, block=block, width=8, depth=2), cnn(seed=2, block=block, width=4, depth=2)
        channels = _silence_half(teacher)
        assert channels > 0
        found = inherit_weights(student, teacher, EXAMPLE)
        x = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-5)
        assert found.share == 1.0

    def test_the_most_important_channels_are_taken_in_every_layer_alike(self):
        torch.manual_seed(0)
        teacher, student = _pair(4), _pair(2)
        with torch.no_grad():
            teacher.a.weight[[0, 2]] *= 10
        inherit_weights(student, teacher, (torch.zeros(1, 1, 8, 8),))
        assert torch.equal(student.a.weight, teacher.a.weight[[0, 2]])
        assert torch.equal(student.b.weight, teacher.b.weight[:, [0, 2]])
        assert torch.equal(student.b.bias, teacher.b.bias)

    def test_flattened_channels_take_all_their_places(self):
        torch.manual_seed(0)
        teacher, student = _flat(4), _flat(2)
        with torch.no_grad():
            teacher.a.weight[[1, 3]] *= 10
        inherit_weights(student, teacher, (torch.zeros(1, 1, 4, 4),))
        columns = [*range(16, 32), *range(48, 64)]
        assert torch.equal(student.fc.weight, teacher.fc.weight[:, columns])


class TestWhatIsLeftAlone:
    def test_more_channels_than_the_teacher_has(self):
        teacher, student = cnn(seed=1, block="plain", width=4), cnn(seed=2, block="plain", width=8)
        before = snapshot(student)
        found = inherit_weights(student, teacher, EXAMPLE)
        # The head's bias has the right shape; without its weights it would answer what the teacher does on average.
        assert (found.tensors, found.share) == ((), 0.0)
        assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())

    def test_blocks_that_only_the_student_has(self):
        teacher, student = cnn(seed=1, depth=1, width=8), cnn(seed=2, depth=2, width=8)
        before = snapshot(student)
        found = inherit_weights(student, teacher, EXAMPLE)
        assert not any(name.startswith("stages.0.1") for name in found.tensors)
        assert torch.equal(student.stages[0][1].body[0].weight, before["stages.0.1.body.0.weight"])
        assert torch.equal(student.stages[0][0].body[0].weight, teacher.stages[0][0].body[0].weight)

    def test_a_head_behind_another_stage(self):
        teacher, student = cnn(seed=1, stages=2, width=4), cnn(seed=2, stages=1, width=8)
        assert student.heads["label"].weight.shape == teacher.heads["label"].weight.shape
        student_of_half = cnn(seed=2, stages=1, width=4)
        for each in (student, student_of_half):
            assert not any(name.startswith("heads") for name in inherit_weights(each, teacher, EXAMPLE).tensors)

    def test_the_teacher_and_all_flags_stay_as_they_were(self):
        teacher, student = cnn(seed=1, width=8).train(), cnn(seed=2, width=4).train()
        student.stem.requires_grad_(False)
        student.stages.eval()
        flags = [(module.training) for module in [*student.modules(), *teacher.modules()]]
        before = snapshot(teacher)
        inherit_weights(student, teacher, EXAMPLE)
        assert [(module.training) for module in [*student.modules(), *teacher.modules()]] == flags
        assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
        assert {name for name, p in student.named_parameters() if not p.requires_grad} == {
            "stem.0.weight", "stem.1.weight", "stem.1.bias"
        }  # fmt: skip

    def test_another_architecture(self):
        assert inherit_weights(Mlp().eval(), nn.Sequential(nn.Conv1d(4, 8, 1)).eval(), (torch.zeros(1, 4),)).share < 0.1


class TestKernels:
    @pytest.mark.parametrize(("ours", "theirs"), [(3, 5), (5, 3), (3, 7), (7, 7)])
    def test_a_window_is_cut_or_padded_around_its_middle(self, ours, theirs):
        teacher, student = cnn(seed=1, kernel=theirs, width=4), cnn(seed=2, kernel=ours, width=4)
        inherit_weights(student, teacher, EXAMPLE)
        shared = min(ours, theirs)
        parts = []
        for model, kernel in ((student, ours), (teacher, theirs)):
            edge = (kernel - shared) // 2
            parts.append(model.stem[0].weight[..., edge : edge + shared, edge : edge + shared])
        assert torch.equal(*parts)
        assert student.stem[0].weight.count_nonzero() <= parts[0].numel()


@pytest.fixture(scope="module")
def teacher():
    task = TASKS.get("digits")()
    torch.manual_seed(0)
    model = task.build(Part.of("cnn", width=16, depth=2, stages=2))
    fit(model, FitRequest(task, task.splits(0).train, Part.of("adamw", epochs=8, learning_rate=1e-2), seed=0))
    return model


class TestOnDigits:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "knobs", [{"width": 8, "depth": 1}, {"width": 12, "depth": 2}, {"width": 8, "kernel": 5}], ids=str
    )
    def test_an_heir_is_ahead_after_the_same_few_steps(self, teacher, knobs):
        task = TASKS.get("digits")()
        splits = task.splits(0)
        losses = {True: [], False: []}
        for seed in range(3):
            for heir in losses:
                torch.manual_seed(seed)
                student = task.build(Part.of("cnn", stages=2, **knobs))
                if heir:
                    inherit_weights(student, teacher, task.example())
                fit(student, FitRequest(task, splits.train, Part.of("adamw", epochs=2, learning_rate=5e-3), seed=seed))
                logits = predict(student, task, splits.select_val)
                losses[heir].append(float(task.loss(logits, splits.select_val.targets)))
        assert max(losses[True]) < min(losses[False])


def _pair(width):
    class Pair(Net):
        def forward(self, x):
            return self.b(self.a(x).relu()).mean((2, 3))

    return Pair(a=conv(1, width), b=conv(width, 3)).eval()


def _flat(width):
    class Flat(Net):
        def forward(self, x):
            return self.fc(self.a(x).relu().flatten(1))

    return Flat(a=conv(1, width), fc=nn.Linear(width * 16, 3)).eval()


@torch.no_grad()
def _silence_half(model):
    """Make every second channel of every group weigh nothing, and say nothing."""
    groups = ChannelGraph(model, EXAMPLE).groups
    for group in groups:
        for part in group.slices:
            half = [index for index, root in zip(part.indices, part.roots, strict=True) if root % 2]
            if part.outputs:
                part.layer.weight[half] *= 1e-3
            else:
                zero_input_channels(part.layer, half)
    return len(groups)
