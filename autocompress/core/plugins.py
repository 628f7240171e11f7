"""Parts of a run that come from outside: plugin files, and tasks that were made in the user's own process.

Both must reach each worker: a plugin file runs there again, a task is sent as a pickle.
"""

import importlib.util
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from autocompress.core.registry import TASKS
from autocompress.core.renamed import explain_missing_name
from autocompress.errors import AutocompressError, PluginError, UsageError

logger = logging.getLogger(__name__)

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
