"""Sample pages, one for each kind of task: ``python -m benchmarks.gallery [NAME ...]`` writes reports/sample/<name>/.

Each is a small search of a shipped space, with its top candidates trained again. Only the page and the front are
kept. Pages are made from runs that lie in ``--runs``; a run that is there already is not searched again.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import autocompress

SAMPLES = Path(__file__).parents[1] / "reports" / "sample"
KEPT = ("report.html", "front.csv")
SIZES = ((1440, 900), (360, 740))


@dataclass(frozen=True)
class Sample:
    """One sample run.

    Attributes:
        kind: The kind of task, in words.
        trials: Trainings at most.
        minutes: Wall-clock of the search at most.
        top: Candidates to train again.
        seeds: How often each.
    """

    kind: str
    trials: int
    minutes: float
    top: int
    seeds: int


GALLERY = {
    "digits": Sample("images, one head", 60, 5, 4, 3),
    "langid_kind": Sample("text, two heads", 6, 9, 2, 2),
    "mnist1d": Sample("signals, one head", 8, 4, 2, 2),
    "ratings": Sample("recommendations", 12, 5, 3, 3),
}


def make(name: str, runs: Path, workers: int) -> Path:
    """Search, confirm and write one sample page; return its path."""
    sample, folder = GALLERY[name], runs / name
    if (folder / "report.html").exists():
        front = autocompress.load(folder)
    else:
        front = autocompress.search(
            name, trials=sample.trials, minutes=sample.minutes, workers=workers, runs=runs,
            resume=folder.exists(), command=f"autocompress search {name} --trials {sample.trials}",
        )  # fmt: skip
    front.confirm(sample.top, sample.seeds, workers=workers)
    there = SAMPLES / name
    there.mkdir(parents=True, exist_ok=True)
    for each in KEPT:
        shutil.copyfile(folder / each, there / each)
    return there / "report.html"


def screenshots(page: Path) -> list[Path]:
    """Write what a page looks like at two sizes, light and dark, beside it; return the paths."""
    import io

    from PIL import Image
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, height in SIZES:
            for scheme in ("light", "dark"):
                viewport = {"width": width, "height": height}
                context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
                tab = context.new_page()
                tab.goto(page.resolve().as_uri())
                tab.wait_for_selector("html.whole", timeout=120_000)
                picture = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
                found.append(page.with_name(f"page-{width}-{scheme}.webp"))
                picture.save(found[-1], quality=40, method=6)
                context.close()
        browser.close()
    return found


def main() -> None:
    """Make the samples that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *GALLERY], help="which; all by default")
    parser.add_argument("--runs", type=Path, default=Path("reports"), help="where the runs lie")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 takes one per core")
    parser.add_argument("--screenshots", action="store_true", help="take pictures of the pages that are there")
    given = parser.parse_args()
    if given.screenshots:
        for name in given.names or ["digits"]:
            print(*screenshots(SAMPLES / name / "report.html"), sep="\n")
        return
    for name in given.names or GALLERY:
        page = make(name, given.runs, given.workers)
        print(f"{GALLERY[name].kind}: {page} ({page.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    main()
