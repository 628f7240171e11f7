"""Which further cuts a search makes, by its mode."""

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.analysis.pareto import axes
from autocompress.core.records import Cut
from autocompress.engine.archive import Archive
from autocompress.engine.limits import Price
from autocompress.engine.modes import Mode
from autocompress.engine.refinement import Refinement
from autocompress.engine.stages import Stages


def cutting(
    mode: Mode,
    cuts: Sequence[Cut],
    refine: float,
    max_drop: float,
    archive: Archive,
    objectives: Sequence[Mapping[str, Any]],
    price: Price | None,
) -> Refinement | Stages:
    """Return who chooses further cuts.

    Args:
        mode: Of the search.
        cuts: The whole grid.
        refine: Epochs that further cuts may take, as a share of those of the trainings.
        max_drop: What the choices of stages may lose of the first score.
        archive: Where objectives are read.
        objectives: Records as they stand in the run's description.
        price: Returns the costs of cuts of a training without training it.
    """
    if not mode.stages:
        return Refinement(cuts, refine, archive.normalised, price)
    cost, score = axes(objectives)
    sign = 1.0 if score["direction"] == "maximize" else -1.0
    return Stages(
        cuts,
        max_drop,
        archive.normalised,
        lambda candidate: sign * archive.value(candidate, score["name"]),
        [each["name"] for each in objectives].index(cost["name"]),
    )
