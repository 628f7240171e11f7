"""Every shipped spec is sound, says what it lacks, and runs at a small size."""

import csv
import os
from pathlib import Path

import pytest
import torch

import autocompress
from autocompress.core.registry import TASKS
from autocompress.engine.runner import make_plan
from autocompress.engine.space import open_space
from autocompress.engine.spec import list_shipped_spaces, load_spec
from autocompress.errors import SpecError
from autocompress.tasks.module import bring_model

SPACES = sorted(list_shipped_spaces())
TASK_OF = {name: next(iter(load_spec(name, []).spec.task)) for name in SPACES}
NEED_DATA = [
    name for name in SPACES if TASK_OF[name] in TASKS.names() and hasattr(TASKS.get(TASK_OF[name]), "write_sample")
]
SHARED = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
REVIEWS = SHARED / "clothing_reviews.csv.gz"


def sample(name: str, folder: Path) -> Path:
    """Write the little data that a space can do with, and return where it is."""
    if name != "reviews":
        return Path(TASKS.get(TASK_OF[name]).write_sample(folder))
    options = load_spec(name, []).spec.task["text"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reviews.csv"
    words = ("soft", "lovely", "too wide", "torn")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([options["text"], *options["labels"]])
        for number in range(96):
            text = f"a {words[number % 4]} dress, number {number}" + " in blue" * (number % 3)
            rows.writerow([text, number % 4, int(number % 4 < 2), ("Tops", "Dresses", "Trend")[number % 3]])
    return path


@pytest.fixture
def settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a user of this spec must say: where the data is, if it does not ship."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    if name == "module":
        monkeypatch.setattr(TASKS, "_objects", dict(TASKS._objects))
        bring_model(
            torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)),
            (torch.randn(90, 3), torch.arange(90) % 2),
        )
        return []
    if name not in NEED_DATA:
        return []
    return [f"task.{TASK_OF[name]}.path={sample(name, tmp_path / 'data')}"]


def test_there_is_one() -> None:
    assert "digits" in SPACES


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_is_sound_in_every_mode(name: str, settings: list[str]) -> None:
    for mode in ("amortized", "sampled"):
        plan = make_plan(load_spec(name, [f"search.mode={mode}", *settings]))
        assert plan.source.spec.name == name
        assert list(open_space(plan.source).dimensions())


@pytest.mark.parametrize("name", NEED_DATA)
def test_a_space_without_data_asks_for_it(name: str) -> None:
    with pytest.raises(SpecError, match=rf"task\.{TASK_OF[name]}\.path is not set"):
        make_plan(load_spec(name, []))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reviews"])
def test_several_labels_are_searched_and_scored_by_head(settings: list[str], tmp_path: Path) -> None:
    small = ["teacher.fit={adamw: {epochs: 1}}", "fit.adamw.epochs=1", "search.trials=2", "search.backend=serial"]
    front = autocompress.search("reviews", name="small", runs=tmp_path, overrides=[*settings, *small])
    table = front.to_pandas()
    heads = ("Rating", "Recommended_IND", "Department_Name")
    mean = table[[f"accuracy@{head}" for head in heads]].mean(axis=1)
    assert mean.to_list() == pytest.approx(table["accuracy"].to_list())
    assert (table["accuracy_worst"] <= table["accuracy"]).all()


def test_the_patterns_of_sharing_and_the_weights_of_heads_are_searched(tmp_path: Path) -> None:
    plan = make_plan(load_spec("reviews", [f"task.text.path={sample('reviews', tmp_path)}"]))
    searched = {name.rpartition(".")[2] for name, _ in open_space(plan.source).dimensions()}
    assert {"sharing", "head_weights", "first_temperature"} <= searched


@pytest.mark.slow
@pytest.mark.skipif(not REVIEWS.exists(), reason="the shared data is absent")
def test_the_columns_of_the_reviews_are_those_of_the_real_file() -> None:
    spec = load_spec("reviews", [f"task.text.path={REVIEWS}"]).spec
    task = TASKS.get("text")(**spec.task["text"])
    assert task.heads == {"Rating": 5, "Recommended_IND": 2, "Department_Name": 6}
