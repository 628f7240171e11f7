import platform
from pathlib import Path

import pytest

from autocompress.core.machine import read_processor_name


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Path("/proc/cpuinfo")
    if known.exists() and "model name" in known.read_text():
        assert f": {read_processor_name()}\n" in known.read_text()

    def nothing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", nothing)
    assert read_processor_name() == (platform.processor() or platform.machine()) != ""
