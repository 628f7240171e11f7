"""Augmentation of batches of tensors in memory."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.boxes import NO_BOX, measure_area

# Share of a box's area that an augmented view must show: less of an object may have no recognizable class.
VISIBLE_SHARE = 0.3


def random_affine(
    images: Tensor, seed: int, *, degrees: float = 10.0, shift: float = 0.12, scale: float = 0.1
) -> Tensor:
    """Rotate, shift and scale each image by its own random amount.

    Args:
        images: Images, ``[N, C, H, W]``.
        seed: Seed of the random amounts.
        degrees: Largest rotation in either direction, in degrees.
        shift: Largest shift in either direction, as a share of the width.
        scale: Largest relative change of size in either direction.

    Returns:
        Images ``[N, C, H, W]``; pixels from outside an image repeat its border.
    """
    generator = torch.Generator().manual_seed(seed)
    # A generator of its own leaves torch's global random state unchanged.
    count = images.shape[0]
    angle, zoom, dx, dy = torch.rand(4, count, generator=generator).mul(2).sub(1)
    angle = angle * math.radians(degrees)
    zoom = 1 + zoom * scale
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # The coordinates of grid_sample run from -1 to 1, so a share of the width is doubled.
    top = torch.stack([cosine, -sine, dx * shift * 2], dim=1)
    bottom = torch.stack([sine, cosine, dy * shift * 2], dim=1)
    # align_corners=False measures from pixel edge to pixel edge, so a share does not depend on the resolution.
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def draw_crops(count: int, seed: int, *, padding: int, flip: bool = True) -> Tensor:
    """Return a random crop and flip for each image, ``[count, 3]``: row, column, 1 for a flip.

    The crops of a whole split are drawn at once, so that an image is augmented alike in whatever batch it is.

    Args:
        count: Number of images.
        seed: Seed of the crops.
        padding: Largest shift in either direction, in pixels; rows and columns range from 0 to twice the padding.
        flip: Whether half of the images are mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    # Integers, so that rows, columns and flips fit into one tensor.
    flips = torch.randint(0, 2, (count, 1), generator=generator) * int(flip)
    return torch.cat([corners, flips], dim=1)


def crop_and_flip(images: Tensor, crops: Tensor, padding: int, fill: int = 0) -> Tensor:
    """Pad each image, crop it at its own position and mirror it if its crop says so (He 2016).

    Args:
        images: Normalized images, ``[N, C, H, W]``; zeros are the mean color.
        crops: Result of :func:`draw_crops`, ``[N, 3]``; ``[padding, padding, 0]`` leaves an image unchanged.
        padding: Pixels added on each side.
        fill: Value of the added pixels.

    Returns:
        Images ``[N, C, H, W]``.
    """
    height, width = images.shape[2:]
    rows, columns, flips = crops.unbind(1)
    # A view of all possible crops: no memory is used until one of them is indexed.
    windows = F.pad(images, (padding,) * 4, value=fill).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(images)), :, rows, columns]
    return torch.where(flips.bool().view(-1, 1, 1, 1), cropped.flip(3), cropped)


def crop_boxes(boxes: Tensor, crops: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    """Return boxes of images that :func:`crop_and_flip` crops and mirrors.

    A box is cut at the border of its image; one that lies mostly outside is no longer a box.

    Args:
        boxes: Classes and boxes, ``[N, M, 5]``, as :mod:`autocompress.core.boxes` describes them.
        crops: Result of :func:`draw_crops`, ``[N, 3]``.
        padding: Pixels added on each side.
        size: Height and width of the images in pixels.

    Returns:
        Classes and boxes, ``[N, M, 5]``.
    """
    height, width = size
    shift = (padding - crops[:, [1, 0]].to(boxes.dtype)) / boxes.new_tensor([width, height])
    moved = boxes[..., 1:] + shift.repeat(1, 2)[:, None]
    cut = moved.clamp(0, 1)
    mirrored = torch.stack([1 - cut[..., 2], cut[..., 1], 1 - cut[..., 0], cut[..., 3]], -1)
    cut = torch.where(crops[:, 2].bool()[:, None, None], mirrored, cut)
    is_visible = measure_area(cut) >= VISIBLE_SHARE * measure_area(moved)
    is_box = is_visible & (boxes[..., 0] != NO_BOX)
    classes = torch.where(is_box, boxes[..., 0], NO_BOX)
    return torch.cat([classes[..., None], cut * is_box[..., None]], -1)


def random_shift(signals: Tensor, seed: int, *, shift: float = 0.1, scale: float = 0.1, wrap: bool = False) -> Tensor:
    """Shift each signal in time and scale it by its own random amount.

    Args:
        signals: Signals, ``[N, C, L]``.
        seed: Seed of the random amounts.
        shift: Largest shift in either direction, as a share of the length.
        scale: Largest relative change of amplitude in either direction.
        wrap: Whether a shift is circular; otherwise the value at the end is repeated.

    Returns:
        Signals ``[N, C, L]``.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels, length = signals.shape
    max_offset = round(shift * length)
    offset = torch.randint(-max_offset, max_offset + 1, (count, 1), generator=generator)
    factor = 1 + torch.rand(count, 1, 1, generator=generator).mul(2).sub(1) * scale
    # The position that each output value is read from.
    positions = torch.arange(length) - offset
    positions = positions.remainder(length) if wrap else positions.clamp(0, length - 1)
    return signals.gather(2, positions.unsqueeze(1).expand(-1, channels, -1)) * factor
