"""Cascades of a finished run with its real candidates."""

import shutil
from pathlib import Path

import pytest

from autocompress.analysis.cascade import CascadeSearch
from autocompress.cli.output import print_cascade
from autocompress.errors import NoCandidateError, UsageError
from autocompress.export.cascade import search_cascades
from autocompress.front import Front
from tests.test_front import write_run


@pytest.mark.slow
def test_a_cascade_is_chosen_on_select_val_tested_stored_and_shown(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(small_run, tmp_path / "small")
    front = Front(run)
    reads = front.info.test_reads
    rows = front.candidates[front.candidates["complete"].astype(bool)].sort_values("effective_flops")
    # The cheapest and the best are furthest apart.
    pair = [rows["id"].iloc[0], rows.sort_values("accuracy")["id"].iloc[-1]]
    search = front.cascade(pair)
    assert CascadeSearch.read(run) == search
    cost = dict(zip(rows["id"], rows["effective_flops"], strict=True))
    for point in search.points:
        assert point.cost == pytest.approx(cost[point.small] + point.share * cost[point.large])
        cheaper = rows[rows["effective_flops"] <= point.cost]
        assert point.score > cheaper["accuracy"].max()
    assert front.info.test_reads == reads + (search.test is not None)
    if search.recommended is not None and search.test is not None and search.single is not None:
        # The stored test score of the single candidate is that of the comparison.
        stored = rows.set_index("id")["accuracy_test"][search.single.id]
        assert search.test.single_score == pytest.approx(stored, abs=0.005)
        assert search.test.difference == pytest.approx(search.test.score - search.test.single_score)
        assert 0 <= search.test.standard_error < 0.1
    print_cascade(search, run)
    assert str(run / "cascade.json") in capsys.readouterr().out
    assert "A cascade of two candidates" in (run / "report.html").read_text()


def test_a_search_that_runs_and_a_single_candidate_have_no_cascade(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    identities = Front(run).candidates["id"].tolist()
    with pytest.raises(UsageError, match="the search has not ended"):
        search_cascades(run, identities, lambda done, total: None)
    assert not (run / "cascade.json").exists()


def test_one_candidate_is_too_few(small_run: Path) -> None:
    identity = Front(small_run).candidates["id"].iloc[0]
    with pytest.raises(NoCandidateError, match="needs two candidates, and there are 1"):
        search_cascades(small_run, [identity], lambda done, total: None)
