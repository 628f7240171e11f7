"""Faults of the cache of teachers: entries that someone changed, a folder that others may write to, two writers."""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import cast
from unittest import mock

from autocompress.core.task import Task
from benchmarks.faults.injection import FaultResult


def damage_teacher_cache(root: Path) -> FaultResult:
    """Row 27: changed entries of the cache of teachers, a folder that others may write to, and two writers at once."""
    from tests.trial.test_teacher import TAMPERING

    counts: Counter[str] = Counter()
    for number, kind in enumerate(TAMPERING):
        counts[_load_after(root / str(number), kind)] += 1
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        trained = [*pool.map(_is_trained_by, [root / "two"] * 2)]
    modes = sorted({_read_modes(root / "open", mask) for mask in (0o077, 0o002)})
    refusal = _load_open_folder(root / "open").replace(str(root), "ROOT")
    measured = (
        f"{len(TAMPERING)} entries: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + "; "
        f"two processes: trained {sum(trained)} times; files have the modes {', '.join(modes)}; {refusal}"
    )
    # A lock in whose place a folder stands is no part of what was trained.
    held = counts == {"trained again": len(TAMPERING) - 1, "used as it was": 1} and sum(trained) == 1
    held &= modes == ["002: 664", "077: 600"] and "refused" in refusal
    return FaultResult("trained again or refused by name, never a traceback; trained once", measured, held)


def _load_after(cache: Path, kind: str) -> str:
    """Store a teacher, change its entry, load it, and return what happened."""
    from autocompress.training.fit import predict
    from autocompress.trial.teacher import load_teacher
    from tests.trial.test_teacher import RECIPE, SPLITS, TAMPERING, PlainDigits

    task = cast(Task, PlainDigits())
    with mock.patch.dict(os.environ, AUTOCOMPRESS_CACHE=str(cache)):
        before = load_teacher(task, SPLITS, RECIPE)
        TAMPERING[kind](before.folder)
        try:
            after = load_teacher(task, SPLITS, RECIPE)
        except Exception as error:
            return f"{type(error).__name__}"
    # Training is deterministic, so the teacher is the same one, whether it was read or trained.
    logits = predict(before.model, task, SPLITS.search_val)["label"]
    if not (after.logits["search_val"]["label"] - logits).abs().max() < 1e-4:
        return "used with other content"
    return "trained again" if after.trained else "used as it was"


def _is_trained_by(cache: Path) -> bool:
    """Load the teacher in this process, and return whether it was trained here."""
    from autocompress.trial.teacher import load_teacher
    from tests.trial.test_teacher import RECIPE, SPLITS, PlainDigits

    with mock.patch.dict(os.environ, AUTOCOMPRESS_CACHE=str(cache)):
        return load_teacher(cast(Task, PlainDigits()), SPLITS, RECIPE).trained


def _read_modes(cache: Path, mask: int) -> str:
    """Return the mode of the files that the cache gets under a mask of the user."""
    from autocompress.core.atomic import write_atomic

    before = os.umask(mask)
    try:
        write_atomic(cache / f"{mask:o}" / "file", b"content")
    finally:
        os.umask(before)
    return f"{mask:03o}: {(cache / f'{mask:o}' / 'file').stat().st_mode & 0o777:o}"


def _load_open_folder(cache: Path) -> str:
    """Load a teacher from a folder that everybody may write to, and return the message."""
    from autocompress.errors import AutocompressError

    (cache / "teachers").mkdir(parents=True)
    (cache / "teachers").chmod(0o777)
    try:
        _is_trained_by(cache)
    except AutocompressError as error:
        return f"refused: {error}"
    return "a folder that others may write to was used"
