"""Static pictures for print and for browsers without JavaScript: coordinates that the template draws as SVG."""

import html
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autocompress.analysis.confirmation import Estimate
from autocompress.core.formatting import format_count, format_value, is_finite, is_share, label_column
from autocompress.report.figure_data import FrontData, Marks, step_line
from autocompress.report.uncertainty import Intervals, Repeats

#: Position of a label relative to its mark: text anchor, and offset of the text in pixels.
LABEL_OFFSETS = {
    "top center": ("middle", 0, -13),
    "bottom center": ("middle", 0, 21),
    "middle right": ("start", 12, 4),
    "middle left": ("end", -12, 4),
    "top right": ("start", 8, -10),
    "top left": ("end", -8, -10),
    "bottom right": ("start", 8, 18),
    "bottom left": ("end", -8, 18),
}
# Widths of pictures of intervals: for a desk, and for a phone, where every second tick has a label.
WIDE, NARROW = 900.0, 320.0
# Approximate width of a letter and height of a line, in pixels.
_LETTER, _LINE = 6.4, 15.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """Maps cost (logarithm) and score to pixels of a drawing.

    Attributes:
        size: Width and height in pixels, margins included.
        margins: Left, right, top and bottom margin in pixels.
        costs: [low, high] of the horizontal axis, above 0.
        scores: [bottom, top] of the vertical axis; top is the better end, which may be the smaller value.
    """

    size: tuple[float, float]
    margins: tuple[float, float, float, float]
    costs: tuple[float, float]
    scores: tuple[float, float]

    @classmethod
    def for_data(
        cls, data: FrontData, size: tuple[float, float], margins: tuple[float, float, float, float]
    ) -> "Frame":
        """Return a frame with all positive costs and the initial range of scores."""
        name = data.costs[0].name
        seen = [
            value for marks in data.marks.values() for value in marks.column(name) if value is not None and value > 0
        ]
        low, high = (min(seen), max(seen)) if seen else (1.0, 10.0)
        # The factor leaves a margin on the logarithmic axis, so that no point lies on the edge.
        return cls(size, margins, (low / 1.4, min(high * 1.4, sys.float_info.max)), data.window)

    def x(self, cost: float) -> float:
        """Return the pixel of a cost."""
        low, high = (math.log10(bound) for bound in self.costs)
        left, right = self.margins[0], self.size[0] - self.margins[1]
        return round(left + (right - left) * (math.log10(cost) - low) / (high - low), 1)

    def y(self, score: float) -> float:
        """Return the pixel of a score."""
        low, high = self.scores
        top, bottom = self.margins[2], self.size[1] - self.margins[3]
        return round(bottom - (bottom - top) * (score - low) / (high - low), 1)

    def pixel(self, cost: float | None, score: float | None) -> tuple[float, float] | None:
        """Return the pixel of a point; None if it is outside the frame or has no value."""
        if cost is None or score is None or cost <= 0 or not min(self.scores) <= score <= max(self.scores):
            return None
        return self.x(cost), self.y(score)


def place_labels(
    anchors: Sequence[tuple[float, float]], labels: Sequence[str], taken: Iterable[tuple[float, float]], frame: Frame
) -> list[str]:
    """Return a place for each label that hides as little as possible: a key of ``PLACES``.

    Greedy, in the order given: covering another label weighs most, then leaving the frame, then covering a point.
    """
    points = list(taken)
    boxes: list[Box] = []
    chosen = []
    for anchor, words in zip(anchors, labels, strict=True):
        options = {name: _label_box(anchor, words, name) for name in LABEL_OFFSETS}
        weights = {name: _placement_cost(box, boxes, points, frame) for name, box in options.items()}
        best = min(weights, key=lambda name: weights[name])
        boxes.append(options[best])
        chosen.append(best)
    return chosen


def label_positions(data: FrontData, frame: Frame) -> dict[tuple[str, int], str]:
    """Return the position of each label of the plot, by group and index in the group."""
    keys, anchors, labels = [], [], []
    for name in ("pick", "teacher", "baseline"):
        marks = data.marks[name]
        spots = _point_pixels(marks, data, frame)
        for row, words in enumerate(marks.labels):
            keys.append((name, row))
            anchors.append(spots[row] or (0.0, 0.0))
            labels.append(words.replace("<b>", "").replace("</b>", ""))
    taken = _visible_pixels(data, ("front", "baseline", "teacher", "pick"), frame)
    return dict(zip(keys, place_labels(anchors, labels, taken, frame), strict=True))


def front_picture(data: FrontData) -> dict[str, object]:
    """Return the picture of the front: ticks, points and step line as SVG paths, and marks with labels."""
    frame = Frame.for_data(data, (900.0, 430.0), (58.0, 18.0, 18.0, 48.0))
    cost, score = data.costs[0], data.scores[0]
    positions = label_positions(data, frame)
    marks = []
    for name in ("baseline", "teacher", "knee", "pick"):
        group = data.marks[name]
        for row, spot in enumerate(_point_pixels(group, data, frame)):
            if spot is not None:
                anchor, dx, dy = LABEL_OFFSETS[positions.get((name, row), "top center")]
                words = _strip_tags(group.labels[row]) if group.labels else ""
                shape = {"kind": name, "x": spot[0], "y": spot[1]}
                marks.append({**shape, "anchor": anchor, "dx": dx, "dy": dy, "text": words})
    steps = [spot for spot in (frame.pixel(*pair) for pair in step_line(data)) if spot is not None]
    return {
        "width": frame.size[0],
        "height": frame.size[1],
        "box": (frame.margins[0], frame.margins[2], frame.size[0] - frame.margins[1], frame.size[1] - frame.margins[3]),
        "xticks": [(frame.x(value), format_count(value, "")) for value in _log_ticks(*frame.costs)],
        "yticks": [
            (frame.y(value), format_value(value, score))
            for value in _linear_ticks(min(frame.scores), max(frame.scores), is_share(score))
        ],
        "clouds": {
            name: _dots_path(_visible_pixels(data, (name,), frame)) for name in ("dominated", "infeasible", "front")
        },
        "line": "".join(
            f"{'H' if row else 'M'}{x:g}{' ' if not row else 'V'}{y:g}" for row, (x, y) in enumerate(steps)
        ),
        "marks": marks,
        "whiskers": _error_bars_path(data, frame),
        "xlabel": label_column(cost.name),
        "ylabel": label_column(score.name),
    }


def _point_pixels(marks: Marks, data: FrontData, frame: Frame) -> list[tuple[float, float] | None]:
    cost, score = data.costs[0].name, data.scores[0].name
    return [frame.pixel(*pair) for pair in zip(marks.column(cost), marks.column(score), strict=True)]


def _visible_pixels(data: FrontData, names: Iterable[str], frame: Frame) -> list[tuple[float, float]]:
    return [spot for name in names for spot in _point_pixels(data.marks[name], data, frame) if spot is not None]


def _error_bars_path(data: FrontData, frame: Frame) -> str:
    """Return a path with the interval of each repeated candidate, clipped to the frame."""
    low, high = min(frame.scores), max(frame.scores)
    path = ""
    for cost, ends in zip(data.marks["again"].column(data.costs[0].name), data.marks["again"].bounds, strict=True):
        if cost is not None and cost > 0 and ends[0] < high and ends[1] > low:
            x, bottom, top = frame.x(cost), frame.y(max(ends[0], low)), frame.y(min(ends[1], high))
            path += f"M{x - 4:g} {bottom:g}h8M{x - 4:g} {top:g}h8M{x:g} {bottom:g}V{top:g}"
    return path


def repeats_picture(repeats: Repeats | None, width: float = WIDE) -> dict[str, object] | None:
    """Return the repeats with pixels: one line per candidate for select_val, and one below it for test.

    Args:
        repeats: The repeats; None for no picture.
        width: Width of the picture in pixels.
    """
    if repeats is None:
        return None
    points = [row["points"] for row in repeats["rows"]]
    estimates = [estimate for point in points for estimate in (point["select_val"], point["test"])]
    ends = [
        *(point["searched"] for point in points),
        *(end for estimate in estimates for end in _interval_ends(estimate)),
    ]
    low, high = min(ends), max(ends)
    frame = Frame((width, 34.0 + 34.0 * len(repeats["rows"])), (90.0, 24.0, 8.0, 26.0), (1.0, 10.0), (low, high))
    left, right = frame.margins[0], frame.size[0] - frame.margins[1]

    def x(value: float) -> float:
        pixel: float = round(left + (right - left) * (value - low) / ((high - low) or 1.0), 1)
        return pixel

    rows: list[dict[str, object]] = []
    for line, row in enumerate(repeats["rows"]):
        pixels: dict[str, float] = {"y": 22.0 + 34.0 * line, "x": x(row["points"]["searched"])}
        for split, estimate in (("select_val", row["points"]["select_val"]), ("test", row["points"]["test"])):
            first, last = _interval_ends(estimate)
            pixels |= {f"{split}_x": x(estimate.mean), f"{split}_from": x(first), f"{split}_to": x(last)}
        rows.append({**row, **pixels})
    ticks = [
        (x(value), format_value(value, repeats["score"]).replace(".0%", "%"))
        for value in _linear_ticks(low, high, is_share(repeats["score"]))[:: 1 if width == WIDE else 2]
    ]
    return {**repeats, "rows": rows, "ticks": ticks, "width": frame.size[0], "height": frame.size[1]}


def _interval_ends(estimate: Estimate) -> tuple[float, float]:
    return (estimate.low, estimate.high) if is_finite(estimate.low) else (estimate.mean, estimate.mean)


def _strip_tags(words: str) -> str:
    """Return a label without plotly's tags and entities."""
    return html.unescape(words.replace("<b>", "").replace("</b>", ""))


def _dots_path(spots: Iterable[tuple[float, float]]) -> str:
    """Return a path of zero-length strokes: with round caps each is a dot, and takes ten bytes."""
    return "".join(f"M{x:g} {y:g}h0" for x, y in spots)


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    # Over more than three decades, one tick per decade is enough.
    shares = (1,) if last - first > 3 else (1, 2, 5)
    # Unlike a power, a text of a number that no float can hold is read as infinity.
    ticks = [share * float(f"1e{power}") for power in range(first, last + 1) for share in shares]
    return [tick for tick in ticks if low <= tick <= high]


def _linear_ticks(low: float, high: float, share: bool) -> list[float]:
    # About five ticks at multiples of 1, 2 or 5 times a power of ten.
    raw = high / 5 - low / 5
    power = 10.0 ** math.floor(math.log10(raw))
    # Percentages have one decimal: finer steps would repeat a label.
    step = max(next(size * power for size in (1, 2, 5, 10) if size * power >= raw), 0.001 if share else 0.0)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label_box(anchor: tuple[float, float], words: str, name: str) -> Box:
    side, dx, dy = LABEL_OFFSETS[name]
    width = len(words) * _LETTER
    left = anchor[0] + dx - {"start": 0.0, "middle": width / 2, "end": width}[side]
    bottom = anchor[1] + dy + 3
    return left, bottom - _LINE, left + width, bottom


def _placement_cost(box: Box, boxes: Iterable[Box], points: Iterable[tuple[float, float]], frame: Frame) -> float:
    left, top, right, bottom = box
    outside = left < frame.margins[0] or top < 0 or right > frame.size[0] or bottom > frame.size[1] - frame.margins[3]
    hidden = sum(left < x < right and top < y < bottom for x, y in points)
    crossed = sum(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in boxes)
    # The weights order the criteria: overlapping labels are unreadable, a covered point is not.
    return 100.0 * crossed + 30.0 * outside + hidden


def interval_picture(intervals: Intervals | None, width: float = WIDE) -> dict[str, object] | None:
    """Return the confidence intervals with pixels: one line per candidate.

    Args:
        intervals: The intervals; None for no picture.
        width: Width of the picture in pixels.
    """
    if intervals is None:
        return None
    values = intervals["rows"]
    low, high = min(row["low"] for row in values), max(row["high"] for row in values)
    right_margin = 96.0 if width == WIDE else 70.0
    frame = Frame((width, 34.0 + 24.0 * len(values)), (90.0, right_margin, 8.0, 26.0), (1.0, 10.0), (low, high))
    left, right = frame.margins[0], frame.size[0] - frame.margins[1]

    def x(share: float) -> float:
        pixel: float = round(left + (right - left) * (share - low) / ((high - low) or 1.0), 1)
        return pixel

    rows = []
    for line, row in enumerate(values):
        pixels = {"x": x(row["share"]), "from": x(row["low"]), "to": x(row["high"]), "y": 20.0 + 24.0 * line}
        rows.append({**row, **pixels, "text": f"{row['share']:.1%}"})
    shown = _linear_ticks(low, high, True)[:: 1 if width == WIDE else 2]
    ticks = [(x(value), f"{value:.1%}".replace(".0%", "%")) for value in shown]
    return {**intervals, "rows": rows, "ticks": ticks, "width": frame.size[0], "height": frame.size[1]}


def sparkline(points: Sequence[Sequence[float]], width: float, height: float) -> dict[str, object] | None:
    """Return a small curve as a path, with its first and last values; None for fewer than two points."""
    if len(points) < 2:
        return None
    xs, ys = [float(point[0]) for point in points], [float(point[1]) for point in points]
    run, rise = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    spots = [
        (round(4 + (width - 8) * (x - min(xs)) / run, 1), round(height - 4 - (height - 8) * (y - min(ys)) / rise, 1))
        for x, y in zip(xs, ys, strict=True)
    ]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in spots)
    return {"path": path, "width": width, "height": height, "first": ys[0], "last": ys[-1], "from": xs[0], "to": xs[-1]}
