"""What runs on the target: measured latencies, and operations that are simulated because they have no kernel.

Latencies belong to one machine and are measured on exported files, so a run keeps them apart from the costs that a
search counts; :func:`with_latency` adds them to the table of candidates.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import is_feasible, numeric_column
from autocompress.core.formatting import format_factor, is_finite
from autocompress.core.latency_model import LATENCY
from autocompress.core.precisions import COMMON, FLOAT_BITS, HALF_BITS, Precisions
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo

#: Column with the texts of :func:`describe_simulation`, so that a page computes them once.
SIMULATED = "_simulated"
_BITS = ("weight_bits", "activation_bits")
#: Hyperparameters that are listed first, and even if they do not vary.
FIRST_KNOBS = (*_BITS, "pruning_ratio", "temperature", "width", "depth")


def describe_simulation(candidates: pd.DataFrame, precisions: Precisions = COMMON) -> list[str]:
    """Return the simulated operations of each row as a text such as ``4-bit weights``; empty if there are none.

    What has no stored form or kernel is simulated in floating-point arithmetic with the same rounding: scores are
    exact, but costs are those of a device with such a kernel.

    Args:
        candidates: Rows to describe.
        precisions: Bit-widths of the target; without a restriction, those of common processors.
    """
    if SIMULATED in candidates:
        return list(candidates[SIMULATED])
    precisions = precisions if precisions.restricts else COMMON
    rows: list[dict[str, object]] = [{} for _ in range(len(candidates))]
    for column in map(str, candidates.columns):
        section, _, rest = column.partition(".")
        knob = rest.rpartition(".")[2]
        if section == "quantize" and knob in (*_BITS, "quantizer", "granularity"):
            for row, value in zip(rows, candidates[column].tolist(), strict=True):
                # A method that a candidate does not use leaves its columns empty.
                if value is not None and value == value:
                    row[knob] = value
    texts = []
    for row, details in zip(rows, candidates.get("details", [None] * len(candidates)), strict=True):
        layers = details.get("layers") or [] if isinstance(details, Mapping) else []
        # The bits of the layers take precedence: mixed precision sets no width, and a progressive method may stop
        # above it.
        widths = [layer for layer in layers if any(knob in layer for knob in _BITS)] or [row]
        parts: dict[str, None] = {}
        for weight, activation in dict.fromkeys(tuple(_read_bits(layer, knob) for knob in _BITS) for layer in widths):
            parts.update(dict.fromkeys(precisions.list_simulated(weight, activation)))
            if weight != HALF_BITS:
                parts.update(dict.fromkeys(_list_simulated_grids(row, activation, precisions)))
        texts.append(", ".join(parts))
    return texts


def _read_bits(settings: Mapping[str, object], knob: str) -> int:
    value = settings.get(knob)
    return int(value) if isinstance(value, int | float) and is_finite(value) else FLOAT_BITS


def _list_simulated_grids(settings: Mapping[str, object], activation_bits: int, precisions: Precisions) -> list[str]:
    """Return the grid of the weights if integer kernels would have to read it and cannot."""
    quantizer = str(settings.get("quantizer", "linear"))
    # Decoded weights are computed at 32 bits, so inputs of 32 bits lose no kernel.
    if precisions.decodes_tables and activation_bits == FLOAT_BITS:
        return []
    if not quantizer.startswith("linear"):
        return [f"{quantizer} quantizer"]
    # Runs without a target never named groups.
    is_grouped = settings.get("granularity") == "per_group" and precisions is not COMMON
    return ["weights in groups with rounded activations"] if is_grouped else []


def knob_order(column: str) -> int:
    """Return the sort key of a hyperparameter: those of ``FIRST_KNOBS`` first, the others as they come."""
    knob = column.rpartition(".")[2]
    return FIRST_KNOBS.index(knob) if knob in FIRST_KNOBS else len(FIRST_KNOBS)


def format_knob(name: str, value: object) -> str:
    """Return a hyperparameter with its value in words.

    Example:
        >>> format_knob("weight_bits", 4), format_knob("temperature", 2.7182), format_knob("buckets", 32768.0)
        ('4-bit weights', 'temperature 2.72', 'buckets 32,768')
    """
    if name in _BITS and is_finite(value):
        return f"{value:.0f}-bit {name.removesuffix('_bits')}s"
    if isinstance(value, float):
        # Counts are floats where another candidate has none.
        return f"{name} {value:,.0f}" if value.is_integer() and abs(value) < 1e6 else f"{name} {value:.3g}"
    return f"{name} {value}"


NAME: Final = LATENCY
#: Columns: what the latency is, its prediction, and the latency of the same weights in floating point.
SOURCE, PREDICTED, IN_FLOAT = "latency_source", "predicted_latency_ms", "float_latency_ms"
#: Share by which predictions of similar models may be wrong.
TOLERANCE = 0.15
#: Most candidates that are timed at the end of a search for latency.
MAX_CONTENDERS = 60
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
    # A search for latency has it among its costs already.
    others = tuple(objective for objective in info.all_objectives if objective.name != NAME)
    return replace(info, teacher=teacher, all_objectives=(*others, RECORD))


def add_latency_column(candidates: pd.DataFrame, info: RunInfo) -> pd.DataFrame:
    """Return the candidates with a column ``latency_ms``: the measured value, else a predicted one, else NaN.

    If any was measured, further columns hold what the value is, ``measured``, ``predicted`` or empty, the prediction
    of a search for latency, and the measured latency of the same weights in floating point. Without any measurement,
    the table is returned as it is.
    """
    if info.latency is None or not info.latency.rows or candidates.empty:
        return candidates
    measured = candidates["id"].map(info.latency.rows).astype(float)
    # A search for latency predicts it for every candidate, and measures those that may stand on the front.
    predicted = candidates[NAME].astype(float) if NAME in candidates else measured * np.nan
    source = np.where(measured.notna(), "measured", np.where(predicted.notna(), "predicted", ""))
    columns: dict[str, Any] = {NAME: measured.fillna(predicted), SOURCE: source}
    if NAME in candidates:
        columns[PREDICTED] = predicted
    if info.latency.float_rows:
        columns[IN_FLOAT] = candidates["id"].map(info.latency.float_rows).astype(float)
    return candidates.assign(**columns)


def select_timed(candidates: pd.DataFrame, info: RunInfo, others: Collection[str] = ()) -> pd.DataFrame:
    """Return the rows whose latency was measured, with it, if latency is an objective or a limit; else all rows.

    Predictions are not comparable with measured values.

    Args:
        candidates: Candidates of the run.
        info: Description of the run.
        others: Ids of candidates that are returned with their predictions.
    """
    if not counts_latency(info) or info.latency is None or not (info.latency.rows.keys() - {TEACHER}):
        return candidates
    rows = add_latency_column(candidates, info)
    timed: pd.DataFrame = rows[rows["id"].isin({*info.latency.rows, *others})]
    return timed


def select_contenders(candidates: pd.DataFrame, info: RunInfo) -> list[str]:
    """Return the ids of the candidates that may stand on the front once their latency is measured, best first.

    A candidate is one if no other has as good a score and as low costs, and a predicted latency that is lower by the
    tolerance of predictions; and if its prediction does not exceed a limit by more than that.

    Args:
        candidates: Candidates of one fidelity, with predicted latencies.
        info: Description of the run.
    """
    limits = {name: dict(bounds) for name, bounds in info.limits.items()}
    if NAME in limits:
        limits[NAME] = {
            side: bound * (1 + TOLERANCE if side == "max" else 1 - TOLERANCE)
            for side, bound in limits[NAME].items()
            if bound is not None
        }
    rows = candidates[is_feasible(candidates, limits)]
    others = [objective for objective in info.objectives if objective.name != NAME]
    # Of every objective, smaller is better.
    columns = [(-1 if objective.is_maximized else 1) * numeric_column(rows, objective.name) for objective in others]
    values = np.stack([np.asarray(column) for column in columns], axis=1)
    latency = np.asarray(numeric_column(rows, NAME))
    finite = np.isfinite(latency) & np.isfinite(values).all(1)
    # The largest share by which a candidate that is as good otherwise is faster.
    lead = np.zeros(len(rows))
    for at in np.flatnonzero(finite):
        as_good = finite & (values <= values[at]).all(1)
        lead[at] = 1 - latency[as_good].min() / latency[at]
    order = np.argsort(lead, kind="stable")
    chosen = [at for at in order if finite[at] and lead[at] <= TOLERANCE][:MAX_CONTENDERS]
    return [str(identity) for identity in rows["id"].iloc[chosen]]


def counts_latency(info: RunInfo) -> bool:
    """Return whether latency is an objective or a limit of a search."""
    return NAME in info.limits or any(objective.name == NAME for objective in info.objectives)


def describe_measured_savings(row: Mapping[str, object], info: RunInfo) -> str:
    """Return speed and size beside the teacher's, such as ``4.9x faster and 311x smaller than the teacher``.

    It is empty where the latency of either was not measured.
    """
    costs, latency, size = info.teacher.costs, row.get(NAME), row.get("bytes")
    is_measured = is_finite(latency) and latency > 0 and row.get(SOURCE) != "predicted"
    if not is_measured or not is_finite(costs.get(NAME)):
        return ""
    parts = [_compare_measured(costs[NAME] / float(str(latency)), "faster", "slower")]
    if is_finite(size) and size > 0 and is_finite(costs.get("bytes")):
        parts.append(_compare_measured(costs["bytes"] / size, "smaller", "larger"))
    return f"{' and '.join(parts)} than the teacher"


def _compare_measured(ratio: float, better: str, worse: str) -> str:
    return f"{format_factor(ratio)} {better}" if ratio >= 1 else f"{format_factor(1 / ratio)} {worse}"
