"""What the cuts of a training would cost, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Cut
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.errors import AutocompressError
from autocompress.measure import Subject, layer_costs, measure
from autocompress.measure.cost import LayerCost
from autocompress.quantize import fold_batch_norm
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, reproducible_torch

BITS = ("weight_bits", "activation_bits")


def estimate_costs(setup: Setup, training: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
    """Return the costs of cuts of the untrained student, in any order; a cut that cannot be priced is left out.

    Of the quantizations, the one with the fewest bits is priced: what a limit asks is whether the cheapest keeps it.
    Where channels are chosen by their weights over all layers, training may choose others; the costs are about these.
    """
    with reproducible_torch():
        place = load_pipeline(setup)
        torch.manual_seed(training.seed)
        model, _ = place.build_student(training)
        context = replace(place.build_context(training), tune=None, score=None)
        found = []
        for part in dict.fromkeys(cut.prune for cut in cuts):
            mine = [cut.quantize for cut in cuts if cut.prune == part]
            try:
                pruned = model
                if part is not None:
                    method = PRUNE.get(part.name)
                    pruned, _ = method.apply(model, method.config.of(part.values), context)
                folded = fold_batch_norm(pruned, place.task.example())
                layers = layer_costs(folded, place.task.example())
                found += [
                    _measure_costs(place, setup, training, folded, layers, each) for each in _select_fewest_bits(mine)
                ]
            except AutocompressError:
                # The trial itself says what is wrong with it.
                continue
        return found


def _select_fewest_bits(parts: Sequence[Part | None]) -> list[Part | None]:
    """Return the float model if it is among ``parts``, and the quantization with the fewest bits."""
    bits = {part: _multiply_bits(part) for part in parts if part is not None and _multiply_bits(part) > 0}
    cheapest: list[Part | None] = [] if not bits else [_to_post_training(min(bits, key=lambda part: bits[part]))]
    return [*cheapest, *([None] if None in parts else [])]


def _multiply_bits(part: Part) -> float:
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    return float(settings.get("weight_bits", 0)) * float(settings.get("activation_bits", 0))


def _to_post_training(part: Part) -> Part:
    """Return a quantization of the same bits that needs no training."""
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    return Part.of("post_training", **{name: settings[name] for name in BITS})


def _measure_costs(
    place: TrialPipeline,
    setup: Setup,
    training: CompressionConfig,
    folded: torch.nn.Module,
    layers: Mapping[str, LayerCost],
    part: Part | None,
) -> Mapping[str, float]:
    _, state = place.quantize(folded, training, part)
    return measure(Subject(layers=layers, bits={} if state is None else state.bits), setup.costs)
