"""A finished run as runs of MLflow: for those who keep all their experiments there."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from autocompress.core.formatting import is_finite
from autocompress.core.run_info import RunInfo
from autocompress.errors import UsageError

ARTIFACTS = ("report.html", "front.csv", "front.json", "candidates.csv", "trials.csv", "spec.yaml", "environment.json")
# What one call of MLflow takes at most.
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

    The run holds the spec, the front's size, the hypervolume, the page and the tables. Below it stands one run for each
    trial (its config, its curve of training, how it ended) and one for each candidate of the front (its config, its
    scores and costs).

    Args:
        folder: The run folder, with its page written.
        info: Description of the run.
        trials: Every trial.
        front: The candidates on the front.
        picked: The recommended candidate; empty if there is none.
        experiment: Name of the experiment; made if there is none.
        tracking_uri: Where to log; MLflow's own setting by default.

    Raises:
        UsageError: MLflow is not installed.
    """
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UsageError("MLflow is not installed: pip install 'autocompress[mlflow]'") from None
    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    place = found.experiment_id if found is not None else client.create_experiment(experiment)
    log = _Log(client, place)
    name = info.name or folder.name
    whole = log.begin(name, {"autocompress.run": name, "autocompress.pick": picked, "autocompress.kind": "search"})
    log.params(whole, _flat(info.content))
    volumes = trials["hypervolume"].dropna() if "hypervolume" in trials else pd.Series(dtype=float)
    log.metrics(whole, [{"front": float(len(front)), "trials": float(len(trials))}])
    log.metrics(whole, [{"hypervolume": float(value)} for value in volumes])
    for each in ARTIFACTS:
        if (folder / each).is_file():
            client.log_artifact(whole, str(folder / each))
    client.set_terminated(whole)
    for row in trials.to_dict("records"):
        ended = {"autocompress.state": str(row["state"]), "autocompress.reason": str(row["reason"])}
        run = log.begin(f"trial {row['number']}", {"autocompress.kind": "trial", **ended}, whole)
        log.params(run, _flat(json.loads(row["config"])))
        log.metrics(run, [{key: value for key, value in step.items() if key != "epoch"} for step in row["curve"]])
        client.set_terminated(run, "FAILED" if row["state"] == "failed" else "FINISHED")
    names = [
        column
        for objective in (*info.all_objectives, *info.objectives)
        for column in (objective.name, f"{objective.name}_search", f"{objective.name}_test")
    ]
    for row in front.to_dict("records"):
        mark = {"autocompress.pick": "yes"} if row["id"] == picked else {}
        run = log.begin(f"candidate {row['id']}", {"autocompress.kind": "candidate", **mark}, whole)
        log.params(run, _flat(json.loads(row["config"])))
        log.metrics(run, [{name: row[name] for name in dict.fromkeys(names) if name in row}])
        client.set_terminated(run)
    return whole


class _Log:
    """Writes to one experiment, in batches that MLflow takes."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client, self._experiment = client, experiment

    def begin(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        told = {"mlflow.runName": name, **tags, **({"mlflow.parentRunId": parent} if parent else {})}
        return str(self._client.create_run(self._experiment, tags=told, run_name=name).info.run_id)

    def params(self, run: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        found = [Param(_name(name), value[:_LENGTH]) for name, value in values.items()]
        for place in range(0, len(found), _PARAMS):
            self._client.log_batch(run, params=found[place : place + _PARAMS])

    def metrics(self, run: str, steps: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [
            Metric(_name(name), float(value), now, step)
            for step, row in enumerate(steps)
            for name, value in row.items()
            if is_finite(value)
        ]
        for place in range(0, len(found), _METRICS):
            self._client.log_batch(run, metrics=found[place : place + _METRICS])


def _flat(values: Any, place: str = "") -> dict[str, str]:
    """Return nested settings as texts by dotted names.

    Example:
        >>> _flat({"student": {"cnn": {"width": 8}}, "prune": None})
        {'student.cnn.width': '8', 'prune': 'none'}
    """
    if isinstance(values, Mapping) and values:
        pairs = [_flat(value, f"{place}.{name}" if place else str(name)) for name, value in values.items()]
        return {name: text for found in pairs for name, text in found.items()}
    return {place: "none" if values is None or values == {} else str(values)}


def _name(text: str) -> str:
    # MLflow takes letters, digits and -_./ and blanks in a name.
    return "".join(letter if letter.isalnum() or letter in "-_./ " else "_" for letter in text)
