"""The gallery: the front of each sample run, drawn as SVG from its `front.csv`, with a link to its page."""

import csv
import re
from html import escape
from pathlib import Path

from charts import Plane

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "reports" / "sample"
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 640, 260, 60, 34, 14
# Score, cost and its name of each sample; of all others, those by default.
AXES = {"ratings": ("rmse", "bytes", "bytes")}
DEFAULT = ("accuracy", "effective_flops", "effective FLOPs")
STYLE = """
.gallery { width: 100%; max-width: 640px; height: auto; font-family: inherit; }
.gallery path { stroke: var(--color-brand-primary, #06c); fill: none; }
.gallery circle { fill: var(--color-brand-primary, #06c); }
.gallery .axis { stroke: var(--color-foreground-muted, #888); }
.gallery text { fill: var(--color-foreground-secondary, #444); font-size: 12px; }
"""


def list_samples() -> list[str]:
    """Return the names of the sample runs; none in a distribution without them."""
    return sorted(path.parent.name for path in SAMPLES.glob("*/report.html"))


def read_headline(name: str) -> str:
    """Return the first sentence of a sample page."""
    text = (SAMPLES / name / "report.html").read_text(encoding="utf-8")
    match = re.search(r"<h1[^>]*>(.*?)</h1>", text, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", "", match[1]).strip() if match else ""


def read_front(name: str) -> list[tuple[float, float]]:
    """Return cost and score of each candidate on the front of a sample, the cheapest first."""
    score, cost, _ = AXES.get(name, DEFAULT)
    with (SAMPLES / name / "front.csv").open(encoding="utf-8", newline="") as file:
        return sorted((float(row[cost]), float(row[score])) for row in csv.DictReader(file))


def draw_front(name: str) -> str:
    """Return the front of a sample as an SVG element: score against the logarithm of the cost."""
    front = read_front(name)
    score, _, unit = AXES.get(name, DEFAULT)
    plane = Plane(front, (LEFT, WIDTH - MARGIN), (HEIGHT - BOTTOM, MARGIN))
    points = [plane.locate(point) for point in front]
    # A front is a staircase: a score is reached from its cost on.
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])
    ends = (f"{plane.high:.3g}", MARGIN + 4), (f"{plane.low:.3g}", HEIGHT - BOTTOM)
    labels = "".join(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{text}</text>' for text, y in ends)
    cheapest, dearest = f"{front[0][0]:,.0f}", f"{front[-1][0]:,.0f} {unit}"
    labels += f'<text x="{LEFT}" y="{HEIGHT - 10}">{cheapest}</text>'
    labels += f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 10}" text-anchor="end">{dearest}</text>'
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
    title = f"{score} of the {len(front)} candidates on the front of {name} against {unit}"
    return (
        f'<svg class="gallery" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<style>{STYLE}</style><path class="axis" d="M{LEFT} {MARGIN}V{HEIGHT - BOTTOM}H{WIDTH - MARGIN}"/>'
        f'<path d="M{points[0][0]:.1f} {points[0][1]:.1f}{steps}"/>{dots}{labels}</svg>'
    )


def describe_samples() -> str:
    """Return a section for each sample as Markdown."""
    sections = []
    for name in list_samples():
        score = AXES.get(name, DEFAULT)[0]
        sections += [
            f"## {name}",
            read_headline(name),
            draw_front(name),
            f'{score} on the selection split; <a href="{name}/report.html">the whole page</a>.',
        ]
    return "\n\n".join(sections)
