"""The latency controller under changing load: `python -m benchmarks.controller [--simulated] [--measured]`.

Requests arrive at random (Poisson); their rate triples after a third of the time and comes back after two thirds. A
window is one second of answers, and every tenth of a second begins one; windows after the first second count. A window
is good if the 95th percentile of its latencies, from arrival to answer, is within the budget. Lost are requests without
an answer, or with one of another request. The score is the mean over all answers of the answering model's score on the
test split. In the simulation, the service times are drawn (log-normal, coefficient of variation 0.25) in the ratio 1 to
3 to 9 (0.5, 1.5 and 4.5 ms; budget 15 ms), the scores of the models are set to 0.90, 0.95 and 0.97, and one run has a
machine that becomes 1.8 times slower for a third of the time; it depends on no processor. In the measurement,
models of mnist1d are trained, exported and run by threads of this machine.
"""

import argparse
import heapq
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import TASKS
from autocompress.core.task import Task
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.quantize import fold_batch_norm
from autocompress.runtime.controller import ControllerSettings, LatencyController
from autocompress.runtime.models import Level, build_levels, load_models
from autocompress.runtime.service import Answer, ModelService, ServiceSettings, exempt_loaded_objects
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import RebuiltCandidate, reproducible_torch
from benchmarks.common import describe_benchmark
from benchmarks.variants import mean_and_error

OUT = Path("reports/benchmarks/controller.md")
WINDOW, STEP = 1.0, 0.1
#: Milliseconds of one request at each level of the simulation, and the score of each.
SIMULATED_MS, SIMULATED_SCORES = (0.5, 1.5, 4.5), (0.90, 0.95, 0.97)
BUDGET_MS = 15.0
VARIATION = 0.25
SIMULATED_SECONDS = 60.0
#: Title, requests per second before and after, and the factor of the service times over time.
CASES: tuple[tuple[str, int, Callable[[float], float]], ...] = (
    ("largest model would hold", 30, lambda now: 1.0),
    ("largest model overloaded", 110, lambda now: 1.0),
    ("middle model overloaded", 250, lambda now: 1.0),
    ("largest model overloaded, machine 1.8 times slower", 110, lambda now: 1.8 if 20 <= now < 40 else 1.0),
)
#: Width and number of stages of the measured models, and their training.
MODELS = ((8, 2), (48, 3), (128, 3))
FIT = Part.of("adamw", epochs=6, learning_rate=5e-3)
#: Budget of the measurement as a multiple of the time of the largest model.
BUDGET_RUNS = 6.0
HEADINGS = (
    "| load | policy | good windows, worst / mean | p95, ms | lost | score | switches |",
    "|---|---|---|---|---|---|---|",
)
POLICIES = ("controller", "largest model", "smallest model")


@dataclass(frozen=True)
class Answered:
    """One answered request: arrival in seconds, latency in milliseconds, level."""

    arrived: float
    latency_ms: float
    level: int


@dataclass(frozen=True)
class Measured:
    """One measured run: answers, number of wrong ones, switches of the level."""

    answers: list[Answered]
    lost: int
    switches: int


@dataclass(frozen=True)
class Outcome:
    """Figures of one policy in one run.

    Attributes:
        good: Share of the good windows.
        p95_ms: 95th percentile of all latencies after the first second.
        lost: Number of lost requests.
        requests: Number of requests.
        score: Mean score of the answers.
        switches: Number of changes of the level.
    """

    good: float
    p95_ms: float
    lost: int
    requests: int
    score: float
    switches: int


def draw_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return arrival times in seconds: a Poisson process whose rate triples in the middle third."""
    generator = np.random.default_rng([seed, 1])
    times: list[float] = []
    now = 0.0
    while True:
        # Thinning of a process of the highest rate (Lewis and Shedler 1979).
        now += generator.exponential(1 / (3 * rate))
        if now >= seconds:
            return times
        if seconds / 3 <= now < 2 * seconds / 3 or generator.random() < 1 / 3:
            times.append(now)


def simulate(
    arrivals: Sequence[float],
    policy: str,
    seed: int,
    slowdown: Callable[[float], float] = lambda now: 1.0,
    budget_ms: float = BUDGET_MS,
) -> tuple[list[Answered], int]:
    """Return the answers of one simulated worker, and the number of switches.

    Args:
        arrivals: Arrival times in seconds.
        policy: One of ``POLICIES``.
        seed: Seed of the service times.
        slowdown: Function of the time that returns the factor of the service times.
        budget_ms: Latency budget in milliseconds.
    """
    generator = np.random.default_rng([seed, 2])
    controller = LatencyController(SIMULATED_MS, ControllerSettings(budget_ms))
    sigma = np.sqrt(np.log1p(VARIATION**2))
    waiting: list[float] = []
    answers: list[Answered] = []
    free_at, position = 0.0, 0
    while position < len(arrivals) or waiting:
        # The worker takes the next request when it is free and one has arrived.
        now = max(free_at, waiting[0] if waiting else arrivals[position])
        while position < len(arrivals) and arrivals[position] <= now:
            controller.record_arrival(arrivals[position])
            heapq.heappush(waiting, arrivals[position])
            position += 1
        arrived = heapq.heappop(waiting)
        level = {"largest model": len(SIMULATED_MS) - 1, "smallest model": 0}.get(policy, -1)
        if level < 0:
            level = controller.choose_level(now, 1000 * (now - arrived), len(waiting))
        run_ms = SIMULATED_MS[level] * slowdown(now) * float(np.exp(sigma * generator.standard_normal() - sigma**2 / 2))
        free_at = now + run_ms / 1000
        answers.append(Answered(arrived, 1000 * (free_at - arrived), level))
        controller.record_answer(free_at, level, run_ms, answers[-1].latency_ms)
    return answers, controller.switches if policy == "controller" else 0


def summarize(
    answers: Sequence[Answered], requests: int, lost: int, scores: Sequence[float], budget_ms: float, switches: int
) -> Outcome:
    """Return the figures of one run."""
    ended = np.asarray([one.arrived + one.latency_ms / 1000 for one in answers])
    latencies = np.asarray([one.latency_ms for one in answers])
    first, last = ended.min() + WINDOW, ended.max()
    windows = [
        latencies[(ended >= start) & (ended < start + WINDOW)] for start in np.arange(first, last - WINDOW, STEP)
    ]
    good = [bool(np.quantile(window, 0.95) <= budget_ms) for window in windows if len(window)]
    return Outcome(
        float(np.mean(good)),
        float(np.quantile(latencies[ended >= first], 0.95)),
        lost,
        requests,
        statistics.fmean(scores[one.level] for one in answers),
        switches,
    )


def run_simulations(seeds: int) -> list[str]:
    """Return the table of the simulation in Markdown."""
    lines = [*HEADINGS]
    for title, rate, slowdown in CASES:
        for policy in POLICIES:
            outcomes = []
            for seed in range(seeds):
                arrivals = draw_arrivals(rate, SIMULATED_SECONDS, seed)
                answers, switches = simulate(arrivals, policy, seed, slowdown)
                lost = len(arrivals) - len(answers)
                outcomes.append(summarize(answers, len(arrivals), lost, SIMULATED_SCORES, BUDGET_MS, switches))
            lines.append(format_outcomes(f"{title}, {rate} → {3 * rate} → {rate} requests/s", policy, outcomes))
    return lines


def format_outcomes(title: str, policy: str, outcomes: Sequence[Outcome]) -> str:
    """Return a row of a table: the worst and the mean share of good windows, and means over the runs."""
    goods = [outcome.good for outcome in outcomes]
    score, error = mean_and_error([outcome.score for outcome in outcomes])
    return (
        f"| {title} | {policy} | {min(goods):.1%} / {statistics.fmean(goods):.1%} | "
        f"{statistics.fmean(outcome.p95_ms for outcome in outcomes):,.1f} | "
        f"{sum(outcome.lost for outcome in outcomes)} of {sum(outcome.requests for outcome in outcomes):,} | "
        f"{score:.4f} ± {error:.4f} | {statistics.fmean(outcome.switches for outcome in outcomes):.1f} |"
    )


def export_models(folder: Path) -> tuple[list[Path], list[float], Task]:
    """Train and export three models of mnist1d; return folders, test accuracies and the task."""
    task = TASKS.get("mnist1d")()
    splits = task.splits(0)
    folders, scores = [], []
    for number, (width, stages) in enumerate(MODELS):
        torch.manual_seed(0)
        student = Part.of("cnn1d", width=width, depth=2, stages=stages)
        model = task.build(student)
        fit(model, FitRequest(task, splits.train, FIT, seed=0))
        model = fold_batch_norm(model.eval(), task.example())
        logits = predict(model, task, splits.test)["label"]
        scores.append(float((logits.argmax(1) == splits.test.targets["label"]).double().mean()))
        origin: dict[str, JsonValue] = {
            "run": "benchmark",
            "fingerprint": "0",
            "candidate": f"m{number}",
            "metric": "accuracy",
            "scores": {"accuracy": {"value": scores[-1], "direction": "maximize"}},
        }
        models = RebuiltCandidate(model, model, None, None)
        deployable = Deployable.from_task(task, 0, CompressionConfig(student, (), FIT), models)
        folders.append(write_artifact(folder / f"m{number}", replace(deployable, origin=origin), {}))
    return folders, scores, task


def measure_service(
    models: Sequence[Level], policy: str, seconds: float, seed: int, examples: Sequence[Any]
) -> Measured:
    """Run a service under load, and return its answers.

    Args:
        models: The levels, the fastest first.
        policy: One of ``POLICIES``.
        seconds: Duration.
        seed: Seed of the arrivals.
        examples: Raw examples, sent in turns.
    """
    largest = models[-1].run_ms
    # The load at the largest model is 0.5, and 1.5 while the rate is tripled.
    arrivals = draw_arrivals(500 / largest, seconds, seed)
    levels = {"largest model": models[-1:], "smallest model": models[:1]}.get(policy, models)
    control = ControllerSettings(BUDGET_RUNS * largest) if policy == "controller" else None
    names = [level.name for level in models]
    expected = {level.name: level.model.pipeline.predict_batch(examples) for level in levels}
    pending: list[tuple[float, int, Future[Answer]]] = []
    with ModelService(levels, control, ServiceSettings(queue_examples=1_000_000)) as service:
        started = time.monotonic()
        for number, arrival in enumerate(arrivals):
            # Late requests are sent at once: the clients do not wait for answers.
            if (pause := started + arrival - time.monotonic()) > 0:
                time.sleep(pause)
            example = number % len(examples)
            pending.append((time.monotonic() - started, example, service.submit([examples[example]])))
        results = [(arrived, example, future.result(timeout=600)) for arrived, example, future in pending]
        switches = service.switches
    answers = [Answered(arrived, answer.latency_ms, names.index(answer.level)) for arrived, _, answer in results]
    # An answer of another request would not be that of the model for this example.
    lost = sum(
        _read_class(answer.predictions[0]) != _read_class(expected[answer.level][example])
        for _, example, answer in results
    )
    return Measured(answers, lost, switches)


def _read_class(prediction: Mapping[str, Any]) -> str:
    return str(prediction["label"]["class"])


def run_measurements(seconds: float, seeds: int) -> list[str]:
    """Return the table of the measurement in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        folders, scores, task = export_models(Path(folder))
        by_name = {path.name: score for path, score in zip(folders, scores, strict=True)}
        models = build_levels(load_models(folders))
        examples = list(task.list_test_examples(0))[:200]
        exempt_loaded_objects()
        budget, rate = BUDGET_RUNS * models[-1].run_ms, 500 / models[-1].run_ms
        described = ", ".join(f"{level.name} {level.run_ms:.2f} ms and {by_name[level.name]:.4f}" for level in models)
        lines = [f"Time of one example and accuracy: {described}. Budget: {budget:.1f} ms.", "", *HEADINGS]
        for policy in POLICIES:
            outcomes = []
            for seed in range(seeds):
                measured = measure_service(models, policy, seconds, seed, examples)
                own = [by_name[level.name] for level in models]
                requests = len(measured.answers)
                outcomes.append(summarize(measured.answers, requests, measured.lost, own, budget, measured.switches))
                print(policy, outcomes[-1], flush=True)
            lines.append(format_outcomes(f"{rate:,.0f} → {3 * rate:,.0f} → {rate:,.0f} requests/s", policy, outcomes))
        return lines


def main() -> None:
    """Run the parts that are asked for, and write the report; the other part keeps its earlier table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", action="store_true", help="run the simulation")
    parser.add_argument("--measured", action="store_true", help="run the measurement on this machine")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each measured run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--note", default="", help="state of the machine, for the report of the measurement")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    both = arguments.simulated == arguments.measured
    file = arguments.out.with_suffix(".json")
    sections: dict[str, list[str]] = json.loads(file.read_text()) if file.exists() else {}
    if both or arguments.simulated:
        sections["Simulated"] = run_simulations(arguments.seeds)
    if both or arguments.measured:
        with reproducible_torch():
            table = run_measurements(arguments.seconds, arguments.seeds)
        sections["Measured"] = [*([arguments.note, ""] if arguments.note else []), *table]
    lines = ["# The latency controller", "", describe_benchmark(__doc__), ""]
    for title in ("Simulated", "Measured"):
        if title in sections:
            lines += [f"## {title}", "", *sections[title], ""]
    write_atomic(file, json.dumps(sections, indent=1) + "\n")
    write_atomic(arguments.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
