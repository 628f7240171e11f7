"""What a run takes from outside: plugin files, and tasks that were made in the user's own process.

Both reach each worker: a plugin is run there too, a task is sent.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from autocompress.core.registry import TASKS
from autocompress.errors import AutocompressError, UsageError

_PREFIX = "autocompress_plugin_"
_loaded: dict[Path, None] = {}
_plugin_tasks: set[str] = set()


@dataclass(frozen=True)
class WorkerPlugins:
    """What a worker must take in before its first job.

    Attributes:
        plugins: Paths of plugin files.
        tasks: Pickled tasks that only the user's process knows, by name.
    """

    plugins: tuple[str, ...] = ()
    tasks: bytes = b""

    def load(self) -> None:
        """Make them known in this process."""
        for plugin in self.plugins:
            load_plugin(plugin)
        if self.tasks:
            import cloudpickle

            for name, task in cloudpickle.loads(self.tasks).items():
                TASKS.add(name, task, replace=True)


def collect_plugins(names: Sequence[str] = ()) -> WorkerPlugins:
    """Return the plugins that are loaded here, and those of the named tasks that no plugin made.

    Raises:
        UsageError: Such a task cannot be sent to another process.
    """
    import cloudpickle

    tasks_here = {name: TASKS.get(name) for name in names if name not in _plugin_tasks}
    # A class comes with its module; an object exists in this process alone.
    found = {name: task for name, task in tasks_here.items() if not isinstance(task, type)}
    try:
        tasks = cloudpickle.dumps(found) if found else b""
    except Exception as error:  # The user's own objects may refuse in any way.
        raise UsageError(
            f"the task cannot be sent to a worker ({type(error).__name__}: {error}); put it into a file and pass it as "
            "--plugin, or search with workers=1 and overrides=['search.backend=serial']"
        ) from error
    return WorkerPlugins(tuple(str(path) for path in _loaded), tasks)


def load_plugin(path: str | Path) -> None:
    """Run a plugin file once: what it registers can be named in a search space from then on.

    The folder of the file is put on the search path, so that it may import its neighbours.

    Raises:
        UsageError: There is no such file, or it fails; the message names the line.
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
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    before = {name: TASKS.get(name) for name in TASKS}
    try:
        spec.loader.exec_module(module)
    except AutocompressError as error:
        raise UsageError(f"{_locate_error(path, error)}: {error}") from error
    except Exception as error:  # A user's file may raise anything.
        raise UsageError(f"{_locate_error(path, error)}: {type(error).__name__}: {error}") from error
    _loaded[path] = None
    _plugin_tasks.update(name for name in TASKS if TASKS.get(name) is not before.get(name))


def _locate_error(path: Path, error: BaseException) -> str:
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path.name}:{lines[-1]}" if lines else path.name
