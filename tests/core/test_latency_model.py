import json
from collections import Counter
from dataclasses import replace

import pytest

from autocompress.core.latency_model import (
    DECODE,
    LINEAR,
    LOOKUP,
    OPERATOR,
    REORDER,
    ROUND,
    Kernel,
    LatencyModel,
    LayerWork,
    list_features,
)


def kernel(kind: str, bits: tuple[int, int] = (32, 32), is_blocked: bool = False) -> Kernel:
    return (kind, is_blocked, *bits)


MODEL = LatencyModel(
    0.01, ((kernel(LINEAR), (1e-3, 1e-6, 1e-5, 0.0, 0.0)), (kernel(LINEAR, (8, 8)), (2e-3, 1e-7, 1e-5, 0.0, 0.0)))
)


def test_a_run_costs_its_constant_and_the_work_of_each_layer() -> None:
    layer = LayerWork(10_000, 100, 50)
    assert MODEL.predict([]) == 0.01
    assert MODEL.predict([layer]) == pytest.approx(0.01 + 1e-3 + 1e-2 + 1e-3)
    assert MODEL.predict([layer, layer]) == pytest.approx(0.01 + 2 * 0.012)


def test_the_fastest_graph_of_an_export_is_predicted() -> None:
    large, small = LayerWork(100_000, 0, 0, (8, 8)), LayerWork(100, 0, 0, (8, 8))
    in_integers, in_float = 2e-3 + 1e-2, 1e-3 + 1e-4
    assert MODEL.predict([large]) == pytest.approx(0.01 + in_integers)
    assert MODEL.predict([small]) == pytest.approx(0.01 + in_float)
    # The half with the most work, and all but the first and the last layer.
    assert MODEL.predict([small, large]) == pytest.approx(0.01 + in_integers + in_float)
    assert MODEL.predict([small, large, small]) == pytest.approx(0.01 + in_integers + 2 * in_float)


def test_padded_channels_are_predicted_where_an_export_may_pad() -> None:
    first = LayerWork(18 * 9 * 64, 18 * 64, 18 * 9, (8, 8), "conv2", (1, 18))
    second = LayerWork(18 * 18 * 9 * 64, 18 * 64, 18 * 18 * 9, (8, 8), "conv2", (18, 18), operators=1, elements=18)
    depthwise = LayerWork(18 * 9 * 64, 18 * 64, 18 * 9, (32, 32), "depthwise2", (1, 18))
    assert first.pad_channels(16, has_plain_input=True) == LayerWork(
        32 * 9 * 64, 32 * 64, 32 * 9, (32, 32), "conv2", (1, 32)
    )
    padded = second.pad_channels(16, has_plain_input=False)
    assert (padded.macs, padded.channels, padded.elements) == (32 * 32 * 9 * 64, (32, 32), 32)
    assert depthwise.pad_channels(16, has_plain_input=False).channels == (1, 32)
    assert LayerWork(8, 4, 2).pad_channels(16, has_plain_input=False) == LayerWork(8, 4, 2)
    # A kernel that is fast in blocks only.
    slow, fast = (kernel("conv2", is_blocked=is_blocked) for is_blocked in (False, True))
    model = LatencyModel(0.0, ((slow, (1.0, 0.0, 0.0, 0.0, 0.0)), (fast, (0.1, 0.0, 0.0, 0.0, 0.0))), block=16)
    layers = [replace(layer, bits=(32, 32)) for layer in (first, second)]
    assert model.predict(layers) == pytest.approx(0.1 + 1)
    assert replace(model, multiple=16).predict(layers) == pytest.approx(0.2)


def test_channels_decide_which_kernel_computes_a_convolution() -> None:
    def features(kind: str, channels: tuple[int, int], block: int = 16) -> tuple[bool, float]:
        (_, is_blocked, *_), factors = LayerWork(100, 10, 5, (32, 32), kind, channels).features(block)
        return is_blocked, factors[1]

    # Both are padded to 16 channels.
    assert features("conv2", (20, 12)) == (True, pytest.approx(100 * 32 / 20 * 16 / 12))
    # Few channels are read as they are.
    assert features("conv2", (3, 8)) == (True, 200)
    # Not a multiple of four, without blocks, over one dimension.
    assert features("conv2", (18, 12)) == features("conv2", (20, 12), block=1) == (False, 100)
    assert features("conv1", (20, 12)) == (False, 100)
    assert features("depthwise2", (1, 12)) == (True, pytest.approx(100 * 16 / 12))
    assert features("depthwise2", (1, 13)) == (False, 100)


def test_what_lies_between_layers_counts() -> None:
    blocked = LayerWork(100, 10, 5, (32, 32), "conv2", (3, 16), operators=1, elements=10)
    plain = LayerWork(100, 10, 5, (32, 32), "conv2", (18, 16))
    kinds = [name for name, *_ in (entry[0] for entry in list_features([blocked, plain, blocked], 16))]
    # From blocks to plain storage; three channels are read from plain storage.
    assert kinds == ["conv2", "conv2", "conv2", REORDER, OPERATOR, OPERATOR]
    assert REORDER not in [name for (name, *_), _ in list_features([blocked, plain, blocked], 1)]
    model = LatencyModel(0.0, ((kernel(OPERATOR), (1.0, 0.0, 0.5, 0.0, 0.0)),))
    assert model.predict([blocked]) == 1 + 0.5 * 10


def test_kernels_larger_than_1_copy_their_inputs_before_a_matrix_product() -> None:
    def copies(kind: str, block: int, bits: int = 32) -> float:
        return LayerWork(96 * 20, 120, 96, (bits, bits), kind, (4, 8)).features(block)[1][4]

    # Of 4 channels, 3 inputs for each of 20 positions.
    assert copies("conv1", 1) == 4 * 3 * 20
    assert copies("pointwise1", 1) == copies("linear", 1) == copies("conv2", 16) == 0
    # Integer kernels read the inputs in place.
    assert copies("conv1", 1, bits=8) == 0


def test_integer_kernels_are_fast_with_multiples_of_four_channels() -> None:
    def is_fast(kind: str, channels: tuple[int, int], bits: int = 8) -> bool:
        return LayerWork(100, 10, 5, (bits, bits), kind, channels).features(16)[0][1]

    fast = [("conv1", (8, 12)), ("linear", (4, 4)), ("depthwise1", (1, 8))]
    assert [is_fast(*layer) for layer in fast] == [True] * 3
    assert [is_fast("conv1", channels) for channels in ((8, 13), (7, 12), (1, 8))] == [False] * 3
    assert not is_fast("conv1", (8, 12), bits=32)


def test_changes_between_integers_and_floating_point_count() -> None:
    def count(*layers: LayerWork) -> Counter[str]:
        return Counter(kernel[0] for kernel, _ in list_features(layers, 1) if kernel[0] in (ROUND, DECODE))

    integer, plain = LayerWork(8, 4, 2, (8, 8)), LayerWork(8, 4, 2)
    assert count(plain, plain) == {}
    # Input and output of the network are in floating point.
    assert count(integer) == count(integer, integer) == {ROUND: 1, DECODE: 1}
    assert count(plain, integer, plain) == {ROUND: 1, DECODE: 1}
    assert count(integer, plain, integer) == {ROUND: 2, DECODE: 2}
    # A shortcut is added in floating point.
    assert count(replace(integer, operators=1, elements=4), integer) == {ROUND: 2, DECODE: 2}


def test_rows_of_a_table_are_decoded_from_their_stored_bits_in_every_graph() -> None:
    rows, head = LayerWork(0, 100, 0, (4, 32), LOOKUP), LayerWork(64, 8, 64, (8, 8))
    coefficients = ((kernel(LOOKUP), (1.0, 0.0, 0.01, 0.0, 0.0)), (kernel(LOOKUP, (4, 32)), (3.0, 0.0, 0.02, 0.0, 0.0)))
    model = LatencyModel(0.0, coefficients, multiple=16)
    assert model.predict([rows]) == pytest.approx(3 + 0.02 * 100)
    assert model.predict([replace(rows, bits=(32, 32))]) == pytest.approx(1 + 0.01 * 100)
    # The choice between integers and floating point is that of the layers that multiply.
    assert model.predict([rows, head]) == model.predict([rows])
    assert [entry[0][0] for entry in list_features([rows, head], 1)] == [LOOKUP, LINEAR, ROUND, DECODE]


def test_operators_before_the_first_layer_count() -> None:
    first = LayerWork(0, 0, 0, kind=OPERATOR, operators=3, elements=20)
    model = LatencyModel(0.0, ((kernel(OPERATOR), (1.0, 0.0, 0.5, 0.0, 0.0)),), multiple=16)
    assert model.predict([first]) == 3 + 0.5 * 20
    # The layer after them still reads the input of the network, which is not padded.
    layer = LayerWork(18 * 9 * 64, 18 * 64, 18 * 9, (32, 32), "conv2", (1, 18))
    work = LatencyModel(0.0, ((kernel("conv2"), (0.0, 1.0, 0.0, 0.0, 0.0)),), multiple=16)
    assert work.predict([first, layer]) == work.predict([layer])


def test_a_model_survives_a_round_trip() -> None:
    assert LatencyModel.from_json(json.loads(json.dumps(MODEL.to_json()))) == MODEL
    # As an earlier version stored it.
    stored = {"base": 0.01, "coefficients": [[32, 32, [1e-3, 1e-6, 1e-5, 0.0]], [8, 8, [2e-3, 1e-7, 1e-5, 0.0]]]}
    assert LatencyModel.from_json(stored) == MODEL
