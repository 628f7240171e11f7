"""The spec: a YAML file that says what may vary, checked before anything expensive starts."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml as pyyaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from autocompress.core.formatting import bytes_of
from autocompress.engine.yaml import Place, parse
from autocompress.errors import SpecError, UsageError, did_you_mean

Setting = dict[str, Any]


def _named(value: Any) -> Any:
    """Let ``task: digits`` stand for ``task: {digits: {}}``."""
    return {value: {}} if isinstance(value, str) else value


def _settings(value: Any) -> Any:
    """Let ``none:`` stand for ``none: {}``, and a list of names for names without settings."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return {item: {} for item in value}
    if isinstance(value, dict):
        return {name: {} if settings is None else settings for name, settings in value.items()}
    return value


def _size(value: Any) -> Any:
    """Let ``4 GiB`` stand for its bytes."""
    return bytes_of(value) if isinstance(value, str | int) and not isinstance(value, bool) else value


Named = Annotated[dict[str, dict[str, Any]], BeforeValidator(_named), Field(min_length=1, max_length=1)]
Methods = Annotated[dict[str, Setting], BeforeValidator(_settings), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class SearchSection(_Section):
    """How to search.

    Attributes:
        mode: ``amortized`` trains once and cuts many candidates; ``autocompress list modes`` has the others.
        trials: Trainings at most.
        minutes: Wall-clock at most; no training is started that would end later.
        sampler: Who proposes the next training. ``surrogate`` guesses scores from all rungs and weighs the hypervolume
            that it expects against what a training takes; it needs one training to feed many candidates, and is
            ``tpe`` in other modes. ``tpe``, ``nsga2``, ``nsga3``, ``gp`` and ``random`` are Optuna's.
        promotion: Who goes on past a rung (a ninth and a third of the epochs), in mode ``amortized``.
        refine: Epochs that cuts which train may take (recovery after pruning, training with rounding), as a share of
            those of the trainings, in mode ``amortized``.
        seed: Seeds the sampler and, with the trial's number, every training.
        workers: Processes that train; 0 takes one per core.
        backend: Where they run.
        resources: What one training takes of a machine, such as ``{cpu: 1, gpu: 0.25}``, for the backend ``ray``.
        device: Where trainings run: ``cpu`` or ``cuda``; by default on the graphics card where ``resources`` asks for a
            share of one.
        address: The cluster that the backend ``ray`` joins: ``HOST:PORT``, or ``auto`` for the one of this machine.
        trial_minutes: Wall-clock that one training, or one segment of it, may take with its cuts.
        memory: What one worker may take, such as ``4 GiB``; a trial that wants more fails.
    """

    mode: Literal["amortized", "sampled", "supernet", "random", "sequential", "uniform_int8", "no_distillation"] = (
        "amortized"
    )
    trials: int = Field(40, ge=1)
    minutes: float | None = Field(None, gt=0)
    sampler: Literal["surrogate", "tpe", "nsga2", "nsga3", "gp", "random"] = "surrogate"
    promotion: Literal["pareto_rank", "best_score", "always"] = "pareto_rank"
    refine: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    backend: str = "local"
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    device: Literal["cpu", "cuda"] | None = None
    address: str | None = None
    trial_minutes: float | None = Field(None, gt=0)
    memory: Annotated[int | None, BeforeValidator(_size)] = None

    @property
    def trains_on(self) -> str:
        """The device of a training, as torch calls it."""
        return self.device or ("cuda" if (self.resources or {}).get("gpu") else "cpu")


class TeacherSection(_Section):
    """How the teacher is built and trained.

    Attributes:
        student: Its architecture, ``{name: {knob: value}}`` of the section ``student``; by default the task's.
        fit: Its training, likewise of the section ``fit``; by default the task's.
        seed: Seeds its weights and its training.
    """

    student: Named | None = None
    fit: Named | None = None
    seed: int = Field(0, ge=0)


class Limit(_Section):
    """Bounds that a candidate must keep to be feasible, both included.

    Attributes:
        min: The least that it may have, in the unit of the objective; ``None`` for no bound.
        max: The most that it may have, likewise.
    """

    min: float | None = None
    max: float | None = None


class PickSection(_Section):
    """Which candidate is recommended.

    Attributes:
        max_drop: What it may lose against the teacher in the first score, on ``select_val`` and on ``search_val``; a
            fraction for an accuracy, so that 0.01 is a point.
    """

    max_drop: float = Field(0.01, ge=0)


def _box_pairs(value: Any) -> Any:
    if isinstance(value, list):
        return dict.fromkeys(value)
    return value


class Spec(_Section):
    """A whole search: what is learned, what may vary, what counts.

    In objectives and limits, ``accuracy@language`` is a score of one head of the task.

    Attributes:
        name: Of the run and its folder.
        task: A task's name with its options.
        split_seed: Seeds the five splits.
        search: How to search.
        teacher: How the teacher is built and trained.
        student: Families that a student may be of, each with its knobs; see :mod:`autocompress.engine.space`.
        distill: Terms of the training loss, likewise.
        fit: Optimizers, likewise.
        prune: Pruning methods, likewise.
        quantize: Quantization methods, likewise.
        objectives: Scores and costs to trade off, at least one of each, with the box that hypervolume is measured
            in: ``(reference, ideal)``, or ``None`` for the default.
        limits: Bounds on scores and costs by name.
        pick: Which candidate is recommended.
    """

    name: str = Field(min_length=1, max_length=64)
    task: Named
    split_seed: int = Field(0, ge=0)
    search: SearchSection = SearchSection()
    teacher: TeacherSection = TeacherSection()
    student: Methods
    distill: Methods = {"none": {}}
    fit: Methods = {"adamw": {}}
    prune: Methods = {"none": {}}
    quantize: Methods = {"none": {}}
    objectives: Annotated[dict[str, tuple[float, float] | None], BeforeValidator(_box_pairs)] = {
        "accuracy": None,
        "effective_flops": None,
    }
    limits: dict[str, Limit] = {}
    pick: PickSection = PickSection()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("use letters, digits, '.', '_' and '-' only: it names the run's folder")
        return value

    def to_yaml(self) -> str:
        """Return the resolved spec as YAML."""
        return pyyaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def content(self) -> dict[str, Any]:
        """Return what a resumed run may not change: everything but the name and the budget."""
        data = self.model_dump(mode="json")
        del data["name"]
        budget = ("trials", "minutes", "trial_minutes", "memory")
        for field in (*budget, "workers", "backend", "resources", "device", "address"):
            del data["search"][field]
        return data


class Source:
    """A spec with the lines it came from, so that later checks can name them.

    Args:
        spec: The checked spec.
        name: Of the file.
        lines: Line (from 1) of each key, by its place.
    """

    def __init__(self, spec: Spec, name: str, lines: Mapping[Place, int]) -> None:
        self.spec = spec
        self.name = name
        self.lines = lines

    def error(self, place: Place, message: str) -> SpecError:
        """Return an error that names the file, the line and the key."""
        return SpecError(f"{_where(self.name, self.lines, place)}: {message}")


def shipped_spaces() -> dict[str, Path]:
    """Return the search spaces that ship with autocompress, by name."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load_spec(target: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a spec file, or the shipped spec of that name.

    Args:
        target: Path of a YAML file, or a name such as ``digits``.
        overrides: ``key.of.dots=value`` each; the value is read as YAML.

    Raises:
        SpecError: The file cannot be read, or something in it is wrong; the message names the line.
    """
    path = Path(target)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        spaces = shipped_spaces()
        if str(target) not in spaces:
            raise SpecError(
                f"no search space '{target}': {did_you_mean(str(target), spaces)}, or the path of a .yaml file"
            )
        path = spaces[str(target)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as reason:
        raise SpecError(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}") from None
    return parse_spec(text, str(path.name if path.parent == Path() else path), overrides, default_name=path.stem)


def parse_spec(text: str, source: str, overrides: Sequence[str] = (), default_name: str = "search") -> Source:
    """Return the checked text of a spec.

    Args:
        text: YAML.
        source: What messages call it.
        overrides: As in :func:`load_spec`.
        default_name: The run's name where the text has none.

    Raises:
        SpecError: Something in it is wrong; the message names the line and, for a misspelt key, the nearest one.
    """
    data, lines = parse(text, source)
    if not isinstance(data, dict):
        raise SpecError(f"{source}:1: a search space is a mapping that begins with `task:`")
    for override in overrides:
        _override(data, override)
    data.setdefault("name", default_name)
    try:
        spec = Spec.model_validate(data)
    except ValidationError as failure:
        raise _first_error(failure, source, lines) from None
    return Source(spec, source, lines)


def schema() -> str:
    """Return the JSON Schema of a spec, for editors."""
    return json.dumps(Spec.model_json_schema(), indent=2)


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {override}: write key.of.dots=value, for example search.mode=sampled")
    place = data
    for index, name in enumerate(names[:-1]):
        inner = place.setdefault(name, {})
        if isinstance(inner, str) or inner is None:
            inner = place[name] = {} if inner is None else {inner: {}}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {'.'.join(names[: index + 1])} holds no keys")
        place = inner
    place[names[-1]] = parse(text, f"--set {key}")[0]


def _first_error(failure: ValidationError, source: str, lines: Mapping[Place, int]) -> SpecError:
    error = failure.errors(include_url=False)[0]
    place = tuple(part for part in error["loc"] if part != "[key]")
    where = _where(source, lines, place)
    if error["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        return SpecError(f"{where}: unknown key; {did_you_mean(str(place[-1]), known)}")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return SpecError(f"{where}: {message.lower()}; add `{place[-1]}:`")
    return SpecError(f"{where}: {message[:1].lower() + message[1:]}, got {_short(error['input'])}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(place: Place) -> list[str]:
    model: Any = Spec
    for name in place:
        field = model.model_fields.get(name) if hasattr(model, "model_fields") else None
        model = Limit if place[0] == "limits" else (field.annotation if field else None)
    return list(getattr(model, "model_fields", {}))


def _where(source: str, lines: Mapping[Place, int], place: Place) -> str:
    line = next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)
    dotted = ".".join(str(part) for part in place)
    return f"{source}:{line}: {dotted}" if line else f"{source}: {dotted}"
