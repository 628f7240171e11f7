"""Estimates of the costs of compressed variants before training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.errors import AutocompressError
from autocompress.measure import layer_costs, measure
from autocompress.quantize import fold_batch_norm
from autocompress.trial.pipeline import Setup, build_cost_subject, load_pipeline, reproducible_torch

logger = logging.getLogger(__name__)

BITS = ("weight_bits", "activation_bits")
# Other settings that change what a file stores. A lookup table takes more than an even grid: costs are a lower bound.
STORED = ("weight_scheme", "granularity", "group_size")


def estimate_costs(
    setup: Setup, training: CompressionConfig, recipes: Sequence[CompressionRecipe]
) -> list[Mapping[str, float]]:
    """Return the costs of compressed variants of the untrained student, in any order.

    Variants that cannot be compressed are left out. Of the variants with the same pruning, only the quantized one with
    the fewest bits is estimated, besides the float one: a limit on a cost can be met if the cheapest variant meets it.
    If channels are selected by their weights across layers, training may select others; the estimates are for the
    untrained weights.

    Args:
        setup: The setup of the run.
        training: Config of the trial.
        recipes: Compression settings of the variants.
    """
    with reproducible_torch():
        pipeline = load_pipeline(setup)
        example = pipeline.task.example()
        torch.manual_seed(training.seed)
        model, _ = pipeline.build_student(training)
        # Without fine-tuning and scores, methods do not train or evaluate between their steps.
        context = replace(pipeline.build_context(training), fine_tune=None, score=None)
        estimates: list[Mapping[str, float]] = []
        for part in dict.fromkeys(recipe.prune for recipe in recipes):
            quantizations = [recipe.quantize for recipe in recipes if recipe.prune == part]
            try:
                pruned, prune_state = model, None
                if part is not None:
                    method = PRUNE.get(part.name)
                    pruned, prune_state = method.apply(model, method.config.of(part.values), context)
                folded = fold_batch_norm(pruned, example)
                layers = layer_costs(folded, example)
                for quantization in _select_fewest_bits(quantizations):
                    quantized, quantize_state = pipeline.quantize(folded, training, quantization)
                    subject = build_cost_subject(quantized, layers, quantize_state, prune_state)
                    estimates.append(measure(subject, setup.costs))
            except AutocompressError as error:
                # The trial itself reports the error.
                logger.debug("The costs of %s cannot be estimated: %s", part, error)
        return estimates


def _select_fewest_bits(parts: Sequence[Part | None]) -> list[Part | None]:
    """Return the quantization with the fewest bits, and ``None``, no quantization, if it is among ``parts``."""
    bits = {part: _multiply_bits(part) for part in parts if part is not None and _multiply_bits(part) > 0}
    cheapest: list[Part | None] = []
    if bits:
        cheapest = [_to_post_training(min(bits, key=lambda part: (bits[part], _scales_per_weight(part))))]
    return [*cheapest, *([None] if None in parts else [])]


def _multiply_bits(part: Part) -> float:
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    weight_bits, activation_bits = (settings.get(name, 0) for name in BITS)
    # Bits are numbers; other hyperparameters may be texts or None.
    return float(weight_bits or 0) * float(activation_bits or 0)


def _scales_per_weight(part: Part) -> float:
    """Return a number that grows with the number of scales which a method stores."""
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    if settings.get("granularity") == "per_group":
        return 1 / float(settings.get("group_size") or 1)
    return 0.0 if settings.get("granularity") == "per_tensor" else 2**-20


def _to_post_training(part: Part) -> Part:
    """Return post-training quantization with the bits and the scales of another method, which determine the costs."""
    settings = QUANTIZE.get(part.name).config.of(part.values).to_dict()
    shared = {name: settings[name] for name in (*BITS, *STORED) if name in settings}
    return Part.of("post_training", **shared)
