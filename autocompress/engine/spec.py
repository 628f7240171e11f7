"""The spec of a search: a YAML file with the search space and all settings, validated before anything else starts.

Its YAML reader records lines, reads ``1e-3`` as a number, and accepts plain values only.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
import yaml as pyyaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from autocompress.core.formatting import parse_bytes, parse_quantity
from autocompress.core.untrusted import is_name, read_regular_file
from autocompress.errors import SpecError, UsageError, did_you_mean

# A search space is a page of text; larger input is a mistake or an attack on the parser.
MAX_BYTES = 100_000
# Digits of a number: Python refuses to print longer ones.
MAX_DIGITS = 40
# A search space has about six levels, and some hundred keys and values; PyYAML reads ten thousand in a second.
MAX_DEPTH, MAX_VALUES = 50, 10_000
#: Path of a key or an item in a document, ``("student", "cnn", 0)``.
KeyPath = tuple[str | int, ...]
# Options of tasks that are paths of files or folders.
DATA_PATHS = ("path", "test", "teacher")
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """Safe loader of plain values: no aliases, which let a small text expand without bound, and numbers as written.

    Numbers are those of YAML 1.2: ``1e-3`` is a float, ``010`` is ten, and ``1:30`` is text instead of ninety.
    """

    _depth = 0
    _count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            parser: Any = self  # PyYAML's stubs leave `peek_event` untyped.
            mark = parser.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed here", mark)
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_VALUES:
            limit = f"more than {MAX_DEPTH} levels" if self._depth > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, limit, self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Return a whole number: decimal unless it begins with ``0x``, ``0o`` or ``0b``."""
        text = str(self.construct_scalar(node))
        if len(text) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "the number has too many digits", node.start_mark)
        # Base 0 reads the prefixes, but refuses leading zeros.
        return int(text, 0 if re.match(r"[-+]?0[xob]", text) else 10)


# YAML 1.1 reads `1e-3` as text, `2024-01-01` as a date, `010` as eight and `1:30` as ninety; the first is meant as a
# number, the second as text, the third as ten, and the last is no number.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":int", ":timestamp"))]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(\d[\d_]*|0x[\da-fA-F_]+|0o[0-7_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?|\.(inf|Inf|INF|nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> tuple[JsonValue, dict[KeyPath, int]]:
    r"""Return the document, and the line (from 1) of every key and item by its path.

    Example:
        >>> parse_yaml("a:\n  b: 1e-3", "x.yaml")
        ({'a': {'b': 0.001}}, {('a',): 1, ('a', 'b'): 2})

    Raises:
        SpecError: The text is not one YAML document of plain values, is too large, or repeats a key.
    """
    if len(text) > MAX_BYTES:
        raise SpecError(f"{source}: larger than {MAX_BYTES} bytes; a search space is a page of text")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        value = None if node is None else _construct_value(loader, node, (), lines, source)
    except yaml.MarkedYAMLError as reason:
        line = reason.problem_mark.line + 1 if reason.problem_mark else 1
        raise SpecError(f"{source}:{line}: {reason.problem}") from None
    except (yaml.YAMLError, RecursionError) as reason:
        raise SpecError(f"{source}: not YAML text ({str(reason).splitlines()[0]})") from None
    return value, lines


def _construct_value(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str
) -> JsonValue:
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise SpecError(f"{source}:{node.start_mark.line + 1}: the tag {node.tag} is not allowed here")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise SpecError(f"{source}:{line}: a key must be plain text")
            if key in mapping:
                raise SpecError(f"{source}:{line}: '{key}' is given twice; keep one of them")
            lines[(*path, str(key))] = line
            mapping[str(key)] = _construct_value(loader, value_node, (*path, str(key)), lines, source)
        return mapping
    # The name of a run is text, also where it looks like a number, a date or `no`.
    if path == ("name",) and isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        items: list[JsonValue] = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            items.append(_construct_value(loader, item, (*path, index), lines, source))
        return items
    value: JsonValue = loader.construct_object(node, deep=True)
    if not isinstance(value, bool | int | float | str | None):
        raise SpecError(f"{source}:{node.start_mark.line + 1}: {type(value).__name__} is not a plain value")
    return value


Setting = dict[str, Any]


def _expand_name(value: object) -> object:
    """Let ``task: digits`` stand for ``task: {digits: {}}``."""
    return {value: {}} if isinstance(value, str) else value


def _expand_settings(value: object) -> object:
    """Let ``none:`` stand for ``none: {}``, and a list of names for names without settings."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return {item: {} for item in value}
    if isinstance(value, dict):
        return {name: {} if settings is None else settings for name, settings in value.items()}
    return value


def _expand_size(value: object) -> object:
    """Let ``4 GiB`` stand for its bytes."""
    return parse_bytes(value) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _expand_amount(value: object) -> object:
    """Let ``30KB`` stand for 30,000, and ``97%`` for 0.97."""
    return parse_quantity(value) if isinstance(value, str) else value


def _expand_limits(value: object) -> object:
    """Read the bounds of a limit in the unit of its objective, such as ``30KB`` of ``bytes``."""
    if not isinstance(value, dict):
        return value
    return {
        name: {bound: parse_quantity(text, name) if isinstance(text, str) else text for bound, text in bounds.items()}
        if isinstance(bounds, dict)
        else bounds
        for name, bounds in value.items()
    }


Named = Annotated[dict[str, dict[str, Any]], BeforeValidator(_expand_name), Field(min_length=1, max_length=1)]
Amount = Annotated[FiniteFloat, BeforeValidator(_expand_amount, json_schema_input_type=float | str)]
Methods = Annotated[dict[str, Setting], BeforeValidator(_expand_settings), Field(min_length=1)]
# Every term of `distill` takes this key besides its hyperparameters. Its value is checked with theirs, in `open_space`.
_TERM_SCHEMA = {
    "type": "object",
    "properties": {
        "required": {
            "type": "boolean",
            "default": False,
            "description": "Whether every trial uses the term; no hyperparameter.",
        }
    },
    "additionalProperties": True,
}
Term = Annotated[Setting, WithJsonSchema(_TERM_SCHEMA)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, serialize_by_alias=True)


class SearchSection(_Section):
    """Settings of the search.

    Attributes:
        mode: Search strategy. ``amortized`` makes many candidates of each trial; ``autocompress list modes`` shows all.
        trials: Maximum number of trials.
        minutes: Maximum wall-clock minutes; no trial is started that would end later.
        patience: Share of the elapsed time after which the search ends if the hypervolume of the front has grown by
            less than 0.5% in it, such as 0.33; by default only the budget ends a search.
        sampler: Method that proposes the next trial. ``surrogate`` predicts scores from all rungs and selects the trial
            with the largest expected hypervolume improvement per compute cost; it needs a mode where one trial yields
            many candidates, and is ``tpe`` in the others. ``tpe``, ``nsga2``, ``nsga3``, ``gp`` and ``random`` are
            Optuna's.
        promotion: Rule that decides which trials continue past a rung (a ninth and a third of the epochs), in mode
            ``amortized``.
        refine: Epochs for compression recipes that train (recovery after pruning, quantization-aware training), as a
            share of the epochs of all trials, in mode ``amortized``.
        seed: Seed of the sampler and, with the trial's number, of every trial.
        workers: Number of worker processes; 0 stands for one per core.
        backend: Name of the backend that runs the workers.
        resources: Resources of one trial, such as ``{cpu: 1, gpu: 0.25}``, for the backend ``ray``.
        device: Device of the trials, ``cpu`` or ``cuda``; by default ``cuda`` where ``resources`` has a share of a
            graphics card.
        address: Cluster that the backend ``ray`` joins: ``HOST:PORT``, or ``auto`` for the one of this machine.
        timing_seconds: Seconds in which groups of the front are exported and timed after the search; 0 for none.
            A search that names ``latency_ms`` times all that its front needs.
        trial_minutes: Maximum wall-clock minutes of one trial, or of one segment of it, with its candidates.
        memory: Maximum memory of one worker, such as ``4 GiB``; a trial that needs more fails.
        notify: Command that runs when the search has ended, without a shell: ``notify-send "{run}: {state}"``. The
            state is ``finished``, ``failed`` or ``interrupted``. The command is not stored with the run.
    """

    mode: Literal["amortized", "sampled", "supernet", "random", "sequential", "uniform_int8", "no_distillation"] = (
        "amortized"
    )
    trials: int = Field(40, ge=1)
    minutes: float | None = Field(None, gt=0)
    patience: float | None = Field(None, gt=0, lt=1)
    sampler: Literal["surrogate", "tpe", "nsga2", "nsga3", "gp", "random"] = "surrogate"
    promotion: Literal["pareto_rank", "best_score", "always"] = "pareto_rank"
    refine: float = Field(1.0, ge=0)
    timing_seconds: float = Field(10.0, ge=0)
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    backend: str = "local"
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    device: Literal["cpu", "cuda"] | None = None
    address: str | None = None
    trial_minutes: float | None = Field(None, gt=0)
    memory: Annotated[int | None, BeforeValidator(_expand_size)] = None
    notify: str | None = Field(None, min_length=1)

    @field_validator("notify")
    @classmethod
    def _check_command(cls, value: str | None) -> str | None:
        # A quote that is not closed would otherwise show when the search has ended.
        if value is not None and not shlex.split(value):
            raise ValueError("must name a program")
        return value

    @property
    def training_device(self) -> str:
        """The torch device of the trials."""
        return self.device or ("cuda" if (self.resources or {}).get("gpu") else "cpu")


class TeacherSection(_Section):
    """Settings of the teacher.

    Attributes:
        student: Architecture, ``{name: {knob: value}}`` as in the section ``student``; by default the task's.
        fit: Optimizer, ``{name: {knob: value}}`` as in the section ``fit``; by default the task's.
        seed: Seed of its weights and its training.
    """

    student: Named | None = None
    fit: Named | None = None
    seed: int = Field(0, ge=0)


class TransferSection(_Section):
    """Settings of a teacher that comes from another data set.

    Attributes:
        source: Source of the weights, written ``from``: a run folder (its teacher), a ``.safetensors`` file with the
            weights of ``teacher.student``, or the name of a task (its default teacher).
        head: ``keep`` for the head of the source, whose classes must be the same; ``new`` for an untrained head.
        backbone: Layers before the head: ``tuned`` or ``frozen``; tuned by default.
        labels: Whether the training reads labels. Without them, the source itself is the teacher, and its predictions
            are the targets of the training and calibration splits.
    """

    source: str = Field(alias="from", min_length=1)
    head: Literal["keep", "new"] = "keep"
    backbone: Literal["tuned", "frozen"] | None = None
    labels: bool = True


class DistillSection(_Section):
    """Distillation: terms of the training loss, by name, and where the teacher comes from.

    Attributes:
        transfer: Transfer of the teacher from another data set; by default the teacher is trained on the task's data.
    """

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)
    __pydantic_extra__: dict[str, Term] = Field(init=False)

    transfer: TransferSection | None = None

    @property
    def terms(self) -> dict[str, Setting]:
        """The settings of each term by name."""
        return dict(self.__pydantic_extra__)

    @model_serializer(mode="wrap")
    def _leave_out_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialize(self)
        return {name: value for name, value in data.items() if name != "transfer" or value is not None}


class Limit(_Section):
    """Bounds of a feasible candidate, both included.

    Attributes:
        min: Lower bound in the unit of the objective, such as ``97%``; ``None`` for no bound.
        max: Upper bound in the unit of the objective, such as ``30KB``; ``None`` for no bound.
    """

    min: Amount | None = None
    max: Amount | None = None

    @model_validator(mode="after")
    def _check_order(self) -> "Limit":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value is at least {self.min:g} and at most {self.max:g}; exchange min and max")
        return self


class PickSection(_Section):
    """Settings of the recommendation.

    Attributes:
        max_drop: Allowed loss against the teacher in the first score; a fraction for an accuracy, so that 0.01, or
            ``1%``, is a point.
        confidence: Confidence at which the examples of ``search_val`` and ``select_val`` must certify that the loss is
            at most ``max_drop``; ``null`` for the observed loss on both splits, which certifies nothing.
    """

    max_drop: Annotated[Amount, Field(ge=0)] = 0.01
    confidence: float | None = Field(0.9, gt=0.5, lt=1)


class SplitsSection(_Section):
    """Settings of the five splits; without them, examples are divided at random, in proportion to their classes.

    Attributes:
        groups: Name of the column of groups, such as users, patients or recordings: a group is never in two splits, and
            confidence bounds draw whole groups.
        time: Name of the column of times, numbers or dates, instead of ``groups``: the training split is earlier than
            the validation splits, and these are earlier than the test split.
        folds: Number of folds in which the finalists of the search and the teacher are trained again, for small data:
            the recommendation compares their out-of-fold predictions on all examples but those of the test split.
    """

    groups: str | None = Field(None, min_length=1)
    time: str | None = Field(None, min_length=1)
    folds: int | None = Field(None, ge=2, le=20)

    @property
    def columns(self) -> dict[str, str]:
        """The named columns by kind, ``groups`` or ``time``."""
        return {kind: name for kind in ("groups", "time") if (name := getattr(self, kind)) is not None}

    @model_validator(mode="after")
    def _check_keys(self) -> "SplitsSection":
        if self.groups and self.time:
            raise ValueError("give groups or time: a group that lasts over time would have to be in two splits")
        return self


def _expand_objectives(value: object) -> object:
    """Let a list of names stand for names with default bounds."""
    if isinstance(value, list):
        return dict.fromkeys(value)
    return value


class Spec(_Section):
    """A whole search: task, search space, objectives and limits.

    In objectives and limits, ``accuracy@language`` is a score of one head of the task.

    Attributes:
        name: Name of the run and its folder.
        task: Name of the task with its options.
        split_seed: Seed of the five splits.
        splits: Columns that the splits are divided by.
        search: Settings of the search.
        teacher: Settings of the teacher.
        student: Student families with their knobs; see :mod:`autocompress.engine.space`.
        distill: Distillation terms of the training loss with their knobs; ``required: true`` in a term makes it part of
            every trial. The key ``transfer`` is no term: it takes the teacher from another data set.
        fit: Optimizers with their knobs.
        prune: Pruning methods with their knobs.
        quantize: Quantization methods with their knobs.
        objectives: Scores and costs to trade off, at least one of each, with the reference and ideal value that bound
            the hypervolume; ``None`` for the default bounds.
        limits: Bounds on scores and costs by name.
        threshold: Probability above which the second class of a head with two classes is predicted: a number, or
            ``auto`` for the one with the best first score on ``search_val``, chosen for each candidate and for the
            teacher. Of several such heads, ``{head: auto}``. 0.5 by default.
        pick: Settings of the recommendation.
        target: Device or runtime that the search is made for, with its options; ``none`` leaves the bits free, and
            marks candidates without a kernel on common processors.
    """

    name: str = Field(min_length=1, max_length=64)
    task: Named
    split_seed: int = Field(0, ge=0)
    splits: SplitsSection = SplitsSection()
    search: SearchSection = SearchSection()
    teacher: TeacherSection = TeacherSection()
    student: Methods
    distill: Annotated[DistillSection, BeforeValidator(_expand_settings)] = DistillSection.model_validate({"none": {}})
    fit: Methods = {"adamw": {}}
    prune: Methods = {"none": {}}
    quantize: Methods = {"none": {}}
    objectives: Annotated[dict[str, tuple[FiniteFloat, FiniteFloat] | None], BeforeValidator(_expand_objectives)] = {
        "accuracy": None,
        "effective_flops": None,
    }
    limits: Annotated[dict[str, Limit], BeforeValidator(_expand_limits)] = {}
    # A text is checked with the heads of the task, as on the command line of `export`.
    threshold: float | str | dict[str, float | str] | None = None
    pick: PickSection = PickSection()
    target: Named = {"none": {}}

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not is_name(value):
            raise ValueError("use letters, digits, '.', '_' and '-' only: it is the name of the run's folder")
        return value

    def list_thresholds(self) -> list[str]:
        """Return the thresholds as texts, ``auto`` or ``spam=0.3``; empty without any."""
        if self.threshold is None:
            return []
        named = self.threshold
        return [f"{head}={value}" for head, value in named.items()] if isinstance(named, dict) else [str(named)]

    def to_yaml(self) -> str:
        """Return the resolved spec as YAML, without ``search.notify``: a run folder names no command."""
        data = self.model_dump(mode="json")
        del data["search"]["notify"]
        return pyyaml.safe_dump(data, sort_keys=False)

    def immutable_content(self) -> dict[str, JsonValue]:
        """Return the settings that a resumed run may not change: all but the name, the budget and the backend."""
        data = self.model_dump(mode="json")
        del data["name"]
        # Specs of earlier versions have no target: their runs can be resumed.
        if self.target == {"none": {}}:
            del data["target"]
        if self.splits == SplitsSection():
            del data["splits"]
        if self.threshold is None:
            del data["threshold"]
        # It decides the recommendation, and no result of the search.
        del data["pick"]["confidence"]
        budget = ("trials", "minutes", "patience", "trial_minutes", "memory", "timing_seconds")
        for field in (*budget, "workers", "backend", "resources", "device", "address", "notify"):
            del data["search"][field]
        return data


class Source:
    """A spec with the lines of its file, so that later checks can name them.

    Args:
        spec: The validated spec.
        name: Name of the file.
        lines: Line (from 1) of each key by its path.
        changed: Paths of the keys that the command line has set.
    """

    def __init__(self, spec: Spec, name: str, lines: Mapping[KeyPath, int], changed: Sequence[KeyPath] = ()) -> None:
        self.spec = spec
        self.name = name
        self.lines = lines
        self.changed = changed

    def replace_objectives(self, objectives: Mapping[str, tuple[float, float] | None]) -> "Source":
        """Return the source with other objectives."""
        spec = self.spec.model_copy(update={"objectives": dict(objectives)})
        return Source(spec, self.name, self.lines, self.changed)

    def make_error(self, path: KeyPath, message: str) -> SpecError:
        """Return an error that names the key with the file and the line, or with the option that has set it."""
        return SpecError(f"{_locate_key(self.name, self.lines, path, self.changed)}: {message}")


def list_shipped_spaces() -> dict[str, Path]:
    """Return the search spaces that ship with autocompress, by name."""
    # Inside the installed package, or next to it in a checkout.
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load_spec(target: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Read a spec file, or the shipped search space of that name.

    Args:
        target: Path of a YAML file, or a name such as ``digits``.
        overrides: Changes of the form ``key.of.dots=value``; the value is read as YAML.

    Raises:
        SpecError: The file cannot be read or is not valid; the message names the line.
    """
    path = Path(target)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        spaces = list_shipped_spaces()
        if str(target) not in spaces:
            raise SpecError(
                f"no search space '{target}': {did_you_mean(str(target), spaces)}, or the path of a .yaml file"
            )
        path = spaces[str(target)]
    try:
        # Resolved, because the user may name a link.
        text = read_regular_file(path.resolve(), MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as reason:
        raise SpecError(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}") from None
    return parse_spec(text, str(path.name if path.parent == Path() else path), overrides, default_name=path.stem)


def parse_spec(text: str, source: str, overrides: Sequence[str] = (), default_name: str = "search") -> Source:
    """Return the validated spec of a text.

    Args:
        text: YAML text of the spec.
        source: Name of the file in messages.
        overrides: Changes of the form ``key.of.dots=value``.
        default_name: Name of the run where the text has none.

    Raises:
        SpecError: The text is not valid; the message names the line and, for a misspelt key, the nearest one.
    """
    data, lines = parse_yaml(text, source)
    if not isinstance(data, dict):
        raise SpecError(f"{source}:1: a search space is a mapping that begins with `task:`")
    for override in overrides:
        _apply_override(data, override)
    changed = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]
    data.setdefault("name", default_name)
    _complete_paths(data.get("task"))
    try:
        spec = Spec.model_validate(data)
    except ValidationError as failure:
        raise _first_error(failure, source, lines, changed) from None
    return Source(spec, source, lines, changed)


def json_schema() -> str:
    """Return the JSON Schema of a spec, for editors."""
    return json.dumps(Spec.model_json_schema(), indent=2)


def _complete_paths(task: JsonValue) -> None:
    """Make paths of data absolute, so that a run can be exported from any folder.

    Args:
        task: The task of a spec with its options, changed in place.
    """
    sections = task.values() if isinstance(task, dict) else ()
    for options in (section for section in sections if isinstance(section, dict)):
        for name in DATA_PATHS:
            value = options.get(name)
            # What does not exist is named as it was typed, in the error of the task.
            if isinstance(value, str) and value and Path(value).expanduser().exists():
                options[name] = str(Path(value).expanduser().absolute())


def _apply_override(data: dict[str, JsonValue], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {override}: write key.of.dots=value, for example search.mode=sampled")
    section = data
    for index, name in enumerate(names[:-1]):
        inner = section.setdefault(name, {})
        # `task: digits` stands for `task: {digits: {}}`.
        if isinstance(inner, str) or inner is None:
            inner = section[name] = {} if inner is None else {inner: {}}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {'.'.join(names[: index + 1])} has no keys")
        section = inner
    value = parse_yaml(text, f"--set {key}")[0]
    section[names[-1]] = text.strip() if names == ["name"] and not isinstance(value, str) else value


# What a missing section may look like.
_EXAMPLES: Mapping[KeyPath, str] = {
    ("task",): "task: digits",
    ("student",): "student: {cnn: {width: {low: 8, high: 32}}}",
}


def _first_error(
    failure: ValidationError, source: str, lines: Mapping[KeyPath, int], changed: Sequence[KeyPath]
) -> SpecError:
    """Return the error to show: a misspelt key before the missing one that it was meant to be.

    Args:
        failure: All errors.
        source: Name of the file in messages.
        lines: Line of each key.
        changed: Keys that the command line has set.
    """
    error = min(failure.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    # Pydantic marks an invalid key of a mapping by a last part of its own.
    path = tuple(part for part in error["loc"] if part != "[key]")
    location = _locate_key(source, lines, path, changed)
    if error["type"] == "extra_forbidden":
        return SpecError(f"{location}: unknown key; {did_you_mean(str(path[-1]), _list_keys(path[:-1]))}")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return SpecError(f"{location}: {message.lower()}; add `{_EXAMPLES.get(path, f'{path[-1]}:')}`")
    return SpecError(f"{location}: {message[:1].lower() + message[1:]}, got {_shorten_value(error['input'])}")


def _shorten_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list_keys(path: KeyPath) -> list[str]:
    """Return the keys of the section at a path; none for a section that is no model of its own."""
    model: object = Spec
    for name in path:
        fields = getattr(model, "model_fields", {})
        model = Limit if path[0] == "limits" else (fields[name].annotation if name in fields else None)
        # Of an optional section, `Section | None`, the section.
        model = next((part for part in get_args(model) if hasattr(part, "model_fields")), model)
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _locate_key(source: str, lines: Mapping[KeyPath, int], path: KeyPath, changed: Sequence[KeyPath]) -> str:
    """Return the dotted name of a key with the file and its line, or with ``--set`` if an override has set it."""
    dotted = ".".join(map(str, path))
    inner = next((key for key in changed if key[: len(path)] == path), None)
    if any(path[: len(key)] == key for key in changed) or (inner and path not in lines):
        return f"--set {dotted}"
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    location = f"{source}:{line}: {dotted}" if line else f"{source}: {dotted}"
    return f"{location} with --set {'.'.join(map(str, inner))}" if inner else location
