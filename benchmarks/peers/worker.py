"""Runs one tool in this process: `python -m benchmarks.peers.worker SPACE SEED SECONDS TOOL FOLDER`."""

import json
import sys
import time
from pathlib import Path

from benchmarks.peers.graph_costs import count_effective_flops
from benchmarks.peers.problem import load_problem, make_predictor, score
from benchmarks.peers.tools import TOOLS, seed_everything

RESULT = "result.json"


def run_tool(space: str, seed: int, seconds: float, tool: str, folder: Path) -> None:
    """Run a tool, and write its ONNX files, their scores and costs, and the error with which it ended."""
    problem = load_problem(space, seed, seconds)
    seed_everything(seed)
    rows: list[dict[str, object]] = []
    error = ""
    started = problem.started = time.monotonic()
    elapsed = 0.0
    try:
        for made in TOOLS[tool](problem):
            elapsed = time.monotonic() - started
            name = f"{len(rows)}.onnx"
            (folder / name).write_bytes(made.content)
            predict = make_predictor(made.content)
            rows.append(
                {
                    "file": name,
                    "settings": made.settings,
                    "val": score(predict, problem.val),
                    "test": score(predict, problem.test),
                    "bytes": len(made.content),
                    "effective_flops": count_effective_flops(made.content),
                }
            )
    except Exception as failure:  # a tool may raise anything; what it made before counts
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    (folder / RESULT).write_text(json.dumps({"seconds": elapsed, "error": error, "models": rows}))


if __name__ == "__main__":
    SPACE, SEED, SECONDS, TOOL, FOLDER = sys.argv[1:]
    run_tool(SPACE, int(SEED), float(SECONDS), TOOL, Path(FOLDER))
