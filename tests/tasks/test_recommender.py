from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.task import Split, Splits
from autocompress.errors import UsageError
from autocompress.measure import Subject, measure
from autocompress.tasks.interactions import generate_interactions
from autocompress.tasks.recommender import Ranking, RatingBins, Ratings
from autocompress.training.fit import FitRequest, fit, predict


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def movielens(folder: Path, users: int = 12, items: int = 30) -> Path:
    """Write a folder in the layout of MovieLens-100K."""
    random = np.random.default_rng(0)
    folder.mkdir()
    data = []
    for user in range(users):
        for time, item in enumerate(random.permutation(items)[:10]):
            data.append(f"{user + 1}\t{item + 1}\t{random.integers(1, 6)}\t{880000000 + 100 * time + user}")
    write(folder / "u.data", [data[row] for row in random.permutation(len(data))])
    genres = ["|".join(str(flag) for flag in random.integers(0, 2, 19)) for _ in range(items)]
    movies = [f"{item + 1}|Caf\u00e9 {item} (1995)|01-Jan-1995||http://x|{genres[item]}" for item in range(items)]
    (folder / "u.item").write_bytes("\n".join(movies).encode("latin-1"))
    jobs = ["writer", "other", "student"]
    write(folder / "u.user", [f"{u + 1}|{20 + u}|{'MF'[u % 2]}|{jobs[u % 3]}|12345" for u in range(users)])
    return folder


def csv(folder: Path, rows: int = 200, label: str = "rating") -> Path:
    random = np.random.default_rng(1)
    lines = [f"user,item,{label},time,age"]
    for row in range(rows):
        value = random.integers(0, 2) if label == "click" else random.integers(1, 6)
        lines.append(f"u{random.integers(20)},i{random.integers(40)},{value},{row},{random.normal():.3f}")
    return write(folder / f"{label}.csv", lines)


def pairs(split: Split) -> set[tuple[int, int]]:
    return set(zip(split.inputs[0].tolist(), split.inputs[1].tolist(), strict=True))


def true_items(split: Split) -> torch.Tensor:
    return split.inputs[1].gather(1, split.targets["item"][:, None])[:, 0]


class TestRatings:
    def test_the_generated_set_is_labelled_as_such_and_its_tables_dominate(self) -> None:
        task = Ratings()
        assert "generated" in task.notices[0]
        users, items, features = task.inputs
        assert (users.vocabulary, items.vocabulary, features.shape) == (1001, 2001, (6,))
        assert task.labels == {"rating": ["1", "2", "3", "4", "5"]}
        assert sum(len(split) for _, split in task.splits(0).items()) == len(generate_interactions())

    def test_rows_are_in_one_split_each(self) -> None:
        splits = Ratings().splits(0)
        found = [pairs(split) for _, split in splits.items()]
        assert sum(map(len, found)) == len(set.union(*found))
        assert not torch.equal(splits.test.inputs[0], Ratings().splits(1).test.inputs[0])

    @pytest.mark.slow
    def test_a_model_learns_more_than_the_mean(self) -> None:
        task = Ratings()
        splits = task.splits(0)
        torch.manual_seed(0)
        model = task.build(Part.of("two_tower", embedding=16, width=32, tower=16))
        fit(
            model,
            FitRequest(
                task,
                splits.train,
                Part.of("adamw", epochs=3, learning_rate=5e-3, weight_decay=0.1, batch_size=256),
            ),
        )
        levels = torch.tensor(task.heads["rating"].levels)
        ratings = {name: levels[split.targets["rating"]] for name, split in splits.items()}
        of_mean = float((ratings["test"] - ratings["train"].mean()).square().mean().sqrt())
        subject = Subject(predict(model, task, splits.test), splits.test.targets, heads=task.heads)
        assert measure(subject, ["rmse"])["rmse"] < 0.85 * of_mean

    def test_movielens_has_features_of_user_and_item(self, tmp_path: Path) -> None:
        task = Ratings(movielens(tmp_path / "ml"))
        # Age, gender, three occupations and nineteen genres.
        assert task.inputs[2].shape == (24,)
        train = task.splits(0).train
        varied = train.inputs[2].std(0, correction=0) > 0
        torch.testing.assert_close(train.inputs[2].mean(0), torch.zeros(24), atol=1e-5, rtol=0)
        torch.testing.assert_close(train.inputs[2].std(0, correction=0)[varied], torch.ones(int(varied.sum())))
        assert task.metrics[0] == "rmse"

    def test_movielens_without_its_tables_has_no_features(self, tmp_path: Path) -> None:
        folder = movielens(tmp_path / "ml")
        (folder / "u.item").unlink()
        (folder / "u.user").unlink()
        assert len(Ratings(folder).inputs) == 2

    def test_clicks_have_two_classes(self, tmp_path: Path) -> None:
        task = Ratings(csv(tmp_path, label="click"))
        assert task.heads == {"click": 2}
        assert task.metrics[:2] == ("auc", "log_loss")
        share = [float(split.targets["click"].double().mean()) for _, split in task.splits(0).items()]
        assert max(share) - min(share) < 0.1

    def test_whole_and_broken_numbers_are_ratings(self, tmp_path: Path) -> None:
        rows = [f"u{row % 9},i{row % 7},{row % 4 / 2 + 0.5}" for row in range(63)]
        task = Ratings(write(tmp_path / "a.csv", ["user,item,rating", *rows]))
        assert task.heads["rating"].levels == (0.5, 1.0, 1.5, 2.0)
        assert len(task.inputs) == 2

    def test_many_values_are_binned(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        rows = [f"u{row // 25},i{row % 25},{random.exponential():.5f}" for row in range(500)]
        task = Ratings(write(tmp_path / "a.csv", ["user,item,rating", *rows]))
        assert task.heads == {"rating": 20}
        counts = sum(torch.bincount(s.targets["rating"], minlength=20) for _, s in task.splits(0).items())
        assert counts.tolist() == [25] * 20
        assert any("distinct ratings were put into 20 bins" in notice for notice in task.notices)

    def test_the_rare_and_the_new_share_the_row_of_the_unknown(self, tmp_path: Path) -> None:
        rows = [f"u{row % 10},i{row % 11},{row % 3}" for row in range(110)]
        path = write(tmp_path / "a.csv", ["user,item,rating", *rows, "once,i1,2"])
        test = write(tmp_path / "b.csv", ["user,item,rating", "new,i1,0", "u1,strange,1", "u2,i2,2"])
        task = Ratings(path, test=test)
        splits = task.splits(0)
        assert (splits.test.inputs[0] == 0).tolist() == [True, False, False]
        assert (splits.test.inputs[1] == 0).tolist() == [False, True, False]
        assert "1 users of the test file are not in the training file and count as unknown" in task.notices
        assert "1 items of the test file are not in the training file and count as unknown" in task.notices
        assert any(notice.startswith("1 of 11 users have one row") for notice in task.notices)
        known = torch.bincount(splits.train.inputs[0], minlength=12)
        assert int(known[1:][known[1:] > 0].min()) >= 2

    def test_of_repeated_rows_the_latest_counts(self, tmp_path: Path) -> None:
        rows = [f"u{row % 10},i{row % 11},1,{row}" for row in range(110)]
        path = write(tmp_path / "a.csv", ["user,item,rating,time", "u0,i0,5,999", *rows, "u1,i1,5,-1"])
        task = Ratings(path)
        assert task.heads["rating"].levels == (1.0, 5.0)
        fives = sum(int((split.targets["rating"] == 1).sum()) for _, split in task.splits(0).items())
        assert fives == 1
        assert "2 rows repeat a pair of user and item; the latest row counts" in task.notices

    @pytest.mark.parametrize(
        ("test", "message"),
        [
            (["user,item,rating,more", "u1,i1,2,3"], r"has the features \['more'\]"),
            (["user,item,rating", "u1,i1,7"], "contains the value 7"),
            (["user,item,click", "u1,i1,1"], "has the features"),
        ],
    )
    def test_a_test_file_of_another_form_is_refused(self, tmp_path: Path, test: list[str], message: str) -> None:
        rows = [f"u{row % 10},i{row % 11},{row % 3}" for row in range(110)]
        path = write(tmp_path / "a.csv", ["user,item,rating", *rows])
        with pytest.raises(UsageError, match=message):
            Ratings(path, test=write(tmp_path / "b.csv", test))

    def test_what_cannot_be_learned_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="every row has the value 3"):
            Ratings(write(tmp_path / "a.csv", ["user,item,rating", *(f"u{row},i,3" for row in range(60))]))
        with pytest.raises(UsageError, match="the data has 9 ratings"):
            Ratings(
                write(tmp_path / "b.csv", ["user,item,rating", *(f"u{row},i,{row % 2}" for row in range(9))])
            ).splits(0)
        with pytest.raises(UsageError, match=r"task\.ratings\.path is not"):
            Ratings(test=tmp_path / "a.csv")


class TestBins:
    def test_bins_stand_for_their_mean(self) -> None:
        values = np.random.default_rng(0).normal(size=1000)
        bins = RatingBins(values)
        classes = bins.assign_classes(values)
        assert np.allclose(bins.levels, [values[classes == number].mean() for number in range(20)])
        assert bins.spread == pytest.approx(np.sqrt(np.square(values - bins.levels[classes]).mean()))

    def test_a_value_that_most_rows_hold_leaves_no_empty_bin(self) -> None:
        values = np.concatenate([np.zeros(900), np.random.default_rng(0).normal(size=100)])
        bins = RatingBins(values)
        counts = np.bincount(bins.assign_classes(values), minlength=len(bins.levels))
        assert counts.min() > 0
        assert (np.diff(bins.levels) > 0).all()


class TestRanking:
    def test_the_last_interactions_are_predicted_from_the_ones_before(self, tmp_path: Path) -> None:
        rows = [f"u{user},i{(7 * user + step) % 60},{step}" for user in range(8) for step in range(9)]
        shuffled = [rows[row] for row in np.random.default_rng(0).permutation(len(rows))]
        task = Ranking(write(tmp_path / "a.csv", ["user,item,time", *shuffled]), candidates=5)
        splits = task.splits(0)
        items = sorted({row.split(",")[1] for row in rows})
        for step, name in ((8, "test"), (7, "select_val"), (6, "search_val"), (5, "calibration")):
            split = getattr(splits, name)
            expected = {(user, items.index(f"i{(7 * user + step) % 60}")) for user in range(8)}
            assert set(zip(split.inputs[0].tolist(), true_items(split).tolist(), strict=True)) == expected
        assert len(splits.train) == 8 * 5

    @pytest.mark.slow
    def test_negatives_are_items_that_the_user_never_met_and_none_occurs_twice(self) -> None:
        task = Ranking(candidates=30)
        splits = task.splits(0)
        met = generate_interactions()
        known = set(zip(met.users.tolist(), met.items.tolist(), strict=True))
        users, items = np.unique(met.users), np.unique(met.items)
        assert all(len(split.inputs[1].unique(dim=0)) and split.inputs[1].shape[1] == 30 for _, split in splits.items())
        view = task.view(splits.train.take(slice(0, 2000)), 2)
        is_known = (view.inputs[0] < len(users)) & (view.inputs[1] < len(items)).all(1)
        assert 1800 < int(is_known.sum()) < 2000
        for split in (splits.test, view.take(is_known)):
            lists = split.inputs[1]
            assert int(lists.sort(1).values.diff(dim=1).min()) > 0
            for user, row, place in zip(split.inputs[0].tolist(), lists.tolist(), split.targets["item"], strict=True):
                seen = [(users[user], items[item]) in known for item in row]
                assert seen == [number == int(place) for number in range(30)]

    def test_too_many_users_for_a_table_get_the_same_lists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tabled = Ranking(candidates=10).splits(0)
        monkeypatch.setattr("autocompress.tasks.negative_sampling.LARGEST_TABLE", 0)
        assert Ranking(candidates=10).splits(0).fingerprint() == tabled.fingerprint()

    def test_views_draw_other_negatives_for_the_same_items(self) -> None:
        task = Ranking(candidates=10)
        train = task.splits(0).train.take(slice(0, 500))
        one, two = task.view(train, 1), task.view(train, 2)
        assert task.view(train, 0) is train
        users, items = (spec.vocabulary - 1 for spec in task.inputs)
        is_known = one.inputs[0] < users
        assert torch.equal(one.inputs[0][is_known], train.inputs[0][is_known])
        same_item = (true_items(one) == true_items(train)) | (true_items(one) == items)
        assert bool(same_item.all())
        assert not torch.equal(one.inputs[1], two.inputs[1])
        assert torch.equal(task.view(train, 1).inputs[1], one.inputs[1])

    def test_views_train_the_row_of_unknown_users_and_items(self) -> None:
        task = Ranking(candidates=10)
        train = task.splits(0).train
        users, items = (spec.vocabulary - 1 for spec in task.inputs)
        assert all(int(split.inputs[0].max()) < users for _, split in task.splits(0).items())
        assert all(int(split.inputs[1].max()) < items for _, split in task.splits(0).items())
        view = task.view(train, 1)
        unknown = view.inputs[1] == items
        assert float((view.inputs[0] == users).double().mean()) == pytest.approx(0.02, abs=0.004)
        assert float(unknown.any(1).double().mean()) == pytest.approx(0.02, abs=0.004)
        assert int(unknown.sum(1).max()) == 1
        # The true item is as often unknown as any other candidate.
        positions = view.targets["item"][unknown.any(1)] == unknown.to(torch.uint8).argmax(1)[unknown.any(1)]
        assert float(positions.double().mean()) == pytest.approx(0.1, abs=0.05)
        assert [record.unknown_row for record in task.specify_preprocessing(0)] == [users, items]  # type: ignore[union-attr]
        plain = Ranking(candidates=10, views=1).specify_preprocessing(0)
        assert [record.unknown_row for record in plain] == [None, None]  # type: ignore[union-attr]

    def test_the_place_of_the_true_item_says_nothing(self) -> None:
        counts = torch.bincount(Ranking(candidates=10).splits(0).train.targets["item"], minlength=10).double()
        expected = counts.sum() / 10
        assert float((counts - expected).abs().max()) < 5 * float(expected.sqrt())

    def test_short_histories_fill_the_splits_from_the_end(self, tmp_path: Path) -> None:
        counts = {"one": 1, "two": 2, "three": 3, "many": 9}
        rows = [f"{user},i{step},{step}" for user, count in counts.items() for step in range(count)]
        rows += [f"many,i{step},{step}" for step in range(9, 14)] + [f"other,i{step},{step}" for step in range(20, 26)]
        task = Ranking(write(tmp_path / "a.csv", ["user,item,time", *rows]), candidates=3)
        splits = task.splits(0)
        assert {name: len(split) for name, split in splits.items()} == {
            "train": 1 + 1 + 10 + 2,
            "calibration": 2,
            "search_val": 2,
            "select_val": 3,
            "test": 4,
        }
        trained = set(splits.train.inputs[0].tolist())
        assert all(set(split.inputs[0].tolist()) <= trained for _, split in splits.items())
        assert "users with one interaction were left out: 1" in task.notices

    def test_notices_say_how_many_negatives_there_are(self) -> None:
        assert any("among 19 sampled negatives" in notice for notice in Ranking(candidates=20).notices)

    def test_only_liked_items_and_clicks_count(self, tmp_path: Path) -> None:
        rows = [f"u{user},i{user + step},{1 + step % 2},{step}" for user in range(6) for step in range(20)]
        path = write(tmp_path / "a.csv", ["user,item,rating,time", *rows])
        whole, liked = Ranking(path, candidates=3), Ranking(path, candidates=3, liked=2)
        sizes = [sum(len(split) for _, split in task.splits(0).items()) for task in (whole, liked)]
        assert sizes == [120, 60]
        clicks = [row.replace(",1,", ",0,").replace(",2,", ",1,") for row in rows]
        clicked = Ranking(write(tmp_path / "b.csv", ["user,item,click,time", *clicks]), candidates=3)
        assert sum(len(split) for _, split in clicked.splits(0).items()) == 60

    def test_without_times_later_rows_are_later(self, tmp_path: Path) -> None:
        rows = [f"u{user},i{step + user}" for user in range(3) for step in range(9)]
        task = Ranking(write(tmp_path / "a.csv", ["user,item", *rows]), candidates=3)
        assert "the data has no column of times: the order of the rows is the order of time" in task.notices
        assert true_items(task.splits(0).test).tolist() == [
            sorted(f"i{number}" for number in range(11)).index(f"i{8 + user}") for user in range(3)
        ]

    @pytest.mark.slow
    def test_a_model_ranks_better_than_chance(self) -> None:
        task = Ranking(candidates=20)
        splits = task.splits(0)
        torch.manual_seed(0)
        model = task.build(Part.of("two_tower", embedding=8, width=16, depth=0, tower=8))
        fit(
            model,
            FitRequest(
                task,
                splits.train,
                Part.of("adamw", epochs=2, learning_rate=5e-3, weight_decay=0.1, batch_size=512),
            ),
        )
        subject = Subject(predict(model, task, splits.test), splits.test.targets)
        found = measure(subject, ["ndcg_at_10", "hit_rate_at_10"])
        assert found["hit_rate_at_10"] > 0.65
        assert found["ndcg_at_10"] > 0.3

    @pytest.mark.parametrize(
        "option", [{"candidates": 1}, {"candidates": True}, {"candidates": 2.5}, {"views": 0}, {"liked": "much"}]
    )
    def test_options_that_cannot_be_used_are_named(self, option: dict[str, object]) -> None:
        with pytest.raises(UsageError, match=rf"task\.ranking\.{next(iter(option))} is "):
            Ranking(**option)

    def test_what_cannot_be_ranked_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no user has two interactions"):
            Ranking(write(tmp_path / "a.csv", ["user,item", "a,x", "b,x"]))
        with pytest.raises(UsageError, match="no user has enough interactions for calibration"):
            Ranking(write(tmp_path / "b.csv", ["user,item", *(f"a,{item}" for item in "vwxy")]))
        rows = [f"u{user},i{step}" for user in range(2) for step in range(6 + user)]
        with pytest.raises(UsageError, match=r"task\.ranking\.candidates is 50.*give at most 1"):
            Ranking(write(tmp_path / "c.csv", ["user,item", *rows]))


def test_the_generated_set_is_what_it_says() -> None:
    found = generate_interactions()
    assert 55_000 < len(found) < 68_000
    assert len(np.unique(found.users)) == 1000
    assert len(np.unique(found.items)) > 1950
    assert len(found.latest_rows()) == len(found)
    again = generate_interactions.__wrapped__()
    assert np.array_equal(found.values, again.values)
    assert not np.array_equal(found.values[:1000], generate_interactions(seed=1).values[:1000])


@pytest.mark.parametrize("task", [Ratings, Ranking])
def test_every_user_of_evaluation_is_known_and_splits_are_five(task: type, tmp_path: Path) -> None:
    options = {"candidates": 4} if task is Ranking else {}
    splits = task(movielens(tmp_path / "ml"), **options).splits(0)
    assert [name for name, _ in splits.items()] == list(Splits.NAMES)
    assert all(len(split) for _, split in splits.items())
