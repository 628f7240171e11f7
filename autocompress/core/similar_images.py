"""Images that look the same: equal perceptual hashes up to a few bits, and thumbnails that correlate.

A copy of an image in another file format, quality or size has other bytes but the same difference hash (dHash,
N. Krawetz 2013, Kind of Like That, hackerfactor.com) up to a few bits. The hash finds pairs fast, and the correlation
of both thumbnails decides, because hashes of different images can be close by chance.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Hashes = NDArray[np.uint64]

# Smaller images have too few pixels for a hash; they are compared by their bytes only.
LEAST_SIDE = 32
# A hash has 64 bits for the differences of horizontal neighbours, and 64 for those of vertical ones.
HASH_SIDE = 8
THUMBNAIL_SIDE = 16
# Largest number of differing bits, of 128, and smallest correlation of the thumbnails of a pair. Of 6,000 images of
# CIFAR-10 (32 x 32 pixels), the closest pair but one correlates by 0.946. With these limits, copies as JPEG of quality
# 60 are found for 99% of them and for all photographs.
MOST_BITS = 20
LEAST_CORRELATION = 0.98
# Pairs with the closest hashes that are compared for each image.
MOST_PAIRS = 16
# More comparisons would take minutes.
MOST_COMPARISONS = 3_000_000_000
# Comparisons whose results are in memory at a time.
_BLOCK = 4_000_000


class ImageSketches:
    """Hashes and thumbnails of images.

    Args:
        images: Images, ``[N, C, H, W]``.

    Attributes:
        hashes: Difference hashes, ``[N, 2]``.
        thumbnails: Grey thumbnails with mean 0 and norm 1, ``[N, 256]``, in half precision; zeros for plain images.
    """

    def __init__(self, images: Tensor) -> None:
        # Copies may differ in color, so only the brightness counts.
        grey = images.float().mean(1, keepdim=True)
        self.hashes = _hash_images(grey)
        small = F.interpolate(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), mode="area").flatten(1)
        small = small - small.mean(1, keepdim=True)
        norm = small.norm(dim=1, keepdim=True)
        # A plain image has no direction, so it correlates with none.
        self.thumbnails = torch.where(norm > 1e-3, small / norm.clamp(min=1e-3), torch.zeros_like(small)).half()

    def append(self, other: "ImageSketches") -> None:
        """Append the sketches of other images."""
        self.hashes = np.concatenate([self.hashes, other.hashes])
        self.thumbnails = torch.cat([self.thumbnails, other.thumbnails])

    def find_similar(self, other: "ImageSketches") -> NDArray[np.bool_]:
        """Return whether each image looks the same as one of the other images, ``[N]``."""
        result = np.zeros(len(self.hashes), np.bool_)
        step = max(_BLOCK // max(len(other.hashes), 1), 1)
        for start in range(0, len(self.hashes), step):
            bits = np.zeros((len(self.hashes[start : start + step]), len(other.hashes)), np.uint8)
            for word in range(2):
                bits += np.bitwise_count(self.hashes[start : start + step, word, None] ^ other.hashes[None, :, word])
            # Few images have a close hash, so the thumbnails are compared one image at a time.
            for row in np.flatnonzero((bits <= MOST_BITS).any(1)):
                close = np.flatnonzero(bits[row] <= MOST_BITS)
                close = close[np.argsort(bits[row, close], kind="stable")[:MOST_PAIRS]]
                own = self.thumbnails[start + row].float()
                result[start + row] = bool((other.thumbnails[close].float() @ own >= LEAST_CORRELATION).any())
        return result


def _hash_images(grey: Tensor) -> Hashes:
    """Return the difference hashes of grey images, ``[N, 1, H, W] -> [N, 2]``."""
    wide = F.interpolate(grey, (HASH_SIDE, HASH_SIDE + 1), mode="area")[:, 0]
    high = F.interpolate(grey, (HASH_SIDE + 1, HASH_SIDE), mode="area")[:, 0]
    words = []
    for is_larger in (wide[:, :, 1:] > wide[:, :, :-1], high[:, 1:] > high[:, :-1]):
        packed = np.packbits(is_larger.flatten(1).numpy(), axis=1)
        words.append(np.ascontiguousarray(packed).view(np.uint64)[:, 0])
    return np.stack(words, axis=1)
