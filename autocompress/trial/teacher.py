"""The teacher of a run: it is trained once, and its weights and logits are cached by fingerprint.

A cache entry is a folder with ``weights.safetensors``, ``logits.safetensors`` and ``teacher.json``, which holds the
SHA-256 of both. If a file does not match, the teacher is trained again.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.atomic import cache_folder, compute_sha256, write_atomic
from autocompress.core.config import Part, fingerprint
from autocompress.core.registry import TASKS
from autocompress.core.task import Splits, Task, hash_split
from autocompress.training.device import CPU, choose_precision
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.trial.transfer import SourceTask, Transfer, copy_weights, read_weights

logger = logging.getLogger(__name__)

# Part of the fingerprint, so that a change of the cache format makes older entries unused.
FORMAT = 1
# Number of examples in the batch on which precisions are compared.
PROBE_BATCH = 128


@dataclass(frozen=True)
class TeacherRecipe:
    """The settings that determine a teacher; its fingerprint covers them, the task and the data.

    Attributes:
        student: Architecture of the teacher, a student family with its settings.
        fit: The optimizer with its settings.
        seed: Seed of the initial weights and of the training.
        transfer: The model of another data set whose weights the teacher starts from; ``None`` for random weights.
    """

    student: Part
    fit: Part
    seed: int = 0
    transfer: Transfer | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        data = {"student": self.student.to_json(), "fit": self.fit.to_json(), "seed": self.seed}
        return data if self.transfer is None else {**data, "transfer": self.transfer.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TeacherRecipe":
        """Return the recipe that :meth:`to_json` described."""
        transfer = Transfer.from_json(data["transfer"]) if "transfer" in data else None
        return cls(Part.from_json(data["student"]), Part.from_json(data["fit"]), data["seed"], transfer)

    @property
    def is_trained(self) -> bool:
        """Whether the teacher is trained on the data of its task."""
        return self.transfer is None or self.transfer.labels

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
                # The augmented examples themselves cover every option of the augmentation.
                "augmented": hash_split(task.view(splits.calibration, 1)) if task.views > 1 else "",
                **({} if self.transfer is None else {"transfer": self.transfer.identity()}),
            }
        )


@dataclass(frozen=True)
class Teacher:
    """A trained teacher.

    Attributes:
        model: The teacher in evaluation mode.
        logits: Logits ``[N, C]`` by key, then by head. Keys are ``train/<view>`` and the names of the other splits.
        folder: The folder of its cache entry.
        trained: Whether the teacher was trained now instead of being read from the cache.
        notice: Reason why a cached teacher was not used; empty if there was none or it was intact.
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
        """Return the paths of the cached weights and of the record of their training."""
        return [self.folder / "weights.safetensors", self.folder / "teacher.json"]

    def read_curve(self) -> list[dict[str, float]]:
        """Return the training curve, one row per epoch; empty for a teacher that was not trained."""
        curve: list[dict[str, float]] = json.loads((self.folder / "teacher.json").read_text())["curve"]
        return curve

    def serialize(self) -> "SerializedTeacher":
        """Return the cache entry of the teacher as bytes."""
        # The record comes last, because an entry with a record counts as complete.
        names = ("weights.safetensors", "logits.safetensors", "teacher.json")
        return SerializedTeacher(self.folder.name, {name: (self.folder / name).read_bytes() for name in names})


@dataclass(frozen=True)
class SerializedTeacher:
    """The cache entry of a trained teacher as bytes, for a machine that does not share this cache.

    Attributes:
        name: Name of the entry, which includes the fingerprint of the data.
        files: File name to content, the record last.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)

    def install(self) -> None:
        """Write the entry into this machine's cache, unless it is there already.

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
    """Return the teacher of this recipe, from the cache or trained on ``device``.

    If several processes need the same teacher, one of them trains it and the others wait.

    Raises:
        TrialError: The training of the teacher diverged.
        StorageError: The cache folder cannot be written.
    """
    folder = cache_folder() / "teachers" / teacher_name(task, splits, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        model = task.build(recipe.student)
        notice = ""
        if (folder / "teacher.json").exists():
            try:
                teacher = Teacher(model, _read_cache(folder, model), folder)
                logger.info("Loaded the teacher from %s", folder)
                return teacher
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as damage:
                notice = f"the cached teacher in {folder} is damaged ({damage}); it was trained again"
                logger.warning("The cached teacher in %s is damaged (%s); it is trained again", folder, damage)
        torch.manual_seed(recipe.seed)
        # Built again after seeding: the initial weights depend on the seed alone.
        model = task.build(recipe.student)
        if recipe.transfer is not None:
            copy_weights(model, _load_source(recipe.transfer, device), task, recipe.transfer)
        curve: list[dict[str, float]] = []
        if recipe.is_trained:
            request = FitRequest(task, splits.train, recipe.fit, seed=recipe.seed, on_epoch=on_epoch, device=device)
            curve = fit(model, request).curve
        logits = compute_teacher_logits(model, task, splits, fit_config(recipe.fit).precision)
        _write_cache(folder, model, logits, recipe, curve)
        logger.info("Trained the teacher for %d epochs; it is cached in %s", len(curve), folder)
        return Teacher(model, logits, folder, trained=True, notice=notice)


def _load_source(transfer: Transfer, device: torch.device) -> Mapping[str, Tensor]:
    """Return the weights of the source of a transfer; the teacher of a source task is trained if it is not cached."""
    if transfer.task is None:
        return read_weights(Path(transfer.path), transfer.digest)[0]
    # The random numbers of the caller must not depend on whether the source is cached.
    with torch.random.fork_rng(devices=[]):
        task, splits, recipe = build_source(transfer.task)
        return load_teacher(task, splits, recipe, device=device).model.state_dict()


def build_source(source: SourceTask) -> tuple[Task, Splits, TeacherRecipe]:
    """Return a source task with its splits and the recipe of its teacher.

    Raises:
        UsageError: The data of the task cannot be used.
    """
    task: Task = TASKS.get(source.task.name)(**source.task.values)
    return task, task.splits(0), TeacherRecipe(source.student, source.fit)


def compute_teacher_logits(
    model: nn.Module, task: Task, splits: Splits, precision: str = "float32"
) -> dict[str, dict[str, Tensor]]:
    """Return a model's logits on each view of the training split and on all other splits except test.

    The views, from which students learn, are predicted in the precision of the teacher's own fit. The other splits,
    whose logits are scored, are always predicted in single precision.
    """
    chosen = choose_precision(precision, model, task, splits.calibration.take(slice(0, PROBE_BATCH)))
    logits = {}
    with chosen.autocast():
        for view in range(task.views):
            outputs = predict(model, task, task.view(splits.train, view))
            logits[f"train/{view}"] = {head: values.float() for head, values in outputs.items()}
    chosen.restore_layout(model)
    for name, split in splits.items():
        # The test split is not read before the front is final.
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
    # Without its record, a partly written entry does not count.
    (folder / "teacher.json").unlink(missing_ok=True)
    write_atomic(folder / "weights.safetensors", weights)
    write_atomic(folder / "logits.safetensors", flat)
    record = {
        **recipe.to_json(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "curve": curve,
        "sha256": {"weights.safetensors": compute_sha256(weights), "logits.safetensors": compute_sha256(flat)},
    }
    write_atomic(folder / "teacher.json", json.dumps(record, indent=1))


def _read_cache(folder: Path, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    record = json.loads((folder / "teacher.json").read_text())
    content = {}
    # All checksums are compared before the first file is loaded.
    for name, expected in record["sha256"].items():
        content[name] = (folder / name).read_bytes()
        if compute_sha256(content[name]) != expected:
            raise ValueError(f"{name} does not match its checksum")
    model.load_state_dict(load(content["weights.safetensors"]))
    model.eval()
    logits: dict[str, dict[str, Tensor]] = {}
    for key, value in load(content["logits.safetensors"]).items():
        split, _, head = key.rpartition(":")
        logits.setdefault(split, {})[head] = value
    return logits
