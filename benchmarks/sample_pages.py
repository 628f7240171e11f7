"""Sample pages of several kinds of tasks: ``python -m benchmarks.sample_pages [NAME ...]``.

Each page in reports/sample/<name>/ shows a small search of a shipped space whose top candidates are trained again.
Runs are stored in the folder ``--runs``, and an existing run is not searched again. Only the page and the front are
copied to the sample folder. ``--screenshots`` takes pictures of the pages, and those of the documentation, which show
the page of digits.
"""

import argparse
import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import autocompress

SAMPLES_FOLDER = Path(__file__).parents[1] / "reports" / "sample"
KEPT_FILES = ("report.html", "front.csv")
VIEWPORTS = ((1440, 900), (360, 740))
PICTURES_FOLDER = Path(__file__).parents[1] / "docs" / "images"
#: The sample that the documentation shows, and the parts of its page by the name of their picture.
SHOWN = "digits"
PICTURES = {"pick": ("header", "#pick"), "front": ("#front",), "confidence": ("#confidence",)}
#: Entry of a picture with the digest of the page that it shows.
PAGE_DIGEST = "page"


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
    "langid_kind": Sample("text, two heads", 40, 4, 2, 2),
    "mnist1d": Sample("signals, one head", 30, 4, 2, 3),
    "ratings": Sample("recommendations", 40, 3, 3, 3),
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


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start Chromium; yield the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, page: Path, width: int, height: int, scheme: str) -> Iterator[Any]:
    """Open a page in a viewport of some pixels; yield its tab when all of it is drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector("html.whole", timeout=120_000)
    yield tab
    context.close()


def take_screenshots(page: Path, browser: Any) -> list[Path]:
    """Write screenshots of a page at two sizes, light and dark, into its folder; return the paths."""
    from PIL import Image

    paths = []
    for width, height in VIEWPORTS:
        for scheme in ("light", "dark"):
            with open_page(browser, page, width, height, scheme) as tab:
                image = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
            paths.append(page.with_name(f"page-{width}-{scheme}.webp"))
            image.save(paths[-1], quality=40, method=6)
    return paths


def take_pictures(page: Path, folder: Path, browser: Any) -> list[Path]:
    """Write the pictures of the documentation, with the digest of the page that they show; return the paths."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    marks = PngInfo()
    marks.add_text(PAGE_DIGEST, digest_page(page))
    paths = []
    with open_page(browser, page, 1200, 900, "light") as tab:
        for name, parts in PICTURES.items():
            boxes = [tab.locator(part).first.bounding_box() for part in parts]
            left, top = (min(box[side] for box in boxes) for side in ("x", "y"))
            right = max(box["x"] + box["width"] for box in boxes)
            bottom = max(box["y"] + box["height"] for box in boxes)
            margin = 12
            clip = {"x": max(left - margin, 0), "y": max(top - margin, 0)}
            clip |= {"width": right - clip["x"] + margin, "height": bottom - clip["y"] + margin}
            image = Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip)))
            paths.append(folder / f"{name}.png")
            # A palette keeps letters sharp in a third of the bytes.
            image.convert("RGB").quantize(256).save(paths[-1], optimize=True, pnginfo=marks)
    return paths


def digest_page(page: Path) -> str:
    """Return a digest of the content of a page."""
    return hashlib.sha256(page.read_bytes()).hexdigest()


def main() -> None:
    """Make the named samples, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SAMPLES], help="names of samples; all by default")
    parser.add_argument("--runs", type=Path, default=Path("reports"), help="folder of the runs")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 takes one per core")
    parser.add_argument("--screenshots", action="store_true", help="take screenshots of the existing pages")
    arguments = parser.parse_args()
    if arguments.screenshots:
        with open_browser() as browser:
            for name in arguments.names or [SHOWN]:
                page = SAMPLES_FOLDER / name / "report.html"
                print(*take_screenshots(page, browser), sep="\n")
                if name == SHOWN:
                    print(*take_pictures(page, PICTURES_FOLDER, browser), sep="\n")
        return
    for name in arguments.names or SAMPLES:
        page = make_page(name, arguments.runs, arguments.workers)
        print(f"{SAMPLES[name].kind}: {page} ({page.stat().st_size / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    main()
