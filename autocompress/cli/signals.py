"""Ctrl-C and termination signals: the first stops a search in order, the second is ignored, the third ends at once."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

# Ctrl-C, `kill` and schedulers, a terminal that is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOPPING = b"\nstopping: the page of the results so far is being written; press Ctrl-C again to skip it\n"

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class StopSignals(AbstractContextManager["StopSignals"]):
    """Turns signals that ask a process to end into :class:`KeyboardInterrupt`; for the main thread."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous_handlers: dict[int, Handler] = {}

    @property
    def exit_code(self) -> int:
        """The shell's exit code for the first signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self._received[0] if self._received else signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = {number: signal.signal(number, self._handle_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if len(self._received) == 2:
            # os.write instead of print: a signal may arrive while another print holds the stream's lock.
            os.write(2, STOPPING)
            return
        raise KeyboardInterrupt


def is_interactive() -> bool:
    """Return whether a question on the terminal can be answered."""
    return sys.stdin.isatty() and sys.stdout.isatty()
