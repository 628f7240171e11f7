"""Batched augmentation of tensors that are already in memory."""

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


def random_moves(count: int, seed: int, *, padding: int, flip: bool = True) -> Tensor:
    """Return how each image is to be cropped and flipped, ``[count, 3]``: row, column, whether to flip.

    Drawn apart from the pixels, so that a batch is moved alike whatever else is in it.

    Args:
        count: How many images there are.
        seed: The same seed gives the same moves.
        padding: Largest shift either way, in pixels; rows and columns run from 0 to twice that.
        flip: Whether half of the images are mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator) * int(flip)
    return torch.cat([corners, flips], dim=1)


def move(images: Tensor, moves: Tensor, padding: int) -> Tensor:
    """Crop each image at its own place after padding with zeros, and mirror it where asked (He 2016).

    Args:
        images: ``[N, C, H, W]``, normalised: zeros are the mean colour.
        moves: ``[N, 3]`` from :func:`random_moves`; ``[padding, padding, 0]`` leaves an image as it is.
        padding: Pixels added on each side.

    Returns:
        ``[N, C, H, W]``.
    """
    height, width = images.shape[2:]
    rows, columns, flips = moves.unbind(1)
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(images)), :, rows, columns]
    return torch.where(flips.bool().view(-1, 1, 1, 1), cropped.flip(3), cropped)


def random_shift(signals: Tensor, seed: int, *, shift: float = 0.1, scale: float = 0.1, wrap: bool = False) -> Tensor:
    """Shift each signal in time and scale it by its own random amount.

    Args:
        signals: ``[N, C, L]``.
        seed: The same seed gives the same result.
        shift: Largest shift either way, as a share of the length.
        scale: Largest change of amplitude either way, as a share.
        wrap: Whether what leaves at one end comes in at the other; otherwise the end is repeated.

    Returns:
        ``[N, C, L]``.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels, length = signals.shape
    most = round(shift * length)
    offset = torch.randint(-most, most + 1, (count, 1), generator=generator)
    factor = 1 + torch.rand(count, 1, 1, generator=generator).mul(2).sub(1) * scale
    place = torch.arange(length) - offset
    place = place.remainder(length) if wrap else place.clamp(0, length - 1)
    return signals.gather(2, place.unsqueeze(1).expand(-1, channels, -1)) * factor
