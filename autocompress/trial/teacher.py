"""The teacher: trained once, its weights and its logits cached by fingerprint.

A cache entry is one folder that holds ``weights.safetensors``, ``logits.safetensors`` and ``teacher.json`` with
the SHA-256 of both. An entry that does not match is noticed and trained again.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.atomic import cache_folder, compute_sha256, write_atomic
from autocompress.core.config import Part, fingerprint
from autocompress.core.task import Splits, Task, hash_split
from autocompress.training.device import CPU
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.training.precision import choose_precision

FORMAT = 1
# Examples of the batch on which precisions are compared.
PROBED = 128


@dataclass(frozen=True)
class TeacherRecipe:
    """What a teacher is made of: everything that its fingerprint covers."""

    student: Part
    fit: Part
    seed: int = 0

    def fingerprint(self, task: Task, splits: Splits) -> str:
        """Return 12 hex digits over the task, the data and the recipe."""
        return fingerprint(
            {
                "format": FORMAT,
                "task": task.name,
                "data": splits.fingerprint(),
                "student": self.student.to_json(),
                "fit": self.fit.to_json(),
                "seed": self.seed,
                "views": task.views,
                "pinned": dict(task.identity_options),
                # What augmentation does shows in what it makes of a few examples, whatever options it has.
                "augmented": hash_split(task.view(splits.calibration, 1)) if task.views > 1 else "",
            }
        )


@dataclass(frozen=True)
class Teacher:
    """A trained teacher.

    Attributes:
        model: In evaluation mode.
        logits: Its outputs by key: ``train/<view>`` and each other split's name, then the head: ``[N, C]``.
        folder: Where it is cached.
        trained: Whether this call trained it.
        notice: Why a cached one was not used; empty if there was none or it was fine.
    """

    model: nn.Module
    logits: Mapping[str, Mapping[str, Tensor]]
    folder: Path
    trained: bool = False
    notice: str = ""

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return the logits on augmented view ``index`` of the training split, ``{head: [N, C]}``."""
        return self.logits[f"train/{index}"]

    def list_files(self) -> list[Path]:
        """Return the cached weights and the record of how they came about."""
        return [self.folder / "weights.safetensors", self.folder / "teacher.json"]

    def serialize(self) -> "SerializedTeacher":
        """Return its whole entry of the cache."""
        # The record comes last: an entry that has one is complete.
        names = ("weights.safetensors", "logits.safetensors", "teacher.json")
        return SerializedTeacher(self.folder.name, {name: (self.folder / name).read_bytes() for name in names})


@dataclass(frozen=True)
class SerializedTeacher:
    """A trained teacher as bytes, for a machine that does not share this one's cache.

    Attributes:
        name: Of its entry, the fingerprint of the data included.
        files: Content by name, the record last.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)

    def install(self) -> None:
        """Put it into this machine's cache, unless it is there.

        Raises:
            StorageError: The cache folder cannot be written.
        """
        folder = cache_folder() / "teachers" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / "teacher.json").exists():
                for name, data in self.files.items():
                    write_atomic(folder / name, data)


def teacher_name(task: Task, splits: Splits, recipe: TeacherRecipe) -> str:
    """Return the name of a teacher's entry in the cache."""
    return f"{task.name}-{recipe.fingerprint(task, splits)}"


def load_teacher(
    task: Task,
    splits: Splits,
    recipe: TeacherRecipe,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    device: torch.device = CPU,
) -> Teacher:
    """Return the teacher of this recipe, from the cache or freshly trained on ``device``.

    Processes that ask at the same time wait for one of them to train it.

    Raises:
        TrialError: Its training diverged.
        StorageError: The cache folder cannot be written.
    """
    folder = cache_folder() / "teachers" / teacher_name(task, splits, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        model = task.build(recipe.student)
        notice = ""
        if (folder / "teacher.json").exists():
            try:
                return Teacher(model, _read_cache(folder, model), folder)
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as damage:
                notice = f"the cached teacher in {folder} is damaged ({damage}); it was trained again"
        torch.manual_seed(recipe.seed)
        model = task.build(recipe.student)
        request = FitRequest(task, splits.train, recipe.fit, seed=recipe.seed, on_epoch=on_epoch, device=device)
        curve = fit(model, request).curve
        logits = compute_teacher_logits(model, task, splits, fit_config(recipe.fit).precision)
        _write_cache(folder, model, logits, recipe, curve)
        return Teacher(model, logits, folder, trained=True, notice=notice)


def compute_teacher_logits(
    model: nn.Module, task: Task, splits: Splits, precision: str = "float32"
) -> dict[str, dict[str, Tensor]]:
    """Return a model's logits on every view of the training split and on every other split but test.

    The views, which students learn from, are run in the precision of the teacher's own fit; the other splits, which
    are scored, always in single precision.
    """
    lowered = choose_precision(precision, model, task, splits.calibration.take(slice(0, PROBED)))
    logits = {}
    with lowered.autocast():
        for view in range(task.views):
            found = predict(model, task, task.view(splits.train, view))
            logits[f"train/{view}"] = {head: values.float() for head, values in found.items()}
    lowered.restore_layout(model)
    for name, split in splits.items():
        # The test split stays unread until the front is frozen.
        if name not in ("train", "test"):
            logits[name] = predict(model, task, split)
    return logits


def _write_cache(
    folder: Path,
    model: nn.Module,
    logits: Mapping[str, Mapping[str, Tensor]],
    recipe: TeacherRecipe,
    curve: list[dict[str, float]],
) -> None:
    weights = save({key: value.contiguous() for key, value in model.state_dict().items()})
    flat = save({f"{key}:{head}": value.contiguous() for key, heads in logits.items() for head, value in heads.items()})
    (folder / "teacher.json").unlink(missing_ok=True)
    write_atomic(folder / "weights.safetensors", weights)
    write_atomic(folder / "logits.safetensors", flat)
    record = {
        "student": recipe.student.to_json(),
        "fit": recipe.fit.to_json(),
        "seed": recipe.seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "curve": curve,
        "sha256": {"weights.safetensors": compute_sha256(weights), "logits.safetensors": compute_sha256(flat)},
    }
    write_atomic(folder / "teacher.json", json.dumps(record, indent=1))


def _read_cache(folder: Path, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    record = json.loads((folder / "teacher.json").read_text())
    content = {}
    for name, expected in record["sha256"].items():
        content[name] = (folder / name).read_bytes()
        if compute_sha256(content[name]) != expected:
            raise ValueError(f"{name} does not match its checksum")
    model.load_state_dict(load(content["weights.safetensors"]))
    model.eval()
    logits: dict[str, dict[str, Tensor]] = {}
    for key, value in load(content["logits.safetensors"]).items():
        place, _, head = key.rpartition(":")
        logits.setdefault(place, {})[head] = value
    return logits
