from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save
from torch import Tensor

from autocompress.errors import ArtifactError
from autocompress.measure.tensor_storage import (
    LARGEST_CONSTANT,
    Packed,
    count_packed_bytes,
    count_stored_bytes,
    pack_codes,
    pack_tensors,
    unpack_codes,
    unpack_tensors,
)
from autocompress.prune.n_m import n_m_mask


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(-128, 127), st.data())
def test_codes_come_back_from_exactly_the_bytes_they_need(bits: int, offset: int, data: st.DataObject) -> None:
    high = min(offset + 2**bits - 1, 127)
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=0, max_size=3)))
    count = int(torch.Size(shape).numel())
    values = data.draw(st.lists(st.integers(offset, high), min_size=count, max_size=count))
    codes = torch.tensor(values, dtype=torch.int8).reshape(shape)
    packed = pack_codes(codes, bits, offset)
    assert packed.dtype == torch.uint8
    assert packed.shape == (count_packed_bytes(count, bits),)
    back = unpack_codes(packed, bits, shape, offset, torch.int8)
    assert back.dtype == torch.int8
    assert torch.equal(back, codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_of_every_width_survives(bits: int) -> None:
    codes = torch.arange(2**bits)
    packed = pack_codes(codes, bits)
    assert packed.numel() == 2**bits * bits / 8 or bits < 3
    assert torch.equal(unpack_codes(packed, bits, (2**bits,), 0, torch.int64), codes)


@pytest.mark.parametrize(
    ("count", "bits", "expected"), [(0, 3, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (10, 3, 4), (5, 8, 5)]
)
def test_packed_bytes(count: int, bits: int, expected: int) -> None:
    assert count_packed_bytes(count, bits) == expected


@pytest.mark.parametrize(("codes", "bits", "offset"), [([4], 2, 0), ([-1], 2, 0), ([-3], 2, -2), ([2], 2, -2)])
def test_codes_that_do_not_fit_are_refused(codes: list[int], bits: int, offset: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack_codes(torch.tensor(codes), bits, offset)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_widths_beyond_32_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 32 bits"):
        pack_codes(torch.tensor([0]), bits)
    with pytest.raises(ValueError, match="1 to 32 bits"):
        unpack_codes(torch.zeros(1, dtype=torch.uint8), bits, (1,), 0, torch.int8)


def test_a_stream_of_another_length_is_refused() -> None:
    packed = pack_codes(torch.arange(8), 3)
    for wrong in (packed[:-1], torch.cat([packed, packed]), packed.to(torch.int16)):
        with pytest.raises(ValueError, match="8 codes of 3 bits take 3 bytes"):
            unpack_codes(wrong, 3, (8,), 0, torch.uint8)


integers = st.sampled_from([torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(integers, st.integers(0, 2**31), st.integers(1, 300))))
def test_integer_tensors_come_back_however_they_are_packed(made: dict[str, tuple[torch.dtype, int, int]]) -> None:
    tensors: dict[str, Tensor] = {"float": torch.randn(3, 4), "empty": torch.zeros(0, dtype=torch.int8)}
    for name, (dtype, seed, spread) in made.items():
        generator = torch.Generator().manual_seed(seed)
        tensors[name] = torch.randint(spread, (2, 3, 5), generator=generator).sub(spread // 2).to(dtype)
    stored, packed, aliases = pack_tensors(tensors)
    back = unpack_tensors(
        stored, {name: Packed.model_validate(how.model_dump()) for name, how in packed.items()}, aliases
    )
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_spread_takes_its_bits_and_a_constant_nothing() -> None:
    ternary = torch.tensor([[-1, 0, 1, 1]] * 100, dtype=torch.int8)
    stored, packed, _ = pack_tensors({"ternary": ternary, "zeros": torch.zeros(1000, dtype=torch.int32)})
    assert packed["ternary"].bits == 2
    assert stored["ternary"].numel() == 100
    assert "zeros" not in stored
    assert packed["zeros"].bits == 0


def test_shared_tensors_are_stored_once() -> None:
    weight = torch.randn(4, 4)
    stored, _, aliases = pack_tensors({"embed": weight, "head": weight, "turned": weight.t()})
    assert sorted(stored) == ["embed", "turned"]
    assert aliases == {"head": "embed"}
    back = unpack_tensors(stored, {}, aliases)
    assert torch.equal(back["head"], weight)
    assert torch.equal(back["turned"], weight.t())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"bits": 4, "shape": (9,)}, "takes? 5 bytes"),
        ({"bits": 4, "shape": (2**31, 2**31, 2**31)}, "a"),
        ({"bits": 0, "shape": (LARGEST_CONSTANT + 1,)}, "too large"),
        ({"bits": 0, "shape": (1,), "offset": 2**70}, "a"),
    ],
)
def test_packing_that_lies_is_refused_before_it_takes_memory(how: dict[str, Any], message: str) -> None:
    lie = Packed.model_validate({"offset": 0, "dtype": "int8"} | how)
    with pytest.raises(ArtifactError, match=message):
        unpack_tensors({"a": torch.zeros(4, dtype=torch.uint8)}, {"a": lie}, {})


def test_tensors_that_are_absent_are_named() -> None:
    how = Packed.model_validate({"bits": 4, "offset": 0, "shape": (2,), "dtype": "int8"})
    with pytest.raises(ArtifactError, match="lacks 'codes'"):
        unpack_tensors({}, {"codes": how}, {})
    with pytest.raises(ArtifactError, match="lacks 'owner'"):
        unpack_tensors({}, {}, {"name": "owner"})


def has_own_form(tensor: Tensor) -> bool:
    """Check the round trip of a tensor and that its bytes are those that were counted; return whether it is packed."""
    stored, packed, _ = pack_tensors({"a": tensor})
    assert sum(part.nbytes for part in stored.values()) == count_stored_bytes({"a": tensor}) <= tensor.nbytes
    back = unpack_tensors(load(save(stored)), packed, {})["a"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)
    return "a" in packed


SHAPES = st.sampled_from([(1,), (7,), (16, 16), (8, 5), (4, 8, 3, 3), (6, 3, 3, 3), (1, 64), (64, 1), (0, 4), ()])
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int32]
)


@settings(deadline=None, max_examples=150)
@given(SHAPES, DTYPES, st.floats(0, 1), st.integers(1, 8), st.integers(0, 2**31))
def test_sparse_tensors_come_back_equal(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, bits: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    values = torch.randint(2**bits, shape, generator=generator) - 2 ** (bits - 1)
    if dtype == torch.uint8:
        values += 2 ** (bits - 1)
    values = values.clamp(-128, 127) if dtype == torch.int8 else values
    omitted = 0 if dtype.is_floating_point else 3
    has_own_form(torch.where(kept, values, min(omitted, 2 ** (bits - 1) - 1)).to(dtype))


@pytest.mark.parametrize(
    ("density", "form", "expected"),
    [
        (0.9, "mask", 256 * 256 / 8 + 4 * 58_982),
        (0.2, "mask", 256 * 256 / 8 + 4 * 13_107),
        # One byte for the column of each value, 4 bits for the length of each row.
        (0.02, "csr", 1_310 * (4 + 1) + 256 * 4 / 8),
    ],
)
def test_the_smallest_form_depends_on_the_density(density: float, form: str, expected: float) -> None:
    flat = torch.zeros(256 * 256)
    order = torch.randperm(256 * 256, generator=torch.Generator().manual_seed(0))
    flat[order[: int(density * 256 * 256)]] = 1.5
    weight = flat.view(256, 256)
    assert has_own_form(weight)
    _, packed, _ = pack_tensors({"a": weight})
    assert packed["a"].form == form
    assert count_stored_bytes({"a": weight}) == expected


@pytest.mark.parametrize(("n", "m", "expected"), [(2, 4, 128 * 2 / 8), (1, 4, 64 * 2 / 8), (1, 8, 32 * 3 / 8)])
@pytest.mark.parametrize("shape", [(16, 16), (4, 16, 2, 2)])
def test_n_m_patterns_are_values_and_positions(shape: tuple[int, ...], n: int, m: int, expected: float) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    weight = scores * n_m_mask(scores, n, m)
    assert has_own_form(weight)
    stored, packed, _ = pack_tensors({"a": weight})
    assert (packed["a"].form, packed["a"].width, packed["a"].group) == ("n_m", n, m)
    assert count_stored_bytes({"a": weight}) == expected + 4 * 256 * n / m
    assert stored["a"].numel() == 256 * n / m


def test_zeros_of_an_asymmetric_grid_are_the_most_frequent_code() -> None:
    codes = torch.full((64, 64), 5, dtype=torch.uint8)
    codes[0, :10] = torch.arange(10, dtype=torch.uint8)
    assert has_own_form(codes)
    assert count_stored_bytes({"a": codes}) < 64 * 64 / 8


def test_minus_zero_counts_as_zero() -> None:
    weight = torch.full((8, 8), -0.0)
    weight[0, 0] = 1.0
    assert count_stored_bytes({"a": weight}) < 16
    assert has_own_form(weight)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a::mask", lambda part: part[:-1]),
        ("a::mask", lambda part: part ^ 1),
        ("a", lambda part: part[:-1]),
        ("a", lambda part: part.double()),
        ("b::columns", lambda part: part | 255),
        ("b::lengths", lambda part: part[:-1]),
        ("c::positions", lambda part: part[1:]),
    ],
)
@pytest.mark.parametrize("is_removed", [False, True])
def test_damaged_sparse_tensors_are_refused(name: str, change: Callable[[Tensor], Tensor], is_removed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rare = torch.zeros(300, 300)
    rare[:, 0] = 1.0
    scores = torch.rand(8, 8, generator=generator)
    mixed = torch.where(torch.rand(32, 33, generator=generator) < 0.5, 1.0, 0.0)
    stored, packed, _ = pack_tensors({"a": mixed, "b": rare, "c": scores * n_m_mask(scores, 2, 4)})
    assert [packed[key].form for key in "abc"] == ["mask", "csr", "n_m"]
    damaged = {key: part for key, part in stored.items() if key != name}
    if not is_removed:
        damaged[name] = change(stored[name])
    with pytest.raises(ArtifactError, match=f"model.safetensors.*'{name[0]}"):
        unpack_tensors(damaged, packed, {})


def test_many_constants_that_would_fill_the_memory_are_refused_before_any_is_made() -> None:
    form = Packed(bits=0, offset=0, shape=(2**24,), dtype="float64", form="mask")
    packed = {f"weight{number}": form for number in range(60)}
    with pytest.raises(ArtifactError, match=r"its 4 bytes declare tensors of 8,053,063,680"):
        unpack_tensors({"bias": torch.zeros(1)}, packed, {})
