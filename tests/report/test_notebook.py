import pandas as pd

from autocompress.analysis.selection import select_candidate
from autocompress.report.notebook import front_html
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
