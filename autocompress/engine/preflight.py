"""What lies in a run folder already, looked at before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.core.formatting import plural
from autocompress.engine.spec import Spec
from autocompress.errors import RunFolderError, UnfinishedRunError
from autocompress.store.connection import DATABASE, taken
from autocompress.store.run_store import Study


def look(folder: Path, spec: Spec, *, resume: bool, command: str = "") -> None:
    """Refuse at once what would be refused later; never changes a run.

    Args:
        folder: Where the run would lie.
        spec: Of the search that is asked for.
        resume: Whether it shall continue what lies there.
        command: What the user typed, for the message.

    Raises:
        UnfinishedRunError: The same search was begun there and not ended, and ``resume`` is not given.
        RunFolderError: Another run lies there, or it is in use.
    """
    if not (folder / DATABASE).exists():
        return
    with Study.open(folder) as study:
        before, ended = study.meta("content"), "front" in study.all_meta()
        trials = len(study.trials())
    if before != spec.content():
        if not resume:
            raise taken(folder)
        changed = _first_difference(before, spec.content())
        raise RunFolderError(
            f"{folder} was searched with another spec: {changed} differs; restore it, or --name a new run"
        )
    if resume:
        return
    if ended:
        raise taken(folder)
    again = f"{command} --resume" if command else "search(..., resume=True)"
    raise UnfinishedRunError(
        f"{folder} holds the same search, not ended, with {plural(trials, 'trial')}; continue it with: {again} "
        "(or give a new one a --name)"
    )


def _first_difference(before: Any, after: Any, place: str = "") -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _first_difference(before.get(key), after.get(key), f"{place}.{key}" if place else str(key))
    return f"{place} ({before!r} then, {after!r} now)"
