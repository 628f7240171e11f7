"""Imports go down only: the first that goes up, or sideways, fails here with its line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autocompress"

# From the ground up. Units on one floor do not import each other; `tasks` alone may use `models`.
FLOORS: list[set[str]] = [
    {"errors"},
    {"registry", "knobs", "storage", "words", "machine"},
    {"config", "plugins"},
    {"records", "method", "task", "checkpoints"},
    {"models", "tasks", "distill", "prune", "quantize", "measure"},
    {"supernet", "operations"},
    {"lab"},
    {"trial", "pricing"},
    {"front", "where", "rows", "native", "latency"},
    {"database"},
    {"study", "standing", "ties"},
    {"pick"},
    {"confirmation"},
    {"backends"},
    {"engine"},
    {"report", "export"},
    {"results"},
    {"api", "console", "catalogue", "checkup"},
    {"display", "stopping"},
    {"outcome"},
    {"arguments"},
    {"cli"},
    {"__init__", "__main__"},
]
SIDEWAYS = {("tasks", "models")}
HEAVY = {
    "torch": {
        "method",
        "task",
        "checkpoints",
        "models",
        "tasks",
        "distill",
        "prune",
        "quantize",
        "measure",
        "lab",
        "supernet",
        "operations",
        "trial",
        "pricing",
        "export",
        "checkup",
    },
    "optuna": {"engine/sampler", "engine/memory", "engine/publishing", "engine/driver", "engine/answers"},
    "ray": {"backends/ray_cluster", "backends/ray_seat", "backends/ray_tune"},
    "pandas": {
        "outcome",
        "study",
        "front",
        "where",
        "pick",
        "native",
        "latency",
        "standing",
        "ties",
        "confirmation",
        "report",
        "console",
        "results",
        "api",
        "engine/archive",
        "export/tracking",
    },
    "plotly": {"report/figures", "report/comparison_figures"},
    "onnx": {"export", "checkup"},
    "onnxruntime": {"export", "checkup"},
    "rich": {"console", "catalogue", "display", "outcome"},
    "typer": {"cli", "arguments"},
    "PIL": {"tasks"},
    "mlflow": {"export/tracking"},
}


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "autocompress":
                yield from ((node.lineno, f"autocompress.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def floor(name: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if name in names)


MODULES = sorted(PACKAGE.rglob("*.py"))
ALL = sorted(each for part in ("autocompress", "benchmarks", "tests") for each in (PACKAGE.parent / part).rglob("*.py"))


def test_every_module_stands_on_a_floor() -> None:
    assert {unit(path) for path in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    here = unit(path)
    for line, name in imports(path):
        if not name.startswith("autocompress."):
            continue
        there = name.split(".")[1]
        down = floor(there) < floor(here) or there == here or (here, there) in SIDEWAYS
        assert down, f"{path}:{line}: {here} (floor {floor(here)}) imports {there} (floor {floor(there)})"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    place = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for line, name in imports(path):
        library = name.split(".")[0]
        if library in HEAVY:
            home = HEAVY[library]
            assert place in home or unit(path) in home, f"{path}:{line}: {library} belongs into {sorted(home)}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
