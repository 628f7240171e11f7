import pytest
import torch
from torch import nn

from autocompress.distill.taps import tapped
from autocompress.errors import TrialError


def test_taps_hold_the_outputs_of_the_last_pass_and_leave_no_hooks() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with tapped(net, ["0", "1", "0"]) as taps:
        x = torch.randn(4, 2)
        net(x)
        assert torch.equal(taps["0"], net[0](x))
        assert torch.equal(taps["1"], net[0](x).relu())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_tap_that_does_not_exist_is_named_and_nothing_is_left() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(TrialError, match="no layer '7' to tap"), tapped(net, ["0", "7"]):
        pass
    assert not net[0]._forward_hooks
