"""What the sampler remembers, kept in memory and, as a journal, in the run's own store."""

import json
from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend
from pydantic_core import from_json

from autocompress.study import Study


class Memory(BaseJournalBackend):
    """A journal of Optuna's in the transactions of the run's store.

    What a sampler did for a job is on disk if and only if the job is, and costs no write of its own. (Optuna's own
    tables took some thirty transactions for one training, and each proposal read them all again.)

    Args:
        study: The open store.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._unread: list[dict[str, Any]] = list(study.notes())

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return what was appended since the last call; the first call returns what the store holds."""
        unread, self._unread = self._unread, []
        return unread

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep entries; they are written with the next transaction."""
        for log in logs:
            line = json.dumps(log)
            self._study.note(line)
            # Read back from its text, so that a search that goes on and one that is resumed see the same.
            self._unread.append(from_json(line))
