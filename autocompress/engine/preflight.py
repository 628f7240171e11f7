"""Check of the run folder before anything expensive starts."""

from collections.abc import Mapping
from pathlib import Path

from autocompress.core.formatting import format_plural
from autocompress.engine.spec import Spec
from autocompress.errors import RunFolderError, UnfinishedRunError
from autocompress.store.connection import DATABASE, existing_run_error
from autocompress.store.run_store import RunStore


def check_run_folder(folder: Path, spec: Spec, *, resume: bool, command: str = "") -> None:
    """Check that a search may start or resume in a folder; the folder is not changed.

    Args:
        folder: The run folder, which need not exist.
        spec: Spec of the requested search.
        resume: Whether the run in the folder is to be continued.
        command: Command line of the user, for the message.

    Raises:
        UnfinishedRunError: The folder holds the same search, unfinished, and ``resume`` is not given.
        RunFolderError: The folder holds another run, or one that is in use.
    """
    if not (folder / DATABASE).exists():
        return
    with RunStore.open(folder) as store:
        info = store.run_info()
        before, ended = info.content, info.is_finished
        trials = len(store.trial_table())
    if before != spec.immutable_content():
        if not resume:
            raise existing_run_error(folder)
        changed = _first_difference(before, spec.immutable_content())
        raise RunFolderError(
            f"{folder} was searched with another spec: {changed} differs; restore it, or --name a new run"
        )
    if resume:
        return
    if ended:
        raise existing_run_error(folder)
    again = f"{command} --resume" if command else "search(..., resume=True)"
    raise UnfinishedRunError(
        f"{folder} holds the same search, unfinished, with {format_plural(trials, 'trial')}; continue it with: {again} "
        "(or give a new one a --name)"
    )


def _first_difference(before: object, after: object, key: str = "") -> str:
    """Return the first dotted key whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                return _first_difference(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    return f"{key} ({before!r} then, {after!r} now)"
