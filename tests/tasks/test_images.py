import torch
from sklearn.datasets import load_digits

from autocompress.core.config import Part
from autocompress.tasks.images import Digits


def test_the_five_splits_take_every_image_once_and_hold_every_class() -> None:
    splits = Digits().splits(seed=0)
    images = torch.cat([split.inputs[0].flatten(1) for _, split in splits.items()])
    data = torch.tensor(load_digits().images, dtype=torch.float32).div(16).sub(0.3).div(0.38).flatten(1)
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, data.tolist()))
    for name, split in splits.items():
        assert set(split.targets["label"].tolist()) == set(range(10)), name


def test_a_seed_names_its_splits() -> None:
    task = Digits()
    assert task.splits(0).fingerprint() == task.splits(0).fingerprint()
    assert task.splits(0).fingerprint() != task.splits(1).fingerprint()


def test_views_are_repeatable_differ_and_leave_the_targets() -> None:
    task = Digits()
    train = task.splits(0).train
    assert task.view(train, 0) is train
    one, again, two = task.view(train, 1), task.view(train, 1), task.view(train, 2)
    assert torch.equal(one.inputs[0], again.inputs[0])
    assert not torch.equal(one.inputs[0], two.inputs[0])
    assert one.inputs[0].shape == train.inputs[0].shape
    assert one.targets is train.targets


def test_models_of_any_family_fit_the_images() -> None:
    task = Digits()
    student, _ = task.teacher()
    for part in (student, Part.of("cnn", width=4, depth=1)):
        assert task.build(part)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
