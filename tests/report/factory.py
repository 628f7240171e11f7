"""A made-up finished run: the tables and the description that a store returns, without a single training."""

import json
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import compute_hypervolume, full_fidelity, pareto_front
from autocompress.core.run_info import EnvironmentInfo, ObjectiveSpec, RunInfo, TeacherInfo

HOSTILE = (
    "</script><script>document.documentElement.lang=1</script>",
    "=cmd|' /C calc'!A0",
    "<img src=x onerror=document.documentElement.lang=1>",
    '<a href="javascript:document.documentElement.lang=1">x</a>',
    "\u202egpj.exe",
)

OBJECTIVES = (
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.1, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e8, 1e2)),
)
ALL_OBJECTIVES = (
    ObjectiveSpec("accuracy", "maximize"),
    ObjectiveSpec("f1_macro", "maximize"),
    ObjectiveSpec("agreement", "maximize"),
    ObjectiveSpec("retention", "maximize"),
    ObjectiveSpec("loss", "minimize", "nats"),
    ObjectiveSpec("kl", "minimize", "nats"),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost"),
    ObjectiveSpec("flops", "minimize", "FLOPs", "cost"),
    ObjectiveSpec("macs", "minimize", "MACs", "cost"),
    ObjectiveSpec("bops", "minimize", "BOPs", "cost"),
    ObjectiveSpec("parameters", "minimize", kind="cost"),
    ObjectiveSpec("bytes", "minimize", "B", "cost"),
)
_SCORES = ("accuracy", "f1_macro", "loss", "kl", "agreement", "retention")
_CUTS = list(product([0.0, 0.3, 0.5, 0.7, 0.85], [(32, 32), (8, 8), (6, 8), (4, 8), (4, 4), (3, 8), (2, 8)]))
_TEACHER_FLOPS = 2.4e7


@dataclass(frozen=True)
class Run:
    """Tables and description of a run."""

    candidates: pd.DataFrame
    trials: pd.DataFrame
    info: RunInfo


def make_run(trials: int = 12, cuts: int = 12, seed: int = 0, hostile: bool = False, tested: bool = True) -> Run:
    """Return a run of ``trials`` trainings of which most finish, each cut ``cuts`` times (35 at most)."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    elapsed = 0.0
    for number in range(trials):
        states, shares = ["complete", "stopped", "failed", "infeasible"], [0.6, 0.25, 0.07, 0.08]
        state = "complete" if number < 2 else str(rng.choice(states, p=shares))
        seconds = float(rng.uniform(2, 9)) if state != "infeasible" else 0.0
        elapsed += seconds
        training = _training(rng)
        epochs = {"complete": 27, "stopped": int(rng.choice([3, 9]))}.get(state, 0)
        if epochs:
            rows += [
                _candidate(rng, number, index, training, epochs, ratio, bits)
                for index, (ratio, bits) in enumerate(islice(_cut_order(rng), cuts))
            ]
        summary.append(
            {
                "number": number,
                "role": "search",
                "state": state,
                "reason": _reason(rng, state, hostile),
                "seconds": seconds,
                "hypervolume": float("nan"),
                "elapsed": elapsed,
                "segments": [{"worker": 1 + number % 2, "start": elapsed - seconds, "end": elapsed}] if seconds else [],
                "curve": [
                    {"epoch": epoch, "loss": float(2.3 * np.exp(-epoch / 5) + 0.05 + rng.normal(0, 0.02))}
                    for epoch in range(1, epochs + 1)
                ],
            }
        )
    labels = _baselines(rng, trials, rows, summary, elapsed)
    table = pd.DataFrame(rows)
    if not tested:
        table.loc[:, [name for name in table.columns if name.endswith("_test")]] = float("nan")
    if hostile:
        table["student"] = HOSTILE[0]
        table["distill"] = HOSTILE[2]
        table["prune"] = table["prune"].mask(table["prune"] == "structured", HOSTILE[3])
        table["note"] = HOSTILE[1]
        table = table.rename(
            columns={
                "student.cnn.width": f"student.{HOSTILE[0]}.{HOSTILE[4]}",
                "distill.soft_target.temperature": f"distill.{HOSTILE[2]}.temperature",
                "prune.structured.pruning_ratio": f"prune.{HOSTILE[3]}.pruning_ratio",
            }
        )
    for row in summary:
        finished = full_fidelity(table[table["trial"] <= row["number"]])
        if row["state"] == "complete" and row["role"] == "search" and (finished["epochs"] == 27).any():
            row["hypervolume"] = compute_hypervolume(pareto_front(finished, OBJECTIVES), OBJECTIVES)
    return Run(table, pd.DataFrame(summary), _run_info(labels, hostile, elapsed))


def _training(rng: np.random.Generator) -> dict[str, Any]:
    kind = str(rng.choice(["cnn", "separable"]))
    distill = str(rng.choice(["soft_target", "dist", "none"], p=[0.6, 0.3, 0.1]))
    row: dict[str, Any] = {"student": kind, "distill": distill, "fit": "adamw"}
    row[f"student.{kind}.width"] = int(rng.choice([4, 8, 12, 16, 24, 32]))
    row[f"student.{kind}.depth"] = int(rng.choice([1, 2, 3]))
    if distill != "none":
        row[f"distill.{distill}.temperature"] = float(np.exp(rng.uniform(0, np.log(10))))
    if distill == "soft_target":
        row["distill.soft_target.alpha"] = float(rng.uniform(0.2, 1))
    row["fit.adamw.learning_rate"] = float(np.exp(rng.uniform(np.log(3e-4), np.log(1e-2))))
    return row


def _cut_order(rng: np.random.Generator) -> list[tuple[float, tuple[int, int]]]:
    return [_CUTS[0], *[_CUTS[1 + index] for index in rng.permutation(len(_CUTS) - 1)]]


def _candidate(
    rng: np.random.Generator,
    trial: int,
    index: int,
    training: dict[str, Any],
    epochs: int,
    ratio: float,
    bits: tuple[int, int],
) -> dict[str, Any]:
    kind, distill = training["student"], training["distill"]
    width, depth = training[f"student.{kind}.width"], training[f"student.{kind}.depth"]
    keep = (1 - ratio) ** 1.6
    full = 18_000.0 * width**1.8 * depth * (0.35 if kind == "separable" else 1.0)
    flops, parameters = full * keep, 40.0 * width**1.7 * depth * keep
    accuracy = 0.988 - 0.35 * np.exp(-1.8 * (np.log10(full) - 4.6)) - 0.02 * ratio**2 - 0.15 * ratio**6
    accuracy -= 0.5 * 2.0 ** (-1.6 * bits[0]) + (0.01 if bits[1] < 8 else 0.0) + (0.012 if distill == "none" else 0.0)
    accuracy -= 0.05 * (27 - epochs) / 27 + abs(rng.normal(0, 0.004)) + 0.04 * np.exp(-trial / 10)
    accuracy = float(np.clip(accuracy, 0.11, 0.999))
    prune = "structured" if ratio else "none"
    quantize = "post_training" if bits != (32, 32) else "none"
    row: dict[str, Any] = {"id": f"t{trial}c{index}", "trial": trial, "role": "search", "epochs": epochs, **training}
    row["complete"] = epochs == 27
    row |= {"prune": prune, "quantize": quantize, "seed": 7}
    if ratio:
        row["prune.structured.pruning_ratio"] = ratio
        row["prune.structured.criterion"] = "l1"
    if quantize != "none":
        row["quantize.post_training.weight_bits"], row["quantize.post_training.activation_bits"] = bits
        row["quantize.post_training.quantizer"] = "linear_symmetric"
    row |= {
        "flops": flops,
        "macs": flops / 2,
        "bops": flops / 2 * bits[0] * bits[1],
        "effective_flops": flops * bits[0] * bits[1] / 1024,
        "parameters": float(int(parameters)),
        "bytes": float(int(parameters * bits[0] / 8) + 400),
    }
    for split in ("", "_search", "_test"):
        value = accuracy + {"": 0.0, "_search": 0.004, "_test": -0.003}[split] + float(rng.normal(0, 0.002))
        row |= {
            f"accuracy{split}": round(value * 900) / 900,
            f"f1_macro{split}": value - 0.004,
            f"loss{split}": 2.3 * (1 - value) + 0.02,
            f"kl{split}": 1.4 * (1 - value),
            f"agreement{split}": min(1.0, value + 0.006),
            f"retention{split}": value / 0.981,
        }
    row["config"] = json.dumps(_config(row))
    row["details"] = _details(accuracy, bits, rng) if index % 2 == 0 else {}
    return row


def _config(row: dict[str, Any]) -> dict[str, Any]:
    def part(section: str) -> dict[str, Any] | None:
        head = f"{section}.{row[section]}."
        knobs = {name.removeprefix(head): value for name, value in row.items() if name.startswith(head)}
        return None if row[section] == "none" and section in ("prune", "quantize") else {row[section]: knobs}

    return {section: part(section) for section in ("student", "distill", "fit", "prune", "quantize")} | {"seed": 7}


def _details(accuracy: float, bits: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    digits = [
        {"label": str(digit), "precision": accuracy, "recall": accuracy - 0.01, "f1": accuracy - 0.005}
        for digit in range(10)
    ]
    layers = [
        {"name": name, "weight_bits": bits[0], "activation_bits": bits[1], "sqnr_db": float(rng.uniform(12, 40))}
        for name in ("stem", "blocks.0.conv", "head")
    ]
    return {"per_class": {"label": digits}, "layers": layers if bits[0] < 32 else [], "prune": {"achieved_ratio": 0.48}}


def _baselines(
    rng: np.random.Generator, trials: int, rows: list[dict[str, Any]], summary: list[dict[str, Any]], elapsed: float
) -> dict[str, str]:
    names = {
        "the student without distillation": (0.0, (32, 32)),
        "prune only": (0.5, (32, 32)),
        "int8 only": (0.0, (8, 8)),
    }
    base = {"student": "cnn", "distill": "none", "fit": "adamw", "student.cnn.width": 16, "student.cnn.depth": 2}
    labels = {}
    for offset, (label, (ratio, bits)) in enumerate(names.items()):
        number = trials + offset
        row = _candidate(rng, number, 0, base, 27, ratio, bits)
        rows.append(row | {"role": "baseline"})
        labels[row["id"]] = label
        summary.append(
            {
                "number": number,
                "role": "baseline",
                "state": "complete",
                "reason": "",
                "seconds": 5.0,
                "hypervolume": float("nan"),
                "elapsed": elapsed + 5.0 * (offset + 1),
                "segments": [],
                "curve": [],
            }
        )
    return labels


def _reason(rng: np.random.Generator, state: str, hostile: bool) -> str:
    if hostile and state in ("failed", "infeasible"):
        return HOSTILE[0]
    if state == "failed":
        return str(rng.choice(["out of memory", "timed out after 60 s", "loss became NaN at epoch 3"]))
    if state == "infeasible":
        return "the cheapest candidate has effective_flops 4.1e+06, the limit is 2e+06"
    return "ranked behind the best third at epoch 9" if state == "stopped" else ""


def _run_info(labels: dict[str, str], hostile: bool, elapsed: float) -> RunInfo:
    scores = {"accuracy": 0.981, "f1_macro": 0.9803, "loss": 0.05, "kl": 0.0, "agreement": 1.0, "retention": 1.0}
    splits = {"select_val": scores, "search_val": scores | {"accuracy": 0.983}, "test": scores | {"accuracy": 0.979}}
    costs = {
        "flops": _TEACHER_FLOPS,
        "macs": _TEACHER_FLOPS / 2,
        "bops": _TEACHER_FLOPS * 512,
        "effective_flops": _TEACHER_FLOPS,
        "parameters": 287_402.0,
        "bytes": 1_152_008.0,
    }
    environment = EnvironmentInfo(
        processor=HOSTILE[2] if hostile else "Intel Xeon Platinum 8481C",
        cores=2,
        threads_per_worker=1,
        versions={"autocompress": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "optuna": "5.0.0"},
        data=HOSTILE[4] if hostile else "3f9a0c11d2e4",
    )
    return RunInfo(
        name=HOSTILE[0] if hostile else "digits",
        task="digits",
        mode="amortized",
        objectives=OBJECTIVES,
        all_objectives=ALL_OBJECTIVES,
        limits={"effective_flops": {"max": 4e6}},
        teacher=TeacherInfo(splits, costs, {"student": {"cnn": {"width": 64, "depth": 3}}}),
        baselines={name: HOSTILE[2] if hostile else label for name, label in labels.items()},
        splits={"train": 1000, "calibration": 128, "search_val": 320, "select_val": 320, "test": 360},
        environment=environment,
        spec=HOSTILE[0] if hostile else "task: digits\nsearch:\n  mode: amortized\n  trials: 40\n",
        command=HOSTILE[0] if hostile else "autocompress search digits",
        max_drop=0.01,
        seconds=elapsed + 31.0,
    )
