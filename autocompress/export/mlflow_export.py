"""Runs in MLflow, after a search or during it: one for the search, nested ones for trials and front candidates."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from autocompress.core.formatting import is_finite
from autocompress.core.records import Job, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.errors import UsageError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ARTIFACTS = ("report.html", "front.csv", "front.json", "candidates.csv", "trials.csv", "spec.yaml", "environment.json")
#: Name of the experiment by default.
EXPERIMENT = "autocompress"
# Limits of MLflow: metrics and parameters per call, characters per parameter.
_METRICS, _PARAMS, _LENGTH = 1000, 100, 6000


def log_run(
    folder: Path,
    info: RunInfo,
    trials: pd.DataFrame,
    front: pd.DataFrame,
    picked: str,
    experiment: str,
    tracking_uri: str | None,
) -> str:
    """Log a run and return its id in MLflow.

    The run holds the spec, the size of the front, the hypervolume, the page and the tables. Nested runs hold each trial
    (config, loss curve, state) and each candidate of the front (config, scores, costs).

    Args:
        folder: The run folder, with its page written.
        info: Description of the run.
        trials: Every trial.
        front: The candidates on the front.
        picked: The recommended candidate; empty if there is none.
        experiment: Name of the experiment; made if there is none.
        tracking_uri: URI of the tracking server; the default of MLflow if None.

    Raises:
        UsageError: MLflow is not installed.
    """
    log = _open_log(experiment, tracking_uri)
    client = log.client
    name = info.name or folder.name
    parent = log.start_run(name, {"autocompress.run": name, "autocompress.pick": picked, "autocompress.kind": "search"})
    log.log_params(parent, _flatten_settings(info.content))
    volumes = trials["hypervolume"].dropna() if "hypervolume" in trials else pd.Series(dtype=float)
    log.log_metrics(parent, [{"front": float(len(front)), "trials": float(len(trials))}])
    log.log_metrics(parent, [{"hypervolume": float(value)} for value in volumes])
    for name in ARTIFACTS:
        if (folder / name).is_file():
            client.log_artifact(parent, str(folder / name))
    client.set_terminated(parent)
    for row in trials.to_dict("records"):
        outcome = {"autocompress.state": str(row["state"]), "autocompress.reason": str(row["reason"])}
        run = log.start_run(f"trial {row['number']}", {"autocompress.kind": "trial", **outcome}, parent)
        log.log_params(run, _flatten_settings(json.loads(row["config"])))
        log.log_metrics(run, [{key: value for key, value in step.items() if key != "epoch"} for step in row["curve"]])
        client.set_terminated(run, "FAILED" if row["state"] == "failed" else "FINISHED")
    # Each score has one column per split.
    names = [
        column
        for objective in (*info.all_objectives, *info.objectives)
        for column in (objective.name, f"{objective.name}_search", f"{objective.name}_test")
    ]
    for row in front.to_dict("records"):
        mark = {"autocompress.pick": "yes"} if row["id"] == picked else {}
        run = log.start_run(f"candidate {row['id']}", {"autocompress.kind": "candidate", **mark}, parent)
        log.log_params(run, _flatten_settings(json.loads(row["config"])))
        log.log_metrics(run, [{name: row[name] for name in dict.fromkeys(names) if name in row}])
        client.set_terminated(run)
    return parent


class MlflowLog:
    """Log of a running search in MLflow: a run with the values of the search, and a nested run of each trial.

    Server and experiment are those of ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``. Steps of the search are
    its seconds, those of a trial its epochs. A resumed search starts a new run.

    Args:
        name: Name of the run.

    Raises:
        UsageError: MLflow is not installed.
    """

    def __init__(self, name: str) -> None:
        self._log = _open_log(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), None)
        self._run = self._log.start_run(name, {"autocompress.run": name, "autocompress.kind": "live"})
        # Run and last epoch of each trial.
        self._trials: dict[int, tuple[str, int]] = {}

    def record(self, job: Job, result: TrialResult, seconds: float, values: Mapping[str, float]) -> None:
        """Write a result, and values of the search after it."""
        self._log.log_metrics(self._run, [values], round(seconds))
        if job.base is not None or not result.candidates:
            return
        if job.number not in self._trials:
            run = self._log.start_run(f"trial {job.number}", {"autocompress.kind": "trial"}, self._run)
            self._log.log_params(run, _flatten_settings(job.training.to_json()))
            self._trials[job.number] = run, 0
        run, last = self._trials[job.number]
        parent = result.candidates[0]
        steps = [{key: value for key, value in row.items() if key != "epoch"} for row in result.curve]
        self._log.log_metrics(run, steps[last:], last)
        self._log.log_metrics(run, [parent.scores.get("search_val") or {}], parent.epochs)
        self._trials[job.number] = run, len(steps)
        if result.state is not State.PAUSED:
            self._log.client.set_terminated(run)

    def close(self) -> None:
        """End the runs; trials that are still paused were stopped."""
        for run in (*(run for run, _ in self._trials.values()), self._run):
            self._log.client.set_terminated(run)


def _open_log(experiment: str, tracking_uri: str | None) -> "_Log":
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UsageError("MLflow is not installed: pip install 'autocompress[mlflow]'") from None
    client = MlflowClient(tracking_uri)
    existing = client.get_experiment_by_name(experiment)
    return _Log(client, client.create_experiment(experiment) if existing is None else existing.experiment_id)


class _Log:
    """Writer of one MLflow experiment that splits parameters and metrics into batches."""

    def __init__(self, client: "MlflowClient", experiment: str) -> None:
        self.client, self._experiment = client, experiment

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        all_tags = {"mlflow.runName": name, **tags, **({"mlflow.parentRunId": parent} if parent else {})}
        return str(self.client.create_run(self._experiment, tags=all_tags, run_name=name).info.run_id)

    def log_params(self, run: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(_replace_characters(name), value[:_LENGTH]) for name, value in values.items()]
        for start in range(0, len(entries), _PARAMS):
            self.client.log_batch(run, params=entries[start : start + _PARAMS])

    def log_metrics(self, run: str, steps: Sequence[Mapping[str, object]], first: int = 0) -> None:
        from mlflow.entities import Metric

        # MLflow expects milliseconds.
        now = int(time.time() * 1000)
        entries = [
            Metric(_replace_characters(name), float(value), now, step)
            for step, row in enumerate(steps, first)
            for name, value in row.items()
            if is_finite(value)
        ]
        for start in range(0, len(entries), _METRICS):
            self.client.log_batch(run, metrics=entries[start : start + _METRICS])


def _flatten_settings(values: object, prefix: str = "") -> dict[str, str]:
    """Return nested settings as texts by dotted names.

    Example:
        >>> _flatten_settings({"student": {"cnn": {"width": 8}}, "prune": None})
        {'student.cnn.width': '8', 'prune': 'none'}
    """
    if isinstance(values, Mapping) and values:
        pairs = [
            _flatten_settings(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in values.items()
        ]
        return {name: text for pair in pairs for name, text in pair.items()}
    return {prefix: "none" if values is None or values == {} else str(values)}


def _replace_characters(text: str) -> str:
    # MLflow allows letters, digits, blanks and -_./ in a name.
    return "".join(letter if letter.isalnum() or letter in "-_./ " else "_" for letter in text)
