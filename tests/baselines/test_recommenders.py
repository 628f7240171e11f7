import numpy as np
import torch

from autocompress.baselines.recommenders import fit_biases, fit_item_neighbours, fit_popularity
from autocompress.core.heads import Candidates, Levels
from autocompress.core.task import InputSpec, Split
from tests.contracts.test_baselines import Given

LISTS = Given((InputSpec((), vocabulary=40), InputSpec((3,), vocabulary=10)), {"item": Candidates(3)})


def test_popular_items_come_first() -> None:
    train = Split(
        (torch.tensor([0, 1, 2, 3]), torch.tensor([[7, 1, 2]] * 3 + [[7, 1, 2]])), {"item": torch.tensor([0, 0, 0, 1])}
    )
    predict = fit_popularity(LISTS, train)
    assert predict is not None
    scores = predict(Split((torch.tensor([5]), torch.tensor([[2, 7, 1]])), {"item": torch.tensor([0])}))["item"]
    assert scores.exp().sub(1).round().tolist() == [[0.0, 3.0, 1.0]]


def test_neighbours_are_items_of_users_with_the_same_taste() -> None:
    # Even users take even items, odd users odd ones; each misses one of its five.
    pairs = [(user, item) for user in range(40) for item in range(user % 2, 10, 2) if (user + item) % 5]
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    train = Split((users, items[:, None].repeat(1, 3)), {"item": torch.zeros(len(pairs), dtype=torch.long)})
    predict = fit_item_neighbours(LISTS, train)
    assert predict is not None
    scores = predict(
        Split((torch.tensor([0, 1]), torch.tensor([[1, 0, 3], [2, 8, 9]])), {"item": torch.tensor([1, 2])})
    )
    assert scores["item"].argmax(1).tolist() == [1, 2]


def test_biases_find_the_sides_of_an_additive_rating() -> None:
    random = np.random.default_rng(0)
    users, items = random.integers(0, 20, 2000), random.integers(0, 30, 2000)
    sides = random.normal(0, 0.7, 20), random.normal(0, 0.7, 30)
    levels = tuple(float(level) for level in np.linspace(-3, 3, 61))
    values = sides[0][users] + sides[1][items]
    classes = torch.from_numpy(np.abs(values[:, None] - np.array(levels)).argmin(1))
    head = Levels(61, levels=levels)
    task = Given((InputSpec((), vocabulary=21), InputSpec((), vocabulary=31)), {"rating": head})
    split = Split((torch.from_numpy(users), torch.from_numpy(items)), {"rating": classes})
    predict = fit_biases(task, split)
    assert predict is not None
    ours = predict(split)["rating"].softmax(1) @ torch.tensor(levels)
    assert float((ours - torch.from_numpy(values)).square().mean().sqrt()) < 0.15
    # An id that the training split does not have counts as average.
    new = Split((torch.tensor([20]), torch.tensor([30])), {"rating": torch.tensor([0])})
    assert abs(float(predict(new)["rating"].softmax(1) @ torch.tensor(levels)) - values.mean()) < 0.05
