"""The key ``distill.transfer``: every mistake is named before anything is trained, and the search uses the source."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file

import autocompress
from autocompress.core.registry import TASKS
from autocompress.core.task import Split, Splits
from autocompress.engine.runner import Plan, make_plan
from autocompress.engine.spec import parse_spec
from autocompress.errors import SpecError
from autocompress.tasks.images import Digits
from autocompress.trial.pipeline import Setup, load_pipeline

SPEC = """\
task: digits
search: {trials: 1, backend: serial}
student: {cnn: {width: 6, depth: 1}}
fit: {adamw: {epochs: 3, learning_rate: 1e-2}}
distill:
  soft_target: {alpha: 1.0}
"""


class High(Digits):
    """The digits 5 to 9."""

    name = "high_digits"
    heads: Mapping[str, int] = MappingProxyType({"label": 5})
    views = 1

    def splits(self, seed: int) -> Splits:
        return Splits(**{name: _select_high(part) for name, part in super().splits(seed).items()})


def _select_high(split: Split) -> Split:
    part = split.take(split.targets["label"] >= 5)
    return Split(part.inputs, {"label": part.targets["label"] - 5})


@pytest.fixture(autouse=True)
def high_digits() -> None:
    if "high_digits" not in TASKS:
        TASKS.register("high_digits")(High)


def plan(transfer: str, task: str = "digits", *overrides: str) -> Plan:
    text = SPEC.replace("task: digits", f"task: {task}") + f"  transfer: {transfer}\n"
    return make_plan(parse_spec(text, "x", overrides))


@pytest.mark.slow
def test_mistakes_are_named_before_anything_is_trained(small_run: Path, tmp_path: Path) -> None:
    run = json.dumps(str(small_run))
    for transfer, task, message in (
        (f"{{from: {run}}}", "high_digits", r"x:7: distill.transfer: .*10 classes\) instead of .*5 classes.*head: new"),
        ("{from: digit}", "digits", r"x:7: .*neither a run folder nor .* task: did you mean 'digits'"),
        ("{from: langid}", "digits", r"x:7: distill.transfer: student 'text_ngrams' takes"),
        (f"{{from: {run}, head: new, labels: false}}", "digits", r"transfer.head: a new head is trained on labels"),
        (f"{{from: {run}, backbone: frozen, labels: false}}", "digits", r"remove `backbone`"),
        (f"{{from: {run}, backbon: frozen}}", "digits", r"x:7: distill.transfer.backbon: .* did you mean 'backbone'"),
    ):
        with pytest.raises(SpecError, match=message):
            plan(transfer, task)
    with pytest.raises(SpecError, match=r"teacher.student, which differs"):
        plan(f"{{from: {run}}}", "digits", "teacher.student={cnn: {width: 5}}")
    with pytest.raises(SpecError, match=r"distill.transfr: unknown key; did you mean 'transfer'"):
        make_plan(parse_spec(SPEC + "  transfr: {from: digits}\n", "x"))
    damaged = shutil.copytree(small_run, tmp_path / "damaged")
    with (damaged / "teacher" / "weights.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(SpecError, match="weights"):
        plan(f"{{from: {json.dumps(str(damaged))}}}")
    shutil.rmtree(damaged / "teacher")
    with pytest.raises(SpecError, match="no trained teacher"):
        plan(f"{{from: {json.dumps(str(damaged))}}}")


@pytest.mark.slow
def test_a_new_head_on_a_frozen_backbone_keeps_the_layers_of_the_source(small_run: Path) -> None:
    text = f"{{from: {json.dumps(str(small_run))}, head: new, backbone: frozen}}"
    overrides = "teacher.fit={adamw: {epochs: 2, learning_rate: 0.1}}"
    planned = plan(text, "high_digits", overrides)
    assert Setup.from_json(json.loads(json.dumps(planned.setup.to_json()))) == planned.setup
    assert any("new head, frozen backbone" in notice for notice in planned.notices)
    teacher = load_pipeline(planned.setup).teacher
    before = load_file(small_run / "teacher" / "weights.safetensors")
    after = teacher.model.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"heads.label.weight", "heads.label.bias"}
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("heads."))
    assert load_pipeline(plan(text.replace("frozen", "tuned"), "high_digits", overrides).setup).teacher.folder != (
        teacher.folder
    )


@pytest.mark.slow
def test_a_search_without_labels_reads_none(small_run: Path, tmp_path: Path) -> None:
    transfer = f"distill.transfer={{from: {json.dumps(str(small_run))}, labels: false}}"
    spec = tmp_path / "unlabelled.yaml"
    spec.write_text(SPEC)
    front = autocompress.search(spec, runs=tmp_path, overrides=[transfer])
    source = autocompress.load(small_run).info
    assert front.info.teacher.scores["test"]["accuracy"] == source.teacher.scores["test"]["accuracy"]
    assert front.info.teacher.config["transfer"]["labels"] is False  # type: ignore[index, call-overload]
    pipeline = load_pipeline(Setup.from_json(front.info.setup))
    assert torch.equal(pipeline.splits.train.targets["label"], pipeline.teacher.view(0)["label"].argmax(1))
    assert front.pick().row["accuracy"] > 0.3
    assert "no label of the training data is read" in front.page()
    # The resolved spec starts the same search again.
    again = make_plan(parse_spec((front.folder / "spec.yaml").read_text(), "y"))
    assert again.setup.teacher == Setup.from_json(front.info.setup).teacher


@pytest.mark.slow
def test_the_teacher_of_a_task_is_a_source_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = "teacher={student: {cnn: {width: 6, depth: 1}}, fit: {adamw: {epochs: 1}}}"
    setup = plan("{from: high_digits}", "high_digits", overrides).setup
    assert setup.teacher.transfer is not None
    assert setup.teacher.transfer.task is not None
    assert setup.teacher.transfer.digest.startswith("high_digits-")
    assert setup.teacher.student == setup.teacher.transfer.task.student
