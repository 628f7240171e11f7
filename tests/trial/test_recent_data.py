"""Recent data: the forms in which it is given, what does not fit a model, and its parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import TensorDataset

from autocompress.core.heads import Custom, Detection, Head
from autocompress.core.task import InputSpec, Split
from autocompress.errors import UsageError
from autocompress.trial.recent_data import MIN_EXAMPLES, RecentData, read_recent_data, split_recent_data

INPUTS, HEADS, NAMES = (InputSpec((1, 4, 4)),), {"label": 3}, ("input",)
X = torch.randn(90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(90) % 3
PAIR = (InputSpec((), vocabulary=5), InputSpec((), vocabulary=7))


def read(data: object) -> RecentData:
    return read_recent_data(data, INPUTS, HEADS, NAMES)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "recent.npz", input=X.numpy(), label=Y.numpy())
    return tmp_path / "recent.npz"


def test_labelled_data_in_every_form_is_the_same(npz: Path, tmp_path: Path) -> None:
    save_file({"input": X.numpy(), "label": Y.numpy()}, tmp_path / "recent.safetensors")
    forms = [
        (X, Y),
        (X.numpy(), {"label": Y.numpy()}),
        {"input": X, "label": Y},
        Split((X,), {"label": Y}),
        TensorDataset(X, Y),
        npz,
        str(tmp_path / "recent.safetensors"),
    ]
    for data in forms:
        recent = read(data)
        assert recent.is_labelled
        assert torch.equal(recent.examples.inputs[0], X)
        assert torch.equal(recent.examples.targets["label"], Y)
    assert len({read(data).fingerprint for data in forms}) == 1
    assert read((X + 1, Y)).fingerprint != read((X, Y)).fingerprint


def test_unlabelled_data_in_every_form_is_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", input=X.numpy())
    for data in (X, X.numpy(), (X, None), {"input": X}, tmp_path / "inputs.npz"):
        recent = read(data)
        assert not recent.is_labelled
        assert torch.equal(recent.examples.inputs[0], X)


def test_several_inputs_are_positional_or_named() -> None:
    users, items = torch.arange(90) % 5, torch.arange(90) % 7
    names = ("input_0", "input_1")
    for data in (((users, items), Y), {"input_1": items, "input_0": users, "label": Y}):
        recent = read_recent_data(data, PAIR, HEADS, names)
        assert [torch.equal(a, b) for a, b in zip(recent.examples.inputs, (users, items), strict=True)] == [True, True]
    assert not read_recent_data(((users, items), None), PAIR, HEADS, names).is_labelled
    with pytest.raises(UsageError, match="numbers from 0 to 6, and the model knows 0 to 4"):
        read_recent_data(((items, items), Y), PAIR, HEADS, names)
    with pytest.raises(UsageError, match="'input_0' has real numbers, and the model takes whole ones"):
        read_recent_data(((users.float(), items), Y), PAIR, HEADS, names)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:, :, :3], Y), r"'input' has examples of shape \[1, 3, 4\], and the model takes \[1, 4, 4\]"),
        ((X[:, 0], None), r"examples of shape \[4, 4\]"),
        (((X, X), Y), "has 2 inputs, and the model takes 1"),
        ((X, Y * 0 + 2), "the single class 2 of 'label'"),
        ((X, Y + 1), "the class 3 of 'label', and the model knows 0 to 2"),
        ((X, Y - 1), "class indices start at 0"),
        ((X, Y[:-1]), "different lengths"),
        ((X[:40], Y[:40]), f"has 40 examples; an adaptation needs at least {MIN_EXAMPLES}"),
        ((X / 0, Y), "not finite"),
        (((X * 9).long(), Y), "whole numbers, and the model takes real ones"),
        ((X, {"kind": Y, "label": Y}), "targets of 'kind'"),
        ({"input": X, "labels": Y}, "the array 'labels'; the model takes"),
        ({"label": Y}, "lacks the input 'input'"),
        (None, "the recent data is NoneType"),
        ("recent.csv", "recent.csv: recent data is a file of arrays"),
        ("absent.npz", "absent.npz cannot be read"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_fault(data: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(data)


def test_one_of_several_heads_alone_is_refused() -> None:
    heads = {"label": 3, "kind": 3}
    with pytest.raises(UsageError, match="lacks the targets of 'kind'"):
        read_recent_data((X, {"label": Y}), INPUTS, heads, NAMES)


@pytest.mark.parametrize("head", [Detection(3), Custom(3)])
def test_heads_whose_targets_arrays_do_not_hold_are_refused(head: Head) -> None:
    with pytest.raises(UsageError, match=f"a model with a {head.kind} head cannot be adapted to recent data"):
        read_recent_data((X, {"label": Y}), INPUTS, {"label": head}, NAMES)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"recent{suffix}"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"recent{suffix} cannot be read"):
            read(path)


def test_a_file_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "recent.npz", input=np.array([{}, {}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "recent.npz")


def test_the_parts_are_disjoint_and_the_latest_are_held_out_in_order_of_time() -> None:
    numbers = torch.arange(100.0).view(100, 1)
    examples = Split((numbers,), {"label": torch.arange(100) % 2})
    ordered = split_recent_data(RecentData(examples, True, True), 0)
    assert ordered.held_out.inputs[0].flatten().tolist() == list(range(75, 100))
    assert ordered.choice.inputs[0].flatten().tolist() == list(range(55, 75))
    shuffled = split_recent_data(RecentData(examples, True), 0)
    rows = [part.inputs[0].flatten().tolist() for part in (shuffled.train, shuffled.choice, shuffled.held_out)]
    assert sorted(number for part in rows for number in part) == numbers.flatten().tolist()
    assert [len(part) for part in rows] == [55, 20, 25]
    assert rows[2] != list(range(75, 100))
