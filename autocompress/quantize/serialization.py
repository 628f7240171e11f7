"""The stored form of a quantization: JSON values and tensors, from which a fresh model is quantized again.

``history`` contains ``folded`` (pairs of layer and batch normalization), ``converted`` (names of the layers that
:mod:`autocompress.quantize.conversion` replaced), ``restored`` (``state_dict`` names that :func:`restore_quantization`
sets) and ``layers``, one entry per layer with its ``name`` and

    weight      codes on an evenly spaced grid with one scale per tensor or channel, which integer kernels can run
    decoded     codes that are decoded to floating point: groups, a lookup table, or float16 values
    input       the grid of the layer's input
    output      the grid of its output

each None where it does not apply. ``tensors`` contains ``<layer>.weight_codes``, ``.weight_scale`` and
``.weight_zero_point``, or ``.weight_levels`` instead of the zero point for a lookup table; the codes alone for float16.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autocompress.core.method import MethodState, require_distinct
from autocompress.errors import CompressionError
from autocompress.quantize.conversion import convert_named
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
    """Fold and quantize a fresh model as recorded in ``state``; the other tensors come from the saved ``state_dict``.

    Raises:
        CompressionError: The history does not fit the model.
    """
    model.eval()
    try:
        fold_structure(model, state.history["folded"])
        # Histories of earlier versions have no such entry.
        model = convert_named(model, state.history.get("converted", ()))
        layers = find_layers(model)
        require_distinct(entry["name"] for entry in state.history["layers"])
        for entry in state.history["layers"]:
            name = entry["name"]
            layer = layers[name]
            stored = entry["weight"] if entry["weight"] is not None else entry["decoded"]
            if stored is not None:
                set_weight(layer, load_weight(name, stored, layer.weight.shape, state.tensors))
            if entry["input"] is not None:
                attach_input_quantizer(layer, FakeQuantize(_grid_from_json(entry["input"]), entry["input"]["bits"]))
            if entry["output"] is not None:
                attach_output_quantizer(layer, FakeQuantize(_grid_from_json(entry["output"]), entry["output"]["bits"]))
    # A history of another model or of another form fails in many ways; callers handle one exception.
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompressionError(f"the quantization history does not fit the model: {error!r}") from error
    return model


def list_restored_names(entries: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the ``state_dict`` names that :func:`restore_quantization` sets without the saved ``state_dict``."""
    names = []
    for entry in entries:
        if entry["weight"] is not None or entry["decoded"] is not None:
            names.append(f"{entry['name']}.weight")
        for side, quantizer in (("input", INPUT), ("output", OUTPUT)):
            if entry[side] is not None:
                names += [f"{entry['name']}.{quantizer}.{buffer}" for buffer in ("scale", "zero_point")]
    return names


def grid_to_json(grid: Grid, bits: int) -> dict[str, float | int]:
    """Return the grid of a whole tensor as JSON values."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return {"bits": bits, "scale": scale, "zero_point": zero_point, "low": grid.low, "high": grid.high}


def _grid_from_json(entry: Mapping[str, float]) -> Grid:
    bits, scale, zero_point, low, high = (entry[key] for key in ("bits", "scale", "zero_point", "low", "high"))
    # A scale of zero, NaN or infinity, or an end that does not match the bits, would give a silently wrong model.
    is_valid = 2 <= bits <= 8 and high - low == 2**bits - 1 and -128 <= low <= zero_point <= high <= 255
    if not (is_valid and 0 < scale < math.inf):
        raise CompressionError(f"a tensor cannot be quantized to {dict(entry)}")
    return Grid(
        torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), int(low), int(high)
    )
