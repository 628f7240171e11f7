"""Boxes of images in files: COCO's ``annotations.json`` or its own layout, and YOLO's text file for each image.

COCO's boxes are ``[x, y, width, height]`` in pixels of the image; a line of YOLO is ``class cx cy w h``, shares of the
image's width and height around the box's center. Both become ``class, x1, y1, x2, y2`` as shares.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from autocompress.core.formatting import format_plural, is_finite
from autocompress.core.untrusted import read_regular_file, show_value
from autocompress.errors import UsageError
from autocompress.tasks.image_decoding import ORIENTATION, UNREADABLE, open_image
from autocompress.tasks.image_sources import PARTS, find_image_files

ANNOTATIONS = ("annotations.json", "_annotations.coco.json")
# COCO's own layout: annotations/instances_train2017.json for the images in train2017.
INSTANCES_FOLDER, INSTANCES = "annotations", "instances_"
IMAGES, LABELS = "images", "labels"
Record = Mapping[str, Any]
"""An object of a JSON file."""
# Bytes of a file of annotations, and of a text file of boxes or names.
LARGEST_ANNOTATIONS, LARGEST_TEXT = 2**30, 2**18
# Classes of boxes without names: each has outputs in a model.
MOST_CLASSES = 10_000
# Files of YOLO that name the classes, one a line, and those with a list `names`.
NAME_LISTS, NAME_TABLES = ("classes.txt", "obj.names", "labels/classes.txt"), ("data.yaml", "dataset.yaml")
# Larger shares of boxes of one fault mean another form of the file.
MOST_FAULTY, MOST_CUT = 0.05, 0.5
# Pixels, as a share of the image, by which a rounded box may reach beyond its image without a remark.
ROUNDING = 0.005

# Faults of boxes, as messages name them.
EMPTY, OUTSIDE, CUT = "have a width or height of 0 or less", "lie outside the image", "reach beyond the image"


@dataclass(frozen=True)
class BoxPart:
    """Images of one part of the data with their boxes.

    Attributes:
        files: Path of each image.
        boxes: Classes and boxes of each image, ``[m, 5]``, as :mod:`autocompress.core.boxes` describes them.
        notices: Remarks on boxes that were cut or left out.
    """

    files: tuple[str, ...]
    boxes: tuple[Tensor, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class RawBox:
    """A box of a file before it is checked.

    Attributes:
        where: File and entry, for messages.
        name: Name of its class.
        corners: Left, top, right and bottom as shares of the image.
    """

    where: str
    name: str
    corners: tuple[float, float, float, float]


def read_boxes(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, BoxPart]]:
    """Return the names of the classes and the parts of a folder: ``train``, and ``val`` and ``test`` if it has them.

    A part is a folder with ``annotations.json``, or with the folders ``images`` and ``labels``, which may also hold the
    folders of the parts. In COCO's own layout, ``annotations/instances_train2017.json`` has the boxes of the images in
    ``train2017``.

    Args:
        path: The folder.
        names: Names of the classes in the order of YOLO's numbers; empty for those of the files.

    Raises:
        UsageError: The folder has another form, an image is missing, a class is unknown, or too many boxes are faulty.
    """
    if not path.is_dir():
        raise UsageError(f"task.detection.path: there is no folder {path}; give one with annotations.json, or labels/")
    own = _find_annotations(path)
    if own is not None:
        return _read_coco_parts({"train": own}, names)
    if (instances := _find_instances(path / INSTANCES_FOLDER)) and not (path / LABELS).is_dir():
        return _read_coco_parts(instances, names)
    if "train" in _find_parts(path / IMAGES):
        names_of_parts = _find_parts(path / IMAGES)
        folders = {part: (path / IMAGES / name, path / LABELS / name) for part, name in names_of_parts.items()}
    else:
        inner = {part: path / name for part, name in _find_parts(path).items()}
        inner = inner if "train" in inner else {"train": path}
        folders = {part: (folder / IMAGES, folder / LABELS) for part, folder in inner.items()}
    files = {part: _find_annotations(images.parent) for part, (images, _) in folders.items()}
    if files["train"] is not None:
        return _read_coco_parts(files, names)
    classes = tuple(map(str, names)) or _read_names(path)
    raw = {part: list(_read_yolo(images, labels, classes)) for part, (images, labels) in folders.items()}
    if not classes:
        numbers = [int(box.name) for part in raw.values() for _, boxes in part for box in boxes]
        classes = tuple(map(str, range(max(numbers, default=0) + 1)))
    return classes, {part: _check_part(part, images, classes) for part, images in raw.items()}


def _find_parts(folder: Path) -> dict[str, str]:
    """Return the name of the folder of each part that exists."""
    return {part: name for part, names in PARTS.items() for name in names if (folder / name).is_dir()}


def _find_annotations(folder: Path) -> Path | None:
    return next((folder / name for name in ANNOTATIONS if (folder / name).is_file()), None)


def _find_instances(folder: Path) -> dict[str, Path | None]:
    """Return the file of each part in COCO's own layout; empty if there is none.

    Raises:
        UsageError: A part has two files, or ``train`` has none.
    """
    files: dict[str, Path | None] = {}
    paths = sorted(folder.glob(f"{INSTANCES}*.json"))
    for file in paths:
        year = file.stem.removeprefix(INSTANCES)
        part = next((part for part in PARTS if year.startswith(part)), None)
        if part is None:
            continue
        if part in files:
            raise UsageError(f"{files[part]} and {file} both have the boxes of {part}; keep one of them")
        files[part] = file
    if paths and "train" not in files:
        raise UsageError(f"{folder} has {paths[0].name} and no {INSTANCES}train*.json; add the training part")
    return files


def _check_part(part: str, images: Sequence[tuple[str, list[RawBox]]], classes: Sequence[str]) -> BoxPart:
    """Return a part whose boxes lie in their images; the others are cut or left out, and counted.

    Raises:
        UsageError: The part has no image or no box, or too many boxes are faulty.
    """
    if not images:
        raise UsageError(f"{part} has no images")
    total = sum(len(boxes) for _, boxes in images)
    if not total:
        count = format_plural(len(images), "image")
        raise UsageError(f"{part} has no box in {count}, so that there is nothing to learn")
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    tensors: list[Tensor] = []
    for _, boxes in images:
        rows = []
        for box in boxes:
            cut = _cut_corners(box.corners)
            fault = _name_fault(box.corners, cut)
            if fault:
                counts[fault] += 1
                first.setdefault(fault, box.where)
            if cut is not None and fault != EMPTY:
                rows.append([float(classes.index(box.name)), *cut])
        tensors.append(torch.tensor(rows, dtype=torch.float32).reshape(-1, 5))
    described = format_plural(total, "box", "boxes")
    for fault, limit in ((EMPTY, MOST_FAULTY), (OUTSIDE, MOST_FAULTY), (CUT, MOST_CUT)):
        if counts[fault] > limit * total:
            raise UsageError(
                f"{counts[fault]} of {described} in {part} {fault}, the first is {first[fault]}; "
                "a box of COCO is [x, y, width, height] in pixels, one of YOLO 'class cx cy w h' in shares of the image"
            )
    remarks = {EMPTY: "were left out", OUTSIDE: "were left out", CUT: "were cut at its border"}
    notices = tuple(
        f"{counts[fault]} of {described} in {part} {fault} and {remark}; the first is {first[fault]}"
        for fault, remark in remarks.items()
        if counts[fault]
    )
    return BoxPart(tuple(file for file, _ in images), tuple(tensors), notices)


def _cut_corners(corners: Sequence[float]) -> list[float] | None:
    """Return corners inside the image; ``None`` if the box lies outside."""
    cut = [min(max(value, 0.0), 1.0) for value in corners]
    return cut if cut[2] > cut[0] and cut[3] > cut[1] else None


def _name_fault(corners: Sequence[float], cut: Sequence[float] | None) -> str:
    if not (corners[2] > corners[0] and corners[3] > corners[1]):
        return EMPTY
    if cut is None:
        return OUTSIDE
    return CUT if min(corners) < -ROUNDING or max(corners) > 1 + ROUNDING else ""


def read_size(file: str) -> tuple[int, int] | None:
    """Return width and height of an image, upright, from its header; ``None`` if it cannot be read."""
    try:
        with open_image(file) as image:
            is_turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (image.height, image.width) if is_turned else (image.width, image.height)
    except UNREADABLE:
        return None


def _read_coco_parts(
    files: Mapping[str, Path | None], names: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, BoxPart]]:
    if names:
        raise UsageError("task.detection.classes names the classes of YOLO's numbers; annotations.json has names")
    classes: tuple[str, ...] = ()
    parts = {}
    for part, file in files.items():
        if file is None:
            raise UsageError(f"train has {ANNOTATIONS[0]} and {part} has not; add it, or remove the folder")
        record = _load_coco(file)
        categories = _read_categories(file, record)
        # The names of the training part are the classes; other parts may number them otherwise.
        classes = classes or tuple(categories.values())
        unknown = [name for name in categories.values() if name not in classes]
        if unknown:
            raise UsageError(f"{file} has the category '{unknown[0]}', which train does not have")
        images, crowds = _join_coco(file, record, categories)
        checked = _check_part(part, images, classes)
        remark = f"{format_plural(crowds, 'crowd')} in {part} left out (iscrowd): no single objects"
        parts[part] = BoxPart(checked.files, checked.boxes, (*checked.notices, *([remark] if crowds else ())))
    return classes, parts


def _load_coco(file: Path) -> Record:
    try:
        record = json.loads(read_regular_file(file, LARGEST_ANNOTATIONS, follows_links=True))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({' '.join(str(error).split())})") from None
    lacking = [name for name in ("images", "annotations", "categories") if not _is_table(record, name)]
    if lacking:
        raise UsageError(f"{file} is not in COCO's form: it lacks the list '{lacking[0]}' of objects")
    content: Record = record
    return content


def _is_table(record: object, name: str) -> bool:
    rows = record.get(name) if isinstance(record, dict) else None
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _read_categories(file: Path, record: Record) -> dict[object, str]:
    """Return the name of each category by its id, in the order of the ids."""
    rows = record["categories"]
    faulty = [row for row in rows if not isinstance(row.get("id"), int) or not isinstance(row.get("name"), str)]
    if faulty or not rows:
        raise UsageError(f"{file}: a category needs an 'id' and a 'name'" if faulty else f"{file} has no categories")
    categories = {row["id"]: row["name"] for row in sorted(rows, key=lambda row: int(row["id"]))}
    repeated = [name for name, count in Counter(categories.values()).items() if count > 1]
    if repeated or len(categories) < len(rows):
        raise UsageError(f"{file} has two categories of one {'name: ' + repeated[0] if repeated else 'id'}")
    return categories


def _join_coco(
    file: Path, record: Record, categories: Mapping[object, str]
) -> tuple[list[tuple[str, list[RawBox]]], int]:
    """Return each image with its boxes, and the number of crowds, which are left out."""
    paths = _locate_images(file, record["images"])
    sizes = {key: _check_size(file, row, paths[key]) for row in record["images"] if (key := row["id"]) in paths}
    boxes: dict[object, list[RawBox]] = {key: [] for key in paths}
    crowds = 0
    for row in record["annotations"]:
        where = f"annotation {row.get('id')} of {file}"
        key, category = row.get("image_id"), row.get("category_id")
        if not isinstance(key, int | str) or key not in boxes:
            raise UsageError(f"{where} belongs to the image {show_value(key)}, which 'images' does not have")
        if not isinstance(category, int) or category not in categories:
            raise UsageError(f"{where} has the category {show_value(category)}, which 'categories' does not have")
        if row.get("iscrowd"):
            crowds += 1
            continue
        x, y, width, height = _read_four(row.get("bbox"), where)
        size = sizes[key]
        # An image that cannot be read is left out with its boxes.
        if size is None:
            continue
        across, down = size
        corners = (x / across, y / down, (x + width) / across, (y + height) / down)
        boxes[key].append(RawBox(where, categories[category], corners))
    return [(paths[key], boxes[key]) for key in paths], crowds


def _locate_images(file: Path, rows: Sequence[Record]) -> dict[object, str]:
    """Return the path of each image by its id: in the folder ``images`` beside the file, or beside it.

    Those of ``annotations/instances_NAME.json`` are in the folder ``NAME`` beside that folder, or in ``images/NAME``.

    Raises:
        UsageError: An image has no id or name, or has no file.
    """
    paths: dict[object, str] = {}
    missing = []
    folders = [file.parent / IMAGES, file.parent]
    if file.stem.startswith(INSTANCES):
        root, own = file.parent.parent, file.stem.removeprefix(INSTANCES)
        folders = [root / own, root / IMAGES / own, *folders]
    for row in rows:
        key, name = row.get("id"), row.get("file_name")
        if not isinstance(key, int | str) or not isinstance(name, str) or key in paths:
            raise UsageError(
                f"{file}: an image needs an 'id' of its own and a 'file_name', not {show_value(key)} "
                f"and {show_value(name)}"
            )
        candidates = [os.path.join(folder, name) for folder in folders]
        file_path = next((path for path in candidates if os.path.isfile(path)), None)
        if file_path is None:
            missing.append(candidates[0])
        else:
            paths[key] = file_path
    if missing:
        raise UsageError(
            f"{len(missing)} of {format_plural(len(rows), 'image')} of {file} are missing, the first is {missing[0]}; "
            "add them, or remove their entries"
        )
    return paths


def _check_size(file: Path, row: Record, path: str) -> tuple[int, int] | None:
    """Return width and height of an image, which those of its entry must equal; ``None`` if it cannot be read.

    Raises:
        UsageError: They differ.
    """
    size = read_size(path)
    stated = row.get("width"), row.get("height")
    if size is not None and None not in stated and stated != size:
        raise UsageError(
            f"{file} says {stated[0]}x{stated[1]} of {path}, which has {size[0]}x{size[1]} pixels; boxes are in pixels "
            "of the image"
        )
    return size


def _read_four(values: object, where: str) -> list[float]:
    """Return four finite numbers.

    Raises:
        UsageError: There are others.
    """
    numbers = [float(value) for value in values if is_finite(value)] if isinstance(values, list) else []
    if len(numbers) != 4 or not isinstance(values, list) or len(values) != 4:
        raise UsageError(f"{where} has the box {show_value(values)}; give four numbers")
    return numbers


def _read_yolo(images: Path, labels: Path, classes: Sequence[str]) -> Iterator[tuple[str, list[RawBox]]]:
    """Yield the path of each image with its boxes; an image without a text file has none."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}; give annotations.json with its images, or the folders images and labels"
            )
    files = {os.path.splitext(os.path.relpath(file, images))[0]: file for file in find_image_files(images)}
    texts = {os.path.relpath(text, labels)[:-4]: text for text in sorted(map(str, labels.rglob("*.txt")))}
    texts.pop("classes", None)
    alone = sorted(texts.keys() - files.keys())
    if alone:
        raise UsageError(f"{texts[alone[0]]} has no image of the same name in {images}; add it, or remove the file")
    for stem, file in files.items():
        lines = _read_lines(Path(texts[stem])) if stem in texts else []
        yield (
            file,
            [
                _read_line(f"line {number} of {texts[stem]}", line.split(), classes)
                for number, line in enumerate(lines, 1)
                if line.strip()
            ],
        )


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        UsageError: It cannot be read, is no regular file, or is larger than a list of boxes or names.
    """
    try:
        return read_regular_file(file, LARGEST_TEXT, follows_links=True).decode(errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from None


def _read_line(where: str, words: Sequence[str], classes: Sequence[str]) -> RawBox:
    try:
        number, (x, y, width, height) = int(words[0]), map(float, words[1:])
    except (ValueError, IndexError):
        raise UsageError(f"{where} is {show_value(' '.join(words))}; give 'class cx cy w h', five numbers") from None
    if not all(map(math.isfinite, (x, y, width, height))) or number < 0:
        raise UsageError(f"{where} is {show_value(' '.join(words))}; give a class from 0 and four finite numbers")
    count = len(classes) or MOST_CLASSES
    if number >= count:
        raise UsageError(f"{where} has the class {number}, but classes are numbered from 0 to {count - 1}")
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return RawBox(where, classes[number] if classes else str(number), corners)


def _read_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes in a file of the folder; empty without one.

    Raises:
        UsageError: A file has no names, or two classes of one name.
    """
    names: list[str] = []
    for file in (path / name for name in (*NAME_LISTS, *NAME_TABLES)):
        if not file.is_file():
            continue
        if file.suffix == ".yaml":
            record = _load_yaml(file)
            table = record.get("names") if isinstance(record, dict) else None
            # A list, or a mapping of the numbers from 0 on to names.
            values = [table.get(number) for number in range(len(table))] if isinstance(table, dict) else table
            plain = values if isinstance(values, list) else []
            names = [str(value) for value in plain if isinstance(value, str | int | float)]
        else:
            names = [line.strip() for line in _read_lines(file) if line.strip()]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"{file} must name each class once")
        break
    return tuple(names)


def _load_yaml(file: Path) -> object:
    text = "\n".join(_read_lines(file))
    try:
        # An alias may stand for an alias of an alias: a page of text that takes gigabytes when it is written out.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases (*name) are not read")
        content: object = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as YAML ({' '.join(str(error).split())})") from None
    return content
