import pytest
import torch
from torch import nn

from autocompress.errors import TrialError
from autocompress.trial.checkpoints import pack_paused_state, read_checkpoint, unpack_paused_state, write_checkpoint

PRUNE, START = {"layers": [{"name": "0", "kept": [0, 2]}]}, [{"layers": []}, {"dropped": ["1"]}]


def model() -> nn.Module:
    torch.manual_seed(0)
    # A view: safetensors itself refuses what is not contiguous.
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].weight = nn.Parameter(torch.randn(4, 3).t())
    return net


def test_weights_and_histories_come_back() -> None:
    weights, prune, start = read_checkpoint(write_checkpoint(model(), PRUNE, START))
    assert (prune, start) == (PRUNE, START)
    expected = model().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert read_checkpoint(write_checkpoint(model(), None))[1:] == ({}, [])


def test_the_same_model_gives_the_same_bytes() -> None:
    assert len({write_checkpoint(model(), PRUNE, START) for _ in range(5)}) == 1


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-5], lambda content: b"x" * 99])
def test_a_damaged_checkpoint_is_a_value_error(damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(damage(write_checkpoint(model(), PRUNE)))


def test_a_paused_state_comes_back_with_its_histories_and_damage_is_named() -> None:
    assert unpack_paused_state(pack_paused_state(b"state", START)) == (b"state", START)
    assert unpack_paused_state(pack_paused_state(b"", [])) == (b"", [])
    with pytest.raises(TrialError, match="the state of a paused trial cannot be read"):
        unpack_paused_state(b"nonsense, and more of it")
