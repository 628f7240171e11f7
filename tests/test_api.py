import shutil
from pathlib import Path

import pytest

import autocompress
from autocompress.errors import NoCandidateError, RunFolderError, UsageError
from autocompress.export.candidate import export_candidate
from tests.conftest import SMALL_SEARCH


@pytest.mark.slow
def test_a_front_reads_shows_and_chooses(small_run: Path) -> None:
    front = autocompress.load(small_run)
    table = front.to_pandas()
    assert 0 < len(front) < len(front.candidates)
    assert list(table["effective_flops"]) == sorted(table["effective_flops"])
    assert set(table["role"]) == {"search"}
    assert table["accuracy_test"].notna().all()
    assert front.pick().id in set(front.candidates["id"])
    assert front.pick(candidate=table["id"].iloc[0]).id == table["id"].iloc[0]
    assert set(front.where("accuracy >= 0.5")["id"]) <= set(table["id"])
    assert "small" in repr(front)
    assert "<table" in front._repr_html_()
    with pytest.raises(NoCandidateError):
        front.pick(max={"bytes": 1})


def test_the_run_knows_its_teacher_its_twin_and_its_splits(small_run: Path) -> None:
    front = autocompress.load(small_run)
    meta = front.meta
    assert set(meta["teacher"]["scores"]) == {"train", "search_val", "select_val", "test"}
    assert sum(meta["splits"].values()) == 1797
    assert meta["recommended"] == front.pick().id
    (twin,) = meta["baselines"]
    rows = front.candidates.set_index("id")
    assert rows.loc[twin, "role"] == "baseline"
    assert rows.loc[twin, "distill"] == "none"
    pick = rows.loc[meta["recommended"]]
    for column in ("student.cnn.width", "prune", "quantize", "seed", "effective_flops"):
        assert rows.loc[twin, column] == pick[column] or rows.loc[twin, column] != rows.loc[twin, column]


def test_a_run_is_found_by_its_name(small_run: Path) -> None:
    assert autocompress.load("small", runs=small_run.parent).folder == small_run
    with pytest.raises(RunFolderError, match="did you mean 'small'"):
        autocompress.load("smal", runs=small_run.parent)


@pytest.mark.slow
def test_the_study_opens_in_optuna(small_run: Path) -> None:
    import optuna

    study = optuna.load_study(storage=f"sqlite:///{small_run}/study.db", study_name="small")
    assert study.metric_names == ["accuracy", "log10 effective_flops"]
    states = [trial.state.name for trial in study.trials]
    assert len(states) >= 3
    assert "COMPLETE" in states
    assert set(states) <= {"COMPLETE", "PRUNED"}
    trials = autocompress.load(small_run).trials
    assert len(states) == ((trials["role"] == "search") & ~trials["further"]).sum()
    assert {"student.cnn.width", "distill.soft_target.temperature"} <= set(study.best_trials[0].params)


def test_a_bound_that_is_no_column_is_a_usage_error(small_run: Path) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        autocompress.load(small_run).pick(max={"effective_flop": 3})


@pytest.mark.slow
def test_the_twin_is_left_out_where_it_would_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.engine.runner.BASELINE_TIME_SHARE", 0.0)
    front = autocompress.search("digits", runs=tmp_path, name="brief", overrides=[*SMALL_SEARCH, "search.trials=1"])
    assert front.meta["baselines"] == {}
    assert set(front.trials["role"]) == {"search"}
    assert "accuracy_test" in front.to_pandas()


@pytest.mark.slow
def test_a_search_whose_checkpoints_were_deleted_ends_with_all_of_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete(*_: object) -> dict[str, str]:
        shutil.rmtree(tmp_path / "gone" / "checkpoints")
        return {}

    monkeypatch.setattr("autocompress.engine.runner._train_baseline", delete)
    front = autocompress.search("digits", runs=tmp_path, name="gone", overrides=[*SMALL_SEARCH, "search.trials=1"])
    assert not (tmp_path / "gone" / "checkpoints").exists()
    assert front.to_pandas()["accuracy_test"].notna().all()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_supernet_gives_good_models_of_several_widths_from_one_training(tmp_path: Path) -> None:
    shape = [f"student.cnn.{each}" for each in ("block=residual", "depth=1", "stages=1", "stem_stride=1")]
    front = autocompress.search(
        "digits",
        runs=tmp_path,
        name="supernet",
        overrides=[*SMALL_SEARCH, "search.trials=1", "search.mode=supernet", "fit.adamw.epochs=16", *shape],
    )
    table = front.candidates
    assert set(table["student.cnn.width"]) == {24}
    cut = table[table["prune.structured.pruning_ratio"].notna()]
    assert set(cut["prune.structured.pruning_ratio"]) == {0.25, 0.5, 0.65, 0.8}
    # Each is good as it is cut out; a student that was trained alone is at chance without two thirds of its channels.
    assert cut.groupby("prune.structured.pruning_ratio")["accuracy"].max().min() > 0.4
    narrow = cut[cut["prune.structured.pruning_ratio"] == 0.8]
    exported = export_candidate(front.folder, narrow["id"].iloc[0])
    assert exported.verification is not None
