"""Batched augmentation of image tensors that are already in memory."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_affine(
    images: Tensor, seed: int, *, degrees: float = 10.0, shift: float = 0.12, scale: float = 0.1
) -> Tensor:
    """Rotate, shift and scale each image by its own random amount.

    Args:
        images: ``[N, C, H, W]``.
        seed: The same seed gives the same result.
        degrees: Largest rotation either way.
        shift: Largest shift either way, as a share of the width.
        scale: Largest change of size either way, as a share.

    Returns:
        ``[N, C, H, W]``; what moves in from outside repeats the border.
    """
    generator = torch.Generator().manual_seed(seed)
    count = images.shape[0]
    angle, zoom, dx, dy = torch.rand(4, count, generator=generator).mul(2).sub(1)
    angle = angle * math.radians(degrees)
    zoom = 1 + zoom * scale
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # grid_sample's coordinates run from -1 to 1, so a share of the width counts twice.
    top = torch.stack([cosine, -sine, dx * shift * 2], dim=1)
    bottom = torch.stack([sine, cosine, dy * shift * 2], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
