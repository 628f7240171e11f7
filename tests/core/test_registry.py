import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest

from autocompress.core import registry
from autocompress.core.registry import Registry
from autocompress.errors import PluginError, UnknownNameError, UsageError


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
