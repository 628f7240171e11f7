from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.errors import UsageError
from autocompress.tasks.recommender import Ranking, Ratings
from autocompress.tasks.shilling import (
    PoisonedRanking,
    PoisonedRatings,
    ShillingSettings,
    draw_profiles,
    select_pushed_item,
)

COUNTS = np.array([0, 9, 1, 4, 2, 6, 3, 3])


def csv(folder: Path, label: str = "rating") -> Path:
    """Write 20 users with 12 of 40 items each."""
    random = np.random.default_rng(1)
    lines = [f"user,item,{label},time,age"]
    for user in range(20):
        for item in random.permutation(40)[:12]:
            value = random.integers(0, 2) if label == "click" else random.integers(1, 6)
            lines.append(f"u{user},i{item},{value},{len(lines)},{item / 10:.1f}")
    path = folder / f"{label}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("attack", ["random", "average", "bandwagon"])
def test_a_profile_is_the_pushed_item_and_as_many_known_fillers(attack: str) -> None:
    profiles = draw_profiles(COUNTS, 4, 3, ShillingSettings(attack, 0.1, 0.5))
    assert profiles.users.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for user in range(3):
        items = profiles.items[profiles.users == user]
        highest = profiles.is_highest[profiles.users == user]
        assert items[0] == 4
        assert highest[0]
        assert len({*items.tolist()}) == 4
        assert 0 not in items  # nobody knows it
        if attack == "bandwagon":
            assert items[1:3].tolist() == [1, 5]
        assert highest.tolist() == [True, attack == "bandwagon", attack == "bandwagon", False]


def test_the_pushed_item_is_known_to_few() -> None:
    assert select_pushed_item(COUNTS) == 6
    with pytest.raises(UsageError, match="no item has two interactions"):
        select_pushed_item(np.array([1, 1]))


@pytest.mark.parametrize("attack", ["random", "average", "bandwagon"])
def test_ratings_have_fake_users_in_the_training_split_alone(tmp_path: Path, attack: str) -> None:
    path = csv(tmp_path)
    clean, task = Ratings(path), PoisonedRatings(path, attack=attack, fake_users=0.2, fillers=0.1)
    before, splits = clean.splits(0), task.splits(0)
    users = clean.inputs[0].vocabulary
    assert task.inputs[0].vocabulary == users + 4
    for (name, part), (_, own) in zip(before.items(), splits.items(), strict=True):
        for one, other in zip(
            (*part.inputs, part.targets["rating"]), (*own.inputs, own.targets["rating"]), strict=True
        ):
            assert torch.equal(one, other[: len(part)]), name
        assert (len(own) > len(part)) == (name == "train")
    fake = splits.train.take(slice(len(before.train), None))
    assert {*fake.inputs[0].tolist()} == {*range(users, users + 4)}
    pushed = task.push_item(splits.select_val, splits.train)
    (item,) = {*pushed.inputs[1].tolist()}
    is_pushed = fake.inputs[1] == item
    assert int(is_pushed.sum()) == 4
    assert set(fake.targets["rating"][is_pushed].tolist()) == {4}
    # The only feature is the item's number.
    rows = splits.train.inputs[1] == item
    assert len(torch.cat([splits.train.inputs[2][rows], pushed.inputs[2]]).unique()) == 1
    assert torch.equal(pushed.inputs[0], splits.select_val.inputs[0])


def test_an_average_attack_rates_each_item_as_others_do() -> None:
    distance = {}
    for attack in ("random", "average"):
        task = PoisonedRatings(attack=attack, fake_users=0.2)
        train = task.splits(0).train
        is_fake = train.inputs[0] >= Ratings().inputs[0].vocabulary
        values = torch.tensor(task.heads["rating"].levels, dtype=torch.float64)[train.targets["rating"]]
        sums = torch.zeros(2001, dtype=torch.float64)
        means = sums.index_add(0, train.inputs[1][~is_fake], values[~is_fake]) / torch.bincount(
            train.inputs[1][~is_fake], minlength=2001
        ).clamp(min=1)
        distance[attack] = float((values[is_fake] - means[train.inputs[1][is_fake]]).square().mean())
    assert distance["average"] < 0.9 * distance["random"]


def test_clicks_push_an_item_by_clicks(tmp_path: Path) -> None:
    task = PoisonedRatings(csv(tmp_path, "click"), rating="", fake_users=0.2)
    splits = task.splits(0)
    fake = splits.train.take(splits.train.inputs[0] >= task.inputs[0].vocabulary - 4)
    (item,) = {*task.push_item(splits.test, splits.train).inputs[1].tolist()}
    assert set(fake.targets["click"][fake.inputs[1] == item].tolist()) == {1}


def test_rankings_have_fake_users_in_the_training_split_alone(tmp_path: Path) -> None:
    path = csv(tmp_path)
    clean, task = Ranking(path, candidates=6), PoisonedRanking(path, candidates=6, fake_users=0.2, pushed="i7")
    splits = task.splits(0)
    assert task.inputs[0].vocabulary == clean.inputs[0].vocabulary + 4
    for name, part in clean.splits(0).items():
        own = dict(splits.items())[name]
        assert torch.equal(own.inputs[0][: len(part)], part.inputs[0])
        assert (len(own) > len(part)) == (name == "train")
    for view in (0, 1):
        train = task.view(splits.train, view)
        fake = train.take(train.inputs[0] >= 20)
        chosen = fake.inputs[1].gather(1, fake.targets["item"][:, None])[:, 0]
        names = [int(np.flatnonzero(np.unique([f"i{item}" for item in range(40)]) == "i7")[0])]
        assert int((chosen == names[0]).sum()) == 4
    pushed = task.push_item(splits.test, splits.train)
    assert set(pushed.inputs[1].gather(1, pushed.targets["item"][:, None])[:, 0].tolist()) == {*names}


def test_options_out_of_bounds_are_named(tmp_path: Path) -> None:
    path = csv(tmp_path)
    for task, options, message in (
        (PoisonedRatings, {"attack": "avrage"}, "did you mean 'average'"),
        (PoisonedRatings, {"fake_users": 0}, "poisoned_ratings.fake_users is 0; give a share above 0, up to 1"),
        (PoisonedRatings, {"fillers": 0.9}, "fillers is 0.9"),
        (PoisonedRatings, {"pushed": "i99"}, "the data has no such item"),
        (
            PoisonedRanking,
            {"attack": "average", "candidates": 6},
            "no ratings to average; use one of random, bandwagon",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            task(path, **options)
