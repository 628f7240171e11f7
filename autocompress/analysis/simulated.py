"""What of a candidate has no kernel to run it, and how its knobs are told in words."""

from collections.abc import Mapping

import pandas as pd

from autocompress.core.formatting import is_finite

NATIVE_BITS = (8, 32)
#: Column that holds what :func:`simulated` says, so that a page works it out once.
SIMULATED = "_simulated"
_BITS = ("weight_bits", "activation_bits")
_BIT_WORDS = ("-bit weights", "-bit activations")
#: These knobs stand first and are told even where they do not vary.
FIRST_KNOBS = (*_BITS, "pruning_ratio", "temperature", "width", "depth")


def simulated(candidates: pd.DataFrame) -> list[str]:
    """Return, one text a row, what of a candidate has no native kernel: ``4-bit weights``; empty if all is native.

    Bit-widths other than 8 and 32 and quantizers that are not linear run as floating-point arithmetic that rounds the
    same way: their scores are exact, their speed is not that of a device with such a kernel.
    """
    if SIMULATED in candidates:
        return list(candidates[SIMULATED])
    found: list[dict[str, None]] = [{} for _ in range(len(candidates))]
    for column in sorted(map(str, candidates.columns), key=knob_order):
        section, _, knob = column.partition(".")
        knob = knob.rpartition(".")[2]
        if section == "quantize" and knob in (*_BITS, "quantizer"):
            values = candidates[column].tolist()
            texts = {value: _no_kernel(knob, value) for value in set(values)}
            for row, value in zip(found, values, strict=True):
                row.update(dict.fromkeys(texts[value]))
    # What the layers have counts: mixed precision sets no width, and a progressive method may stop above the one set.
    for row, details in zip(found, candidates.get("details", [None] * len(found)), strict=True):
        layers = details.get("layers") or [] if isinstance(details, Mapping) else []
        if any(knob in layer for layer in layers for knob in _BITS):
            for text in [text for text in row if text.endswith(_BIT_WORDS)]:
                del row[text]
        for layer in layers:
            for knob in _BITS:
                row.update(dict.fromkeys(_no_kernel(knob, layer.get(knob))))
    return [", ".join(row) for row in found]


def knob_order(column: str) -> int:
    """Return where a knob stands in its recipe: those that always matter first, the others as they come."""
    knob = column.rpartition(".")[2]
    return FIRST_KNOBS.index(knob) if knob in FIRST_KNOBS else len(FIRST_KNOBS)


def _no_kernel(knob: str, value: object) -> list[str]:
    if knob in _BITS and isinstance(value, int | float) and is_finite(value) and value not in NATIVE_BITS:
        return [knob_words(knob, value)]
    if knob == "quantizer" and isinstance(value, str) and not value.startswith("linear"):
        return [f"{value} quantizer"]
    return []


def knob_words(name: str, value: object) -> str:
    """Return a knob with its value as it is read.

    Example:
        >>> knob_words("weight_bits", 4), knob_words("temperature", 2.7182)
        ('4-bit weights', 'temperature 2.72')
    """
    if name in _BITS and is_finite(value):
        return f"{value:.0f}-bit {name.removesuffix('_bits')}s"
    if isinstance(value, float):
        return f"{name} {value:.3g}"
    return f"{name} {value}"
