"""How long the page takes: to be made, to open, to answer the first hover; ``python -m benchmarks.page``.

Made-up runs of 200, 2,000 and 20,000 candidates. A page is made in a process of its own, libraries imported, as
``autocompress report`` does. It is opened from disk in headless Chromium; *ready* is when plot and table are there,
*hover* is from the pointer's arrival over a point to its label, the first on that page. Writes
reports/benchmarks/page.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.report.factory import make_run

TABLE = Path(__file__).parents[1] / "reports" / "benchmarks" / "page.md"
#: Candidates to (trainings, cuts of each).
SIZES = {200: (12, 20), 2000: (76, 35), 20_000: (760, 35)}
_MAKE = """
import json, sys, time
started = time.perf_counter()
import pandas as pd
from pathlib import Path
from autocompress.core.run_info import RunInfo
from autocompress.analysis.selection import pick
from autocompress.report import write_page
here = Path(sys.argv[1])
candidates, trials = (pd.read_pickle(here / f"{name}.pkl") for name in ("candidates", "trials"))
info = RunInfo.from_json(json.loads((here / "meta.json").read_text()))
loaded = time.perf_counter()
write_page(here / "report.html", candidates, trials, info, pick(candidates, info))
print(time.perf_counter() - started, time.perf_counter() - loaded, time.process_time())
"""
_PLACE = """() => {
  const plot = document.getElementById("front-plot");
  plot.scrollIntoView({ block: "center", behavior: "instant" });
  const trace = plot.data.find((each) => each.meta === "pick");
  const [{ _fullLayout: layout }, box] = [plot, plot.getBoundingClientRect()];
  return [box.x + layout.xaxis._offset + layout.xaxis.c2p(trace.x[0]),
          box.y + layout.yaxis._offset + layout.yaxis.c2p(trace.y[0])];
}"""
# Set up before the page runs: notes when it is ready and when the first label of a point appears.
_WATCH = """
addEventListener("ready", () => { window.readyAt = performance.now(); });
addEventListener("mousemove", () => { window.movedAt ??= performance.now(); }, true);
new MutationObserver(() => {
  if (window.hoveredAt === undefined && document.querySelector(".hovertext")) window.hoveredAt = performance.now();
}).observe(document, { childList: true, subtree: true });
"""


@dataclass(frozen=True)
class Timing:
    """One page, in seconds, the median of several."""

    candidates: int
    made: float
    processor: float
    megabytes: float
    ready: float
    busy: float
    hover: float


def measure(wanted: int, repeats: int, browser: Any) -> Timing:
    """Make a page of about ``wanted`` candidates and open it."""
    trials, cuts = SIZES[wanted]
    run = make_run(trials, cuts)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        run.candidates.to_pickle(here / "candidates.pkl")
        run.trials.to_pickle(here / "trials.pkl")
        (here / "meta.json").write_text(json.dumps(run.info.to_json()))
        made = []
        for _ in range(repeats):
            command = [sys.executable, "-c", _MAKE, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            made.append([float(word) for word in done.stdout.split()])
        page = here / "report.html"
        opened = [_opened(page, browser) for _ in range(repeats)]
        size = page.stat().st_size / 1e6
    wall, processor = statistics.median(row[0] for row in made), statistics.median(row[2] for row in made)
    ready, busy, hover = (statistics.median(row[column] for row in opened) for column in range(3))
    return Timing(len(run.candidates), wall, processor, size, ready, busy, hover)


def _opened(page: Path, browser: Any) -> tuple[float, float, float]:
    """Return seconds until the page was ready, processor seconds of that, and from pointer over a point to label."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(_WATCH)
    tab = context.new_page()
    session = context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    tab.goto(page.as_uri())
    tab.wait_for_selector("html.ready", timeout=120_000)
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    x, y = tab.evaluate(_PLACE)
    tab.evaluate("window.movedAt = undefined")
    tab.mouse.move(x, y)
    tab.locator(".hovertext").first.wait_for(timeout=60_000)
    found = tab.evaluate("[window.readyAt, window.hoveredAt - window.movedAt]")
    context.close()
    return found[0] / 1000, metrics["TaskDuration"], found[1] / 1000


def table(rows: list[Timing]) -> str:
    """Return the timings as Markdown."""
    lines = [
        "# The page",
        "",
        "Written by `python -m benchmarks.page`. *Made*: a process that imports the libraries, reads the tables and "
        "writes the page; *processor*: its processor time. *Ready*: from opening the file to plot and table. "
        "*Busy*: the processor time of the page's thread "
        "in that. *Hover*: from the pointer over a point to its label, the first on that page.",
        "",
        "| candidates | made | processor | size | ready | busy | hover |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.candidates:,} | {row.made:.2f} s | {row.processor:.2f} s | {row.megabytes:.2f} MB "
        f"| {row.ready:.2f} s | {row.busy:.2f} s | {row.hover:.3f} s |"
        for row in rows
    ]
    load = statistics.mean(os.getloadavg()[:2])
    lines += ["", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load average {load:.1f}."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured; the median is told")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows = [measure(wanted, given.repeats, browser) for wanted in SIZES]
        browser.close()
    text = table(rows)
    TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
