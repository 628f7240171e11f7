import os
import signal
import sys

import pytest

from autocompress.cli.signals import Stopping


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_what_runs_and_gives_the_exit_code(name: str, code: int) -> None:
    before = signal.getsignal(getattr(signal, name))
    with Stopping() as stopping:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), getattr(signal, name))
        assert stopping.exit_code == code
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_second_signal_lets_the_page_be_written_and_a_third_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    with Stopping() as stopping:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert "page of what was found is being written" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stopping.exit_code == 143
    assert sys.exc_info() == (None, None, None)
