from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autocompress.core.heads import IGNORED
from autocompress.errors import UsageError
from autocompress.tasks.array_forms import read_array
from autocompress.tasks.tensors import Tensors

X, Y = np.random.default_rng(0).random((60, 3)).astype("f4"), np.arange(60) % 3


class TestReadArray:
    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6.0)[::-1],
            np.arange(6).astype(">i4"),
            np.arange(6).astype(">f8"),
            np.arange(6).astype("u4"),
            np.arange(6).astype("u8"),
            np.arange(6).astype(np.float16),
            np.arange(6).astype(np.longdouble),
            np.arange(6).astype(object),
            pd.Series(range(6), dtype="Int64"),
            pd.Series([Decimal(number) for number in range(6)]),
            pa.chunked_array([[0, 1, 2], [3, 4, 5]]),
            torch.arange(6).to(torch.uint32),
            torch.arange(6.0, requires_grad=True),
            torch.arange(6.0).to_sparse(),
            [0, 1, 2, 3, 4, 5],
        ],
    )
    def test_every_form_of_numbers_is_copied(self, array: Any) -> None:
        expected = sorted(range(6), reverse=isinstance(array, np.ndarray) and bool(array[0] > array[1]))
        assert read_array("x", array).tolist() == expected

    @pytest.mark.parametrize(
        "array",
        [
            X[:, ::-1][:, ::-1],
            pd.DataFrame(X),
            pd.DataFrame(X.astype(object)),
            pa.table({str(column): X[:, column] for column in range(3)}),
            pa.array(X.tolist()),
            pd.Series(list(X)),
            sparse.csr_matrix(X),
        ],
    )
    def test_every_form_of_a_table_is_copied(self, array: Any) -> None:
        assert np.array_equal(read_array("x", array).numpy().astype("f4"), X)

    def test_what_is_missing_or_masked_is_nan(self) -> None:
        for array in (pd.Series([1, None], dtype="Int64"), [1.0, None], np.ma.array([1, 2], mask=[False, True])):
            values = read_array("x", array).tolist()
            assert values[0] == 1
            assert np.isnan(values[1])

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array(["a", "b"]), "values of type str_, such as 'a'; give numbers"),
            (np.array([1j]), "complex numbers; give their real and imaginary parts"),
            (torch.ones(2, dtype=torch.complex64), "complex numbers; give their real and imaginary parts"),
            (np.array(["2024-01-01"], dtype="M8[s]"), "give numbers, such as seconds"),
            (np.array([2**63], dtype="u8"), "above 2\\^63"),
            ([[1, 2], [3]], "rows of different lengths"),
            (pd.Series([[1, 2], [3]]), "rows of different lengths"),
            (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "nested tensor; pad"),
        ],
    )
    def test_what_is_no_number_is_an_error(self, array: object, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read_array("x", array)


class Items:
    """A data set of the items that a function returns."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class TestDataSets:
    @pytest.mark.parametrize(
        "data",
        [
            Items(lambda at: (X[at][::-1][::-1], Y[at])),
            Items(lambda at: {"values": X[at], "label": int(Y[at])}),
            TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
            DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=7, shuffle=True),
            DataLoader(Items(lambda at: at), batch_size=7, collate_fn=lambda rows: (X[rows], Y[rows])),
            DataLoader(Stream(), batch_size=7),
            Stream(),
            iter(list(zip(X, Y, strict=True))),
        ],
    )
    def test_every_form_has_the_items_in_their_order(self, data: Any) -> None:
        split = Tensors(data)._parts["train"]
        assert np.array_equal(split.inputs[0].numpy(), X)
        assert np.array_equal(split.targets["label"].numpy(), Y)

    def test_items_may_have_several_inputs_and_heads(self) -> None:
        task = Tensors(Items(lambda at: ({"a": X[at], "b": X[at, :1]}, {"one": Y[at], "two": at % 2})))
        assert task.names == ("a", "b")
        assert dict(task.heads) == {"one": 3, "two": 2}
        assert len(Tensors(Items(lambda at: ((X[at], X[at, :1]), Y[at]))).inputs) == 2

    def test_pictures_are_pixels_and_not_indices(self) -> None:
        picture = Image.new("RGB", (4, 5), (255, 0, 7))
        (spec,) = Tensors(Items(lambda at: (picture, Y[at]))).inputs
        assert (spec.shape, spec.vocabulary) == ((5, 4, 3), 0)

    def test_texts_are_names_of_classes(self) -> None:
        names = np.array(["b", "a", "c"])[Y]
        for targets in (names, names.tolist(), pd.Series(names), pd.Categorical(names), pa.array(names)):
            task = Tensors((X, targets), test=(X[:5], list(targets)[:5]))
            assert task.labels == {"label": ["a", "b", "c"]}
            assert task._parts["train"].targets["label"][:3].tolist() == [1, 0, 2]
        assert Tensors((X, names), labels=["c", "b", "a"])._parts["train"].targets["label"][:2].tolist() == [1, 2]
        assert Tensors(Items(lambda at: (X[at], str(names[at])))).labels == {"label": ["a", "b", "c"]}
        missing = Tensors((X, [None, *names[1:]]))
        assert int(missing._parts["train"].targets["label"][0]) == IGNORED

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ((X, [*["a", "b"] * 29, "a", "B"], "test"), "has the class 'B', which is unknown; known: a, b"),
            (Items(lambda at: {"x": X[at], "z": Y[at]}), "has the names \\['x', 'z'\\]"),
            (Items(lambda at: ("a text", Y[at])), "item 0 is a text"),
            (Items(lambda at: (X[at], Y[at]) if at < 3 else 1 / 0), "item 3 cannot be read \\(ZeroDivisionError"),
            (Items(lambda at: (X[at], Y[at]) if at < 3 else ((X[at], X[at]), Y[at])), "item 3 has other parts"),
            (pd.DataFrame({"x": [1.0], "y": [1]}), "is a DataFrame; give \\(inputs, targets\\)"),
            (pa.table({"x": [1.0], "y": [1]}), "is a Table; give"),
            ((X, np.full(60, np.nan)), "every target of 'label' is missing"),
            ((X, np.where(Y == 0, 1e300, 0.5)), "beyond the range of float32"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, data: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Tensors(data) if len(data) != 3 else Tensors(data[:2], labels=["a", "b"])

    def test_more_than_the_memory_holds_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("autocompress.tasks.mapped_arrays.MEMORY_SHARE", 1e-12)
        endless = ((X[0], 1) for _ in iter(int, 1))
        with pytest.raises(UsageError, match="of the free memory after 1 items"):
            Tensors(endless)
