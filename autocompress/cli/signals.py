"""Ctrl-C and its kin: the first ends a search in good order, the second waits for that, the third does not."""

import os
import signal
import sys
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, `kill` and schedulers, a terminal that is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
WAIT = b"\nstopping: the page of what was found is being written; once more leaves it unwritten\n"


class Stopping(AbstractContextManager["Stopping"]):
    """Turns the signals that ask a process to end into :class:`KeyboardInterrupt`; for the main thread."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The shell's code for what ended the process: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self._seen[0] if self._seen else signal.SIGINT)

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._seen.append(number)
        if len(self._seen) == 2:
            # Not print: the signal may come in the middle of one.
            os.write(2, WAIT)
            return
        raise KeyboardInterrupt


def somebody_is_there() -> bool:
    """Return whether a question on the terminal would be answered."""
    return sys.stdin.isatty() and sys.stdout.isatty()
