"""Progress of a search in a notebook."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from autocompress.engine.archive import Progress
from autocompress.engine.notebook import NotebookProgress, find_display
from tests.fakes import OBJECTIVES

PROGRESS = Progress(3, 1, 2, 8, 61.0, 120.0, 40, 0.5, (("t0c1", 0.9, 1e4), ("t1c<", 0.95, 2e4)), OBJECTIVES)


def test_phases_trials_front_and_notices_replace_each_other_and_notices_stay() -> None:
    shown: list[str] = []
    progress = NotebookProgress(shown.append)
    progress.show_phase("loading <data>")
    progress.show_notice("a & b")
    progress.show_progress(PROGRESS)
    assert "loading &lt;data&gt;" in shown[0]
    assert "note: a &amp; b" in shown[1]
    # Updates that come too soon are left out, so that a cell is not flooded.
    assert len(shown) == 2
    progress._shown_at = 0.0
    progress.show_progress(PROGRESS)
    assert "note: a &amp; b" in shown[-1]
    assert '<progress value="4" max="8">' in shown[-1]
    assert "3 of 8 trials done, 2 running, 1 failed" in shown[-1]
    assert "t1c&lt;" in shown[-1]
    progress.events.teacher(5, 5)
    assert "epoch 5 of 5" in shown[-1]


def test_outside_of_a_notebook_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.delitem(sys.modules, "marimo", raising=False)
    assert find_display() is None
    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    updates: list[str] = []
    handle = SimpleNamespace(update=updates.append)
    monkeypatch.setattr(module, "HTML", str, raising=False)
    monkeypatch.setattr(module, "display", lambda text, display_id: handle, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    # A terminal of IPython has no kernel, and shows no HTML.
    for shell in (None, SimpleNamespace()):
        monkeypatch.setattr(ipython, "get_ipython", lambda shell=shell: shell, raising=False)
        assert find_display() is None
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=1), raising=False)
    show = find_display()
    assert show is not None
    show("<p>x</p>")
    assert updates == ["<p>x</p>"]


def test_a_notebook_of_marimo_shows_progress_in_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    marimo = SimpleNamespace(
        running_in_notebook=lambda: True,
        Html=lambda text: f"html: {text}",
        output=SimpleNamespace(replace=shown.append),
    )
    monkeypatch.setitem(sys.modules, "marimo", marimo)
    show = find_display()
    assert show is not None
    show("<p>one</p>")
    assert shown == ["html: <p>one</p>"]
    # A script that imports marimo is no notebook.
    monkeypatch.setattr(marimo, "running_in_notebook", lambda: False)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert find_display() is None
