import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE, TASKS
from autocompress.core.task import logits_by_head
from autocompress.errors import CompressionError
from autocompress.trial import supernet
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.supernet import SubNetworks, subnetwork_pruning
from autocompress.trial.teacher import TeacherRecipe

DIGITS = TASKS.get("digits")()
TEXTS = TASKS.get("langid")()
SETUP = Setup(
    Part.of("digits"),
    0,
    TeacherRecipe(Part.of("cnn", width=8, depth=1), Part.of("adamw", epochs=3)),
    ("accuracy",),
    ("effective_flops",),
)
FAMILIES = {
    "plain": (DIGITS, Part.of("cnn", width=8, depth=2, block="plain")),
    "residual": (DIGITS, Part.of("cnn", width=8, depth=2, block="residual")),
    "separable": (DIGITS, Part.of("cnn", width=8, depth=1, block="separable")),
    "inverted": (DIGITS, Part.of("cnn", width=8, depth=1, block="inverted")),
    "text": (TEXTS, Part.of("text_cnn")),
}


def cut(model: nn.Module, ratio: float, context: Context) -> nn.Module:
    part = subnetwork_pruning(ratio)
    method = PRUNE.get(part.name)
    actual: nn.Module = method.apply(model, method.config.of(part.values), context)[0]
    return actual.eval()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_divergence_of_the_models_that_are_cut_out_later(family: str) -> None:
    task, student = FAMILIES[family]
    torch.manual_seed(0)
    model = task.build(student).eval()
    context = Context(task.example())
    beside = SubNetworks(model, task.heads, context, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            # As after steps of training: the sub-networks must see the weights that there are now.
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = task.splits(0).train.take(slice(0, 16)).inputs
    with torch.no_grad():
        logits = logits_by_head(model(*inputs), task.heads)
        torch.manual_seed(5)
        actual = beside(inputs, logits)
        torch.manual_seed(5)
        ratios = {0.5, *((torch.randint(10, (2,)) + 1) * 0.05).tolist()}
        expected = sum(
            _divergence(cut(model, round(ratio, 2), context)(*inputs), logits, task.heads) for ratio in ratios
        )
    assert float(actual) == pytest.approx(float(expected), rel=1e-4)
    assert float(actual) > 0


def _divergence(output: object, logits: Mapping[str, Tensor], heads: Mapping[str, int]) -> float:
    ours = logits_by_head(output, heads)
    entry = [
        (logits[head].softmax(1) * (logits[head].log_softmax(1) - ours[head].log_softmax(1))).sum(1).mean()
        for head in heads
    ]
    return float(torch.stack(entry).mean())


def test_the_channels_of_a_narrower_sub_network_lie_in_a_wider_one() -> None:
    torch.manual_seed(0)
    model = DIGITS.build(Part.of("cnn", width=16, depth=1))
    context = Context(DIGITS.example())
    cuts = [cut(model, ratio, context) for ratio in (0.25, 0.5, 0.75)]
    weights = [set(narrow.get_parameter("stem.0.weight").detach().flatten().tolist()) for narrow in cuts]
    assert weights[2] < weights[1] < weights[0]


def test_gradients_reach_the_shared_weights_alone() -> None:
    torch.manual_seed(0)
    model = DIGITS.build(Part.of("cnn", width=8, depth=1)).train()
    beside = SubNetworks(model, DIGITS.heads, Context(DIGITS.example()), 0.5)
    before = copy.deepcopy(dict(model.named_buffers()))
    inputs = DIGITS.splits(0).train.take(slice(0, 16)).inputs
    logits = {"label": torch.randn(16, 10, requires_grad=True)}
    beside(inputs, logits).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # In-place distillation: the whole student learns from its own loss, not from what its parts make of it.
    assert logits["label"].grad is None
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_a_student_without_channels_to_spare_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(CompressionError, match="no channel can be removed"):
        SubNetworks(model, {"label": 10}, Context((torch.zeros(1, 1, 8, 8),)), 0.5)


def _training(sandwich: float, epochs: int = 12) -> CompressionConfig:
    fit = Part.of("adamw", epochs=epochs, learning_rate=1e-2, sandwich=sandwich)
    return CompressionConfig(Part.of("cnn", width=16, depth=1), (Part.of("soft_target"),), fit, seed=1)


@pytest.mark.slow
def test_one_training_gives_good_models_of_every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each width is traced once for each fit; here there are three of them.
    monkeypatch.setattr(supernet, "RATIO_STEP", 0.25)
    accuracy: dict[float, list[float]] = {}
    with reproducible_torch():
        pipeline = load_pipeline(SETUP)
        for sandwich in (0.0, 0.75):
            training = _training(sandwich)
            model = pipeline.train(training).model
            accuracy[sandwich] = [
                pipeline.score(pipeline.prune(model, training, subnetwork_pruning(ratio))[0]) for ratio in (0.5, 0.75)
            ]
            accuracy[sandwich].append(pipeline.score(model))
    assert min(accuracy[0.75]) > 0.85
    assert accuracy[0.75][1] > accuracy[0.0][1] + 0.2


@pytest.mark.slow
def test_a_pause_changes_nothing() -> None:
    with reproducible_torch():
        pipeline = load_pipeline(SETUP)
        # Few widths, which take longer to trace than to train; which one is drawn still changes every step.
        training = _training(0.1, epochs=3)
        whole = pipeline.train(training)
        first = pipeline.train(training, until=1)
        torch.manual_seed(99)
        last = pipeline.train(training, paused=first.paused)
    assert first.paused
    assert last.curve == whole.curve
    weights = last.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.model.state_dict().items())
