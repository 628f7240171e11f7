"""Object detection in a user's images: boxes with a class, from COCO's JSON or YOLO's text files."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.core.boxes import NO_BOX, pad_boxes
from autocompress.core.config import Part
from autocompress.core.formatting import format_plural
from autocompress.core.heads import Detection
from autocompress.core.registry import TASKS
from autocompress.core.task import Splits
from autocompress.errors import UsageError
from autocompress.models.detector import STRIDE
from autocompress.tasks.box_files import ANNOTATIONS, IMAGES, read_boxes
from autocompress.tasks.image_decoding import DecodedImages, ImageSource, decode_parts
from autocompress.tasks.image_sources import list_image_files
from autocompress.tasks.positions import PositionTask

HEAD = "boxes"


@TASKS.register("detection")
class DetectionTask(PositionTask):
    """Boxes of objects in your own images: a folder with annotations.json (COCO), or with images/ and labels/ (YOLO).

    ``train``, ``val`` and ``test`` folders of that kind are used as such; missing splits are taken out of ``train`` at
    random, by image. The image at ``file_name`` lies in ``images`` or beside annotations.json. COCO's own layout is
    read too: ``annotations/instances_train2017.json`` with the images in ``train2017``. YOLO's classes are named by
    ``classes``, or by classes.txt or data.yaml in the folder.

    Args:
        path: The folder.
        size: Side in pixels to which images are stretched, a multiple of 8; by default all must have one such size.
        classes: Names of the classes in the order of YOLO's numbers.
        least_score: Smallest score of a box that an exported model returns.
        background: Colour behind transparent pixels, such as ``white`` or ``#ffcc00``.
        views: Number of augmented views of the training split; 1 disables augmentation.
        shift: Largest shift of an augmented view, as a share of the shorter side.
        flip: Whether half of an augmented view is mirrored.

    Raises:
        UsageError: The folder cannot be used, an image is missing, boxes have another form, or an option is out of
            bounds.
    """

    name = "detection"
    metrics = ("mean_ap", "mean_ap_50")
    # Cropping would lose objects at the border.
    stretch = True

    def __init__(
        self,
        path: str | Path = "",
        *,
        size: int | None = None,
        classes: Sequence[str] = (),
        least_score: float = 0.3,
        background: str = "white",
        views: int = 8,
        shift: float = 0.125,
        flip: bool = True,
    ) -> None:
        if not path:
            raise UsageError(
                "task.detection.path is not set; give a folder with annotations.json, or with images/ and labels/, "
                "for example --set task.detection.path=data/street"
            )
        if isinstance(least_score, bool) or not isinstance(least_score, int | float) or not 0 < least_score < 1:
            raise UsageError(f"task.detection.least_score is {least_score!r}; give a number between 0 and 1")
        if isinstance(size, int) and not isinstance(size, bool) and size % STRIDE:
            raise UsageError(f"task.detection.size is {size}; give a multiple of {STRIDE}, the side of a cell")
        self._names = [str(name) for name in classes]
        super().__init__(Path(path).expanduser(), size=size, background=background, views=views, shift=shift, flip=flip)
        height, width = self.shape[1:]
        if height % STRIDE or width % STRIDE:
            raise UsageError(
                f"the first image is {width}x{height}; give task.detection.size, a multiple of {STRIDE}, to resize all"
            )
        self.heads: Mapping[str, int] = {HEAD: Detection(len(self._names), least_score=least_score)}
        self.labels: Mapping[str, Sequence[str]] = {HEAD: self._names}

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write tiny images of bright squares and rings with COCO's boxes, and return the value for ``path``."""
        random = np.random.default_rng(0)
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(60):
            pixels = random.integers(0, 90, (32, 32), dtype=np.uint8)
            side, kind = int(random.integers(8, 16)), number % 2
            column, row = (int(value) for value in random.integers(0, 32 - side, 2))
            shape = np.ones((side, side), bool)
            shape[3:-3, 3:-3] = not kind
            pixels[row : row + side, column : column + side] += (120 * shape).astype(np.uint8)
            name = f"{number:02}.png"
            Image.fromarray(pixels).save(folder / IMAGES / name)
            images.append({"id": number, "file_name": name, "width": 32, "height": 32})
            box = [column, row, side, side]
            annotations.append({"id": number, "image_id": number, "category_id": kind + 1, "bbox": box})
        categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "ring"}]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (folder / ANNOTATIONS[0]).write_text(json.dumps(record))
        return folder

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """Remarks on boxes that were cut or left out, images without a box, and classes without a box in train."""
        remarks = [notice for part in self._parts.values() for notice in part.notices]
        for name, part in self._parts.items():
            rows = self._images[name].rows.tolist()
            empty = sum(not len(part.boxes[row]) for row in rows)
            if empty:
                remarks.append(f"{empty} of {format_plural(len(rows), 'image')} in {name} have no box")
        present = torch.cat(self._parts["train"].boxes)[:, 0].unique().tolist()
        absent = [name for number, name in enumerate(self._names) if number not in present]
        if absent:
            remarks.append(f"no box of train has the class {', '.join(absent)}")
        return (*remarks, *super().notices)

    def splits(self, seed: int) -> Splits:
        """Return five splits, by image, normalized by the training split.

        Raises:
            UsageError: There are too few images, too many are unreadable, or a split has no box.
            StorageError: The cache folder cannot be written.
        """
        splits = super().splits(seed)
        for name, split in splits.items():
            if not bool((split.targets[HEAD][..., 0] != NO_BOX).any()):
                raise UsageError(f"no image of the split {name} has a box; give more images with boxes")
        return splits

    def teacher(self) -> tuple[Part, Part]:
        """Return a detector of width 16 with one stage beyond the grid, and its training config."""
        return (
            Part.of("detector", width=16, depth=2, stages=4, stem_stride=2),
            Part.of("adamw", epochs=40, learning_rate=4e-3, batch_size=16, precision="auto"),
        )

    def _open_sources(self, path: Path) -> dict[str, ImageSource]:
        names, self._parts = read_boxes(path, self._names)
        self._names = list(names)
        return {name: list_image_files(path, part.files, [0] * len(part.files)) for name, part in self._parts.items()}

    @cached_property
    def _images(self) -> dict[str, DecodedImages]:
        return decode_parts(self._sources, self.shape, self._resize, self._tones, self.stretch)

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        """Classes and boxes of the images of each part, ``[N, M, 5]``."""
        # Splits of different parts are joined, so all have the same number of rows.
        count = max(len(boxes) for part in self._parts.values() for boxes in part.boxes)
        return {name: pad_boxes(part.boxes, count) for name, part in self._parts.items()}
