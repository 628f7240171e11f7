"""The teacher of a run: it is trained once, and its weights and logits are cached by fingerprint.

A cache entry is a folder with ``weights.safetensors``, ``logits.safetensors`` and ``teacher.json``, which holds the
fingerprint of the teacher and the SHA-256 of both. If anything in an entry differs from what was written, it is removed
and the teacher is trained again.
"""

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.atomic import compute_sha256, make_lock, open_cache, storage_errors, write_atomic
from autocompress.core.config import Part, fingerprint
from autocompress.core.registry import TASKS
from autocompress.core.task import Splits, Task, hash_split
from autocompress.core.untrusted import check_tensor_header, read_regular_file, show_value
from autocompress.models.output_teacher import OutputTeacher
from autocompress.training.device import CPU, choose_precision
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.trial.transfer import SourceTask, Transfer, copy_weights, read_weights

logger = logging.getLogger(__name__)

# Part of the fingerprint, so that a change of the cache format makes older entries unused.
FORMAT = 1
WEIGHTS, LOGITS, RECORD, LOCK = "weights.safetensors", "logits.safetensors", "teacher.json", ".lock"
# Far above the size of a training curve.
LARGEST_RECORD = 2**26
# Examples of each split whose cached logits are compared with those of the cached weights.
COMPARED = 8
# What reading an entry of any content raises.
CACHE_ERRORS = (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError, SafetensorError)
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

    @property
    def module(self) -> nn.Module | None:
        """The teacher as a module with layers; None for one that has outputs only."""
        return None if isinstance(self.model, OutputTeacher) else self.model

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return the logits on augmented view ``index`` of the training split, ``{head: [N, C]}``."""
        return self.logits[f"train/{index}"]

    def list_files(self) -> list[Path]:
        """Return the paths of the cached weights and of the record of their training."""
        return [self.folder / WEIGHTS, self.folder / RECORD]

    def read_curve(self) -> list[dict[str, float]]:
        """Return the training curve, one row per epoch; empty for a teacher that was not trained."""
        return _read_record(self.folder).curve

    def serialize(self) -> "SerializedTeacher":
        """Return the cache entry of the teacher as bytes."""
        # The record comes last, because an entry with a record counts as complete.
        names = (WEIGHTS, LOGITS, RECORD)
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
        with _lock_entry(self.name) as folder:
            if not (folder / RECORD).exists():
                for name, data in self.files.items():
                    write_atomic(folder / name, data)


def teacher_name(task: Task, splits: Splits, recipe: TeacherRecipe) -> str:
    """Return the name of a teacher's entry in the cache."""
    return f"{task.name}-{recipe.fingerprint(task, splits)}"


@contextmanager
def _lock_entry(name: str) -> Iterator[Path]:
    """Yield the folder of a cache entry, which no other process changes meanwhile."""
    folder = open_cache("teachers") / name
    _remove_unless(folder, stat.S_ISDIR)
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        _remove_unless(folder / LOCK, stat.S_ISREG)
        lock = make_lock(folder / LOCK)
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


def _remove_unless(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Remove what stands at a path of the cache if it is of another kind, such as a link."""
    with suppress(FileNotFoundError):
        if not is_kind(path.lstat().st_mode):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _EpochCounter:
    """Reports the completed epochs of a training after each step: an epoch of a large teacher takes minutes."""

    def __init__(self, report: Callable[[float], None], steps: int) -> None:
        self._report = report
        self._steps = steps
        self._epoch, self._step = 0, 0
        report(0.0)

    def add_step(self) -> None:
        self._step += 1
        # Evaluation follows the last step, so the epoch ends later.
        self._report(self._epoch + min(self._step / self._steps, 0.99))

    def add_epoch(self, row: Mapping[str, float]) -> None:
        self._epoch, self._step = int(row["epoch"]), 0
        self._report(float(self._epoch))


def load_teacher(
    task: Task,
    splits: Splits,
    recipe: TeacherRecipe,
    on_progress: Callable[[float], None] | None = None,
    device: torch.device = CPU,
) -> Teacher:
    """Return the teacher of this recipe, from the cache or trained on ``device``.

    If several processes need the same teacher, one of them trains it and the others wait.

    Args:
        task: Task of the teacher.
        splits: Splits of the data, of which the first trains it.
        recipe: Architecture and training of the teacher.
        on_progress: Receiver of the completed epochs of a training, 0.5 in the middle of the first one.
        device: Device of the training.

    Raises:
        TrialError: The training of the teacher diverged.
        StorageError: The cache folder cannot be written.
    """
    with _lock_entry(teacher_name(task, splits, recipe)) as folder:
        model = task.build(recipe.student)
        notice = ""
        if os.path.lexists(folder / RECORD):
            try:
                teacher = Teacher(model, _read_cache(folder, model, task, splits), folder)
                logger.info("Loaded the teacher from %s", folder)
                return teacher
            except CACHE_ERRORS as error:
                damage = show_value(error)
                notice = f"the cached teacher in {folder} is damaged ({damage}); it was trained again"
                logger.warning("The cached teacher in %s is damaged (%s); it is trained again", folder, damage)
                # Also a folder or a link in the place of a file, which no file could replace.
                for path in folder.iterdir():
                    if path.name != LOCK:
                        _remove(path)
        torch.manual_seed(recipe.seed)
        # Built again after seeding: the initial weights depend on the seed alone.
        model = task.build(recipe.student)
        if recipe.transfer is not None:
            copy_weights(model, _load_source(recipe.transfer, device), task, recipe.transfer)
        curve: list[dict[str, float]] = []
        if recipe.is_trained and not isinstance(model, OutputTeacher):
            request = FitRequest(task, splits.train, recipe.fit, seed=recipe.seed, device=device)
            if on_progress is not None:
                steps = -(-len(splits.train) // fit_config(recipe.fit).batch_size)
                counter = _EpochCounter(on_progress, steps)
                request = replace(request, on_epoch=counter.add_epoch, after_step=counter.add_step)
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


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights and buffers of a model by name, each in contiguous memory of its own.

    safetensors stores no tensors that share memory, as tied weights do; a model that ties them reads both copies.
    """
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _write_cache(
    folder: Path,
    model: nn.Module,
    logits: Mapping[str, Mapping[str, Tensor]],
    recipe: TeacherRecipe,
    curve: list[dict[str, float]],
) -> None:
    weights = save(copy_state(model))
    flat = save({f"{key}:{head}": value.contiguous() for key, heads in logits.items() for head, value in heads.items()})
    # Without its record, a partly written entry does not count.
    (folder / RECORD).unlink(missing_ok=True)
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / LOGITS, flat)
    record = {
        **recipe.to_json(),
        "name": folder.name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "curve": curve,
        "sha256": {WEIGHTS: compute_sha256(weights), LOGITS: compute_sha256(flat)},
    }
    write_atomic(folder / RECORD, json.dumps(record, indent=1))


class _Record(BaseModel):
    """The part of teacher.json that is read again.

    Attributes:
        name: Name of the entry, with the fingerprint of task, data and recipe; empty in entries of earlier versions.
        sha256: File name to its SHA-256.
        curve: Training curve, one row per epoch.
    """

    name: str = ""
    sha256: dict[str, str]
    curve: list[dict[str, float]]


def _read_record(folder: Path) -> _Record:
    record = _Record.model_validate_json(read_regular_file(folder / RECORD, LARGEST_RECORD))
    if record.name not in ("", folder.name):
        raise ValueError(f"{RECORD} belongs to another teacher")
    return record


def _read_cache(folder: Path, model: nn.Module, task: Task, splits: Splits) -> dict[str, dict[str, Tensor]]:
    """Load the weights of an entry into a model, and return the logits by key and head.

    Raises:
        ValueError: A checksum, a shape or a name differs, a value is not finite, or the logits are not the model's.
    """
    record = _read_record(folder)
    content = {}
    # All checksums are compared before the first file is loaded.
    for name in (WEIGHTS, LOGITS):
        content[name] = read_regular_file(folder / name)
        if compute_sha256(content[name]) != record.sha256.get(name):
            raise ValueError(f"{name} does not match its checksum")
        check_tensor_header(content[name])
    weights = load(content[WEIGHTS])
    _check_finite(weights)
    model.load_state_dict(weights)
    model.eval()
    logits: dict[str, dict[str, Tensor]] = {}
    flat = load(content[LOGITS])
    _check_finite(flat)
    for key, value in flat.items():
        split, _, head = key.rpartition(":")
        logits.setdefault(split, {})[head] = value
    _check_logits(logits, model, task, splits)
    return logits


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def _check_logits(logits: Mapping[str, Mapping[str, Tensor]], model: nn.Module, task: Task, splits: Splits) -> None:
    """Check the keys and shapes of cached logits, and compare some with those of the model."""
    sizes = {f"train/{view}": len(splits.train) for view in range(task.views)}
    sizes |= {name: len(split) for name, split in splits.items() if name not in ("train", "test")}
    if logits.keys() != sizes.keys():
        raise ValueError(f"{LOGITS} holds other splits")
    outputs = {
        name: predict(model, task, split.take(slice(0, COMPARED))) for name, split in splits.items() if name != "test"
    }
    for key, heads in logits.items():
        # Views of the training split are augmented: their logits are others, and their shapes are not.
        shapes = {head: (sizes[key], *values.shape[1:]) for head, values in outputs[key.partition("/")[0]].items()}
        if {head: tuple(values.shape) for head, values in heads.items()} != shapes:
            raise ValueError(f"the logits of {key} have another shape")
        for head, expected in outputs.get(key, {}).items():
            # Other kernels round differently; another teacher differs in every value.
            if not torch.allclose(heads[head][:COMPARED].to(expected), expected, rtol=0.05, atol=0.05):
                raise ValueError(f"the logits of {key} are not those of the weights")
