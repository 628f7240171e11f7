import sys
import threading
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from autocompress import load_artifact
from autocompress.core import registry
from autocompress.core.registry import BACKENDS, TASKS, Registry, WorkerPlugins, collect_plugins, load_plugin
from autocompress.errors import PluginError, UnknownNameError, UsageError
from autocompress.tasks.module import bring_model
from tests.examples import run_in_a_process


def test_register_get_and_names() -> None:
    shapes: Registry[type] = Registry("shape")

    @shapes.register("square")
    class Square:
        pass

    assert shapes.get("square") is Square
    assert shapes.names() == ["square"]
    assert "square" in shapes
    assert list(shapes) == ["square"]


def test_an_unknown_name_suggests_the_nearest() -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.add("square", 1)
    with pytest.raises(UnknownNameError, match="unknown shape 'sqare': did you mean 'square'"):
        shapes.get("sqare")


def test_one_name_is_given_once() -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.add("square", 1)
    shapes.add("square", 1)
    with pytest.raises(UsageError, match="registered twice"):
        shapes.add("square", 2)


def test_another_package_adds_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = ModuleType("colour_plugin")
    plugin.RED = "#f00"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "colour_plugin", plugin)
    points = EntryPoints([EntryPoint("red", "colour_plugin:RED", "autocompress.colour")])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    colours: Registry[str] = Registry("colour")
    assert colours.get("red") == "#f00"


@pytest.mark.parametrize(
    "found", [value for value in vars(registry).values() if isinstance(value, Registry)], ids=lambda found: found.kind
)
def test_every_shipped_registry_loads_by_itself_and_holds_something(found: Registry[object]) -> None:
    assert found.names()


def test_an_entry_point_of_an_earlier_version_is_an_error_only_for_a_run_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = EntryPoints([EntryPoint("red", "autocompress.knobs:RED", "autocompress.colour")])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    colours: Registry[str] = Registry("colour")
    colours.add("blue", "#00f")
    assert colours.names() == ["blue"]
    with pytest.raises(PluginError, match=r"cannot be loaded.*autocompress.knobs is now autocompress.core.knobs"):
        colours.get("red")


def test_an_entry_point_may_name_a_module_that_registers_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    colours: Registry[str] = Registry("colour")
    plugin = ModuleType("colour_module")
    monkeypatch.setitem(sys.modules, "colour_module", plugin)
    points = EntryPoints([EntryPoint("red", "colour_module", "autocompress.colour")])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    with pytest.raises(PluginError, match="registers no colour of that name"):
        colours.get("red")
    colours = Registry("colour")
    colours.add("red", "#f00")
    assert colours.names() == ["red"]


PLUGIN = """
import torch
from torch import nn

import autocompress
from my_net import Net

generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 4, generator=generator)
torch.manual_seed(0)
autocompress.bring_model(Net(), (x, (x.sum(1) > 0).long()))
"""
NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "_plugin_tasks", set())
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "my_net.py").write_text(NET)
    path = tmp_path / "my_task.py"
    path.write_text(PLUGIN)
    return path


def test_a_plugin_registers_what_it_brings_and_may_import_its_neighbours(plugin):
    load_plugin(plugin)
    assert type(TASKS.get("module")().model).__name__ == "Net"


def test_it_runs_once(plugin):
    load_plugin(plugin)
    task = TASKS.get("module")()
    load_plugin(str(plugin))
    assert TASKS.get("module")() is task


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"my_task.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"my_task.py:1: ModuleNotFoundError"),
        ("def f(:\n", r"my_task.py: SyntaxError"),
        (
            "import autocompress\n\nautocompress.bring_model(3, 4)\n",
            r"my_task.py:3: data 'train' is int",
        ),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "my_task.py").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_plugin(tmp_path / "my_task.py")


@pytest.mark.parametrize("name", ["none.py", "folder", "text.txt"])
def test_a_file_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(UsageError, match="no such Python file"):
        load_plugin(tmp_path / name)


def test_a_worker_runs_the_plugins_again(plugin):
    load_plugin(plugin)
    found = collect_plugins(["module"])
    assert found == WorkerPlugins((str(plugin),))


def test_a_task_made_in_this_process_is_sent():
    class Local(nn.Sequential):
        """Defined in a function: a worker cannot import it."""

    task = bring_model(Local(nn.Linear(4, 2)), (torch.randn(60, 4), torch.arange(60) % 2))
    found = collect_plugins(["module", "digits"])
    assert not found.plugins
    TASKS.add("module", lambda: None, replace=True)
    found.load()
    assert TASKS.get("module")().identity_options == task.identity_options
    assert TASKS.get("module")() is not task


def test_a_task_that_cannot_be_sent_is_refused_with_a_way_out():
    task = bring_model(nn.Linear(4, 2), (torch.randn(60, 4), torch.arange(60) % 2))
    task.handle = threading.Lock()
    for name in ("local", "ray"):
        with pytest.raises(UsageError, match="--plugin"):
            BACKENDS.get(name)(1).collect_plugins("module")
    # The way out that the message names: nothing is sent.
    assert BACKENDS.get("serial")(1).collect_plugins("module") == WorkerPlugins()


@pytest.mark.slow
def test_the_command_line_searches_exports_and_reloads_a_brought_model(plugin, tmp_path):
    runs = ["--runs", str(tmp_path / "runs")]
    small = [
        *("--trials", "2", "--workers", "1", "--name", "mine"),
        *("--set", "fit.adamw.epochs=2", "--set", "fit.adamw.precision=float32"),
    ]
    commands = [
        ["search", "--plugin", str(plugin), *runs, *small],
        ["export", "mine", "--plugin", str(plugin), *runs],
    ]
    printed = run_in_a_process(commands, tmp_path, AUTOCOMPRESS_CACHE=str(tmp_path / "cache"))
    assert f"--plugin {plugin}" in printed
    assert "verified on the test split" in printed
    load_plugin(plugin)
    (folder,) = (tmp_path / "runs" / "mine" / "picks").iterdir()
    assert load_artifact(folder)(torch.zeros(1, 4)).shape == (1, 2)
