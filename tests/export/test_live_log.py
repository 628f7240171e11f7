"""Logs of a running search: what TensorBoard and MLflow get, and what happens where they fail."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, CompressionRecipe, Job
from autocompress.errors import UsageError
from autocompress.export import live_log
from autocompress.export.live_log import LOGS, LiveLogs
from tests.fakes import fake_result

TRAINING = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part.of("adamw", epochs=4))
JOBS = [
    Job(3, TRAINING, (CompressionRecipe(),), rung=0, until=2),
    Job(3, TRAINING, (CompressionRecipe(),), rung=1),
    Job(4, TRAINING, (CompressionRecipe(),), base=BaseCheckpoint("t3p0.0", None, 4)),
]


def write_results(logs: LiveLogs) -> None:
    for seconds, job in enumerate(JOBS, start=1):
        logs.record(job, fake_result(job), float(seconds), {"hypervolume": seconds / 10})
    logs.close()


# Of what the libraries ask of their own ones.
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_the_search_and_each_trial(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_results(LiveLogs(["tensorboard"], tmp_path))

    def read(name: str, tag: str) -> list[tuple[int, float]]:
        accumulator = events.EventAccumulator(str(tmp_path / "tensorboard" / name))
        accumulator.Reload()
        return [(event.step, round(event.value, 3)) for event in accumulator.Scalars(tag)]

    assert read("search", "hypervolume") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    # No epoch twice, although the second part of the trial reports the epochs of the first one too.
    assert read("trial-3", "loss") == [(epoch, 0.5) for epoch in (1, 2, 3, 4)]
    assert [step for step, _ in read("trial-3", "search_val/accuracy")] == [2, 4]
    assert not (tmp_path / "tensorboard" / "trial-4").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_search_and_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "live")
    client = mlflow.tracking.MlflowClient(uri)
    experiment = client.create_experiment("live", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_tracking_uri(uri)
    write_results(LiveLogs(["mlflow"], tmp_path / "digits"))
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"digits", "trial 3"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    volumes = client.get_metric_history(runs["digits"].info.run_id, "hypervolume")
    assert [(metric.step, metric.value) for metric in volumes] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    trial = runs["trial 3"]
    assert trial.data.tags["mlflow.parentRunId"] == runs["digits"].info.run_id
    assert trial.data.params["student.cnn.width"] == "8"
    assert [metric.step for metric in client.get_metric_history(trial.info.run_id, "loss")] == [0, 1, 2, 3]
    assert [metric.step for metric in client.get_metric_history(trial.info.run_id, "accuracy")] == [2, 4]


class Broken:
    """A log whose server is gone after the first result."""

    def __init__(self, folder: Path) -> None:
        self.results: list[int] = []

    def record(self, job: Job, *_: Any) -> None:
        self.results.append(job.number)
        raise ConnectionError("no server")

    def close(self) -> None:
        raise AssertionError("a log that failed is not closed")


def test_a_log_that_fails_is_left_out_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Broken] = []
    warnings: list[str] = []

    def make(folder: Path) -> Broken:
        made.append(Broken(folder))
        return made[-1]

    monkeypatch.setattr(live_log, "LOGS", {"pathlib": make})
    logs = LiveLogs(["pathlib"], tmp_path)
    # Nothing is opened before the first result.
    assert made == []
    monkeypatch.setattr(live_log.logger, "warning", lambda text, *values: warnings.append(text % values))
    write_results(logs)
    assert [each.results for each in made] == [[3]]
    assert warnings == ["the log pathlib fails and is left out from here on: no server"]


def test_a_log_that_does_not_exist_or_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="unknown log 'tensorbord': did you mean 'tensorboard'"):
        LiveLogs(["tensorbord"], tmp_path)
    monkeypatch.setattr(live_log, "find_spec", lambda name: None)
    for name in LOGS:
        with pytest.raises(UsageError, match=rf"{name} is not installed: pip install 'autocompress\[{name}\]'"):
            LiveLogs([name], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trial_without_a_result_is_only_a_state_of_the_search(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logs = LiveLogs(["tensorboard"], tmp_path)
    logs.record(JOBS[0], replace(fake_result(JOBS[0]), candidates=()), 1.0, {"hypervolume": 0.0})
    logs.close()
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["search"]


@pytest.mark.parametrize("link", ["tensorboard", "tensorboard/search", "tensorboard/trial-3"])
def test_links_in_the_run_folder_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture, link: str) -> None:
    pytest.importorskip("tensorboard")
    run, other = tmp_path / "run", tmp_path / "other"
    (run / link).parent.mkdir(parents=True)
    other.mkdir()
    (run / link).symlink_to(other)
    write_results(LiveLogs(["tensorboard"], run))
    assert not list(other.iterdir())
    assert "is a link" in caplog.text
