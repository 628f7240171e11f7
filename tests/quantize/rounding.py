"""A rounding by its settings, for the tests of post-training quantization."""

from typing import Any

from torch import Tensor

from autocompress.core.method import Context, MethodState
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig

METHOD = PostTraining()
WIDTHS = range(2, 9)


def config(weights: int = 8, activations: int = 8, **settings: Any) -> PostTrainingConfig:
    plain = {"weight_observer": "minmax", "bias_correction": False}
    return PostTrainingConfig(weight_bits=weights, activation_bits=activations, **plain | settings)


def context(*batches: Tensor) -> Context:
    return Context((batches[0][:1],), tuple((batch,) for batch in batches))


def weight_error(state: MethodState) -> float:
    return sum(row["mse"] for row in state.report["layers"])
