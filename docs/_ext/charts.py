"""Charts of the benchmarks that compare autocompress with other ways, drawn as SVG from their Markdown tables."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "reports" / "benchmarks"
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 720, 320, 60, 40, 14
BAR_LEFT, BAR_HEIGHT, VALUE_WIDTH = 250, 22, 120
OURS = ("surrogate", "joint")
STYLE = """
.chart { width: 100%; max-width: 720px; height: auto; font-family: inherit; }
.chart text { fill: var(--color-foreground-secondary, #444); font-size: 12px; }
.chart .axis { stroke: var(--color-foreground-muted, #888); fill: none; }
.chart .error { stroke: var(--color-foreground-primary, #000); fill: none; }
.chart rect { fill: #9aa7b5; }
.chart .ours { fill: var(--color-brand-primary, #06c); }
"""
# Of Okabe and Ito: readers with any color vision tell them apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?|[+-]?\.\d+)(?: ± (\d*\.?\d+))?")

Row = Mapping[str, str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: Text in front of it.
        value: Its length.
        error: Standard error; 0 for one measurement.
        text: Both as the table prints them.
    """

    label: str
    value: float
    error: float
    text: str


def read_table(name: str, column: str, section: str = "") -> list[Row]:
    """Return the rows of the first table of a benchmark's page that has a column.

    Args:
        name: Name of the page, without its ending.
        column: Title of the column.
        section: Beginning of the heading below which the table is; by default, the whole page is read.

    Raises:
        ValueError: No table has that column.
    """
    lines = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith(f"## {section}")), 0) if section else 0
    for start, line in enumerate(lines):
        titles = _split_cells(line)
        if start >= first and column in titles:
            end = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
            return [dict(zip(titles, _split_cells(row), strict=True)) for row in lines[start + 2 : end]]
    raise ValueError(f"{name}.md has no table with a column '{column}'")


def read_bars(rows: Sequence[Row], column: str, label: Callable[[Row], str]) -> list[Bar]:
    """Return a bar for each row with a number in a column; a number may be followed by its standard error."""
    return [
        Bar(label(row), float(number[1]), float(number[2] or 0), number[0])
        for row in rows
        if (number := NUMBER.match(row[column]))
    ]


def draw_bars(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Return horizontal bars from 0, with a line of one standard error to each side, as an SVG element.

    Args:
        title: What is drawn, for readers that cannot see it.
        bars: The bars from top to bottom.
        unit: Unit of the values; empty for none.
    """
    low = min(0.0, *(bar.value - bar.error for bar in bars))
    high = max(0.0, *(bar.value + bar.error for bar in bars))

    def locate(value: float) -> float:
        return BAR_LEFT + (WIDTH - BAR_LEFT - VALUE_WIDTH) * (value - low) / ((high - low) or 1)

    height, parts = BAR_HEIGHT * len(bars) + MARGIN, []
    for number, bar in enumerate(bars):
        middle = BAR_HEIGHT * (number + 0.5) + MARGIN / 2
        left, right = sorted((locate(0), locate(bar.value)))
        name = ' class="ours"' if bar.label.split(": ")[-1] in OURS else ""
        parts += [
            f'<text x="{BAR_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect{name} x="{left:.1f}" y="{middle - 7:.1f}" width="{right - left:.1f}" height="14"/>',
            f'<path class="error" d="M{locate(bar.value - bar.error):.1f} {middle:.1f}'
            f'H{locate(bar.value + bar.error):.1f}"/>',
            f'<text x="{WIDTH - VALUE_WIDTH + 10}" y="{middle + 4:.1f}">{bar.text}{unit and f" {unit}"}</text>',
        ]
    axis = f'<path class="axis" d="M{locate(0):.1f} {MARGIN / 2}V{height - MARGIN / 2}"/>'
    return _frame(title, height, [*parts, axis])


class Plane:
    """A rectangle of a drawing that some points fill, above a logarithmic axis.

    Attributes:
        left, right: Logarithms to base 10 of the smallest and the largest ``x``.
        low, high: The smallest and the largest ``y``.
    """

    def __init__(self, points: Sequence[Point], xs: Point, ys: Point) -> None:
        """Find the bounds of the points.

        Args:
            points: Points with a positive ``x``.
            xs: Places of the smallest and the largest ``x`` in the drawing.
            ys: Places of the smallest and the largest ``y``.
        """
        self.left, self.right = (math.log10(bound(x for x, _ in points)) for bound in (min, max))
        self.low, self.high = (bound(y for _, y in points) for bound in (min, max))
        self._xs, self._ys = xs, ys

    def locate(self, point: Point) -> Point:
        """Return the place of a point in the drawing."""
        x = (math.log10(point[0]) - self.left) / ((self.right - self.left) or 1)
        y = (point[1] - self.low) / ((self.high - self.low) or 1)
        return self._xs[0] + (self._xs[1] - self._xs[0]) * x, self._ys[0] + (self._ys[1] - self._ys[0]) * y


def draw_curves(title: str, curves: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """Return points that are joined by lines, above a logarithmic axis, as an SVG element.

    Args:
        title: What is drawn, for readers that cannot see it.
        curves: Positive ``x`` and ``y`` of the points of each curve by its name, from left to right.
        x_title: Title of the logarithmic axis.
        y_title: Title of the other axis.
    """
    points = [point for curve in curves.values() for point in curve]
    bottom = HEIGHT - BOTTOM
    plane = Plane(points, (LEFT, WIDTH - MARGIN), (bottom, MARGIN))
    parts = [f'<path class="axis" d="M{LEFT} {MARGIN}V{bottom}H{WIDTH - MARGIN}"/>']
    parts += [
        f'<text x="{LEFT - 8}" y="{plane.locate((1, y))[1] + 4:.1f}" text-anchor="end">{y:.0f}</text>'
        for y in (plane.low, (plane.low + plane.high) / 2, plane.high)
    ]
    for power in range(math.ceil(plane.left), math.floor(plane.right) + 1):
        x = plane.locate((10**power, plane.low))[0]
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10**power:,g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">{escape(y_title)}</text>')
    parts.append(f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        places = [plane.locate(point) for point in curve]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places)
        parts.append(f'<g fill="{color}"><path d="M{line}" fill="none" stroke="{color}"/>{dots}')
        # The lower right corner is empty, because larger models are more accurate.
        y = bottom - 10 - 18 * (len(curves) - 1 - number)
        parts.append(f'<circle cx="{WIDTH - 280}" cy="{y - 4}" r="3.5"/></g>')
        parts.append(f'<text x="{WIDTH - 270}" y="{y}">{escape(name)}</text>')
    return _frame(title, HEIGHT, parts)


def draw_peers() -> str:
    """Return how much more accurate autocompress is than each other tool, at equal cost, on each problem."""
    columns = {
        "bytes": "ours more accurate by, points, at equal bytes",
        "effective FLOPs": "at equal effective FLOPs",
        "measured latency": "at equal latency",
    }
    parts = []
    for space in ("digits", "mnist1d"):
        rows = read_table("peers", columns["bytes"], space)
        for cost, column in columns.items():
            title = f"autocompress more accurate by, points, at equal {cost} on {space}"
            bars = read_bars(rows, column, lambda row: row["tool"])
            parts += [f"On {space}, at equal {cost}:", draw_bars(title, bars, "points")]
    return "\n\n".join(parts)


def draw_samplers() -> str:
    """Return the hypervolume regret of the samplers on NAS-Bench-201."""
    rows = [row for row in read_table("nas_bench", "regret at 200") if "without" not in row["sampler"]]
    parts = []
    for evaluations in (100, 200):
        bars = read_bars(rows, f"regret at {evaluations}", lambda row: f"{row['data set']}: {row['sampler']}")
        parts += [f"After {evaluations} evaluations:", draw_bars(f"regret after {evaluations} evaluations", bars, "")]
    return "\n\n".join(parts)


def draw_modes() -> str:
    """Return the hypervolume of joint, sequential and uniform search."""
    rows = read_table("joint_or_sequential", "hypervolume")
    bars = read_bars(rows, "hypervolume", lambda row: f"{row['space']}: {row['mode']}")
    return draw_bars("hypervolume of each search mode in the same time", bars, "")


def draw_resnet8() -> str:
    """Return loss of accuracy against kilobytes of ResNet-8, measured and published."""
    curves: dict[str, list[Point]] = {}
    for row in read_table("resnet8", "below the reference, points"):
        if row["seed"] == "0":
            point = float(row["kB"]), -float(row["below the reference, points"])
            curves.setdefault(row["way"].partition(",")[0], []).append(point)
    # One point is no curve.
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    published = read_table("resnet8", "published kB")
    points = sorted((float(row["published kB"]), -float(row["loss, points"])) for row in published)
    curves["published: Motetti et al., joint"] = points
    return draw_curves("accuracy of ResNet-8 against its size", curves, "kB of weights", "points of accuracy")


def describe_comparisons() -> str:
    """Return a section for each comparison as Markdown."""
    sections = {
        "peers": ("Other tools", "Points of test accuracy by which autocompress is ahead.", draw_peers),
        "joint_or_sequential": (
            "Joint against sequential search",
            "Hypervolume on the test split after equal wall-clock time: more is better.",
            draw_modes,
        ),
        "resnet8": (
            "ResNet-8 on CIFAR-10",
            "Test accuracy minus that of the network in floating point or 8 bits, whichever is better; the published "
            "points have another teacher and far more epochs.",
            draw_resnet8,
        ),
        "nas_bench": ("Samplers on NAS-Bench-201", "Hypervolume regret: less is better.", draw_samplers),
    }
    parts = [f"<style>{STYLE}</style>"]
    for name, (title, meaning, draw) in sections.items():
        source = f"From `reports/benchmarks/{name}.md`: `python -m benchmarks.{name}`."
        parts += [f"## {title}", meaning, draw(), source]
    return "\n\n".join(parts)


def _split_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def _frame(title: str, height: float, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
