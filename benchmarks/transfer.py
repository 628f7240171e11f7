"""Transfer of a teacher to another data set: `python -m benchmarks.transfer [--seeds 5]`.

Test accuracy in percent, mean and standard error over seeds; a seed draws the splits, the few labelled examples and all
initial weights. New classes: the source has learned one half of the classes, and the teacher of the other half starts
from its weights with a new head. No labels: the source has learned the same classes from other data, and students learn
from its predictions on unlabelled examples. The rows are stored beside the table, so an interrupted run can be resumed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.core.atomic import cache_folder, write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import TASKS
from autocompress.core.task import Split, Splits
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import parse_spec
from autocompress.tasks.images import Digits
from autocompress.tasks.text import KINDS, LangId, LangIdKind
from autocompress.training.fit import predict
from autocompress.trial.pipeline import TrialPipeline, load_pipeline, reproducible_torch
from benchmarks.common import append_row, load_rows
from benchmarks.variants import mean_and_error

DIGIT_CLASSES, LANGUAGE_CLASSES = 10, 30


def select_classes(splits: Splits, first: int, last: int) -> Splits:
    """Return the examples of some classes of the only head, numbered from 0.

    Args:
        splits: The five splits.
        first: First class.
        last: First class that is left out.
    """
    selected = {}
    for name, part in splits.items():
        ((head, target),) = part.targets.items()
        rows = (target >= first) & (target < last)
        selected[name] = Split(part.take(rows).inputs, {head: target[rows] - first})
    return Splits(**selected)


def limit_training(splits: Splits, examples: int, seed: int) -> Splits:
    """Return splits with ``examples`` random training examples; 0 for all of them."""
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    return replace(splits, train=splits.train.take(order[:examples])) if examples else splits


class _HalfDigits(Digits):
    heads: Mapping[str, int] = MappingProxyType({"label": 5})
    first = 0

    def __init__(self, examples: int = 0) -> None:
        self._examples = examples

    def splits(self, seed: int) -> Splits:
        """Return the splits of half of the digits."""
        half = select_classes(super().splits(seed), self.first, self.first + 5)
        return limit_training(half, self._examples, seed)


@TASKS.register("digits_0_to_4")
class LowDigits(_HalfDigits):
    """The digits 0 to 4."""

    name = "digits_0_to_4"


@TASKS.register("digits_5_to_9")
class HighDigits(_HalfDigits):
    """The digits 5 to 9.

    Args:
        examples: Number of training examples; 0 for all.
    """

    name = "digits_5_to_9"
    first = 5


@TASKS.register("noisy_digits")
class NoisyDigits(Digits):
    """All digits with weaker contrast and noise, in units of the normalized pixels.

    Args:
        examples: Number of training examples; 0 for all.
    """

    name = "noisy_digits"

    def __init__(self, examples: int = 0) -> None:
        self._examples = examples

    def splits(self, seed: int) -> Splits:
        """Return the changed images."""
        generator = torch.Generator().manual_seed(seed)
        changed = {}
        for name, part in super().splits(seed).items():
            (images,) = part.inputs
            noise = torch.randn(images.shape, generator=generator)
            changed[name] = Split((0.6 * images + 0.6 * noise + 0.3,), part.targets)
        return limit_training(Splits(**changed), self._examples, seed)


class _HalfLanguages(LangId):
    heads: Mapping[str, int] = MappingProxyType({"language": LANGUAGE_CLASSES // 2})
    labels: Mapping[str, Sequence[str]] = MappingProxyType({})
    first = 0

    def __init__(self, examples: int = 0) -> None:
        super().__init__()
        self._examples = examples

    def splits(self, seed: int) -> Splits:
        """Return the names in half of the languages."""
        half = select_classes(super().splits(seed), self.first, self.first + LANGUAGE_CLASSES // 2)
        return limit_training(half, self._examples, seed)


@TASKS.register("languages_a_to_i")
class FirstLanguages(_HalfLanguages):
    """Names in the first 15 languages."""

    name = "languages_a_to_i"


@TASKS.register("languages_i_to_v")
class LastLanguages(_HalfLanguages):
    """Names in the last 15 languages.

    Args:
        examples: Number of training examples; 0 for all.
    """

    name = "languages_i_to_v"
    first = LANGUAGE_CLASSES // 2


class _NamesOfKinds(LangId):
    kinds: tuple[str, ...] = ()

    def __init__(self, examples: int = 0) -> None:
        super().__init__()
        self._examples = examples

    def splits(self, seed: int) -> Splits:
        """Return the names of some kinds, with their language as the only target."""
        kinds = torch.tensor([KINDS.index(kind) for kind in self.kinds])
        parts = {}
        for name, part in LangIdKind().splits(seed).items():
            chosen = part.take(torch.isin(part.targets["kind"], kinds))
            parts[name] = Split(chosen.inputs, {"language": chosen.targets["language"]})
        return limit_training(Splits(**parts), self._examples, seed)


@TASKS.register("place_names")
class PlaceNames(_NamesOfKinds):
    """Names of territories."""

    name = "place_names"
    kinds = ("territory",)


@TASKS.register("other_names")
class OtherNames(_NamesOfKinds):
    """Names of languages, currencies and scripts."""

    name = "other_names"
    kinds = ("language", "currency", "script")


@dataclass(frozen=True)
class Scenario:
    """A task with its sources.

    Attributes:
        name: Name in the table.
        source: Task of the source for new classes.
        target: Task with the other classes.
        examples: Number of labelled training examples of the target.
        unlabelled_source: Task of the source for unlabelled data.
        unlabelled_target: Task with the same classes and other data.
        teacher: Architecture and fit of all teachers, as YAML.
        student: Architecture and fit of the students, as YAML.
        rate: Learning rate of a new head on a frozen backbone.
    """

    name: str
    source: str
    target: str
    examples: int
    unlabelled_source: str
    unlabelled_target: str
    teacher: str
    student: str
    rate: float


SCENARIOS = (
    Scenario(
        "digits",
        "digits_0_to_4",
        "digits_5_to_9",
        50,
        "digits",
        "noisy_digits",
        "student: {cnn: {width: 16, depth: 1, block: residual}}, "
        "fit: {adamw: {epochs: 20, learning_rate: 4e-3, batch_size: 16}}",
        "student: {cnn: {width: 8, depth: 1}}\nfit: {adamw: {epochs: 12, learning_rate: 1e-2, batch_size: 16}}\n",
        0.05,
    ),
    Scenario(
        "names",
        "languages_a_to_i",
        "languages_i_to_v",
        600,
        "place_names",
        "other_names",
        "student: {text_cnn: {embedding: 16, width: 48, depth: 1, block: parallel}}, "
        "fit: {adamw: {epochs: 8, learning_rate: 6e-3, batch_size: 64}}",
        "student: {text_cnn: {embedding: 16, width: 24, depth: 1}}\n"
        "fit: {adamw: {epochs: 8, learning_rate: 1e-2, batch_size: 64}}\n",
        0.02,
    ),
)


def load_target(scenario: Scenario, task: str, seed: int, distill: str, *overrides: str) -> TrialPipeline:
    """Return the pipeline of a spec with these distillation settings.

    Args:
        scenario: The scenario, which gives teacher and student.
        task: Task with its options, as YAML.
        seed: Seed of the splits and of the teacher.
        distill: Section ``distill``, as YAML.
        overrides: Changes of the spec, ``key=value``.
    """
    text = (
        f"task: {task}\nsplit_seed: {seed}\nsearch: {{backend: serial}}\n{scenario.student}"
        f"distill: {distill}\nteacher: {{seed: {seed}, {scenario.teacher}}}\n"
    )
    return load_pipeline(make_plan(parse_spec(text, scenario.name, overrides)).setup)


def score_test(pipeline: TrialPipeline, model: nn.Module) -> float:
    """Return the accuracy on the test split."""
    test = pipeline.splits.test
    ((head, target),) = test.targets.items()
    return float((predict(model, pipeline.task, test)[head].argmax(1) == target).float().mean())


def train_student(scenario: Scenario, pipeline: TrialPipeline, seed: int, term: Part) -> float:
    """Return the test accuracy of the scenario's student, trained with one term."""
    spec = parse_spec(f"task: {pipeline.task.name}\n{scenario.student}", scenario.name).spec
    student, fit = (Part.from_json(section) for section in (spec.student, spec.fit))
    return score_test(pipeline, pipeline.train(CompressionConfig(student, (term,), fit, seed=seed)).model)


def save_source(scenario: Scenario, task: str, seed: int) -> Path:
    """Return the path of the weights of a task's own teacher."""
    teacher = load_target(scenario, task, seed, "{none: }").teacher
    path = cache_folder() / "benchmarks" / f"{task}-{seed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in teacher.model.state_dict().items()}, path)
    return path


SOFT = Part.of("soft_target", alpha=0.9, temperature=2.0)


def measure_few_labels(scenario: Scenario, kind: str, seed: int) -> dict[str, float]:
    """Return the test scores of teachers of a target with few labels, by the weights that they start from.

    Args:
        scenario: The scenario.
        kind: ``new`` for other classes and a new head, ``same`` for the same classes and the head of the source.
        seed: Seed of the splits, the examples and the weights.
    """
    source, target, head = (
        (scenario.source, scenario.target, "new")
        if kind == "new"
        else (scenario.unlabelled_source, scenario.unlabelled_target, "keep")
    )
    path = save_source(scenario, source, seed)
    task = f"{{{target}: {{examples: {scenario.examples}}}}}"
    scores = {}
    pipelines = {}
    for name, backbone in (("random weights", ""), ("frozen backbone", "frozen"), ("tuned backbone", "tuned")):
        transfer = f"transfer: {{from: {path}, head: {head}, backbone: {backbone}}}" if backbone else ""
        # One linear layer is trained on a frozen backbone, at a higher rate.
        overrides = [f"teacher.fit.adamw.learning_rate={scenario.rate}"] if backbone == "frozen" else []
        pipelines[name] = load_target(scenario, task, seed, f"{{none: , {transfer}}}", *overrides)
        scores[f"teacher, {name}"] = score_test(pipelines[name], pipelines[name].teacher.model)
    scores["student without a teacher"] = train_student(scenario, pipelines["random weights"], seed, Part("none"))
    for name in ("random weights", "tuned backbone"):
        scores[f"student of the teacher from {name}"] = train_student(scenario, pipelines[name], seed, SOFT)
    return scores


def measure_unlabelled(scenario: Scenario, seed: int) -> dict[str, float]:
    """Return the test scores on other data than that of the source, by name."""
    path = save_source(scenario, scenario.unlabelled_source, seed)
    target = scenario.unlabelled_target
    pipeline = load_target(scenario, target, seed, f"{{none: , transfer: {{from: {path}, labels: false}}}}")
    own = load_target(scenario, target, seed, "{none: }")
    source = load_target(scenario, scenario.unlabelled_source, seed, "{none: }")
    # The student that never saw the target's data is scored on the target's test split.
    spec = parse_spec(f"task: {target}\n{scenario.student}", scenario.name).spec
    config = CompressionConfig(Part.from_json(spec.student), (SOFT,), Part.from_json(spec.fit), seed=seed)
    return {
        "student, source data only": score_test(pipeline, source.train(config).model),
        "student, no labels": train_student(scenario, pipeline, seed, replace_alpha(1.0)),
        "student, all labels": train_student(scenario, own, seed, SOFT),
        "source itself": score_test(pipeline, pipeline.teacher.model),
    }


def replace_alpha(alpha: float) -> Part:
    """Return soft targets with this weight against the labels."""
    return Part.of(SOFT.name, **{**SOFT.values, "alpha": alpha})


TITLES = {
    "new": "Few labels, other classes: a new head",
    "same": "Few labels, same classes, other data: the head of the source",
    "unlabelled": "No labels, same classes, other data",
}


def format_tables(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the page: one table for new classes and one for unlabelled data."""
    lines = ["# Transfer of a teacher to another data set", ""]
    lines += [
        "Test accuracy in percent, mean and standard error over seeds. Differences are paired by seed; a star marks",
        "one beyond two standard errors.",
        "",
    ]
    for kind, title in TITLES.items():
        lines += [f"## {title}", "", "| task | model | seeds | accuracy | difference to the first row |"]
        lines.append("|---|---|---|---|---|")
        for scenario in SCENARIOS:
            entries = [row["scores"] for row in rows if row["kind"] == kind and row["task"] == scenario.name]
            scores = [dict(entry) for entry in entries if isinstance(entry, Mapping)]
            lines += _format_rows(_describe(scenario, kind), scores)
        lines.append("")
    return "\n".join(lines)


def _describe(scenario: Scenario, kind: str) -> str:
    if kind == "new":
        return f"{scenario.source} to {scenario.examples} examples of {scenario.target}"
    examples = f"{scenario.examples} examples of " if kind == "same" else ""
    return f"{scenario.unlabelled_source} to {examples}{scenario.unlabelled_target}"


def _format_rows(task: str, scores: Sequence[Mapping[str, float]]) -> list[str]:
    lines = []
    first = next(iter(scores[0]), "") if scores else ""
    for name in scores[0] if scores else ():
        mean, error = mean_and_error([100 * row[name] for row in scores])
        gap, gap_error = mean_and_error([100 * (row[name] - row[first]) for row in scores])
        # One seed has no error.
        errors = (f" ± {error:.1f}", f" ± {gap_error:.1f}") if len(scores) > 1 else ("", "")
        difference = "" if name == first else f"{gap:+.1f}{errors[1]}" + " *" * (abs(gap) > 2 * gap_error)
        lines.append(f"| {task} | {name} | {len(scores)} | {mean:.1f}{errors[0]} | {difference} |")
    return lines


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/transfer.md"))
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    done = {(row["kind"], row["task"], row["seed"]) for row in load_rows(file)}
    with reproducible_torch():
        for seed in range(arguments.seeds):
            for scenario in SCENARIOS:
                for kind in TITLES:
                    if (kind, scenario.name, seed) not in done:
                        is_labelled = kind != "unlabelled"
                        scores = (
                            measure_few_labels(scenario, kind, seed)
                            if is_labelled
                            else measure_unlabelled(scenario, seed)
                        )
                        print(kind, scenario.name, seed, scores, flush=True)
                        append_row(file, {"kind": kind, "task": scenario.name, "seed": seed, "scores": scores})
    rows = load_rows(file)
    text = format_tables(rows)
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
