"""Time to write, open and hover over the report page: ``python -m benchmarks.page``.

Synthetic runs have 200, 2,000 and 20,000 candidates. A new process imports the libraries and writes the page, as
``autocompress report`` does. Headless Chromium opens the page from disk. *Ready* is the time until plot and table are
shown; *hover* is the time from the pointer over a point to the first label. Writes reports/benchmarks/page.md.
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
#: Number of trials and of candidates per trial, by number of candidates.
SIZES = {200: (12, 20), 2000: (76, 35), 20_000: (760, 35)}
_MAKE_PAGE = """
import json, sys, time
started = time.perf_counter()
import pandas as pd
from pathlib import Path
from autocompress.core.run_info import RunInfo
from autocompress.analysis.selection import select_candidate
from autocompress.report.page import write_page
folder = Path(sys.argv[1])
candidates, trials = (pd.read_pickle(folder / f"{name}.pkl") for name in ("candidates", "trials"))
info = RunInfo.from_json(json.loads((folder / "meta.json").read_text()))
loaded = time.perf_counter()
write_page(folder / "report.html", candidates, trials, info, select_candidate(candidates, info))
print(time.perf_counter() - started, time.perf_counter() - loaded, time.process_time())
"""
_POINT_POSITION = """() => {
  const plot = document.getElementById("front-plot");
  plot.scrollIntoView({ block: "center", behavior: "instant" });
  const trace = plot.data.find((each) => each.meta === "pick");
  const [{ _fullLayout: layout }, box] = [plot, plot.getBoundingClientRect()];
  return [box.x + layout.xaxis._offset + layout.xaxis.c2p(trace.x[0]),
          box.y + layout.yaxis._offset + layout.yaxis.c2p(trace.y[0])];
}"""
# Injected before the page's scripts: records when the page is ready and when the first label of a point appears.
_RECORD_TIMES = """
addEventListener("ready", () => { window.readyAt = performance.now(); });
addEventListener("mousemove", () => { window.movedAt ??= performance.now(); }, true);
new MutationObserver(() => {
  if (window.hoveredAt === undefined && document.querySelector(".hovertext")) window.hoveredAt = performance.now();
}).observe(document, { childList: true, subtree: true });
"""


@dataclass(frozen=True)
class Timing:
    """Medians of repeated measurements of one page, in seconds."""

    candidates: int
    write: float
    processor: float
    megabytes: float
    ready: float
    busy: float
    hover: float


def measure(candidates: int, repeats: int, browser: Any) -> Timing:
    """Write and open a page of about ``candidates`` candidates."""
    trials, cuts = SIZES[candidates]
    run = make_run(trials, cuts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run.candidates.to_pickle(folder / "candidates.pkl")
        run.trials.to_pickle(folder / "trials.pkl")
        (folder / "meta.json").write_text(json.dumps(run.info.to_json()))
        timings = []
        for _ in range(repeats):
            command = [sys.executable, "-c", _MAKE_PAGE, name]
            completed = subprocess.run(command, capture_output=True, text=True, check=True)
            timings.append([float(word) for word in completed.stdout.split()])
        page = folder / "report.html"
        page_timings = [_open_page(page, browser) for _ in range(repeats)]
        size = page.stat().st_size / 1e6
    wall, processor = statistics.median(row[0] for row in timings), statistics.median(row[2] for row in timings)
    ready, busy, hover = (statistics.median(row[column] for row in page_timings) for column in range(3))
    return Timing(len(run.candidates), wall, processor, size, ready, busy, hover)


def _open_page(page: Path, browser: Any) -> tuple[float, float, float]:
    """Return seconds until the page is ready, their processor seconds, and seconds from hovering to the label."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(_RECORD_TIMES)
    tab = context.new_page()
    session = context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    tab.goto(page.as_uri())
    tab.wait_for_selector("html.ready", timeout=120_000)
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    x, y = tab.evaluate(_POINT_POSITION)
    tab.evaluate("window.movedAt = undefined")
    tab.mouse.move(x, y)
    tab.locator(".hovertext").first.wait_for(timeout=60_000)
    times = tab.evaluate("[window.readyAt, window.hoveredAt - window.movedAt]")
    context.close()
    return times[0] / 1000, metrics["TaskDuration"], times[1] / 1000


def table(rows: list[Timing]) -> str:
    """Return the timings as Markdown."""
    lines = [
        "# The report page",
        "",
        "Written by `python -m benchmarks.page`. *Write*: time of a process that imports the libraries, reads the "
        "tables and writes the page; *processor*: its processor time. *Ready*: time from opening the file to plot "
        "and table. "
        "*Busy*: processor time of the page's thread in that time. "
        "*Hover*: time from the pointer over a point to the first label.",
        "",
        "| candidates | write | processor | size | ready | busy | hover |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.candidates:,} | {row.write:.2f} s | {row.processor:.2f} s | {row.megabytes:.2f} MB "
        f"| {row.ready:.2f} s | {row.busy:.2f} s | {row.hover:.3f} s |"
        for row in rows
    ]
    load_average = statistics.mean(os.getloadavg()[:2])
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load average {load_average:.1f}.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="number of repetitions; the table shows the median")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows = [measure(candidates, arguments.repeats, browser) for candidates in SIZES]
        browser.close()
    text = table(rows)
    TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
