"""What every task must give: disjoint splits, repeatable views, an example, a teacher, a loss."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.core.boxes import BOX_OUTPUTS, NO_BOX
from autocompress.core.heads import IGNORED, as_head
from autocompress.core.preprocessing import check_preprocessing, dump_input
from autocompress.core.registry import OBJECTIVES, STUDENTS, TASKS
from autocompress.core.task import Splits, Task, logits_by_head
from autocompress.export.pipeline import ENCODERS
from autocompress.models.detector import STRIDE

Make = Callable[[], Task]


@pytest.fixture
def make(name: str, tmp_path: Path) -> Make:
    """Return what builds the task; a task that needs data has a method ``write_sample``."""
    kind = TASKS.get(name)
    if hasattr(kind, "write_sample"):
        return lambda: kind(path=kind.write_sample(tmp_path / "data"))
    return lambda: kind()


# A brought model has tests of its own: tests/tasks/test_module.py.
# Other tests may have registered tasks of their own by now.
SHIPPED = [
    name for name in TASKS.names() if name != "module" and TASKS.get(name).__module__.startswith("autocompress.")
]


def task_positions(task: Task) -> tuple[int, ...]:
    """Return the shape of what has a class of its own: the words of a text, or the pixels of an image."""
    shape = task.inputs[0].shape
    return shape[1:] if len(shape) == 3 else shape


@pytest.mark.parametrize("name", SHIPPED)
class TestTask:
    @pytest.mark.slow
    def test_splits_are_five_repeatable_and_hold_every_head(self, name: str, make: Make) -> None:
        task = make()
        splits = task.splits(0)
        assert task.name == name
        assert [split_name for split_name, _ in splits.items()] == list(Splits.NAMES)
        assert splits.fingerprint() == make().splits(0).fingerprint()
        for split_name, split in splits.items():
            assert len(split) > 0, split_name
            assert set(split.targets) == set(task.heads)
            for head, size in task.heads.items():
                target = split.targets[head]
                if as_head(size).kind == "detection":
                    # A class and four corners for each box; a row without a box has the class -1.
                    target = target[..., 0][target[..., 0] != NO_BOX].long()
                    assert split.targets[head].shape == (len(split), split.targets[head].shape[1], 5)
                    assert len(target)
                    assert 0 <= int(target.min()) <= int(target.max()) < size
                    continue
                assert target.shape == (len(split), *(task_positions(task) if as_head(size).has_positions else ()))
                # A missing label has an index of its own; every split has some that are known.
                labels = target[target != IGNORED]
                assert len(labels)
                assert 0 <= int(labels.min()) <= int(labels.max()) < size

    @pytest.mark.slow
    def test_the_example_is_a_batch_of_one_like_the_data(self, make: Make) -> None:
        task = make()
        train = task.splits(0).train
        for example, data in zip(task.example(), train.inputs, strict=True):
            assert example.shape == (1, *data.shape[1:])
            assert example.dtype == data.dtype

    @pytest.mark.slow
    def test_views_are_repeatable(self, make: Make) -> None:
        task = make()
        train = task.splits(0).train
        assert task.views >= 1
        for index in range(min(task.views, 3)):
            one, two = task.view(train, index), task.view(train, index)
            assert len(one) == len(train)
            assert all(torch.equal(a, b) for a, b in zip(one.inputs, two.inputs, strict=True))

    @pytest.mark.slow
    def test_the_teacher_and_the_loss_fit_together(self, make: Make) -> None:
        task = make()
        student, fit = task.teacher()
        assert student.name in STUDENTS
        batch = task.splits(0).train.take(slice(0, 4))
        logits = logits_by_head(task.build(student)(*batch.inputs), task.heads)
        for head, size in task.heads.items():
            positions = task_positions(task) if as_head(size).has_positions else ()
            # Words have their classes last, and pixels have them where images have their channels.
            shape = (size, *positions) if len(positions) == 2 else (*positions, size)
            if as_head(size).kind == "detection":
                shape = (size + BOX_OUTPUTS, *(side // STRIDE for side in positions))
            assert logits[head].shape == (4, *shape)
        loss = task.loss(logits, batch.targets)
        assert loss.shape == ()
        assert math.isfinite(float(loss.detach()))
        assert fit.values["epochs"]

    @pytest.mark.slow
    def test_raw_examples_become_the_inputs_of_the_test_split(self, make: Make) -> None:
        for seed in (0, 5):
            task = make()
            records, examples = task.specify_preprocessing(seed), task.list_test_examples(seed)
            split = make().splits(seed).test
            if not records:
                # The artifact takes tensors.
                assert not examples
                continue
            assert len(examples) == len(split)
            check_preprocessing(task.name, records, [spec.shape for spec in task.inputs])
            rows = range(min(len(split), 500))
            for record, tensor in zip(records, split.inputs, strict=True):
                encode = ENCODERS[record.kind](json.loads(json.dumps(dump_input(record))))
                values = (examples[row] for row in rows)
                raw = (value.get(record.name, value) if isinstance(value, Mapping) else value for value in values)
                encoded = torch.from_numpy(np.stack([encode(value) for value in raw]))
                assert encoded.dtype == tensor.dtype
                assert torch.equal(encoded, tensor[: len(rows)]), record

    def test_metrics_are_registered_scores(self, make: Make) -> None:
        metrics = make().metrics
        assert metrics
        assert all(OBJECTIVES.get(metric).kind == "score" for metric in metrics)
