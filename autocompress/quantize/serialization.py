"""The record of a quantization: plain JSON and tensors, replayed on a fresh model.

``history`` holds ``folded`` (pairs of layer and batch normalization), ``restored`` (names in the ``state_dict`` that
:func:`restore_quantization` fills by itself) and ``layers``, one entry a quantized layer: its ``name``, and what is known of

    weight      codes on an evenly spaced grid, one scale for the tensor or each channel: what integer kernels run
    decoded     codes that only decode to floating point: groups, or a table
    input       the grid of the layer's input
    output      the grid of its output

each None where there is no such thing. ``tensors`` holds ``<layer>.weight_codes`` and ``.weight_scale``, and
``.weight_zero_point``, or ``.weight_levels`` for a table.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autocompress.core.method import MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.fake_quantize import (
    INPUT,
    OUTPUT,
    FakeQuantize,
    attach_input_quantizer,
    attach_output_quantizer,
)
from autocompress.quantize.folding import fold_structure
from autocompress.quantize.layers import find_layers, set_weight
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.weight_coding import load_weight


def restore_quantization(model: nn.Module, state: MethodState) -> nn.Module:
    """Fold and quantize a fresh model as ``state`` records; the other tensors come from the saved ``state_dict``.

    Raises:
        CompressionError: The history does not fit the model.
    """
    model.eval()
    try:
        fold_structure(model, state.history["folded"])
        layers = find_layers(model)
        for entry in state.history["layers"]:
            name = entry["name"]
            layer = layers[name]
            stored = entry["weight"] if entry["weight"] is not None else entry["decoded"]
            if stored is not None:
                set_weight(layer, load_weight(name, stored, layer.weight.shape, state.tensors))
            if entry["input"] is not None:
                attach_input_quantizer(layer, FakeQuantize(_grid(entry["input"]), entry["input"]["bits"]))
            if entry["output"] is not None:
                attach_output_quantizer(layer, FakeQuantize(_grid(entry["output"]), entry["output"]["bits"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompressionError(f"the quantization history does not fit the model: {error!r}") from error
    return model


def list_restored_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names in the ``state_dict`` that :func:`restore_quantization` fills by itself."""

    def names() -> Iterator[str]:
        for entry in entries:
            if entry["weight"] is not None or entry["decoded"] is not None:
                yield f"{entry['name']}.weight"
            for side, name in (("input", INPUT), ("output", OUTPUT)):
                if entry[side] is not None:
                    yield f"{entry['name']}.{name}.scale"
                    yield f"{entry['name']}.{name}.zero_point"

    return list(names())


def grid_to_json(grid: Grid, bits: int) -> dict[str, Any]:
    """Return the grid of a whole tensor as JSON values."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return {"bits": bits, "scale": scale, "zero_point": zero_point, "low": grid.low, "high": grid.high}


def _grid(saved: Mapping[str, Any]) -> Grid:
    bits, scale, zero_point, low, high = (saved[key] for key in ("bits", "scale", "zero_point", "low", "high"))
    sound = 2 <= bits <= 8 and high - low == 2**bits - 1 and -128 <= low <= zero_point <= high <= 255
    if not (sound and 0 < scale < math.inf):
        raise CompressionError(f"a tensor cannot be quantized to {dict(saved)}")
    return Grid(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), low, high)
