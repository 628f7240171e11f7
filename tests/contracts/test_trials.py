"""A search space that names a method runs a trial with it, on real digits, and its candidate can be rebuilt."""

import pytest

from autocompress.core.records import Job, TrialResult
from autocompress.core.registry import DISTILL, FITS, QUANTIZE
from autocompress.engine.runner import Plan, make_plan
from autocompress.engine.spec import parse_spec
from autocompress.trial.pipeline import load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial

SPEC = """
task: digits
teacher:
  student: {{cnn: {{width: 12, depth: 1}}}}
  fit: {{adamw: {{epochs: 16, learning_rate: 1e-2}}}}
student: {{cnn: {{width: 8, depth: 1, stages: 2, block: residual}}}}
distill: {distill}
fit: {fit}
quantize: {quantize}
"""
# Enough to see that it trains, and no more.
FEW = {"epochs": 2, "iterations": 20}


class Defaults:
    """Answers a space's questions with the first choice and the lowest value."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return low

    def suggest_categorical(self, name: str, choices: list[object]) -> object:
        return choices[-1]


def run(distill: str = "none", fit: str = "adamw: {epochs: 6, learning_rate: 1e-2}", quantize: str = "none") -> tuple:  # type: ignore[type-arg]
    sections = {"distill": distill, "fit": fit, "quantize": quantize}
    plan = make_plan(parse_spec(SPEC.format(**{name: f"{{{text}}}" for name, text in sections.items()}), "x"))
    training, _ = plan.space.suggest_config(Defaults(), with_compression=False)
    with reproducible_torch():
        return plan, run_trial(Job(0, training, plan.space.compression_grid()), plan.setup)


def first_loss(result: TrialResult) -> float:
    return result.candidates[0].scores["select_val"]["loss"]


@pytest.fixture(scope="module")
def plain() -> TrialResult:
    return run()[1]


@pytest.fixture(scope="module")
def quantized() -> tuple[Plan, TrialResult]:
    knobs = {name: QUANTIZE.get(name).config.knobs() for name in QUANTIZE.names()}
    few = {name: {knob: FEW[knob] for knob in FEW if knob in actual} for name, actual in knobs.items()}
    few["progressive"]["floor"] = 0.5
    sections = ", ".join(f"{name}: {values}".replace("'", "") for name, values in few.items())
    plan, result = run(quantize=f"none: , {sections}")
    return plan, result


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZE.names())
def test_a_quantization_method_makes_a_smaller_candidate_that_is_rebuilt(
    name: str, quantized: tuple[Plan, TrialResult]
) -> None:
    plan, result = quantized
    assert result.reason == ""
    whole = result.candidates[0]
    (actual,) = (entry for entry in result.candidates if entry.config.quantize and entry.config.quantize.name == name)
    assert actual.costs["bytes"] < 0.7 * whole.costs["bytes"]
    assert actual.scores["select_val"]["loss"] != whole.scores["select_val"]["loss"]
    assert actual.scores["select_val"]["accuracy"] > whole.scores["select_val"]["accuracy"] - 0.3
    assert actual.details["layers"]
    with reproducible_torch():
        pipeline = load_pipeline(plan.setup)
        rebuilt = pipeline.rebuild(actual.config, result.checkpoints[actual.checkpoint])
        logits = pipeline.predict(rebuilt.model, pipeline.splits.select_val)["label"]
    right = (logits.argmax(1) == pipeline.splits.select_val.targets["label"]).double().mean()
    assert float(right) == actual.scores["select_val"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTILL.names())
def test_a_distillation_term_trains_another_student(name: str, plain: TrialResult) -> None:
    section = name if DISTILL.get(name).kind == "logit" else f"none: , {name}: "
    result = run(distill=f"{section}: " if ":" not in section else section)[1]
    assert result.state.value == "complete"
    used = {part.name for part in result.candidates[0].config.distill}
    assert name in used
    assert (first_loss(result) == first_loss(plain)) == (name == "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS.names())
def test_an_optimizer_trains(name: str, plain: TrialResult) -> None:
    result = run(fit=f"{name}: {{epochs: 6, learning_rate: 5e-2}}")[1]
    assert result.curve[-1]["loss"] < 0.8 * result.curve[0]["loss"]
    assert first_loss(result) != first_loss(plain)


@pytest.mark.slow
def test_the_order_of_operations_is_a_choice_of_the_search() -> None:
    spec = SPEC.format(distill="{none: }", fit="{adamw: {epochs: 2}}", quantize="{post_training: , qat: {epochs: 1}}")
    spec += "prune: {structured: {pruning_ratio: 0.25, recovery_epochs: [0, 1]}}\n"
    plan = make_plan(parse_spec(spec, "x"))
    training, _ = plan.space.suggest_config(Defaults(), with_compression=False)
    with reproducible_torch():
        result = run_trial(Job(0, training, plan.space.compression_grid()[1:]), plan.setup)
    orders = {tuple(word.split()[0] for word in candidate.details["order"][1:]) for candidate in result.candidates}
    assert orders == {
        ("prune", "quantize"),
        ("prune", "tune", "quantize"),
        ("prune", "quantize", "tune"),
        ("prune", "tune", "quantize", "tune"),
    }
    assert len({candidate.scores["select_val"]["loss"] for candidate in result.candidates}) == 4
