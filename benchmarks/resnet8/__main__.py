"""ResNet-8 on CIFAR-10, accuracy against kilobytes: `python -m benchmarks.resnet8 [--seeds 3] [--minutes 10]`.

The network of MLPerf Tiny (78,042 parameters) is trained once and compressed by each way in the same minutes on one
thread, with the same images and augmented views: as a whole with 8 bits of weights and activations, at once and trained
on with distillation for as many epochs as a student; with 6 to 3 bits of weights without training, the same in all
layers or chosen by layer (`mixed_precision`); by a joint search over pruned students (`from_teacher`, the same
share of channels in every layer) and their bits (post-training quantization to 6, 5 and 4 bits, learned step sizes with
3 and 2 bits, 8 bits of activations); and by PLiNIO's MPS, the public code of Motetti et al. 2024 (arXiv:2407.01054),
which chooses 0, 2, 4 or 8 bits for each output channel. A kilobyte is 1,000 bytes of weights of convolutions and linear
layers, without biases and scales, as in that publication. The images are JPEG files, on which a network scores some
points less than on the originals. The minutes are far fewer than the authors' epochs (up to 500 for each of three
phases): losses against the own network in floating point compare with the published ones better than accuracies do, and
neither does well. PLiNIO is not on PyPI: `--python` names an interpreter in which it is installed; without it, or where
it fails, its row says so. Rows are stored, so that a run resumes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autocompress.core.atomic import write_atomic
from benchmarks.common import append_row, load_rows
from benchmarks.resnet8.table import format_page
from benchmarks.resnet8.ways import FIXED, WAYS, Settings

#: Seconds beyond its time after which a way is stopped: reading the data and a step that was begun take time.
GRACE = 900.0


def run_apart(python: str, settings: Settings, way: str, seed: int) -> dict[str, Any]:
    """Run a way in a process of its own and return its result; a process that hangs or dies is an error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [python, "-m", "benchmarks.resnet8.worker", json.dumps(asdict(settings)), way, str(seed), str(file)]
        limit = settings.seconds + GRACE
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            error = f"exit status {done.returncode}: {''.join(done.stderr.strip().splitlines()[-1:])}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} seconds"
        except OSError as failure:
            error = str(failure)
        failed = {"seconds": 0.0, "processor_seconds": 0.0, "epochs": 0.0, "error": error, "points": []}
        return json.loads(file.read_text()) if file.exists() else failed


def run_missing(rows: Path, settings: Settings, seeds: int, pythons: Mapping[str, str]) -> None:
    """Run each way with each seed whose row is not stored yet, and store its row.

    Args:
        rows: File of the rows.
        settings: What all ways share.
        seeds: Number of seeds; what is not random has one.
        pythons: Interpreter of each way that is to run.
    """
    stored = {(row["way"], row["seed"]) for row in load_rows(rows)}
    for seed in range(seeds):
        for way, python in pythons.items():
            if (way, seed) not in stored and not (way in FIXED and seed):
                result = run_apart(python, settings, way, seed)
                print(way, seed, f"{result['seconds']:.0f} s", len(result["points"]), result["error"], flush=True)
                shown = {**asdict(settings), "folder": "", "weights": ""}
                append_row(rows, {"way": way, "seed": seed, "settings": shown, **result})


@contextmanager
def extract_images(folder: str) -> Iterator[str]:
    """Yield a folder of class folders: the given one, or the content of `cifar10_jpeg.zip` for some time."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(Path(os.environ["AUTOCOMPRESS_TEST_DATA"]) / "cifar10_jpeg.zip") as archive:
            archive.extractall(scratch)
        yield str(Path(scratch) / "cifar10")


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="", help="class folders in train and test; by default the test data's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock time of each way and seed")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a student; half of those under rounding")
    parser.add_argument("--teacher-epochs", type=int, default=18)
    parser.add_argument("--weights", default="", help="weights of the trained teacher, .safetensors; or it is trained")
    parser.add_argument("--limit", type=int, help="largest number of images of each class; all by default")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--python", default=sys.executable, help="interpreter in which PLiNIO is installed")
    parser.add_argument("--rows", type=Path, default=Path("reports/benchmarks/resnet8.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/resnet8.md"))
    options = parser.parse_args()
    pythons = {way: options.python if way == "plinio" else sys.executable for way in options.ways}
    with extract_images(options.folder) as folder:
        sizes = (60 * options.minutes, options.epochs, options.teacher_epochs, options.limit, options.weights)
        settings = Settings(folder, *sizes)
        run_missing(options.rows, settings, options.seeds, pythons)
    text = format_page(load_rows(options.rows), __doc__)
    print(text)
    write_atomic(options.out, text)


if __name__ == "__main__":
    main()
