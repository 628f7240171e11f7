import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.knobs import Choice, FloatRange
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.run_info import RunInfo
from autocompress.engine.preflight import check_run_folder, remove_unsafe_methods
from autocompress.engine.runner import make_plan
from autocompress.engine.space import open_space
from autocompress.engine.spec import Spec, load_spec, parse_spec
from autocompress.errors import RunFolderError, SpecError, UnfinishedRunError
from autocompress.prune import StructuredConfig
from autocompress.store.run_store import RunStore
from autocompress.tasks.module import Module
from tests.prune import zoo

SOUND = "task: digits\nstudent: {cnn: {}}\n"


def spec(*overrides: str) -> Spec:
    return parse_spec(SOUND, "x", overrides).spec


def begun(folder: Path, front: tuple[str, ...] | None = None) -> Path:
    RunStore.create(folder, RunInfo(content=spec().immutable_content(), front=front)).close()
    return folder


def test_new_folder_is_accepted(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new", spec(), resume=False)
    check_run_folder(tmp_path / "new", spec(), resume=True)
    assert not list(tmp_path.iterdir())


def test_unfinished_search_suggests_resume(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(UnfinishedRunError, match="continue it with: autocompress search x --resume") as offer:
        check_run_folder(folder, spec("search.trials=3"), resume=False, command="autocompress search x")
    assert "--name" in str(offer.value)
    with pytest.raises(UnfinishedRunError, match="resume=True"):
        check_run_folder(folder, spec(), resume=False)
    check_run_folder(folder, spec(), resume=True)


def test_other_or_finished_search_is_an_error(tmp_path: Path) -> None:
    ended = begun(tmp_path / "ended", front=())
    for folder, requested in ((ended, spec()), (begun(tmp_path / "other"), spec("search.seed=5"))):
        with pytest.raises(RunFolderError, match="already holds a run; add --resume") as refusal:
            check_run_folder(folder, requested, resume=False)
        assert not isinstance(refusal.value, UnfinishedRunError)
    check_run_folder(ended, spec(), resume=True)
    with pytest.raises(RunFolderError, match=r"search\.seed \(0 then, 5 now\) differs"):
        check_run_folder(ended, spec("search.seed=5"), resume=True)


def test_a_score_that_the_task_chose_is_no_difference(tmp_path: Path) -> None:
    content = {**spec().immutable_content(), "objectives": {"r2": None, "effective_flops": None}}
    RunStore.create(tmp_path / "run", RunInfo(content=content)).close()
    check_run_folder(tmp_path / "run", spec(), resume=True)
    with pytest.raises(RunFolderError, match="differs"):
        check_run_folder(tmp_path / "run", spec("objectives=[rmse, bytes]"), resume=True)


def _hold(folder: str, ready: Connection) -> None:
    with RunStore.open(Path(folder)):
        ready.send(True)
        ready.recv()


@pytest.mark.slow
def test_run_in_use_is_an_error_before_data_is_loaded(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(str(tmp_path / "run"), theirs))
    other.start()
    assert ours.poll(60)
    for resume in (False, True):
        with pytest.raises(RunFolderError, match=f"in use by process {other.pid}"):
            check_run_folder(tmp_path / "run", spec(), resume=resume)
    ours.send(None)
    other.join()


IMAGES = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 10, (120, 5), generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(120) % 3


class Branches(zoo.Net):
    """Decides by the data what it computes."""

    def __init__(self):
        super().__init__(a=zoo.conv(1, 8), b=zoo.conv(1, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc((self.a(x) if float(x.sum()) > 0 else self.b(x)).mean((2, 3)))


def space(prune="none", student="from_teacher: {pruning_ratio: {low: 0.0, high: 0.8}, depth_ratio: [0.0, 0.25]}"):
    return open_space(parse_spec(f"task: module\nstudent: {{{student}}}\nprune: {{{prune}: {{}}}}", "x"))


def probed(model, inputs=IMAGES, **given):
    torch.manual_seed(0)
    task = Module(model(), (inputs, TARGETS))
    return remove_unsafe_methods(space(**given), task, task.splits(0))


class TwoImages(zoo.Net):
    """Takes a mapping."""

    def __init__(self):
        super().__init__(a=zoo.conv(1, 8), b=zoo.conv(1, 8), fc=nn.Linear(8, 3))

    def forward(self, batch):
        return self.fc((self.a(batch["left"]) + self.b(batch["right"])).relu().mean((2, 3)))


class Gru(zoo.Net):
    """Reads tokens one after the other."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), r=nn.GRU(8, 6, batch_first=True), fc=nn.Linear(6, 3))

    def forward(self, x):
        return self.fc(self.r(self.e(x))[1][-1])


class Attending(zoo.Net):
    """Torch's own attention and layer norm."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), n=nn.LayerNorm(8), m=nn.MultiheadAttention(8, 2, batch_first=True))
        self.up, self.fc = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.n(self.e(x))
        return self.fc(self.up(x + self.m(x, x, x, need_weights=False)[0]).relu().mean(1))


class Depthwise(zoo.Net):
    """A convolution within each channel, and functional ReLU."""

    def __init__(self):
        super().__init__(a=zoo.conv(1, 8), d=zoo.conv(8, 8, groups=8), p=nn.Conv2d(8, 12, 1), fc=nn.Linear(12, 3))

    def forward(self, x):
        return self.fc(self.p(self.d(self.a(x).relu()).relu()).relu().mean((2, 3)))


PAIR = {"left": IMAGES, "right": IMAGES.flip(0)}
# What a user may bring: the module, its inputs, whether its channels can be removed.
ZOO = [
    (zoo.Dense, IMAGES, True),
    (zoo.AddedToConcat, IMAGES, True),
    (zoo.Flatten, IMAGES, True),
    (zoo.Gate, IMAGES, True),
    (zoo.Grouped, IMAGES, True),
    (zoo.Transposed, IMAGES, True),
    (zoo.Shared, IMAGES, True),
    (zoo.Normalized, IMAGES, True),
    (Depthwise, IMAGES, True),
    (zoo.MeanOverChannels, IMAGES, True),
    (zoo.Recurrent, TOKENS, True),
    (Gru, TOKENS, False),
    (zoo.Transformer, TOKENS, True),
    (zoo.OwnAttention, TOKENS, True),
    (Attending, TOKENS, True),
    # Nothing is masked, which takes another way; a head that runs in training only.
    (zoo.Masked, TOKENS.clamp(min=1), True),
    (zoo.Auxiliary, torch.randn(120, 4, generator=torch.Generator().manual_seed(0)), True),
    (TwoImages, PAIR, True),
    (Branches, IMAGES, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "inputs", "cuttable"), ZOO, ids=lambda value: getattr(value, "__name__", None))
def test_channel_pruning_is_searched_where_it_is_safe(model, inputs, cuttable):
    result, notices = probed(model, inputs)
    ratio = result.sections["student"]["from_teacher"]["pruning_ratio"]
    refused = [notice for notice in notices if notice.startswith("removing its channels is not safe")]
    assert isinstance(ratio, FloatRange) == cuttable == (not refused)
    if cuttable:
        torch.manual_seed(0)
        task = Module(model(), (inputs, TARGETS))
        teacher, batch = task.build(Part("from_teacher")), task.splits(0).calibration
        for share in (0.3, 0.6):
            context = Context(task.example(), (batch.inputs,))
            cut, _ = PRUNE.get("structured").apply(teacher, StructuredConfig(pruning_ratio=share), context)
            assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in teacher.parameters())
            assert cut(*batch.inputs).shape == (len(batch), 3)
    else:
        assert set(result.sections["prune"]) == {"none", "unstructured"}
        assert "unstructured replaces it" in notices[-1]


def test_layers_that_stay_are_listed_with_the_line_of_the_user():
    _, notices = probed(zoo.Transformer, TOKENS)
    (listed,) = [notice for notice in notices if notice.startswith("layers whose channels are not removed: ")]
    assert "'e' (it runs through layer_norm in 't.norm1' (zoo.py:" in listed
    assert "'fc'" not in listed


HIDDEN = "from_teacher: {hidden_ratio: [0.0, 0.25]}"


def test_the_hidden_size_is_searched_where_it_can_be_reduced():
    result, notices = probed(zoo.Transformer, TOKENS, student=HIDDEN)
    assert result.sections["student"]["from_teacher"]["hidden_ratio"] == Choice((0.0, 0.25))
    assert not any("'e'" in notice for notice in notices)


def test_a_model_without_layer_normalization_loses_the_ratio_without_a_notice():
    result, notices = probed(zoo.Dense, student=HIDDEN)
    assert result.sections["student"]["from_teacher"]["hidden_ratio"] == 0.0
    assert not any("hidden" in notice for notice in notices)


class NormalizedInput(zoo.Net):
    """Normalizes its inputs, which cannot be removed."""

    def __init__(self):
        super().__init__(norm=nn.LayerNorm(8), a=zoo.conv(1, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.a(self.norm(x)).relu().mean((2, 3)))


def test_a_hidden_size_that_cannot_be_reduced_is_left_out_with_the_reason():
    result, notices = probed(NormalizedInput, student=HIDDEN)
    assert result.sections["student"]["from_teacher"]["hidden_ratio"] == 0.0
    assert any(notice.startswith("reducing its hidden size is not safe with this teacher (no ") for notice in notices)


class Narrow(zoo.Net):
    """Fails with fewer than four channels."""

    def __init__(self):
        super().__init__(a=zoo.conv(1, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        x = self.a(x)
        if x.shape[1] < 4:
            raise ValueError("at least four channels")
        return self.fc(x.relu().mean((2, 3)))


def test_ratios_that_fail_are_left_out():
    result, notices = probed(Narrow, prune="structured")
    assert result.sections["student"]["from_teacher"]["pruning_ratio"] == FloatRange(0.0, 0.53)
    assert notices[0].startswith("removing its channels works up to a ratio of 0.53 with this teacher (")
    assert "at least four channels" in notices[0]
    # The default range of prune.structured ends at 0.5, its fixed default.
    assert set(result.sections["prune"]) == {"structured"}


def test_depth_pruning_needs_blocks():
    result, notices = probed(zoo.Flatten)
    assert result.sections["student"]["from_teacher"]["depth_ratio"] == 0.0
    assert any("dropping its blocks is not safe" in notice for notice in notices)


def test_failing_pruning_methods_are_removed():
    result, notices = probed(Gru, TOKENS, prune="structured")
    assert set(result.sections["prune"]) == {"unstructured"}
    assert any(notice.startswith("prune.structured is not safe") for notice in notices)


def test_method_for_another_student_is_kept():
    result, _ = probed(Branches, prune="structured", student="from_teacher: {}, cnn: {width: 4}")
    assert set(result.sections["prune"]) == {"structured"}


def test_spaces_without_the_teacher_are_unchanged():
    torch.manual_seed(0)
    task = Module(zoo.Dense(), (IMAGES, TARGETS))
    before = space(student="cnn: {width: 4}")
    assert remove_unsafe_methods(before, task, task.splits(0)) == (before, ())


def test_teacher_is_unchanged():
    torch.manual_seed(0)
    task = Module(zoo.Dense(), (IMAGES, TARGETS))
    before = task.identity_options
    remove_unsafe_methods(space(), task, task.splits(0))
    assert task.identity_options == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objectives=[accuracy, hotflip_accuracy, bytes]"], "objectives.hotflip_accuracy: .* none; use pgd"),
        (["distill={robust: {attack: [pgd, hotflip]}}"], "distill.robust.attack: hotflip replaces tokens"),
        (["limits={pushed_rating: {max: 3}}"], "limits.pushed_rating: .* use poisoned_ratings or"),
    ],
)
def test_attacks_that_do_not_fit_the_task_are_named(changes: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(load_spec("digits", changes))


def test_a_pushed_item_has_the_score_of_its_task() -> None:
    changes = ["task=poisoned_ranking", "objectives=[ndcg_at_10, pushed_rating, bytes]"]
    with pytest.raises(SpecError, match="use pushed_hit_rate_at_10"):
        make_plan(load_spec("ranking", changes))
