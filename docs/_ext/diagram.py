"""The packages of autocompress by their levels, drawn as SVG from the imports in the sources."""

import ast
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "autocompress"
WIDTH, BOX_WIDTH, BOX_HEIGHT, ROW_HEIGHT = 860, 96, 40, 84
STYLE = """
.layers { width: 100%; height: auto; font-family: inherit; }
.layers rect { fill: var(--color-background-secondary, #f4f4f4); stroke: var(--color-foreground-muted, #888); }
.layers text { fill: var(--color-foreground-primary, #000); font-size: 12px; text-anchor: middle; }
.layers .count { fill: var(--color-foreground-secondary, #555); font-size: 10px; }
.layers path { stroke: var(--color-foreground-border, #aaa); fill: none; }
"""


def read_levels() -> list[list[str]]:
    """Return the units of the package by level, the lowest first, without ``__init__`` and ``__main__``."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["layers"]["levels"]
    levels = [[unit for unit in units if not unit.startswith("__")] for units in table]
    return [units for units in levels if units]


def find_imports() -> dict[str, set[str]]:
    """Return the units of lower levels that each unit imports from, imports inside functions included."""
    level = {unit: number for number, units in enumerate(read_levels()) for unit in units}
    imports: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for target in _imported_units(path):
            if level.get(target, len(level)) < level.get(unit, -1):
                imports.setdefault(unit, set()).add(target)
    return imports


def reduce_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without those that follow from others (transitive reduction of an acyclic graph)."""
    reachable: dict[str, set[str]] = {}

    def reach(unit: str) -> set[str]:
        if unit not in reachable:
            targets = imports.get(unit, set())
            reachable[unit] = targets.union(*(reach(target) for target in targets))
        return reachable[unit]

    return {
        unit: {target for target in targets if not any(target in reach(other) for other in targets - {target})}
        for unit, targets in imports.items()
    }


def draw_layers() -> str:
    """Return the diagram as an SVG element: one row for each level, one line for each import that no other implies."""
    levels = read_levels()
    centers = {
        unit: ((index + 0.5) * WIDTH / len(units), (len(levels) - 1 - row) * ROW_HEIGHT + BOX_HEIGHT / 2 + 4)
        for row, units in enumerate(levels)
        for index, unit in enumerate(units)
    }
    imports = reduce_imports(find_imports())
    lines = [
        _curve(centers[unit], centers[target])
        for unit, targets in sorted(imports.items())
        for target in sorted(targets)
    ]
    boxes = [_box(unit, *center) for unit, center in centers.items()]
    height = (len(levels) - 1) * ROW_HEIGHT + BOX_HEIGHT + 8
    title = "Packages by level; a line is an import"
    return (
        f'<svg class="layers" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
        f"<style>{STYLE}</style>{''.join(lines)}{''.join(boxes)}</svg>"
    )


def _imported_units(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            is_root = node.module == "autocompress"
            names = [f"autocompress.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("autocompress."))


def _box(unit: str, x: float, y: float) -> str:
    folder = PACKAGE / unit
    count = len(list(folder.rglob("*.py"))) - 1 if folder.is_dir() else 1
    label = f"{unit}/" if folder.is_dir() else f"{unit}.py"
    modules = f"{count} module{'s' * (count != 1)}"
    return (
        f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
        f' rx="5"/><text x="{x:.0f}" y="{y - 2:.0f}">{escape(label)}</text>'
        f'<text class="count" x="{x:.0f}" y="{y + 13:.0f}">{modules}</text>'
    )


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = (start[0], start[1] + BOX_HEIGHT / 2), (end[0], end[1] - BOX_HEIGHT / 2)
    middle = (y1 + y2) / 2
    return f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"/>'
