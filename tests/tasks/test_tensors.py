import numpy as np
import pytest
import torch

from autocompress.errors import UsageError
from autocompress.tasks.tensors import Tensors


def data(count=100, classes=2):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), torch.arange(count) % classes


class TestForms:
    def test_tensors_and_arrays_are_alike(self):
        x, y = data()
        one, other = Tensors((x, y)), Tensors((x.numpy(), y.numpy().tolist()))
        assert one.splits(0).fingerprint() == other.splits(0).fingerprint()
        assert one.inputs[0].shape == (3,)
        assert one.heads == {"label": 2}

    def test_several_inputs_and_heads(self):
        x, y = data()
        task = Tensors(((x, torch.arange(100) % 7), {"a": y, "b": torch.arange(100) % 5}))
        assert [(spec.shape, spec.vocabulary) for spec in task.inputs] == [((3,), 0), ((), 7)]
        assert task.heads == {"a": 2, "b": 5}
        assert task.example()[1].dtype == torch.int64

    def test_the_first_input_may_be_one_index_of_each_example(self):
        users, y = data()[1] * 7, data()[1]
        example = Tensors(((users, data()[0]), y)).example()
        assert [tensor.shape for tensor in example] == [(1,), (1, 3)]

    def test_named_inputs_keep_their_names_and_order(self):
        x, y = data()
        task = Tensors(({"second": x, "first": x + 1}, y))
        assert task.names == ("second", "first")
        assert torch.equal(task.splits(0).train.inputs[1], task.splits(0).train.inputs[0] + 1)

    def test_raw_examples_are_arrays_by_the_names_of_the_inputs(self):
        x, y = data()
        named = Tensors(({"second": x, "first": torch.arange(100)}, y))
        second, first = named.specify_preprocessing(0)
        assert (second.name, second.shape, second.dtype) == ("second", (3,), "float32")
        assert (first.name, first.shape, first.dtype, first.vocabulary) == ("first", (), "int64", 100)
        test = named.splits(0).test
        for row, example in enumerate(named.list_test_examples(0)):
            assert np.array_equal(example["second"], test.inputs[0][row])
            assert example["first"] == test.inputs[1][row]
        single = Tensors((x, y), (x[:8], y[:8]))
        assert [record.name for record in single.specify_preprocessing(0)] == ["input"]
        assert np.array_equal(np.stack(single.list_test_examples(0)), x[:8])

    def test_a_data_set_is_read_once(self):
        class Items:
            reads = 0

            def __len__(self):
                return 60

            def __getitem__(self, index):
                Items.reads += 1
                return np.full((2, 2), index, np.float32), index % 3

        task = Tensors(Items())
        assert Items.reads == 60
        assert task.inputs[0].shape == (2, 2)
        assert task.heads == {"label": 3}

    def test_a_test_part_is_the_test_split(self):
        x, y = data()
        task = Tensors((x, y), (x[:10] + 100, y[:10]))
        splits = task.splits(0)
        assert len(splits.test) == 10
        assert float(splits.test.inputs[0].min()) > 50
        assert sum(len(split) for _, split in splits.items()) == 110

    @pytest.mark.parametrize("kinds", ["classes", "regression"])
    def test_a_val_part_is_halved_into_the_validation_splits(self, kinds):
        x, y = data()
        targets = y if kinds == "classes" else x.sum(1)
        task = Tensors((x, targets), (x[:10] + 200, targets[:10]), val=(x[:40] + 100, targets[:40]), kinds=kinds)
        splits = task.splits(0)
        assert {name: len(split) for name, split in splits.items()} == {
            "train": 96,
            "calibration": 4,
            "search_val": 20,
            "select_val": 20,
            "test": 10,
        }
        halves = torch.cat([splits.search_val.inputs[0], splits.select_val.inputs[0]])
        assert sorted(halves[:, 0].tolist()) == sorted((x[:40] + 100)[:, 0].tolist())

    def test_a_val_part_is_halved_by_time(self):
        x, y = data()
        times = {"train": np.arange(100), "val": np.arange(100, 140)[::-1]}
        splits = Tensors((x, y), (x[:10], y[:10]), val=(x[:40] + 100, y[:40]), times=times).splits(0)
        assert splits.search_val.keys.times.tolist() == list(range(119, 99, -1))
        assert splits.select_val.keys.times.tolist() == list(range(139, 119, -1))
        with pytest.raises(UsageError, match="40 validation examples are no later than the last training example"):
            Tensors((x, y), val=(x[:40], y[:40]), times={"train": np.arange(200, 300), "val": np.arange(40)})
        with pytest.raises(UsageError, match=r"2 of the groups of 'groups', such as '0', are in .* validation data"):
            Tensors((x, y), val=(x[:40], y[:40]), groups={"train": np.arange(100) % 9, "val": np.arange(40) % 2})

    def test_names_of_classes(self):
        assert Tensors(data(), labels=["cat", "dog"]).labels == {"label": ["cat", "dog"]}

    def test_padding_is_told_to_the_models(self):
        task = Tensors((torch.arange(400).view(100, 4) % 9, torch.arange(100) % 2), missing={0: 0})
        assert task.inputs[0].missing == 0
        assert task.inputs[0].vocabulary == 9

    def test_unequal_classes_are_noticed(self):
        y = torch.tensor([0] * 200 + [1] * 20)
        (notice,) = Tensors((torch.randn(220, 1), y)).notices
        assert "class '0' has 200 examples and '1' has 20" in notice
        assert Tensors(data()).notices == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: (torch.randn(5, 2), torch.zeros(4)), "different lengths: \\[4, 5\\]"),
        (lambda: (torch.randn(4, 2), torch.tensor([0.0, 1.5, 0, 1])), "example 1 has 1.5.*kinds='regression'"),
        (lambda: (torch.randn(4, 2), torch.tensor([0, 1, -1, 1])), "example 2 has the class -1"),
        (lambda: (torch.randn(4, 2), torch.zeros(4, 2)), "give one class index for each example"),
        (lambda: (torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1])), "not finite in example 1"),
        (lambda: (torch.tensor(1.0), torch.tensor([0])), "axis 0 must be the examples"),
        (lambda: ((), torch.tensor([0, 1])), "has no inputs"),
        (lambda: (torch.randn(4, 2), {}), "has no targets"),
        (lambda: 3, "give \\(inputs, targets\\)"),
        (lambda: [(torch.randn(2), 0), (torch.randn(3), 1)], "item 1 has the shape \\[3\\]"),
        (lambda: [torch.randn(2)], "item 0 is Tensor"),
        (list, "empty"),
    ],
)
def test_what_cannot_be_used_is_named(given, message):
    with pytest.raises(UsageError, match=message):
        Tensors(given())


@pytest.mark.parametrize(
    ("targets", "kinds", "message"),
    [
        (torch.zeros(50).long(), "classes", "targets of 'label' have the single class 0"),
        (torch.full((50,), 2.5), "regression", "targets of 'label' have the single value 2.5"),
        (torch.ones(50, 3).long(), "multilabel", "targets of 'label' have the single class 1"),
        (torch.full((50, 2, 2), -100).index_fill(0, torch.tensor(3), 2), "dense", "have the single class 2"),
        ({"a": torch.arange(50) % 2, "b": torch.ones(50).long()}, "classes", "targets of 'b' have the single class 1"),
    ],
)
def test_targets_that_are_all_equal_are_refused_before_any_training(targets, kinds, message):
    with pytest.raises(UsageError, match=message):
        Tensors((torch.randn(50, 1, 2, 2), targets), kinds=kinds).splits(0)


def test_parts_must_agree():
    x, y = data()
    with pytest.raises(UsageError, match="has the shapes"):
        Tensors((x, y), (torch.randn(5, 4), y[:5]))
    with pytest.raises(UsageError, match="has the inputs \\['b'\\]"):
        Tensors(({"a": x}, y), ({"b": x}, y))


def test_labels_must_fit():
    with pytest.raises(UsageError, match="name 3 classes of 'label', which has 2"):
        Tensors(data(), labels=["a", "b", "c"])


@pytest.mark.parametrize(
    ("targets", "kinds", "message"),
    [
        ([0, "a"] * 25, "auto", "has texts and numbers, such as 0"),
        ([0.5, "a", None, "b", "b"] * 10, "auto", "has texts and numbers, such as 0.5"),
        ([0, [1, 2]] * 25, "auto", "rows of different lengths"),
        (torch.arange(50) % 2, {"labels": "classes"}, "kinds has the head 'labels'; did you mean 'label'"),
    ],
)
def test_mixed_targets_and_kinds_of_other_heads_are_refused(targets, kinds, message):
    with pytest.raises(UsageError, match=message):
        Tensors((torch.randn(50, 2), targets), kinds=kinds)
