"""Other compression tools beside this one: `python -m benchmarks.peers [--spaces digits] [--seeds 3]`.

Every tool gets the same teacher, data and wall-clock time, and writes ONNX files. Those of one seed are measured
together: accuracy on both validation splits and on test, size of the file, effective FLOPs counted in the graph (2 MACs
times the bits of both operands over 32 squared), and latency in onnxruntime on one thread, in turns with the teacher's
file. For each file of a tool, the file of autocompress with the best validation accuracy among those that cost no more
is compared with it on the test split. A tool that is not installed, fails or takes longer than its limit is a row with
the reason. Rows are stored, so that a run resumes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autocompress.targets.base import make_inputs, make_target
from autocompress.targets.timing import compare_rounds, time_rounds
from benchmarks.common import append_row, load_rows
from benchmarks.peers.problem import export_onnx, load_problem
from benchmarks.peers.table import format_page
from benchmarks.peers.tools import TOOLS
from benchmarks.peers.worker import RESULT

#: Seconds beyond its time after which a tool is stopped: a step that was begun may end.
GRACE = 300.0
TIMED_SECONDS = 0.5


def run_apart(python: str, space: str, seed: int, seconds: float, tool: str, folder: Path) -> dict[str, Any]:
    """Run a tool in a process of its own and return its result; a process that hangs or dies is an error."""
    folder.mkdir()
    command = [python, "-m", "benchmarks.peers.worker", space, str(seed), str(seconds), tool, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE, check=False)
        error = f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds + GRACE:.0f} seconds"
    file = folder / RESULT
    return json.loads(file.read_text()) if file.exists() else {"seconds": 0.0, "error": error, "models": []}


def run_seed(python: str, space: str, seed: int, seconds: float, tools: list[str]) -> list[dict[str, Any]]:
    """Run the tools on one seed, time all files in turns, and return a row for each tool."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        contents = {}
        for tool in tools:
            result = run_apart(python, space, seed, seconds, tool, Path(folder) / tool)
            row = {"space": space, "seed": seed, "tool": tool, "budget": seconds, **result}
            print(tool, len(row["models"]), f"{row['seconds']:.0f} s", row["error"], flush=True)
            for model in row["models"]:
                contents[tool, model["file"]] = (Path(folder) / tool / model["file"]).read_bytes()
            rows.append(row)
        problem = load_problem(space, seed, seconds)
        contents["teacher", ""] = export_onnx(problem.teacher, problem)
        ratios = time_files(contents)
    for row in rows:
        for model in row["models"]:
            model["latency"] = ratios[row["tool"], model["file"]]
    return rows


def time_files(contents: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], float]:
    """Return the latency of each file relative to the teacher's, all timed in turns."""
    target = make_target("onnxruntime", {})
    keys = {" ".join(key): key for key in contents}
    models = {name: target.load(contents[key]) for name, key in keys.items()}
    inputs = make_inputs(contents["teacher", ""])
    rounds = time_rounds(models, inputs, TIMED_SECONDS * len(models))
    return {keys[name]: ratio for name, ratio in compare_rounds(rounds, "teacher ").items()}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=["digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="wall-clock time of each tool")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--python", default=sys.executable, help="interpreter in which the tools are installed")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/peers.md"))
    options = parser.parse_args()
    file = options.out.with_suffix(".jsonl")
    done = {(row["space"], row["seed"]) for row in load_rows(file)}
    for space in options.spaces:
        for seed in range(options.seeds):
            if (space, seed) not in done:
                for row in run_seed(options.python, space, seed, options.seconds, options.tools):
                    append_row(file, row)
    text = format_page(load_rows(file), __doc__)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
