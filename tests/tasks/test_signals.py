from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.task import Splits
from autocompress.errors import UsageError
from autocompress.tasks.signals import MNIST1D, Signals
from autocompress.training.fit import FitRequest, fit, predict


def accuracy(task, model, split) -> float:
    return float((predict(model, task, split)["label"].argmax(1) == split.targets["label"]).float().mean())


class TestMNIST1D:
    @pytest.mark.slow
    def test_the_last_thousand_published_curves_are_the_test_split(self) -> None:
        splits = MNIST1D().splits(0)
        assert {name: len(split) for name, split in splits.items()} == {
            "train": 2880,
            "calibration": 160,
            "search_val": 480,
            "select_val": 480,
            "test": 1000,
        }
        assert torch.equal(splits.test.inputs[0], MNIST1D().splits(1).test.inputs[0])
        everything = torch.cat([split.inputs[0].flatten(1) for _, split in splits.items()])
        assert len({tuple(row) for row in everything.tolist()}) == 5000

    @pytest.mark.slow
    def test_the_published_ranking_of_models_holds(self) -> None:
        """Published: linear 32%, convolutional 94%; a quarter of the training suffices to tell them apart."""
        task = MNIST1D(views=1)
        splits = task.splits(0)
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(40, 10))
        fit(linear, FitRequest(task, splits.train, Part.of("adamw", epochs=10, learning_rate=1e-2)))
        convolutional = task.build(Part.of("cnn1d", width=8, depth=1, stages=2))
        fit(convolutional, FitRequest(task, splits.train, Part.of("adamw", epochs=6, learning_rate=1e-2)))
        assert 0.25 < accuracy(task, linear, splits.test) < 0.40
        assert accuracy(task, convolutional, splits.test) > 0.85

    @pytest.mark.slow
    def test_another_seed_makes_other_curves(self) -> None:
        assert MNIST1D(seed=1).splits(0).fingerprint() != MNIST1D().splits(0).fingerprint()

    def test_views_move_curves_round(self) -> None:
        task = MNIST1D()
        train = task.splits(0).train
        moved = task.view(train, 3)
        assert task.view(train, 0) is train
        assert moved.inputs[0].shape == train.inputs[0].shape
        spread = (moved.inputs[0].std(2) / train.inputs[0].std(2)).flatten()
        assert 0.89 < float(spread.min()) < 0.95
        assert 1.05 < float(spread.max()) < 1.11

    @pytest.mark.parametrize("option", [{"views": 0}, {"views": 1.5}, {"views": True}, {"seed": -1}, {"seed": "a"}])
    def test_options_that_cannot_be_used_are_named(self, option) -> None:
        with pytest.raises(UsageError, match=rf"task\.mnist1d\.{next(iter(option))} is "):
            MNIST1D(**option)


class TestSignals:
    def test_classes_have_their_names_and_splits_are_normalised_by_the_training_split(self, tmp_path: Path) -> None:
        task = Signals(Signals.write_sample(tmp_path))
        splits = task.splits(0)
        assert task.labels == {"label": ["fast", "medium", "slow"]}
        assert task.shape == (1, 24)
        assert float(splits.train.inputs[0].mean()) == pytest.approx(0, abs=1e-5)
        assert float(splits.train.inputs[0].std(correction=0)) == pytest.approx(1, abs=1e-5)
        assert sum(len(split) for _, split in splits.items()) == 60
        assert [len(split) for _, split in splits.items()] == [30, 3, 9, 9, 9]

    def test_its_own_task_is_learned(self, tmp_path: Path) -> None:
        task = Signals(Signals.write_sample(tmp_path))
        splits = task.splits(0)
        torch.manual_seed(0)
        model = task.build(Part.of("cnn1d", width=8, depth=1, stages=2))
        fit(model, FitRequest(task, splits.train, Part.of("adamw", epochs=15, batch_size=8, learning_rate=1e-2)))
        assert accuracy(task, model, splits.test) >= 0.9

    def test_several_channels_of_an_npz_file(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        x = random.normal(size=(50, 3, 20)) * [[[1], [100], [0]]] + [[[0], [1000], [5]]]
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(50) % 2)
        task = Signals(tmp_path / "a.npz")
        train = task.splits(0).train.inputs[0]
        assert task.example()[0].shape == (1, 3, 20)
        assert train.mean((0, 2)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
        # A constant channel stays constant instead of turning into nothing that is a number.
        assert train.std((0, 2), correction=0).tolist() == pytest.approx([1, 1, 0], abs=1e-4)

    def test_classes_that_are_numbers_are_in_the_order_of_numbers(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(66, 8)), y=np.arange(66) % 11)
        assert Signals(tmp_path / "a.npz").labels["label"] == [str(number) for number in range(11)]

    def test_a_second_file_is_the_test_split(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        np.savez(tmp_path / "a.npz", x=random.normal(size=(60, 8)), y=np.arange(60) % 2)
        np.savez(tmp_path / "b.npz", x=random.normal(size=(9, 8)), y=np.arange(9) % 2)
        splits = Signals(tmp_path / "a.npz", test=tmp_path / "b.npz").splits(0)
        assert len(splits.test) == 9
        assert sum(len(split) for _, split in splits.items()) == 69
        assert [name for name, _ in splits.items()] == list(Splits.NAMES)

    def test_test_files_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(60, 8))
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 2)
        np.savez(tmp_path / "long.npz", x=np.tile(x, 2), y=np.arange(60) % 2)
        np.savez(tmp_path / "three.npz", x=x, y=np.arange(60) % 3)
        with pytest.raises(UsageError, match=r"holds series \[1, 16\].*\[1, 8\]"):
            Signals(tmp_path / "a.npz", test=tmp_path / "long.npz")
        with pytest.raises(UsageError, match="test holds the class '2'"):
            Signals(tmp_path / "a.npz", test=tmp_path / "three.npz")

    def test_a_class_too_small_to_split_is_named(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros((43, 8)), y=["usual"] * 40 + ["rare"] * 3)
        with pytest.raises(UsageError, match="class 'rare' has 3 examples"):
            Signals(tmp_path / "a.npz").splits(0)

    def test_views_shift_and_scale(self, tmp_path: Path) -> None:
        Signals(Signals.write_sample(tmp_path))
        task = Signals(tmp_path / "signals.csv", views=4, shift=0.1, scale=0.2)
        train = task.splits(0).train
        one, again, two = (task.view(train, index).inputs[0] for index in (1, 1, 2))
        assert task.view(train, 0) is train
        assert torch.equal(one, again)
        assert not torch.equal(one, two)

    def test_long_series_get_a_stride(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros((20, 600)), y=np.arange(20) % 2)
        student, _ = Signals(tmp_path / "a.npz").teacher()
        assert student.values["stem_stride"] == 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"task\.signals\.path is not set"),
            ({"path": "nowhere.csv"}, "there is no file nowhere.csv"),
            ({"path": "x", "shift": 2}, r"task\.signals\.shift is 2"),
            ({"path": "x", "scale": "much"}, r"task\.signals\.scale is 'much'"),
            ({"path": "x", "views": 0}, r"task\.signals\.views is 0"),
        ],
    )
    def test_options_that_cannot_be_used(self, options, message) -> None:
        with pytest.raises(UsageError, match=message):
            Signals(**options)
