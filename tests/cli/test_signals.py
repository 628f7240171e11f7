import os
import signal
import sys

import pytest

from autocompress.cli.signals import StopSignals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_interrupts_and_sets_the_exit_code(name: str, code: int) -> None:
    before = signal.getsignal(getattr(signal, name))
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), getattr(signal, name))
        assert signals.exit_code == code
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_second_signal_lets_the_page_be_written_and_a_third_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert "page of the results so far is being written" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.exit_code == 143
    assert sys.exc_info() == (None, None, None)
