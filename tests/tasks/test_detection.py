"""Images with boxes: splits, views that move both, boxes of an exported model, and folders that cannot be used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autocompress
from autocompress.core.boxes import NO_BOX, select_boxes
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.heads import Detection
from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE
from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.export import pipeline
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.candidate import export_candidate
from autocompress.export.verify import Metric, verify, verify_pipeline
from autocompress.tasks.detection import DetectionTask
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import RebuiltCandidate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return DetectionTask.write_sample(tmp_path / "data")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "annotations.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def write_official(folder: Path, images: str = "") -> Path:
    """Turn the sample into COCO's own layout, the first 40 images as train2017 and the others as val2017."""
    record = json.loads((folder / "annotations.json").read_text())
    (folder / "annotations").mkdir()
    for name, numbers in (("train2017", range(40)), ("val2017", range(40, 1000))):
        (folder / images / name).mkdir(parents=True)
        part = {
            "images": [entry for entry in record["images"] if entry["id"] in numbers],
            "annotations": [entry for entry in record["annotations"] if entry["image_id"] in numbers],
            "categories": record["categories"],
        }
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(part))
        for entry in part["images"]:
            shutil.move(folder / "images" / entry["file_name"], folder / images / name / entry["file_name"])
    (folder / "annotations.json").unlink()
    return folder


def write_yolo(folder: Path) -> Path:
    """Turn the sample into YOLO's form."""
    record = json.loads((folder / "annotations.json").read_text())
    (folder / "labels").mkdir()
    for entry in record["annotations"]:
        x, y, width, height = (value / 32 for value in entry["bbox"])
        line = f"{entry['category_id'] - 1} {x + width / 2} {y + height / 2} {width} {height}\n"
        (folder / "labels" / f"{entry['image_id']:02}.txt").write_text(line)
    (folder / "annotations.json").unlink()
    (folder / "classes.txt").write_text("square\nring\n")
    return folder


def test_boxes_lie_on_what_is_bright_in_five_splits(folder: Path) -> None:
    task = DetectionTask(folder)
    splits = task.splits(0)
    assert (task.shape, task.heads["boxes"], task.labels["boxes"]) == ((1, 32, 32), 2, ["square", "ring"])
    assert sum(len(split) for _, split in splits.items()) == 60
    assert task.notices == ()
    assert_boxes_are_bright(splits.train)


def assert_boxes_are_bright(split: Split) -> None:
    for image, boxes in zip(split.inputs[0], split.targets["boxes"], strict=True):
        for _, *corners in (row for row in boxes.tolist() if row[0] != NO_BOX):
            left, top, right, bottom = (round(32 * value) for value in corners)
            # The border of both shapes is bright.
            assert float(image[0, top:bottom, [left, right - 1]].mean()) > 0.8
            assert float(image[0, [top, bottom - 1], left:right].mean()) > 0.8


def test_a_view_moves_images_and_boxes_alike(folder: Path) -> None:
    task = DetectionTask(folder, shift=0.25)
    train = task.splits(0).train
    for split in (train, Split(train.inputs, train.targets)):
        moved = task.view(split, 1)
        boxes = moved.targets["boxes"]
        assert not torch.equal(boxes, train.targets["boxes"])
        is_whole = (boxes[..., 1:] > 0).all(-1) & (boxes[..., 1:] < 1).all(-1)
        assert 0 < int(is_whole.sum()) < len(boxes)
        assert_boxes_are_bright(moved.take(is_whole[:, 0]))
        batch = moved.take(slice(3, 5))
        assert torch.equal(batch.targets["boxes"], boxes[3:5])
        assert torch.equal(batch.inputs[0], moved.inputs[0][3:5])


def test_both_forms_of_files_give_the_same_boxes(folder: Path) -> None:
    first = DetectionTask(folder).splits(0).train.targets["boxes"]
    task = DetectionTask(write_yolo(folder))
    assert task.labels["boxes"] == ["square", "ring"]
    torch.testing.assert_close(task.splits(0).train.targets["boxes"], first)


@pytest.mark.parametrize("names", ["data.yaml", "option", "none"])
def test_classes_of_yolo_are_named_by_a_file_or_an_option(folder: Path, names: str) -> None:
    write_yolo(folder)
    (folder / "classes.txt").unlink()
    if names == "data.yaml":
        (folder / names).write_text("names:\n  0: square\n  1: ring\n")
    task = DetectionTask(folder, classes=("square", "ring") if names == "option" else ())
    assert task.labels["boxes"] == (["0", "1"] if names == "none" else ["square", "ring"])


def test_images_are_stretched_and_shares_stay(folder: Path) -> None:
    boxes = DetectionTask(folder).splits(0).train.targets["boxes"]
    for file in (folder / "images").iterdir():
        Image.open(file).resize((80, 40)).save(file)
    change(folder, lambda record: [entry.update(width=80, height=40) for entry in record["images"]])
    change(
        folder,
        lambda record: [
            entry.update(bbox=[value * factor for value, factor in zip(entry["bbox"], (2.5, 1.25) * 2, strict=True)])
            for entry in record["annotations"]
        ],
    )
    task = DetectionTask(folder, size=16)
    assert task.shape == (1, 16, 16)
    torch.testing.assert_close(task.splits(0).train.targets["boxes"], boxes)
    (record,) = task.specify_preprocessing(0)
    assert record.stretch
    assert "stretched to 16 x 16" in record.describe()


@pytest.mark.parametrize("layout", ["{part}", "images/{part}"])
def test_parts_of_their_own_are_used_as_they_are(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "parts"
    for part in ("train", "valid", "test"):
        made = write_yolo(DetectionTask.write_sample(tmp_path / part))
        if layout == "{part}":
            shutil.move(made, root / part)
        else:
            for name in ("images", "labels"):
                shutil.move(made / name, root / name / part)
    sizes = {name: len(split) for name, split in DetectionTask(root).splits(0).items()}
    assert sizes == {"train": 58, "calibration": 2, "search_val": 30, "select_val": 30, "test": 60}


def test_one_file_may_name_images_in_folders_of_parts(folder: Path) -> None:
    (folder / "images" / "train").mkdir()
    for file in list((folder / "images").glob("*.png")):
        file.rename(folder / "images" / "train" / file.name)
    change(folder, lambda record: [row.update(file_name=f"train/{row['file_name']}") for row in record["images"]])
    assert sum(len(split) for _, split in DetectionTask(folder).splits(0).items()) == 60


def test_parts_of_coco_may_number_their_categories_otherwise(tmp_path: Path) -> None:
    for part in ("train", "test"):
        DetectionTask.write_sample(tmp_path / "parts" / part)
    change(
        tmp_path / "parts" / "test",
        lambda record: (
            [entry.update(id=9 - entry["id"]) for entry in record["categories"]],
            [entry.update(category_id=9 - entry["category_id"]) for entry in record["annotations"]],
        ),
    )
    task = DetectionTask(tmp_path / "parts")
    assert torch.equal(task._targets["train"], task._targets["test"])


def edit_box(number: int, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["annotations"][number].update(values)


def test_boxes_that_are_cut_or_left_out_are_counted(folder: Path) -> None:
    for edit in (
        edit_box(3, bbox=[25, 25, 16, 16]),
        edit_box(4, bbox=[40, 0, 8, 8]),
        edit_box(5, bbox=[20, 20, -8, 8]),
        edit_box(6, iscrowd=1),
    ):
        change(folder, edit)
    task = DetectionTask(folder)
    where = f"of {folder / 'annotations.json'}"
    count = "1 of 59 boxes in train"
    assert task.notices == (
        f"{count} have a width or height of 0 or less and were left out; the first is annotation 5 {where}",
        f"{count} lie outside the image and were left out; the first is annotation 4 {where}",
        f"{count} reach beyond the image and were cut at its border; the first is annotation 3 {where}",
        "1 crowd in train left out (iscrowd): no single objects",
        "3 of 60 images in train have no box",
    )
    assert task._targets["train"][3, 0].tolist() == [1, 25 / 32, 25 / 32, 1, 1]
    assert task._targets["train"][4, 0, 0] == NO_BOX


def test_an_image_that_cannot_be_read_is_left_out_with_its_boxes(folder: Path) -> None:
    file = folder / "images" / "07.png"
    file.write_bytes(file.read_bytes()[:200])
    task = DetectionTask(folder)
    assert len(task.notices) == 1
    assert task.notices[0].startswith("1 of 60 images in train cannot be read and were left out (images/07.png: ")
    assert sum(len(split) for _, split in task.splits(0).items()) == 59


def reverse_boxes(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        entry["bbox"][2] *= -1


def write_corners(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [16 + x / 2, 16 + y / 2, 16 + (x + width) / 2, 16 + (y + height) / 2]


def hide_boxes(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        entry["bbox"][0] += 100


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_box(7, category_id=3), r"annotation 7 of .*annotations\.json has the category '3', which 'categories'"),
        (edit_box(7, image_id=99), r"annotation 7 of .* belongs to the image '99', which 'images' does not have"),
        (edit_box(7, bbox=[1, 2, 3]), r"annotation 7 of .* has the box '\[1, 2, 3\]'; give four numbers"),
        (edit_box(7, bbox=[1, 2, 3, float("nan")]), "annotation 7 of .* has the box .*; give four numbers"),
        (
            edit_box(7, bbox=[10**400, 2, 3, 4]),
            r"annotation 7 of .* has the box '\[1000{55,60}'\.\.\.; give four numbers",
        ),
        (reverse_boxes, "60 of 60 boxes in train have a width or height of 0 or less.*in pixels, one of YOLO"),
        (hide_boxes, "60 of 60 boxes in train lie outside the image, the first is annotation 0"),
        (write_corners, "boxes in train reach beyond the image.*x, y, width, height"),
        (lambda record: record["annotations"].clear(), "train has no box in 60 images"),
        (lambda record: record["categories"].clear(), "has no categories"),
        (lambda record: record["categories"][1].update(name="square"), "two categories of one name: square"),
        (lambda record: record["categories"][1].pop("name"), "a category needs an 'id' and a 'name'"),
        (lambda record: record["images"][7].update(width=64), "says 64x32 of .*07.png, which has 32x32 pixels"),
        (lambda record: record["images"][7].update(id=6), "needs an 'id' of its own and a 'file_name', not '6'"),
        (lambda record: record["images"][7].update(file_name="x.png"), "1 of 60 images of .* are missing, the .*x.png"),
        (lambda record: record.pop("images"), "not in COCO's form: it lacks the list 'images'"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(UsageError, match=message):
        DetectionTask(folder)


def write_line(folder: Path, line: str) -> None:
    (folder / "labels" / "07.txt").write_text(f"\n{line}\n")


def replace_line(folder: Path, call: str) -> None:
    (folder / "labels" / "07.txt").unlink()
    getattr(os, call)(folder / "labels" / "07.txt")


def name_numbers(folder: Path, number: int) -> None:
    """Leave the classes without names, and write one of a number."""
    (folder / "classes.txt").unlink()
    write_line(folder, f"{number} 0.5 0.5 0.2 0.2")


def write_names(folder: Path, text: str) -> None:
    (folder / "classes.txt").unlink()
    (folder / "data.yaml").write_text(text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: write_line(folder, "0 0.5 0.5 0.2"), r"line 2 of .*07\.txt is '0 0.5 0.5 0.2'; give"),
        (lambda folder: write_line(folder, "a 0.5 0.5 0.2 0.2"), "give 'class cx cy w h', five numbers"),
        (lambda folder: write_line(folder, "0 0.5 nan 0.2 0.2"), "a class from 0 and four finite numbers"),
        (
            lambda folder: write_line(folder, "2 0.5 0.5 0.2 0.2"),
            "has the class 2, but classes are numbered from 0 to 1",
        ),
        (lambda folder: write_line(folder, "9" * 5000), r"is '9{60}'\.\.\.; give 'class"),
        (lambda folder: write_line(folder, "0 " * 2**18), r"07\.txt cannot be read \(larger than 262,144 bytes\)"),
        (lambda folder: replace_line(folder, "mkfifo"), r"07\.txt cannot be read \(not a regular file\)"),
        (lambda folder: replace_line(folder, "mkdir"), r"07\.txt cannot be read \(Is a directory\)"),
        (lambda folder: name_numbers(folder, 10**12), r"07\.txt has the class 1000000000000, but .* from 0 to 9999"),
        (lambda folder: write_names(folder, "a: &a [x]\nnames: [*a, *a]"), r"data\.yaml .*aliases \(\*name\) are not"),
        (lambda folder: write_names(folder, "names: [!!python/name:os.system ]"), r"data\.yaml cannot be read as YAML"),
        (lambda folder: write_names(folder, "names: " + "[" * 5000), r"data\.yaml cannot be read as YAML"),
        (lambda folder: write_names(folder, "names: [[a], [b]]"), r"data\.yaml must name each class once"),
        (lambda folder: (folder / "images" / "07.png").unlink(), r"07\.txt has no image of the same name in"),
        (lambda folder: shutil.rmtree(folder / "labels"), "there is no folder .*labels; give annotations.json"),
        (lambda folder: (folder / "classes.txt").write_text("a\na\n"), "must name each class once"),
        (lambda folder: (folder / "classes.txt").rename(folder / "data.yaml"), "data.yaml must name each class once"),
        (
            lambda folder: [file.write_text("") for file in (folder / "labels").iterdir()],
            "train has no box in 60 images",
        ),
    ],
)
def test_text_files_that_cannot_be_used_are_named(folder: Path, edit: Callable[[Path], object], message: str) -> None:
    edit(write_yolo(folder))
    with pytest.raises(UsageError, match=message):
        DetectionTask(folder)


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(folder: Path) -> None:
    (write_yolo(folder) / "images" / "07.png").unlink()
    os.mkfifo(folder / "images" / "07.png")
    assert "(images/07.png: [Errno 22] not a regular file" in DetectionTask(folder).notices[0]


def test_a_sparse_file_of_annotations_is_not_read(folder: Path) -> None:
    os.truncate(folder / "annotations.json", 2**29)
    with pytest.raises(UsageError, match="a sparse file, most of whose bytes do not exist"):
        DetectionTask(folder)


def test_a_split_without_a_box_is_refused_before_anything_is_trained(folder: Path) -> None:
    change(folder, lambda record: record.update(annotations=record["annotations"][:2]))
    with pytest.raises(UsageError, match=r"no image of the split .* has a box; give more images with boxes"):
        DetectionTask(folder).splits(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path is not set"),
        ({"path": "missing"}, "there is no folder missing"),
        ({"size": 20}, "size is 20; give a multiple of 8"),
        ({"size": True}, "size is True; give a whole number"),
        ({"least_score": 1}, "least_score is 1; give a number between 0 and 1"),
        ({"shift": 2}, r"shift is 2; give a share"),
        ({"classes": ["a", "b"]}, "names the classes of YOLO's numbers; annotations.json has names"),
    ],
)
def test_options_out_of_bounds_are_named(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DetectionTask(**{"path": folder} | options)  # type: ignore[arg-type]


def test_images_of_another_size_need_a_size(folder: Path) -> None:
    for file in (folder / "images").iterdir():
        Image.open(file).resize((30, 32)).save(file)
    change(folder, lambda record: [entry.update(width=30) for entry in record["images"]])
    with pytest.raises(UsageError, match=r"the first image is 30x32; give task\.detection\.size, a multiple of 8"):
        DetectionTask(folder)


@pytest.mark.slow
def test_an_int8_artifact_returns_the_boxes_of_the_model_in_pixels_of_the_file(folder: Path, tmp_path: Path) -> None:
    task = DetectionTask(folder, size=32)
    splits = task.splits(0)
    student = Part.of("detector", width=8, depth=1, stages=4, stem_stride=2)
    training = Part.of("adamw", epochs=24, learning_rate=8e-3, batch_size=8)
    torch.manual_seed(0)
    model = task.build(student)
    fit(model, FitRequest(task, splits.train, training, seed=0))
    part = Part.of("post_training", weight_bits=8, activation_bits=8)
    method = QUANTIZE.get(part.name)
    context = Context(task.example(), (splits.train.inputs,))
    quantized, state = method.apply(model.eval(), method.config.of(part.values), context)
    config = CompressionConfig(student, (), training, None, part, 0)
    deployable = Deployable.from_task(task, 0, config, RebuiltCandidate(model, quantized, None, state))
    artifact = write_artifact(tmp_path / "artifact", deployable, {})
    maps = predict(quantized, task, splits.test)["boxes"]
    head, metric = task.heads["boxes"], Metric("mean_ap_50", task.heads)
    assert isinstance(head, Detection)
    score = metric.overall({"boxes": maps}, splits.test.targets)
    assert score > 0.3
    boxes = {"boxes": head.predict(maps)}
    examples = task.list_test_examples(0)
    result = verify(artifact, splits.test, task.heads, {"boxes": score}, boxes, tolerance=0.01, metric=metric)
    assert result.scores["boxes"] == pytest.approx(score, abs=0.01)
    assert verify_pipeline(artifact, examples, task.heads, boxes)["boxes"] >= 0.99

    # A file of twice the width, as JPEG with a rotation, an array and bytes all give boxes in their own pixels.
    served = pipeline.load(artifact)
    outputs = torch.from_numpy(served.compute_outputs(examples)["boxes"])
    compared = 0
    for example, expected in zip(examples, select_boxes(outputs, head.least_score), strict=True):
        wide = example.resize((64, 32), Image.Resampling.NEAREST)
        wide.save(tmp_path / "wide.png")
        predicted = served.predict(example)["boxes"]["boxes"]
        expected = expected[expected[:, 1] > 0]
        assert len(predicted) == len(expected)
        for box, row in zip(predicted, expected.tolist(), strict=True):
            assert box["class"] == task.labels["boxes"][int(row[0])]
            assert box["score"] == pytest.approx(row[1], abs=1e-5)
            assert box["box"] == pytest.approx([32 * value for value in row[2:]], abs=1e-3)
            compared += 1
        by_file, by_bytes, by_array = (
            served.predict(value)["boxes"]["boxes"]
            for value in (tmp_path / "wide.png", (tmp_path / "wide.png").read_bytes(), np.asarray(wide))
        )
        assert by_file == by_bytes == by_array
        assert all(box["box"][2] <= 64 for box in by_file)
    assert compared > 3
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (64, 32)).save(tmp_path / "turned.png", exif=turned)
    assert pipeline._read_size(tmp_path / "turned.png") == (32, 64)


@pytest.mark.slow
def test_a_detector_is_searched_distilled_pruned_and_exported(folder: Path, tmp_path: Path) -> None:
    settings = [
        *(f"task.detection.path={folder}", "search.backend=serial", "search.trials=1", "search.timing_seconds=0"),
        "teacher={student: {detector: {width: 8, depth: 1, stem_stride: 2}}, fit: {adamw: {epochs: 16}}}",
        *("fit.adamw.epochs=8", "prune.structured.recovery_epochs=1", "pick.max_drop=1", "search.minutes=2"),
    ]
    front = autocompress.search("detection", name="boxes", runs=tmp_path / "runs", overrides=settings)
    assert [record.name for record in front.info.objectives] == ["mean_ap", "effective_flops"]
    assert front.info.trivial_baselines == {}
    assert set(front.to_pandas()) >= {"mean_ap", "mean_ap_50", "effective_flops"}
    assert "mAP" in (front.folder / "report.html").read_text()
    verification = export_candidate(front.folder, front.to_pandas()["id"].iloc[0]).verification
    assert verification is not None
    assert verification.metric == "mean_ap"
    assert verification.pipeline_agreement["boxes"] >= 0.99


@pytest.mark.parametrize("images", ["", "images"])
def test_the_layout_of_coco_itself_is_read(folder: Path, images: str) -> None:
    count = len(json.loads((folder / "annotations.json").read_text())["images"])
    task = DetectionTask(write_official(folder, images))
    splits = task.splits(0)
    # The validation part is halved.
    assert len(splits.search_val) + len(splits.select_val) == count - 40
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 40
    assert list(task.labels["boxes"]) == ["square", "ring"]


def test_faults_of_the_layout_of_coco_are_named(folder: Path) -> None:
    train = write_official(folder) / "annotations" / "instances_train2017.json"
    shutil.copy(train, train.with_name("instances_train2014.json"))
    with pytest.raises(UsageError, match=r"train2014\.json and .*train2017\.json both have the boxes of train"):
        DetectionTask(folder)
    train.unlink()
    with pytest.raises(UsageError, match=r"40 of 40 images .* are missing, the first is .*train2014"):
        DetectionTask(folder)
    train.with_name("instances_train2014.json").unlink()
    with pytest.raises(UsageError, match=r"has instances_val2017\.json and no instances_train\*\.json"):
        DetectionTask(folder)
