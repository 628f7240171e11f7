import pytest
import torch
from torch import Tensor, nn

from autocompress.distill.base import Activations, Batch, Perturbation


def test_a_head_and_layers_are_selected() -> None:
    logits, clean = {"a": torch.ones(1, 2), "b": torch.zeros(1, 2)}, {"b": torch.ones(1, 2)}
    whole = Activations(logits, {"x": 1, "y": 2}, frozenset({"x", "y"}), clean)
    head = whole.select_head("b")
    assert (set(head.logits), set(head.clean), head.layer_outputs) == ({"b"}, {"b"}, {"x": 1, "y": 2})
    layers = whole.restrict_to_layers(["y", "unknown"])
    assert (layers.layer_outputs, layers.tokens, set(layers.logits)) == ({"y": 2}, frozenset({"y"}), {"a", "b"})


def test_shifts_are_added_in_order_of_calls_and_removed_after_the_pass() -> None:
    model = nn.Sequential(nn.Identity())
    shifts = {"0": (torch.ones(2), torch.full((2,), 5.0))}
    with Perturbation((), shifts).apply_to(model):
        assert model(torch.zeros(2)).tolist() == [1.0, 1.0]
        assert model(torch.zeros(2)).tolist() == [5.0, 5.0]
        with pytest.raises(StopIteration):
            model(torch.zeros(2))
    assert model(torch.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("clean", "expected"), [({}, 1.0), ({"a": torch.tensor([7.0])}, 7.0)])
def test_the_hard_loss_prefers_the_original_inputs(clean: dict[str, Tensor], expected: float) -> None:
    student = Activations({"a": torch.tensor([1.0])}, clean=clean)
    batch = Batch(student, Activations({}), {}, lambda logits, targets: logits["a"].sum(), nn.Identity())
    assert float(batch.hard_loss()) == expected
