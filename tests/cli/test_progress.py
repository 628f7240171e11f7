import io

from rich.console import Console

from autocompress.cli.progress import CountDisplay, SearchDisplay
from autocompress.engine.archive import Progress
from tests.fakes import OBJECTIVES


def make_progress(done: int, total: int = 3, limit: float | None = 60.0) -> Progress:
    front = tuple((f"t{n}c0", 0.5 + n / 100, 1000.0 + n) for n in range(20))
    return Progress(done, 1, 1, total, 10.0, limit, 40, 0.8765, front, OBJECTIVES)


def render_search(terminal: bool) -> str:
    out = io.StringIO()
    display = SearchDisplay(Console(file=out, force_terminal=terminal, width=120, color_system=None))
    with display:
        display.events.notice("class 'a' [rare] has 3 examples")
        display.events.phase("loading the teacher")
        display.events.teacher(0, 2)
        display.events.teacher(0.25, 2)
        display.events.teacher(2, 2)
        display.events.progress(make_progress(1))
        display.events.progress(make_progress(2))
        if terminal and display._live is not None:
            display._live.refresh()
    return out.getvalue()


def test_a_pipe_gets_few_plain_lines() -> None:
    text = render_search(terminal=False)
    assert "\x1b" not in text
    assert "loading the teacher" in text
    assert "note: class 'a' [rare] has 3 examples" in text
    # At once when it begins, then every few seconds.
    assert "training the teacher: epoch 0 of 2" in text
    assert "training the teacher: epoch 2 of 2" in text
    assert "2 of 3 trials done, 1 running, 1 failed; 40 candidates, 20 on the front, hypervolume 0.8765" in text
    assert text.count("trials done") <= 2


def test_a_terminal_gets_a_bar_and_a_front_of_few_rows() -> None:
    text = render_search(terminal=True)
    assert "front so far" in text
    assert "note: class 'a' [rare] has 3 examples" in text
    assert "50.0%" in text
    last = text.rpartition("front so far")[2]
    assert 4 <= last.count("t") <= 200
    assert sum(f"t{n}c0" in last for n in range(20)) <= 8


def test_a_search_without_a_time_limit_shows_no_remaining_time() -> None:
    out = io.StringIO()
    display = SearchDisplay(Console(file=out, force_terminal=False, width=120))
    display.events.progress(make_progress(2, limit=None))
    assert "left" not in out.getvalue()


def test_counts_are_printed_once_on_a_pipe() -> None:
    out = io.StringIO()
    with CountDisplay(Console(file=out, force_terminal=False, width=120), "timing", "timed {} models") as display:
        for done in (0, 1, 1, 2):
            display.update(done, 2)
    assert out.getvalue().splitlines() == ["timed 0 of 2 models", "timed 1 of 2 models", "timed 2 of 2 models"]
