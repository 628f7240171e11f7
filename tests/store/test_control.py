"""Control of a running search from another process."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import autocompress
from autocompress.core.run_info import RunInfo
from autocompress.errors import UsageError
from autocompress.store.control import cancel_pause, find_driver, is_pause_requested, request_pause
from autocompress.store.run_store import RunStore
from autocompress.store.schema import OWNER


def test_a_pause_is_requested_and_cancelled_once(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")):
        front = autocompress.load(tmp_path)
        assert front.is_running
        front.pause()
        assert is_pause_requested(tmp_path)
        front.resume()
        assert not is_pause_requested(tmp_path)
        with pytest.raises(UsageError, match="is not paused"):
            front.resume()


def test_a_search_that_has_ended_cannot_be_paused(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")) as store:
        store.update_run_info(replace(store.run_info(), front=()))
    with pytest.raises(UsageError, match="has ended"):
        request_pause(tmp_path)
    assert not cancel_pause(tmp_path)
    assert not autocompress.load(tmp_path).is_running


def test_the_driver_is_a_process_that_is_there(tmp_path: Path) -> None:
    assert find_driver(tmp_path) is None
    for text, process in ((str(os.getpid()), os.getpid()), ("2147483646", None), ("no number", None)):
        (tmp_path / OWNER).write_text(text)
        assert find_driver(tmp_path) == process
