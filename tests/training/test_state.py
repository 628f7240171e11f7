import io
import zipfile
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.distill.head_weighting import DynamicWeights
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, FitResult, fit
from autocompress.training.trainer import restore_state, serialize_state

TASK = Digits()
SPLITS = TASK.splits(0)
TEACHER = TASK.build(Part.of("cnn", width=6, depth=1)).eval()
EPOCHS = 5


@dataclass(frozen=True)
class Known:
    """A teacher whose logits are those of an untrained network."""

    model: nn.Module = TEACHER

    def view(self, index: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"label": self.model(*TASK.view(SPLITS.train, index).inputs)}


class Dropping(nn.Module):
    """Draws from torch's own generator in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TASK.build(Part.of("cnn", width=6, depth=1))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(self.drop(x))


def model() -> nn.Module:
    torch.manual_seed(3)
    return Dropping()


def segment(part: Part, terms: list[Part], until: int | None, paused: bytes = b"") -> tuple[nn.Module, FitResult]:
    built = model()
    fitted = fit(
        built, FitRequest(TASK, SPLITS.train, part, terms=terms, teacher=Known(), seed=7, until=until, paused=paused)
    )
    return built, fitted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "terms"),
    [
        (Part.of("adamw", epochs=EPOCHS), [Part("none")]),
        (Part.of("sgd", epochs=EPOCHS, schedule="cosine"), [Part.of("soft_target")]),
        (Part.of("adamw", epochs=EPOCHS, schedule="plateau", mixup=0.2), [Part("none")]),
        (Part.of("adamw", epochs=EPOCHS, schedule="step", patience=3), [Part.of("dist")]),
        (Part.of("adamw", epochs=EPOCHS, precision="bfloat16"), [Part("none"), Part.of("hint")]),
        (Part.of("adamw", epochs=EPOCHS), [Part.of("soft_target"), Part.of("robust", attack="pgd", steps=1)]),
    ],
    ids=lambda value: value.name if isinstance(value, Part) else "+".join(part.name for part in value),
)
def test_segments_give_bit_for_bit_what_one_fit_gives(part: Part, terms: list[Part]) -> None:
    if terms[-1].name == "robust":
        terms = terms[-1:]
    whole = model()
    curve = fit(whole, FitRequest(TASK, SPLITS.train, part, terms=terms, teacher=Known(), seed=7)).curve
    _, first = segment(part, terms, 1)
    _, second = segment(part, terms, 3, first.paused)
    torch.manual_seed(99)
    last, third = segment(part, terms, None, second.paused)
    assert len(first.curve) == 1
    assert len(second.curve) == 3
    assert first.paused
    assert second.paused
    assert not third.paused
    assert third.curve == curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, last.state_dict()[name]), name


def test_a_fit_that_ends_early_is_not_paused() -> None:
    part = Part.of("sgd", epochs=40, learning_rate=1e-5, patience=1, schedule="constant")
    _, fitted = segment(part, [Part("none")], 39)
    assert len(fitted.curve) < 39
    assert not fitted.paused


def test_the_history_of_dynamic_weights_outlives_a_pause() -> None:
    weights, other = (DynamicWeights(["a", "b"]) for _ in range(2))
    for losses in ([1.0, 1.0], [0.2, 0.9]):
        weights({"a": torch.tensor(losses[0]), "b": torch.tensor(losses[1])})
        weights.after_epoch(lambda value: value)
    restore_state(serialize_state({"weights": weights}, {}, {}), {"weights": other}, {})
    assert torch.equal(weights.weights(), other.weights())
    assert weights.weights()[1] > weights.weights()[0]


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80\x02K\x01."], ids=["empty", "text", "pickle"])
def test_a_damaged_state_is_a_named_error(content: bytes) -> None:
    with pytest.raises(TrialError, match="cannot be read"):
        restore_state(content, {}, {})


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_hostile_state_runs_no_code() -> None:
    buffer = io.BytesIO()
    torch.save({"parts": {}, "generators": {}, "torch": Bomb(), "facts": {}}, buffer)
    with pytest.raises(TrialError, match="cannot be read"):
        restore_state(buffer.getvalue(), {}, {})


def test_a_compressed_state_is_refused_before_it_is_unpacked() -> None:
    content = serialize_state({"model": nn.Linear(1000, 100)}, {}, {})
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(TrialError, match="take more memory than its file"):
        restore_state(bomb.getvalue(), {}, {})


@pytest.mark.parametrize(
    "change", [{"parts": []}, {"generators": 3}, {"torch": torch.zeros(2)}, {"torch": "x"}, {"others": None}], ids=str
)
def test_a_state_of_another_form_is_refused(change: dict[str, Any]) -> None:
    state = torch.load(io.BytesIO(serialize_state({"model": nn.Linear(2, 2)}, {"order": torch.Generator()}, {})))
    buffer = io.BytesIO()
    torch.save(state | change, buffer)
    with pytest.raises(TrialError, match="does not fit its config"):
        restore_state(buffer.getvalue(), {"model": nn.Linear(2, 2)}, {"order": torch.Generator()})


def test_the_state_of_another_model_is_refused() -> None:
    part = Part.of("adamw", epochs=EPOCHS)
    _, fitted = segment(part, [Part("none")], 1)
    other = TASK.build(Part.of("cnn", width=4, depth=1))
    with pytest.raises(TrialError, match="does not fit"):
        fit(
            other,
            FitRequest(
                TASK, SPLITS.train, part, terms=[Part("none")], teacher=None, seed=7, until=2, paused=fitted.paused
            ),
        )
