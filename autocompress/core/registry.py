"""Names to parts: built-in parts are found in their package, parts of other packages by their entry points.

A registry imports the modules of its package on the first look-up, so that importing :mod:`autocompress` stays light.
Another package adds to it by an entry point in the group ``autocompress.<kind>``, for example ``autocompress.task``;
a search names plugin files too, which run again on each worker. Tasks made in the user's process are sent to workers.
"""

import importlib.util
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from autocompress.core.interfaces import check_part
from autocompress.core.renamed import explain_missing_name
from autocompress.errors import AutocompressError, PluginError, UnknownNameError, UsageError, did_you_mean

if TYPE_CHECKING:
    # The interfaces belong to packages above this one; only a type checker reads them here.
    from autocompress.backends.base import BackendFactory
    from autocompress.baselines.base import TrivialBaseline
    from autocompress.core.knobs import Settings
    from autocompress.core.method import Method
    from autocompress.core.task import TaskFactory
    from autocompress.distill.base import DistillTerm
    from autocompress.engine.scheduler.promotion import PromotionRule
    from autocompress.measure.objectives import Objective
    from autocompress.models.base import Family
    from autocompress.prune.importance import Criterion
    from autocompress.quantize.observers import ObserverFactory
    from autocompress.quantize.weight_coding import WeightQuantizer
    from autocompress.targets.base import Target
    from autocompress.training.optimizers import FitConfig, OptimizerFactory

T_co = TypeVar("T_co", covariant=True)
_Part = TypeVar("_Part")

logger = logging.getLogger(__name__)


class Registry(Generic[T_co]):
    """Parts of one kind by name.

    Args:
        kind: The kind of parts, in the singular, as it stands in messages (``"task"``).
        builtins: The package whose modules hold the built-in parts, or a single module.
        interface: The protocol, base class or dataclass that parts are compared with, ``package.module:Name``.
        holds_classes: Whether classes are registered, which are built for each run, and not instances.
        constructor: Names of the arguments that registered classes are built with; ``None`` if they are not compared.
        base: Dotted name of a base class that has all but the essential methods, for messages.
        exclude: Modules of the package that define no part and that only some processes can or should import.

    Example:
        >>> colours: Registry[str] = Registry("colour")
        >>> colours.add("red", "#f00")
        '#f00'
        >>> colours.get("red")
        '#f00'
    """

    def __init__(
        self,
        kind: str,
        builtins: str | None = None,
        interface: str | None = None,
        *,
        holds_classes: bool = False,
        constructor: Sequence[str] | None = None,
        base: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self._builtins = builtins
        self._interface = interface
        self._holds_classes = holds_classes
        self._constructor = constructor
        self._base = base
        self._exclude = exclude
        self._objects: dict[str, object] = {}
        self._has_builtins = False
        self._has_entry_points = False
        # Plugins of other packages that cannot be loaded: an error only for a run that names one.
        self._failures: dict[str, PluginError] = {}

    @property
    def group(self) -> str:
        """The group of entry points that add to this registry."""
        return f"autocompress.{self.kind.replace(' ', '_')}"

    def add(self, name: str, value: _Part, *, replace: bool = False) -> _Part:
        """Register a part and return it.

        Args:
            name: The name in search spaces.
            value: The class, instance or function.
            replace: Whether the part takes the place of another one of that name.

        Raises:
            UsageError: Another part has that name.
            PluginError: The part does not fit the interface of its kind.
        """
        present = None if replace else self._objects.get(name)
        # Registering the same object again changes nothing.
        if present is not None and present is not value:
            raise UsageError(f"{self.kind} '{name}' is registered twice; give one of them another name")
        if self._interface is not None:
            check_part(
                f"{self.kind} '{name}'", value, self._interface, self._holds_classes, self._constructor, self._base
            )
        self._objects[name] = value
        return value

    def register(self, name: str) -> Callable[[_Part], _Part]:
        """Return a decorator that registers the class or function below it under ``name``."""
        return lambda value: self.add(name, value)

    def get(self, name: str) -> T_co:
        """Return the part called ``name``.

        Raises:
            UnknownNameError: No part has that name; the message suggests the nearest one.
            PluginError: The package that provides it cannot be loaded.
        """
        if name in self:
            # Registration has compared the part with the interface that T_co stands for.
            return cast(T_co, self._objects[name])
        if isinstance(name, str) and name in self._failures:
            raise self._failures[name]
        raise UnknownNameError(f"unknown {self.kind} '{name}': {did_you_mean(name, self._objects)}")

    def __getitem__(self, name: str) -> T_co:
        return self.get(name)

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self.import_builtins()
        self._load_entry_points()
        return sorted(self._objects)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        # A space read from YAML may hold a list in the place of a name.
        if not isinstance(name, str):
            return False
        self.import_builtins()
        # A built-in part needs no search through the installed packages.
        if name not in self._objects:
            self._load_entry_points()
        return name in self._objects

    def import_builtins(self) -> None:
        """Import the modules that register the built-in parts, once."""
        if self._has_builtins or self._builtins is None:
            return
        # Before the imports, because a module that is being imported may look into this registry.
        self._has_builtins = True
        package = import_module(self._builtins)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if not module.ispkg and module.name not in self._exclude:
                import_module(f"{self._builtins}.{module.name}")

    def _load_entry_points(self) -> None:
        if self._has_entry_points:
            return
        # Before loading, so that a plugin that looks into this registry does not start over.
        self._has_entry_points = True
        for point in entry_points(group=self.group):
            self._load_entry_point(point)

    def _load_entry_point(self, point: EntryPoint) -> None:
        """Register what an entry point names: a part, or a module that registers it when it is imported."""
        title = f"{self.kind} '{point.name}' of the entry point {point.value}"
        try:
            value = point.load()
            if not isinstance(value, ModuleType):
                self.add(point.name, value)
            elif point.name not in self._objects:
                raise PluginError(f"{title}: the module registers no {self.kind} of that name")
        except Exception as error:  # Another package may raise anything.
            reason = explain_missing_name(error)
            details = str(error) if isinstance(error, AutocompressError) else f"{type(error).__name__}: {error}"
            failure = error if isinstance(error, PluginError) else PluginError(f"{title} cannot be loaded: {details}")
            self._failures[point.name] = PluginError(f"{failure}; {reason}") if reason else failure
            self._failures[point.name].__cause__ = error.__cause__
            # Only a warning: a run that names no part of that package works without it.
            logger.warning("%s", self._failures[point.name])


TASKS: "Registry[TaskFactory]" = Registry(
    "task",
    "autocompress.tasks",
    "autocompress.core.task:Task",
    holds_classes=True,
    base="autocompress.tasks.base.Supervised",
)
STUDENTS: "Registry[Family[Settings]]" = Registry("student", "autocompress.models", "autocompress.models.base:Family")
DISTILL: "Registry[DistillTerm[Settings]]" = Registry(
    "distillation term",
    "autocompress.distill",
    "autocompress.distill.base:DistillTerm",
    base="autocompress.distill.base.Term",
)
FITS: "Registry[OptimizerFactory[FitConfig]]" = Registry(
    "optimizer", "autocompress.training.optimizers", "autocompress.training.optimizers:OptimizerFactory"
)
PRUNE: "Registry[Method[Settings]]" = Registry(
    "pruning method", "autocompress.prune", "autocompress.core.method:Method"
)
CRITERIA: "Registry[Criterion]" = Registry(
    "pruning criterion", "autocompress.prune", "autocompress.prune.importance:Criterion"
)
QUANTIZE: "Registry[Method[Settings]]" = Registry(
    "quantization method", "autocompress.quantize", "autocompress.core.method:Method"
)
QUANTIZERS: "Registry[WeightQuantizer]" = Registry(
    "quantizer", "autocompress.quantize", "autocompress.quantize.weight_coding:WeightQuantizer"
)
OBSERVERS: "Registry[ObserverFactory]" = Registry(
    "observer", "autocompress.quantize", "autocompress.quantize.observers:ObserverFactory"
)
OBJECTIVES: "Registry[Objective]" = Registry(
    "objective", "autocompress.measure", "autocompress.measure.objectives:Objective"
)
BACKENDS: "Registry[BackendFactory]" = Registry(
    "backend",
    "autocompress.backends",
    "autocompress.backends.base:Backend",
    holds_classes=True,
    constructor=("workers", "limits"),
    base="autocompress.backends.base.Backend",
    # The first imports a trial's libraries into the process that workers are forked from; the others import ray.
    exclude=("preload", "ray_cluster", "ray_tune", "ray_worker"),
)
TARGETS: "Registry[type[Target]]" = Registry(
    "target",
    "autocompress.targets",
    "autocompress.targets.base:Target",
    holds_classes=True,
    base="autocompress.targets.base.Target",
    # These import onnx, onnxruntime and torch, which reading a run does not need.
    exclude=("calibration", "int8_probe", "onnx_module", "onnx_session"),
)
BASELINES: "Registry[TrivialBaseline]" = Registry(
    "trivial baseline", "autocompress.baselines", "autocompress.baselines.base:TrivialBaseline"
)
PROMOTION_RULES: "Registry[type[PromotionRule]]" = Registry(
    "promotion rule",
    "autocompress.engine.scheduler.promotion",
    "autocompress.engine.scheduler.promotion:PromotionRule",
    holds_classes=True,
    constructor=(),
)


_PREFIX = "autocompress_plugin_"
# A dictionary as an ordered set: workers run the files in the same order.
_loaded: dict[Path, None] = {}
# Tasks of plugin files are not pickled: a worker runs the file and has them.
_plugin_tasks: set[str] = set()


@dataclass(frozen=True)
class WorkerPlugins:
    """The plugins that a worker must load before its first job.

    Attributes:
        plugins: Paths of plugin files.
        tasks: Pickled tasks that exist in the user's process only, by name.
    """

    plugins: tuple[str, ...] = ()
    tasks: bytes = b""

    def load(self) -> None:
        """Run the plugin files and register the tasks in this process."""
        for plugin in self.plugins:
            load_plugin(plugin)
        if self.tasks:
            import cloudpickle

            for name, task in cloudpickle.loads(self.tasks).items():
                TASKS.add(name, task, replace=True)


def collect_plugins(names: Sequence[str] = ()) -> WorkerPlugins:
    """Return the plugins that are loaded in this process, and those of the named tasks that no plugin file made.

    Args:
        names: Names of the tasks of a run.

    Raises:
        UsageError: Such a task cannot be sent to another process.
    """
    import cloudpickle

    tasks_here = {name: TASKS.get(name) for name in names if name not in _plugin_tasks}
    # A worker imports the module of a class; an instance exists in this process alone.
    instances = {name: task for name, task in tasks_here.items() if not isinstance(task, type)}
    try:
        tasks = cloudpickle.dumps(instances) if instances else b""
    except Exception as error:  # The user's own objects may raise anything.
        raise UsageError(
            f"the task cannot be sent to a worker ({type(error).__name__}: {error}); put it into a file and pass it as "
            "--plugin, or search with workers=1 and overrides=['search.backend=serial']"
        ) from error
    return WorkerPlugins(tuple(str(path) for path in _loaded), tasks)


def load_plugin(path: str | Path) -> None:
    """Run a plugin file once: search spaces can name the parts that it registers from then on.

    The folder of the file is put on the module search path, so that the file can import its neighbours.

    Args:
        path: A Python file.

    Raises:
        UsageError: There is no such file.
        PluginError: The file raises an exception, or registers a part that does not fit its interface; the message
            names the line, and the present name of what the file could not find under an old one.
    """
    path = Path(path).expanduser().resolve()
    if path in _loaded:
        return
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"--plugin {path}: there is no such Python file")
    name = _PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs, so that dataclasses and pickle find the module of its classes.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    # The difference to the registry afterwards shows which tasks the file registers or replaces.
    before = {name: TASKS.get(name) for name in TASKS}
    try:
        spec.loader.exec_module(module)
    except AutocompressError as error:
        raise PluginError(f"{_locate_error(path, error)}: {error}") from error
    except Exception as error:  # A user's file may raise anything.
        explanation = explain_missing_name(error)
        details = f"{type(error).__name__}: {error}" + (f"; {explanation}" if explanation else "")
        raise PluginError(f"{_locate_error(path, error)}: {details}") from error
    # Only after success: a file that failed can be corrected and loaded again.
    _loaded[path] = None
    _plugin_tasks.update(name for name in TASKS if TASKS.get(name) is not before.get(name))
    logger.info("loaded the plugin %s", path)


def _locate_error(path: Path, error: BaseException) -> str:
    # The last frame within the file is the user's line; deeper frames belong to libraries.
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path.name}:{lines[-1]}" if lines else path.name
