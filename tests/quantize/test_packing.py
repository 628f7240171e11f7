import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.quantize.packing import count_packed_bytes, pack_codes, unpack_codes


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


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_widths_other_than_1_to_8_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack_codes(torch.tensor([0]), bits)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        unpack_codes(torch.zeros(1, dtype=torch.uint8), bits, (1,), 0, torch.int8)


def test_a_stream_of_another_length_is_refused() -> None:
    packed = pack_codes(torch.arange(8), 3)
    for wrong in (packed[:-1], torch.cat([packed, packed]), packed.to(torch.int16)):
        with pytest.raises(ValueError, match="8 codes of 3 bits take 3 bytes"):
            unpack_codes(wrong, 3, (8,), 0, torch.uint8)
