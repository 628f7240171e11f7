"""What runs on the target: measured latencies, and operations that are simulated because they have no kernel.

Latencies belong to one machine and are measured on exported files, so a run keeps them apart from the costs that a
search counts; :func:`with_latency` adds them to the table of candidates.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pandas as pd

from autocompress.core.formatting import is_finite
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo

NATIVE_BITS = (8, 32)
#: Column with the texts of :func:`describe_simulation`, so that a page computes them once.
SIMULATED = "_simulated"
_BITS = ("weight_bits", "activation_bits")
_BIT_WORDS = ("-bit weights", "-bit activations")
#: Hyperparameters that are listed first, and even if they do not vary.
FIRST_KNOBS = (*_BITS, "pruning_ratio", "temperature", "width", "depth")


def describe_simulation(candidates: pd.DataFrame) -> list[str]:
    """Return the simulated operations of each row as a text such as ``4-bit weights``; empty if there are none.

    Bit-widths other than 8 and 32 and quantizers that are not linear are simulated in floating-point arithmetic with
    the same rounding: scores are exact, but the speed is not that of a device with such a kernel.
    """
    if SIMULATED in candidates:
        return list(candidates[SIMULATED])
    parts: list[dict[str, None]] = [{} for _ in range(len(candidates))]
    for column in sorted(map(str, candidates.columns), key=knob_order):
        section, _, knob = column.partition(".")
        knob = knob.rpartition(".")[2]
        if section == "quantize" and knob in (*_BITS, "quantizer"):
            values = candidates[column].tolist()
            texts = {value: _list_simulated(knob, value) for value in set(values)}
            for row, value in zip(parts, values, strict=True):
                row.update(dict.fromkeys(texts[value]))
    # The bits of the layers take precedence: mixed precision sets no width, and a progressive method may stop above it.
    for row, details in zip(parts, candidates.get("details", [None] * len(candidates)), strict=True):
        layers = details.get("layers") or [] if isinstance(details, Mapping) else []
        if any(knob in layer for layer in layers for knob in _BITS):
            for text in [text for text in row if text.endswith(_BIT_WORDS)]:
                del row[text]
        for layer in layers:
            for knob in _BITS:
                row.update(dict.fromkeys(_list_simulated(knob, layer.get(knob))))
    return [", ".join(row) for row in parts]


def knob_order(column: str) -> int:
    """Return the sort key of a hyperparameter: those of ``FIRST_KNOBS`` first, the others as they come."""
    knob = column.rpartition(".")[2]
    return FIRST_KNOBS.index(knob) if knob in FIRST_KNOBS else len(FIRST_KNOBS)


def _list_simulated(knob: str, value: object) -> list[str]:
    if knob in _BITS and isinstance(value, int | float) and is_finite(value) and value not in NATIVE_BITS:
        return [format_knob(knob, value)]
    if knob == "quantizer" and isinstance(value, str) and not value.startswith("linear"):
        return [f"{value} quantizer"]
    return []


def format_knob(name: str, value: object) -> str:
    """Return a hyperparameter with its value in words.

    Example:
        >>> format_knob("weight_bits", 4), format_knob("temperature", 2.7182)
        ('4-bit weights', 'temperature 2.72')
    """
    if name in _BITS and is_finite(value):
        return f"{value:.0f}-bit {name.removesuffix('_bits')}s"
    if isinstance(value, float):
        return f"{name} {value:.3g}"
    return f"{name} {value}"


NAME: Final = "latency_ms"
#: The row of the teacher.
TEACHER: Final = "teacher"
RECORD: Final = ObjectiveSpec(NAME, "minimize", unit="ms", kind="cost")


def with_latency(info: RunInfo) -> RunInfo:
    """Return the description of a run with the latency among its costs, for the candidates and for the teacher."""
    if info.latency is None or not info.latency.rows:
        return info
    teacher, milliseconds = info.teacher, info.latency.rows.get(TEACHER)
    if milliseconds is not None and teacher != TeacherInfo():
        teacher = replace(teacher, costs={**teacher.costs, NAME: milliseconds})
    return replace(info, teacher=teacher, all_objectives=(*info.all_objectives, RECORD))


def add_latency_column(candidates: pd.DataFrame, info: RunInfo) -> pd.DataFrame:
    """Return the candidates with a column ``latency_ms``, NaN where it was not measured; without it if none was."""
    if info.latency is None or not info.latency.rows or candidates.empty:
        return candidates
    return candidates.assign(**{NAME: candidates["id"].map(info.latency.rows).astype(float)})
