"""A run as MLflow shows it."""

import shutil
import sys
from pathlib import Path

import pytest

import autocompress
from autocompress.errors import UsageError


# Of what MLflow itself asks of its own libraries.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trials_and_the_front_are_runs_below_one(small_run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = autocompress.load(shutil.copytree(small_run, tmp_path / "run"))
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_experiment("autocompress", artifact_location=(tmp_path / "artifacts").as_uri())
    identity = run.to_mlflow(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    whole = client.get_run(identity)
    assert whole.data.tags["autocompress.pick"] == run.pick().id
    assert whole.data.params["task.digits"] == "none"
    assert {each.path for each in client.list_artifacts(identity)} >= {"report.html", "front.csv", "spec.yaml"}
    below = client.search_runs(
        [whole.info.experiment_id], f"tags.`mlflow.parentRunId` = '{identity}'", max_results=1000
    )
    trials = [each for each in below if each.data.tags["autocompress.kind"] == "trial"]
    candidates = [each for each in below if each.data.tags["autocompress.kind"] == "candidate"]
    assert len(trials) == len(run.trials)
    front = run.to_pandas().set_index("id")
    assert {each.info.run_name for each in candidates} == {f"candidate {name}" for name in front.index}
    for each in candidates:
        row = front.loc[each.info.run_name.removeprefix("candidate ")]
        assert each.data.metrics["accuracy"] == row["accuracy"]
        assert each.data.params["student.cnn.width"] == f"{row['student.cnn.width']:.0f}"
    trained = next(each for each in trials if each.data.metrics)
    assert len(client.get_metric_history(trained.info.run_id, "loss")) > 1


def test_without_mlflow_the_fix_is_said(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    run = autocompress.load(shutil.copytree(small_run, tmp_path / "run"))
    with pytest.raises(UsageError, match="pip install 'autocompress\\[mlflow\\]'"):
        run.to_mlflow()
