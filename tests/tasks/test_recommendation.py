from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.heads import IGNORED
from autocompress.core.preprocessing import CandidatesInput, IdInput, dump_input
from autocompress.errors import UsageError
from autocompress.export.pipeline import ENCODERS
from autocompress.measure import Subject, measure
from autocompress.models.sharing import SHARING
from autocompress.tasks.recommendation import Recommendation, generate_impressions
from autocompress.tasks.recommender import Ratings
from autocompress.training.fit import FitRequest, fit
from autocompress.training.trainer import predict


def events(path: Path, header: str = "user,item,click,rating,time", users: int = 12) -> Path:
    """30 rows of each user: every second one is clicked, and every third clicked one has no rating."""
    random = np.random.default_rng(0)
    lines = [header]
    for user in range(users):
        for number, item in enumerate(random.permutation(60)[:30]):
            click = number % 2
            rating = "" if not click or number % 3 == 0 else str(1 + (user + int(item)) % 5)
            cells = {"user": f"u{user}", "item": f"i{item}", "click": click, "rating": rating, "time": number}
            lines.append(",".join(str(cells.get(name, "")) for name in header.split(",")))
    path.write_text("\n".join(lines) + "\n")
    return path


class TestData:
    def test_each_head_trains_on_the_rows_that_have_its_target(self, tmp_path: Path) -> None:
        task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
        assert list(task.heads) == ["item", "click", "rating"]
        assert task.metrics[:4] == ("mean_score", "ndcg_at_10", "auc", "r2")
        train = task.splits(0).train
        clicked = train.targets["click"] == 1
        assert torch.equal(train.targets["item"] == 0, clicked)
        assert set(train.targets["item"][~clicked].tolist()) == {IGNORED}
        assert set(train.targets["rating"][~clicked].tolist()) == {IGNORED}
        assert 0 < int((train.targets["rating"] == IGNORED).sum()) < len(train)
        assert any("have no rating" in notice for notice in task.notices)

    def test_negatives_are_items_without_an_interaction_and_differ_by_view(self, tmp_path: Path) -> None:
        task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
        splits = task.splits(0)
        pairs = [zip(*(part.tolist() for part in split.inputs[:2]), strict=True) for _, split in splits.items()]
        seen = {pair for of_split in pairs for pair in of_split}
        for split in (splits.test, task.view(splits.train, 1)):
            users, _, others = split.inputs
            shown = zip(users.tolist(), others.tolist(), strict=True)
            assert not any((user, item) in seen for user, row in shown for item in row)
        assert not torch.equal(task.view(splits.train, 1).inputs[2], task.view(splits.train, 2).inputs[2])

    def test_augmented_views_train_the_rows_of_unknown_ids(self, tmp_path: Path) -> None:
        task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
        user, item, candidates = task.specify_preprocessing(0)
        assert isinstance(user, IdInput)
        assert isinstance(item, IdInput)
        assert isinstance(candidates, CandidatesInput)
        assert (user.unknown_row, candidates.unknown_row) == (len(user.ids), len(candidates.ids))
        assert (candidates.first, candidates.count) == ("item", 4)
        train = task.splits(0).train
        for view in (train, *(task.view(train, index) for index in range(1, 4))):
            for rows, record in zip(view.inputs, (user, item, candidates), strict=True):
                unknown = float((rows == len(record.ids)).float().mean())
                assert unknown == 0 if view is train else 0 < unknown < 0.06
        alone = Recommendation(events(tmp_path / "a.csv"), candidates=5, views=1).specify_preprocessing(0)
        assert {record.unknown_row for record in alone if isinstance(record, IdInput)} == {None}

    def test_raw_examples_are_the_rows_of_the_test_split(self, tmp_path: Path) -> None:
        task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
        records, test = task.specify_preprocessing(0), task.splits(0).test
        examples = task.list_test_examples(0)
        assert len(examples) == len(test)
        for record, rows in zip(records, test.inputs, strict=True):
            encode = ENCODERS[record.kind](dump_input(record))
            assert [encode(example[record.name]).tolist() for example in examples] == rows.tolist()

    def test_later_rows_of_a_user_are_for_testing(self, tmp_path: Path) -> None:
        task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
        splits = task.splits(0)
        times = {
            (user, item): time
            for user, item, time in zip(task._users, task._items, np.asarray(task._rows.times), strict=True)
        }
        last = {
            name: [times[pair] for pair in zip(*(part.tolist() for part in split.inputs[:2]), strict=True)]
            for name, split in splits.items()
        }
        assert max(last["train"]) < min(last["calibration"])
        assert max(last["select_val"]) < min(last["test"])

    def test_heads_are_chosen_and_ordered(self, tmp_path: Path) -> None:
        path = events(tmp_path / "a.csv")
        assert list(Recommendation(path, heads="rating, item").heads) == ["rating", "item"]
        only_clicks = events(tmp_path / "b.csv", "user,item,click,time")
        assert list(Recommendation(only_clicks).heads) == ["item", "click"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": "item, stars"}, "give some of item, click, rating, each once"),
            ({"heads": "click, rating"}, "has no 'item'; the task 'ratings'"),
            ({"click": "clicks"}, "negatives|needs a column|whole number"),
            ({"candidates": 1}, "whole number of at least 2"),
            ({"candidates": 60}, "one user has interacted with all but 30"),
        ],
    )
    def test_options_that_do_not_fit_are_errors(self, tmp_path: Path, options: dict[str, object], message: str) -> None:
        if "click" in options:
            options["heads"] = "item, click"
        with pytest.raises(UsageError, match=message):
            Recommendation(events(tmp_path / "a.csv"), **options)

    def test_a_column_without_any_value_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("user,item,click,rating\n" + "\n".join(f"u{n % 3},i{n},1," for n in range(90)) + "\n")
        with pytest.raises(UsageError, match=r"'rating' has no value in any row.*heads=item, click"):
            Recommendation(path)

    def test_a_task_of_one_head_points_to_this_one(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the task 'recommendation' learns both"):
            Ratings(events(tmp_path / "a.csv"))

    def test_a_click_is_0_or_1(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("user,item,click,rating\nu,i,2,3\n")
        with pytest.raises(UsageError, match=r"a.csv:2: 'click' is 2, and a click is 0 or 1"):
            Recommendation(path)


@pytest.mark.parametrize("family", ["two_tower", "interaction"])
@pytest.mark.parametrize("sharing", SHARING)
def test_every_family_has_every_kind_of_sharing(tmp_path: Path, family: str, sharing: str) -> None:
    task = Recommendation(events(tmp_path / "a.csv"), candidates=5)
    batch = task.splits(0).train.take(slice(0, 4))
    model = task.build(Part.of(family, embedding=4, width=8, sharing=sharing))
    outputs = model(*batch.inputs)
    assert {head: list(values.shape) for head, values in outputs.items()} == {
        "item": [4, 5],
        "click": [4, 2],
        "rating": [4, 5],
    }
    # Swapping two negatives swaps their scores and changes nothing else.
    user, item, others = batch.inputs
    swapped = model(user, item, others[:, [1, 0, 2, 3]])
    torch.testing.assert_close(swapped["item"], outputs["item"][:, [0, 2, 1, 3, 4]])
    assert torch.equal(swapped["rating"], outputs["rating"])


@pytest.mark.slow
def test_interest_and_rating_are_learned_at_once() -> None:
    task = Recommendation(candidates=10)
    splits = task.splits(0)
    torch.manual_seed(0)
    model = task.build(Part.of("two_tower", embedding=32, depth=0, tower=32))
    fit_part = Part.of("adamw", epochs=6, learning_rate=1e-2, weight_decay=0.05, batch_size=256)
    fit(model, FitRequest(task, splits.train, fit_part))
    test = splits.test
    scores = measure(
        Subject(predict(model, task, test), test.targets, heads=task.heads),
        ["ndcg_at_10@item", "auc@click", "r2@rating", "mean_score"],
    )
    # Chance is 0.45 and 0; what a user clicks of what was shown takes more epochs than these.
    assert scores["ndcg_at_10@item"] > 0.5
    assert scores["r2@rating"] > 0.1
    assert scores["mean_score"] == pytest.approx(
        np.mean([scores[name] for name in ("ndcg_at_10@item", "auc@click", "r2@rating")])
    )


def test_generated_impressions_are_clicked_and_rated_or_neither() -> None:
    rows = generate_impressions(users=30, items=60, mean=12)
    assert rows.clicked is not None
    assert rows.values is not None
    assert np.array_equal(np.isnan(rows.values), rows.clicked == 0)
    assert len(set(zip(rows.users, rows.items, strict=True))) == len(rows)
