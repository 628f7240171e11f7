"""Features of the page in Chromium, one test for each row of docs/features.md that is about the page."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autocompress.analysis.importance import analyze_importance
from autocompress.analysis.pareto import full_fidelity, pareto_front
from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import ObjectiveSpec
from autocompress.report.comparison import RunTables
from autocompress.report.page import write_page
from autocompress.report.site import SiteRun, write_index
from tests.report.factory import Run
from tests.report.test_browser import CHROMIUM, Opened, wait_until, written

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"), pytest.mark.slow]


@pytest.fixture(scope="module")
def tab(browser: Any, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a tab with the whole page of the run, everything unfolded."""
    page = written(run, tmp_path_factory.mktemp("features"))
    with Opened(browser, page.as_uri()) as opened:
        opened.tab.wait_for_selector("html.whole")
        opened.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        yield opened.tab


def read_plot(tab: Any, figure: str, expression: str) -> Any:
    """Return the value of an expression of the traces ``data`` of a figure that is drawn."""
    assert tab.locator(f"#{figure} .main-svg").count() > 0
    return tab.evaluate(f"((data) => {expression})(document.getElementById('{figure}').data)")


def test_the_front_is_drawn_with_its_candidates(tab: Any, front: pd.DataFrame) -> None:
    ids = read_plot(tab, "front-plot", "data.find((trace) => trace.meta === 'front').customdata")
    picked = read_plot(tab, "front-plot", "data.find((trace) => trace.meta === 'pick').customdata")
    assert {*ids, *picked} == set(front["id"]) | set(picked)


def test_a_third_objective_is_the_colour_of_the_front(browser: Any, run: Run, tmp_path: Path) -> None:
    size = ObjectiveSpec("bytes", "minimize", "B", "cost", (1e6, 10.0))
    info = replace(run.info, objectives=(*run.info.objectives, size))
    picked = select_candidate(run.candidates, info)
    page = write_page(tmp_path / "report.html", run.candidates, run.trials, info, picked)
    front = pareto_front(full_fidelity(run.candidates), info.objectives, info.limits)
    assert len(front) > len(pareto_front(full_fidelity(run.candidates), run.info.objectives, info.limits))
    with Opened(browser, page.as_uri()) as opened:
        trace = "data.find((trace) => trace.meta === 'front')"
        ids = read_plot(opened.tab, "front-plot", f"{trace}.customdata")
        colours = read_plot(opened.tab, "front-plot", f"{trace}.marker.color")
    assert set(front["id"]) - set(ids) <= {picked.id}
    assert len(colours) == len(ids)
    assert len(set(colours)) > 1


def test_the_recommendation_has_its_reason(tab: Any, run: Run) -> None:
    picked = select_candidate(run.candidates, run.info)
    text = tab.locator("#pick").inner_text()
    assert picked.id in text
    assert picked.reason in text
    assert all(neighbour.text in text for neighbour in picked.neighbours)


def test_importance_is_a_bar_with_its_interval(tab: Any, run: Run) -> None:
    analysis = analyze_importance(run.candidates, run.info)
    assert analysis is not None
    rows = tab.locator("#knobs table.bars tbody tr")
    assert rows.count() > 3
    best = max(share.value for share in analysis.score.values())
    shown = [float(text.split("%")[0]) for text in rows.locator("td:nth-child(2)").all_inner_texts() if "%" in text]
    assert max(shown) == pytest.approx(100 * best, abs=0.51)
    assert rows.first.locator(".bar").first.bounding_box()["width"] > 0


def test_parallel_coordinates_have_all_candidates(tab: Any, run: Run) -> None:
    complete = full_fidelity(run.candidates)
    lengths = read_plot(tab, "coordinates", "data[0].dimensions.map((each) => each.values.length)")
    assert len(lengths) > 3
    assert set(lengths) == {lengths[0]}
    assert lengths[0] >= len(complete)


def test_the_hypervolume_ends_at_that_of_the_front(tab: Any, run: Run) -> None:
    last = read_plot(tab, "hypervolume-plot", "Math.max(...data.flatMap((trace) => [...trace.y]))")
    assert last == pytest.approx(run.trials["hypervolume"].max(), abs=1e-4)


def test_slices_have_candidates_and_a_dependence_with_its_interval(tab: Any) -> None:
    panels = tab.locator("#knobs .plot[id^=slice-]").count()
    assert panels > 3
    fills = [read_plot(tab, f"slice-{index}", "data.some((trace) => trace.fill)") for index in range(panels)]
    points = [read_plot(tab, f"slice-{index}", "data.some((t) => t.mode === 'markers')") for index in range(panels)]
    assert any(fills) or "80%" in tab.locator("#knobs details.more").inner_text()
    assert all(points)


def test_curves_of_all_trials_are_drawn_with_their_rungs(tab: Any, run: Run) -> None:
    names = read_plot(tab, "curves-loss", "data.map((trace) => trace.name)")
    assert {"complete", "stopped early"} & set(names)
    points = read_plot(tab, "curves-loss", "data.flatMap((trace) => [...trace.y]).filter((y) => y > 0).length")
    assert points > len(run.trials)
    assert tab.locator("#trials [aria-label='Trials at each rung'] tbody tr").count() >= 2


def test_the_timeline_has_every_part_of_every_worker(tab: Any, run: Run) -> None:
    parts = sum(len(segments) for segments in run.trials["segments"])
    bars = read_plot(tab, "timeline", "data.reduce((sum, trace) => sum + trace.x.length, 0)")
    assert bars == parts > 0


def test_each_stopped_trial_says_why(tab: Any, run: Run) -> None:
    rows = tab.locator("#trials table.reasons tbody tr")
    stopped = run.trials[(run.trials["state"] == "stopped") & (run.trials["role"] == "search")]
    assert rows.count() == len(stopped) > 0
    assert all(text.strip() for text in rows.locator("td:last-child").all_inner_texts())


def test_a_filter_with_and_or_not_selects_rows(tab: Any, run: Run) -> None:
    table = run.candidates
    tab.locator("#filter").fill('not accuracy < 90% and (bytes <= 2 KB or student = "cnn")')
    kept = (table["accuracy"] >= 0.9) & ((table["bytes"] <= 2000) | (table["student"] == "cnn"))
    wait_until(tab, f"document.getElementById('status').textContent.includes('{kept.sum()} of')")
    assert tab.locator("#table tbody tr").count() == kept.sum() > 0
    tab.locator("#filter").fill("")


def test_intervals_and_repeats_are_drawn(tab: Any, run: Run) -> None:
    section = tab.locator("#confidence")
    assert section.locator("figure svg:visible").count() >= 2
    text = section.inner_text()
    assert "95% Wilson intervals" in text
    assert "Repeated from scratch" in text
    assert select_candidate(run.candidates, run.info).id in section.locator("tbody").first.inner_text()


def test_a_card_has_its_confusion_matrix_and_classes(browser: Any, run: Run, tmp_path: Path) -> None:
    picked = select_candidate(run.candidates, run.info)
    table = run.candidates.copy()
    row = table.index[table["id"] == picked.id][0]
    confusion = {"label": [[40, 0, 2], [1, 50, 0], [0, 3, 60]]}
    table.at[row, "details"] = {**table.at[row, "details"], "confusion": confusion}
    info = replace(run.info, labels={"label": ("cat", "dog", "emu")})
    page = write_page(tmp_path / "report.html", table, run.trials, info, select_candidate(table, info))
    with Opened(browser, page.as_uri()) as opened:
        section = opened.tab.locator("#pick")
        section.evaluate("(each) => each.querySelectorAll('details').forEach((one) => { one.open = true; })")
        matrix = section.locator("table.confusion")
        assert matrix.locator("thead").inner_text().split() == ["true", "class", "cat", "dog", "emu"]
        rows = [line.split() for line in matrix.locator("tbody tr").all_inner_texts()]
        assert rows == [["cat", "40", "2"], ["dog", "1", "50"], ["emu", "3", "60"]]
        assert matrix.locator("td.hit").count() == 3
        assert matrix.locator("td.miss").count() == 3
        assert "Per class" in section.inner_text()


def test_the_index_of_several_runs_leads_to_each_page(browser: Any, run: Run, tmp_path: Path) -> None:
    picked = select_candidate(run.candidates, run.info)
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_page(tmp_path / name / "report.html", run.candidates, run.trials, run.info, picked)
        runs.append(SiteRun(RunTables(name, run.candidates, run.trials.assign(further=False), run.info), name, picked))
    index = write_index(tmp_path, runs)
    with Opened(browser, index.as_uri(), script=False) as opened:
        assert opened.tab.locator("tr", has_text="two").locator("td", has_text=picked.id).count() == 1
        opened.tab.get_by_role("link", name="two", exact=True).click()
        assert opened.tab.url == (tmp_path / "two" / "report.html").as_uri()
        assert picked.id in opened.tab.locator("#pick-title").inner_text()
