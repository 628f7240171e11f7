"""Batch-norm re-estimation: running statistics measured again after a model has changed."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.errors import CompressionError


def reestimate_batch_norm(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Replace every batch-norm's running statistics by their plain average over ``batches``, in place.

    Pruning and quantization shift the inputs of each layer, and the statistics of the original model no longer
    fit. No weight changes; dropout stays off; every module keeps its training flag and its momentum. A
    batch of one example has no variance and is skipped. A model without batch norm is not changed.

    Args:
        model: The model to measure.
        batches: Positional arguments of the model, ``([B, ...],)`` each.

    Raises:
        CompressionError: No batch holds two examples.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    usable = [batch for batch in batches if batch[0].shape[0] > 1]
    if not usable:
        raise CompressionError("batch-norm statistics need a calibration batch of at least two examples")
    training_flags = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    # Only the batch norms are set to training mode: dropout would distort the statistics.
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch reads None as a cumulative average over all batches
            norm.train()
        with torch.no_grad():
            for batch in usable:
                model(*batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, flag in training_flags:
            module.training = flag
