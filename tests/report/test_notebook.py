import pandas as pd
import pytest

from autocompress.analysis.selection import select_candidate
from autocompress.errors import UnknownNameError
from autocompress.report.notebook import front_html, view_trial
from tests.report.factory import Run, make_run


def test_a_notebook_shows_the_pick_and_the_front_in_words(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    shown = front_html(front, run.info, picked, "Front('digits')")
    assert picked.reason.replace("'", "&#x27;") in shown
    assert shown.count("<tr") == len(front) + 1
    assert "effective FLOPs" in shown


def test_names_are_text_and_nothing_is_a_line() -> None:
    run = make_run(6, 4, hostile=True)
    hostile = run.candidates.assign(student="<script>x</script>")
    assert "<script" not in front_html(hostile, run.info, None, "")
    assert front_html(pd.DataFrame(), run.info, None, "Front(<x>)") == "<p>Front(&lt;x&gt;)</p>"


def test_a_pick_and_a_trial_are_shown_as_text() -> None:
    run = make_run(6, 4, hostile=True)
    picked = select_candidate(run.candidates.assign(prune="<b>x</b>"), run.info)
    shown = picked._repr_html_()
    assert "<script" not in shown
    assert f"<b>{picked.id}</b>" in shown
    # The whole row would fill the screen.
    assert "Row" not in repr(picked)
    assert len(repr(picked)) < 3000
    config = '{"student": {"<script>": {"width": 8}}, "prune": null}'
    trials = run.trials.assign(config=config, reason="<script>")
    trial = view_trial(1, trials, run.candidates)
    shown = trial._repr_html_()
    assert "<script" not in shown
    assert "<th>student</th>" in shown
    assert "prune" not in shown
    assert len(trial.candidates) == (run.candidates["trial"] == 1).sum()
    with pytest.raises(UnknownNameError, match="there is no trial 99"):
        view_trial(99, trials, run.candidates)
