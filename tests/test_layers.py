"""Imports go down only, and heavy libraries stay where the table in ``pyproject.toml`` puts them."""

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autocompress"
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["layers"]
LEVEL = {unit: number for number, units in enumerate(TABLE["levels"]) for unit in units}


def typing_imports(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes below ``if TYPE_CHECKING:``."""
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                yield from ast.walk(statement)


@functools.cache
def modules() -> list[tuple[str, str, ast.stmt | ast.expr, str]]:
    """Return unit, file, node and imported name of every import; reading all files takes seconds."""
    return list(find_imports())


def find_imports() -> Iterator[tuple[str, str, ast.stmt | ast.expr, str]]:
    """Yield unit, file, node and imported name of every import of the package, those inside functions included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        tree = ast.parse(path.read_text())
        typing_only = set(typing_imports(tree)) if name in TABLE["typed_upwards"] else set()
        for node in ast.walk(tree):
            if node in typing_only:
                continue
            if isinstance(node, ast.Import):
                yield from ((name.split("/")[0], name, node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
                if node.module == "autocompress":
                    yield from ((name.split("/")[0], name, node, f"autocompress.{alias.name}") for alias in node.names)
                else:
                    yield name.split("/")[0], name, node, node.module or ""


def test_every_unit_has_a_level() -> None:
    units = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert units == set(LEVEL)


@pytest.mark.slow
def test_imports_go_down_only() -> None:
    wrong = [
        f"{name}:{node.lineno}: {unit} (level {LEVEL[unit]}) imports {imported}"
        for unit, name, node, imported in modules()
        if imported.startswith("autocompress.")
        and (target := imported.split(".")[1]) != unit
        and LEVEL[target] >= LEVEL[unit]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_heavy_libraries_are_imported_where_the_table_allows() -> None:
    wrong = [
        f"{name}:{node.lineno}: {library} is allowed in {allowed}"
        for unit, name, node, imported in modules()
        if (allowed := TABLE["libraries"].get(library := imported.split(".")[0])) is not None
        and not any(name == place or name.startswith(f"{place}/") for place in allowed)
    ]
    assert not wrong, "\n".join(wrong)
