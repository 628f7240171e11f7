"""Sample pages of several kinds of tasks: ``python -m benchmarks.sample_pages [NAME ...]``.

Each page in reports/sample/<name>/ shows a small search of a shipped space whose top candidates are trained again.
Runs are stored in the folder ``--runs``, and an existing run is not searched again. Only the page and the front are
copied to the sample folder.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import autocompress

SAMPLES_FOLDER = Path(__file__).parents[1] / "reports" / "sample"
KEPT_FILES = ("report.html", "front.csv")
VIEWPORTS = ((1440, 900), (360, 740))


@dataclass(frozen=True)
class Sample:
    """A sample run.

    Attributes:
        kind: Description of the kind of task.
        trials: Largest number of trials.
        minutes: Largest wall-clock time of the search.
        top: Number of candidates that are trained again.
        seeds: Number of seeds of each of these candidates.
    """

    kind: str
    trials: int
    minutes: float
    top: int
    seeds: int


SAMPLES = {
    "digits": Sample("images, one head", 60, 5, 4, 3),
    "langid_kind": Sample("text, two heads", 6, 9, 2, 2),
    "mnist1d": Sample("signals, one head", 8, 4, 2, 2),
    "ratings": Sample("recommendations", 12, 5, 3, 3),
}


def make_page(name: str, runs: Path, workers: int) -> Path:
    """Search, confirm and write a sample page; return its path."""
    sample, folder = SAMPLES[name], runs / name
    if (folder / "report.html").exists():
        front = autocompress.load(folder)
    else:
        front = autocompress.search(
            name, trials=sample.trials, minutes=sample.minutes, workers=workers, runs=runs,
            resume=folder.exists(), command=f"autocompress search {name} --trials {sample.trials}",
        )  # fmt: skip
    front.confirm(sample.top, sample.seeds, workers=workers)
    target = SAMPLES_FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for file_name in KEPT_FILES:
        shutil.copyfile(folder / file_name, target / file_name)
    return target / "report.html"


def take_screenshots(page: Path) -> list[Path]:
    """Write screenshots of a page at two sizes, light and dark, into its folder; return the paths."""
    import io

    from PIL import Image
    from playwright.sync_api import sync_playwright

    paths = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, height in VIEWPORTS:
            for scheme in ("light", "dark"):
                viewport = {"width": width, "height": height}
                context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
                tab = context.new_page()
                tab.goto(page.resolve().as_uri())
                tab.wait_for_selector("html.whole", timeout=120_000)
                image = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
                paths.append(page.with_name(f"page-{width}-{scheme}.webp"))
                image.save(paths[-1], quality=40, method=6)
                context.close()
        browser.close()
    return paths


def main() -> None:
    """Make the named samples, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SAMPLES], help="names of samples; all by default")
    parser.add_argument("--runs", type=Path, default=Path("reports"), help="folder of the runs")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 takes one per core")
    parser.add_argument("--screenshots", action="store_true", help="take screenshots of the existing pages")
    arguments = parser.parse_args()
    if arguments.screenshots:
        for name in arguments.names or ["digits"]:
            print(*take_screenshots(SAMPLES_FOLDER / name / "report.html"), sep="\n")
        return
    for name in arguments.names or SAMPLES:
        page = make_page(name, arguments.runs, arguments.workers)
        print(f"{SAMPLES[name].kind}: {page} ({page.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    main()
