"""A U-Net on drawn shapes, searched and exported: `python -m benchmarks.segmentation [--images 600 --seeds 1]`.

The images are those of `python -m benchmarks.detection`: one to four squares, discs, triangles and crosses in random
greys on noise, 96 x 96 pixels. A mask has the class of each pixel, 0 for the noise. The shipped space `segmentation`
is searched on them with the changes of `--set`. The row shows the teacher and the candidate that the shipped rule
recommends, at most 1 point of mean IoU lost on the selection split, among the candidates with at most 8 bits and at
most a quarter of the teacher's multiply-accumulates (MACs); mean IoU is that of the test split. It is exported,
verified, and loaded from its files with pickle disabled; the share of pixels is that of pipeline.py on the image
files which the searched model predicts too.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.detection import SHAPES, SIDE, DrawnTask, draw_boxes, draw_shape, run_benchmark


def write_masks(folder: Path, count: int, seed: int) -> Path:
    """Write images of shapes with a mask for each, and return the folder.

    Args:
        folder: An empty folder.
        count: Number of images.
        seed: Seed of the drawing.
    """
    random = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        mask = Image.new("L", (SIDE, SIDE))
        for box in draw_boxes(random):
            kind = int(random.integers(len(SHAPES)))
            draw_shape(image, SHAPES[kind], box, int(random.integers(256)))
            draw_shape(mask, SHAPES[kind], box, kind + 1)
        image.save(folder / "images" / f"{number:04}.png")
        mask.save(folder / "masks" / f"{number:04}.png")
    return folder


SEGMENTATION = DrawnTask(
    "segmentation",
    "A U-Net on drawn shapes",
    ("mean_iou", "accuracy"),
    ("mean IoU", "accuracy"),
    0.25,
    "same pixels from files",
    write_masks,
)

if __name__ == "__main__":
    run_benchmark(SEGMENTATION, __doc__)
