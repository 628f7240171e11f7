from pathlib import Path

import pytest

from autocompress.core.config import Part
from autocompress.core.latency_model import FLOAT
from autocompress.core.precisions import Precisions
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import TARGETS, TASKS
from autocompress.core.run_info import TargetInfo
from autocompress.errors import UsageError
from autocompress.export import latency_students as module
from autocompress.export.latency_students import calibrate_students
from autocompress.measure import layer_costs
from autocompress.measure.cost import list_layer_work
from autocompress.targets.calibration import Measurements
from tests.targets.test_calibration import Device

INFO = TargetInfo("device", precisions=Precisions(((8, 8), (32, 32)), (8, 32)))


@pytest.mark.slow
def test_the_students_of_a_search_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    TARGETS.import_builtins()
    monkeypatch.setattr(TARGETS, "_objects", {**TARGETS._objects, "device": Device})
    task = TASKS.get("digits")()
    examples = task.splits(0).calibration
    student = Part.of("cnn", width=6, depth=1, stages=1, block="plain")
    pruned = CompressionRecipe(prune=Part.of("structured", pruning_ratio=0.5))
    measured: list[Measurements] = []
    monkeypatch.setattr(
        module,
        "_measure_students",
        lambda *args, build=module._measure_students: measured.append(build(*args)) or measured[-1],
    )
    variants = [(student, CompressionRecipe()), (student, pruned)]
    model = calibrate_students(task, examples, variants, INFO, networks=20)
    # The first in integers, too; the pruned one has half of the channels.
    (students,) = measured
    assert [layers[0].bits for layers in students.works] == [FLOAT, (8, 8), FLOAT]
    assert [layers[0].channels[1] for layers in students.works] == [6, 6, 3]
    for layers, milliseconds in zip(students.works, students.times, strict=True):
        assert model._sum_times(layers, []) == pytest.approx(milliseconds, rel=0.1)
    assert calibrate_students(task, examples, variants, INFO, networks=20) == model
    assert len(measured) == 1
    work = list_layer_work(layer_costs(task.build(student).eval(), task.example()), {})
    assert model.predict(work) == pytest.approx(students.times[0], rel=0.2)


def test_a_student_that_cannot_be_compressed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("there is nothing to prune")

    monkeypatch.setattr(module, "_build_networks", refuse)
    general = Measurements(((),) * 5, (1.0,) * 5)
    task = TASKS.get("digits")()
    variant = (Part("cnn"), CompressionRecipe())
    measured = module._measure_students(task, task.splits(0).calibration, [variant], Device(), INFO, general)
    assert measured == Measurements((), ())
