"""Tensors of several models: equal after restoring, in fewer bytes than stored one by one."""

import pytest
import torch
from torch import Tensor

from autocompress.errors import ArtifactError
from autocompress.export.shared_tensors import ModelTensors, Shared, restore_tensors, share_tensors
from autocompress.measure.tensor_storage import count_stored_bytes

WEIGHT = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))


def encode(weight: Tensor, bits: int, shift: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a layer quantized by its largest weight in each channel."""
    scale = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    codes = (weight / scale[:, None]).round().to(torch.int8) + shift
    return {"quantize/fc.weight_codes": codes, "quantize/fc.weight_scale": scale}


def whole(name: str, tensors: dict[str, Tensor]) -> ModelTensors:
    return ModelTensors(name, tensors, {}, {})


def check_equal(models: list[ModelTensors]) -> tuple[int, int]:
    """Check that all tensors are restored, and return the bytes together and in separate files."""
    stored, shared = share_tensors(models)
    restored = restore_tensors(stored, shared)
    assert set(restored) == {model.name for model in models}
    for model in models:
        assert set(restored[model.name]) == set(model.tensors)
        for name, tensor in model.tensors.items():
            assert restored[model.name][name].dtype == tensor.dtype
            assert torch.equal(restored[model.name][name], tensor)
    return count_stored_bytes(stored), sum(count_stored_bytes(model.tensors) for model in models)


def test_equal_tensors_are_stored_once() -> None:
    joint, separate = check_equal(
        [whole("a", {"model/fc.weight": WEIGHT}), whole("b", {"model/fc.weight": WEIGHT + 0})]
    )
    assert joint * 2 == separate


def test_codes_of_float_weights_take_little_more_than_their_scales() -> None:
    models = [whole("float", {"model/fc.weight": WEIGHT}), whole("int8", encode(WEIGHT, 8))]
    joint, _ = check_equal(models)
    scales = 2 * 4 * len(WEIGHT)
    assert joint <= WEIGHT.nbytes + scales + 8


def test_codes_of_fewer_bits_are_nearly_determined_by_those_of_more() -> None:
    joint, separate = check_equal([whole("int8", encode(WEIGHT, 8)), whole("int4", encode(WEIGHT, 4))])
    own = count_stored_bytes(encode(WEIGHT, 4))
    assert joint - count_stored_bytes(encode(WEIGHT, 8)) < own
    assert joint < separate


def test_codes_with_another_zero_are_derived_with_an_offset() -> None:
    tensors = encode(WEIGHT, 8), encode(WEIGHT, 4, shift=3)
    joint, separate = check_equal([whole("a", tensors[0]), whole("b", tensors[1])])
    assert joint < separate


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5, 6, 7], [1, 4, 9, 13, 20, 23]])
def test_a_narrower_layer_is_a_part_of_the_wider_one(rows: list[int]) -> None:
    columns = list(range(0, 16, 2))
    positions = torch.arange(WEIGHT.numel()).view_as(WEIGHT)[rows][:, columns]
    narrow = ModelTensors(
        "narrow",
        {"model/fc.weight": WEIGHT[rows][:, columns].clone()},
        {"fc.weight": positions},
        {"fc.weight": tuple(WEIGHT.shape)},
    )
    joint, _ = check_equal([whole("wide", {"model/fc.weight": WEIGHT}), narrow])
    assert joint == WEIGHT.nbytes


def test_parts_of_a_pruned_model_are_found_by_their_original_indices() -> None:
    def prune(name: str, rows: list[int]) -> ModelTensors:
        positions = torch.arange(WEIGHT.numel()).view_as(WEIGHT)[rows]
        tensors = {"model/fc.weight": WEIGHT[rows].clone()}
        return ModelTensors(name, tensors, {"fc.weight": positions}, {"fc.weight": tuple(WEIGHT.shape)})

    wide, narrow = prune("wide", [1, 2, 5, 8, 9, 20]), prune("narrow", [2, 8, 20])
    assert check_equal([wide, narrow])[0] == count_stored_bytes(wide.tensors)
    # Row 3 is none of the wider model's.
    other = prune("other", [2, 3, 20])
    assert check_equal([wide, other])[0] == count_stored_bytes(wide.tensors) + count_stored_bytes(other.tensors)


def test_positions_that_form_no_grid_are_not_used() -> None:
    positions = torch.tensor([[0, 17], [32, 50]])
    values = WEIGHT.flatten()[positions]
    model = ModelTensors("odd", {"model/fc.weight": values}, {"fc.weight": positions}, {"fc.weight": (24, 16)})
    assert model.find_axes("model/fc.weight") is None
    assert check_equal([whole("wide", {"model/fc.weight": WEIGHT}), model])[0] == WEIGHT.nbytes + values.nbytes


def test_unrelated_tensors_are_stored_as_they_are() -> None:
    noise = torch.randint(-128, 128, (24, 16), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    tensors = {"quantize/fc.weight_codes": noise, "model/odd": torch.tensor(3), "model/flag": torch.tensor([True])}
    joint, separate = check_equal([whole("a", encode(WEIGHT, 8)), whole("b", tensors), whole("c", {})])
    assert joint <= separate


def test_a_derivation_that_does_not_fit_is_an_error() -> None:
    stored, shared = share_tensors([whole("a", {"model/w": WEIGHT}), whole("b", {"model/w": WEIGHT + 0})])
    for change in (
        {"axes": [None]},
        {"axes": [[99], None]},
        {"tensor": "model/absent"},
        {"model": "absent"},
        {"dtype": "int8"},
    ):
        derivation = Shared.model_validate({**shared["b"]["model/w"].model_dump(), **change})
        with pytest.raises(ArtifactError, match="'model/w' of 'b' cannot be derived"):
            restore_tensors(stored, {"a": {}, "b": {"model/w": derivation}})
