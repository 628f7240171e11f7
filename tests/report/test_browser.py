"""The page as its reader has it: opened from disk in a browser, filtered, sorted, hovered over, clicked, read aloud."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import pytest

from autocompress.analysis.confirmation import ConfirmedCandidate, Estimate
from autocompress.analysis.pareto import full_fidelity, is_dominated, is_feasible
from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import RunInfo
from autocompress.errors import AutocompressError
from autocompress.report import page as page_module
from autocompress.report.live import ENDED, LiveServer
from autocompress.report.page import ROWS, render_page, write_page
from tests.report.factory import HOSTILE, Run, make_run

CHROMIUM = shutil.which("chromium")
pytest.importorskip("playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

SIZES = {"desk": (1440, 900), "phone": (360, 740)}


@pytest.fixture(scope="module")
def path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(run, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(make_run(6, 4), tmp_path_factory.mktemp("small"))


def describe_rows(run: Run) -> str:
    """Return the status line of a table that is not filtered."""
    return f"{len(run.candidates)} candidates; the table shows the first {ROWS}, the front first."


def written(run: Run, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "summarize_repeats", lambda *_: repeated(run))
        return write_page(
            folder / "report.html", run.candidates, run.trials, run.info, select_candidate(run.candidates, run.info)
        )


def repeated(run: Run) -> list[ConfirmedCandidate]:
    picked = select_candidate(run.candidates, run.info)
    mean = float(picked.row["accuracy"]) - 0.004
    result = Estimate(mean, mean - 0.012, mean + 0.008, (mean, mean))
    cost = float(picked.row["effective_flops"])
    return [
        ConfirmedCandidate(picked.id, cost, mean + 0.004, result, result, Estimate(0.0, -0.01, 0.01, (0.0, 0.0)), 0)
    ]


class Opened:
    """A page in the browser, and what it said and asked for."""

    def __init__(self, browser: Any, address: str, size: str = "desk", scheme: str = "light", script: bool = True):
        width, height = SIZES[size]
        viewport = {"width": width, "height": height}
        # Without smooth scrolling, a test need not wait until it has ended.
        self.context = browser.new_context(
            viewport=viewport, color_scheme=scheme, java_script_enabled=script, reduced_motion="reduce"
        )
        self.tab = self.context.new_page()
        self.sentence: list[str] = []
        self.questions: list[str] = []
        # Without a graphics processor, WebGL is drawn by software, whose driver reports slow operations.
        self.tab.on("console", lambda message: "GL Driver" in message.text or self.sentence.append(message.text))
        self.tab.on("pageerror", lambda error: self.sentence.append(str(error)))
        self.tab.on("request", lambda request: self.questions.append(request.url))
        self.tab.goto(address)
        if script:
            self.tab.wait_for_selector("html.ready", timeout=60_000)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def count(self, selector: str) -> int:
        return int(self.tab.locator(selector).count())

    def drawn(self) -> dict[str, int]:
        """Return how many points of each group the plot shows in full."""
        result: dict[str, int] = self.tab.evaluate(
            "Object.fromEntries(document.getElementById('front-plot').data.filter((t) => t.customdata)"
            ".map((t) => [t.meta, (t.selectedpoints || t.x).length]))"
        )
        return result


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    with Opened(browser, path.as_uri()) as result:
        yield result


@pytest.mark.slow
def test_a_page_from_disk_sends_no_request_and_logs_no_error(opened: Opened, path: Path) -> None:
    assert [url for url in opened.questions if not url.startswith("blob:")] == [path.as_uri()]
    assert opened.sentence == []
    assert opened.count("#front-plot .point") > 10
    assert opened.count("#front-plot .yerror") == 1
    height = "document.getElementById('front-plot')._fullLayout.height"
    assert opened.tab.evaluate(height) == 540
    opened.tab.set_viewport_size({"width": 1300, "height": 1000})
    opened.tab.wait_for_timeout(500)
    assert opened.tab.evaluate(height) == 540
    opened.tab.set_viewport_size({"width": SIZES["desk"][0], "height": SIZES["desk"][1]})


def wait_until(tab: Any, condition: str, argument: object = None) -> None:
    """Wait until an expression, or a function of an argument, is true on the page.

    Playwright's ``wait_for_function`` compiles the condition anew within the page, whose policy forbids that.
    """
    for _ in range(200):
        if tab.evaluate(condition, argument):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"not within ten seconds: {condition}")


def limit(tab: Any, name: str, value: float) -> None:
    """Drag a slider to a share of its range."""
    tab.locator(f"#limit-{name}").evaluate(
        "(each, value) => { each.value = each.max * value; each.dispatchEvent(new Event('input')); }", value
    )


@pytest.mark.slow
def test_limits_select_anew_and_filter_plot_and_table(opened: Opened, run: Run) -> None:
    from playwright.sync_api import expect

    tab = opened.tab
    whole = opened.drawn()
    summary, pane, typed = tab.locator("#status"), tab.locator("#limited-pick"), tab.locator("#limits-text")
    assert not pane.is_visible()
    limit(tab, "score", 0.9)
    expect(summary).to_contain_text("match")
    bound = float(typed.input_value().removeprefix("accuracy >= ").removesuffix("%")) / 100
    assert tab.evaluate("document.getElementById('front-plot').layout.shapes[0].y0") == pytest.approx(bound)
    matching = run.candidates["accuracy"] >= bound
    assert opened.count("#table tbody tr") == int(matching.sum()) > 0
    limited = opened.drawn()
    groups = ("front", "dominated", "infeasible", "early", "baseline")
    assert sum(limited[group] for group in groups) == matching.sum() < sum(whole[group] for group in groups)
    # A limit on the score asks for the lowest cost, one on a cost for the best score: each is the pick of Python.
    expected = select_candidate(run.candidates, run.info, min={"accuracy": bound})
    assert pane.locator("h3").inner_text() == f"Pick within the limits: {expected.id}"
    typed.fill("bytes <= 3 KB and effective_flops <= 30KFLOPs")
    expected = select_candidate(run.candidates, run.info, max={"bytes": 3000, "effective_flops": 30e3})
    text = pane.inner_text()
    assert expected.reason in text
    assert all(neighbour.text in text for neighbour in expected.neighbours)
    assert all(constraint in text for constraint in expected.binding)
    assert "--max bytes=3KB --max effective_flops=30KFLOPs" in text
    assert f"--candidate {expected.id} --to onnx" in text
    assert expected.id in tab.locator("#pick-limits").inner_text()
    assert "30 KFLOPs" in tab.locator(".slider output").first.inner_text()
    marked = "document.getElementById('front-plot').data.find((trace) => trace.meta === 'chosen').customdata"
    wait_until(tab, f"{marked}[0] === '{expected.id}'")
    # The top of a slider is no limit.
    limit(tab, "cost", 1)
    assert typed.input_value() == "bytes <= 3KB"
    tab.locator("#no-limits").click()
    expect(summary).to_have_text(describe_rows(run))
    assert not pane.is_visible()
    assert opened.drawn() == whole


@pytest.mark.slow
def test_limits_and_filters_that_cannot_hold_say_why(opened: Opened, run: Run) -> None:
    from playwright.sync_api import expect

    tab = opened.tab
    typed, pane, problem = tab.locator("#limits-text"), tab.locator("#limited-pick"), tab.locator("#limits-problem")
    for text, limits in {
        "bytes <= 1": {"max": {"bytes": 1}},
        "accuracy >= 90% and accuracy <= 80%": {"min": {"accuracy": 0.9}, "max": {"accuracy": 0.8}},
        "accuracy <= 80%": {"max": {"accuracy": 0.8}},
        "accuracy_test >= 80%": {"min": {"accuracy_test": 0.8}},
    }.items():
        typed.fill(text)
        with pytest.raises(AutocompressError) as caught:
            select_candidate(run.candidates, run.info, **limits)  # type: ignore[arg-type]
        expect(pane.locator("p").first).to_contain_text(str(caught.value)[1:])
        assert "No pick" in pane.locator("h3").inner_text()
    expect(tab.locator("#status")).to_contain_text("match")
    typed.fill("byts <= 1")
    expect(problem).to_contain_text("Character 1: unknown column 'byts': did you mean 'bytes'?")
    assert problem.locator("mark").inner_text() == "byts"
    assert typed.get_attribute("aria-invalid") == "true"
    typed.fill("")
    expect(problem).to_be_empty()
    box, summary = tab.locator("#filter"), tab.locator("#status")
    box.fill("accuracy >= 90% and (structured or not bytes <= 2 KB)")
    texts = run.candidates.select_dtypes("str")
    matches = texts.apply(lambda column: column.str.contains("structured")).any(axis=1)
    expected = (run.candidates["accuracy"] >= 0.9) & (matches | ~(run.candidates["bytes"] <= 2000))
    expect(summary).to_have_text(f"{expected.sum()} of {len(run.candidates)} candidates match.")
    assert opened.count("#table tbody tr") == expected.sum()
    box.fill("accuracy >= 90% and (acuracy > 1)")
    note = tab.locator("#filter-problem")
    expect(note).to_contain_text("Character 22: unknown column 'acuracy': did you mean 'accuracy'?")
    assert note.locator("mark").inner_text() == "acuracy"
    box.fill("")
    expect(note).to_be_empty()
    expect(summary).to_have_text(describe_rows(run))


@pytest.mark.slow
def test_settings_are_in_the_address(browser: Any, small_path: Path) -> None:
    from playwright.sync_api import expect

    with Opened(browser, small_path.as_uri()) as page:
        tab = page.tab
        tab.locator("#filter").fill("accuracy > 0.2")
        tab.locator("#limits-text").fill("bytes <= 100KB")
        tab.locator("#axis-cost").select_option("bytes")
        wait_until(tab, "location.hash.includes('cost=bytes')")
        name = tab.locator("#table tbody th a").first.inner_text()
        # The table is drawn anew soon after the axis has changed: a press and a release might meet two different rows.
        tab.locator("#table tbody th a").first.dispatch_event("click")
        tab.locator(f"#card-{name} > .pin:not(.copy)").click()
        wait_until(tab, "location.hash.includes('pins=')")
        tab.locator('nav a[href="#honesty"]').click()
        for piece in ("filter=", "limits=", "cost=bytes", f"card={name}", f"pins={name}"):
            wait_until(tab, "(piece) => location.hash.includes(piece)", piece)
        key = tab.evaluate("new URLSearchParams(location.hash.slice(1)).get('run')")
        tab.reload()
        tab.wait_for_selector("html.ready")
        assert tab.locator("#filter").input_value() == "accuracy > 0.2"
        assert tab.locator("#limits-text").input_value() == "bytes <= 100KB"
        assert tab.locator("#axis-cost").input_value() == "bytes"
        assert tab.locator(f"#card-{name}").get_attribute("open") is not None
        assert name in tab.locator("#comparison-note").inner_text()
        assert tab.locator("#limited-pick").is_visible()
        # Back to before the axis was changed.
        for _ in range(10):
            if tab.locator("#axis-cost").input_value() == "effective_flops":
                break
            tab.go_back()
            tab.wait_for_timeout(200)
        expect(tab.locator("#axis-cost")).to_have_value("effective_flops")
        expect(tab.locator("#comparison")).not_to_be_visible()
        # The state of another run is said and ignored.
        tab.evaluate("location.hash = '#run=00000000&filter=zzz'")
        expect(tab.locator("#state-note")).to_contain_text("another run")
        expect(tab.locator("#filter")).to_have_value("")
        # So are candidates and axes that this run does not have.
        tab.evaluate(f"location.hash = '#run={key}&cost=watts&pins={name},t9999c1&card=t9998c2'")
        expect(tab.locator("#state-note")).to_contain_text("does not have; it is ignored: watts, t9999c1, t9998c2.")
        expect(tab.locator("#axis-cost")).to_have_value("effective_flops")
        expect(tab.locator("#comparison-note")).to_contain_text(f"{name} is pinned")
        assert page.sentence == []


def test_a_head_sorts_the_table_up_and_down(opened: Opened, run: Run) -> None:
    head = opened.tab.locator('#table th[data-name="bytes"]')
    first = opened.tab.locator("#table tbody tr:first-child th")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    least = run.candidates.loc[run.candidates["bytes"] == run.candidates["bytes"].min(), "id"]
    assert first.inner_text().split()[0] in set(least)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    most = run.candidates.loc[run.candidates["bytes"] == run.candidates["bytes"].max(), "id"]
    assert first.inner_text().split()[0] in set(most)


def test_hovering_tells_and_clicking_opens_the_card(opened: Opened, run: Run) -> None:
    tab = opened.tab
    picked = select_candidate(run.candidates, run.info)
    x, y = tab.evaluate(
        """() => {
          const plot = document.getElementById("front-plot");
          plot.scrollIntoView({ block: "center", behavior: "instant" });
          const trace = plot.data.find((each) => each.meta === "pick");
          const [{ _fullLayout: layout }, box] = [plot, plot.getBoundingClientRect()];
          const at = (axis, value) => axis._offset + axis.c2p(value);
          return [box.x + at(layout.xaxis, trace.x[0]), box.y + at(layout.yaxis, trace.y[0])];
        }"""
    )
    tab.mouse.move(x - 3, y)
    tab.mouse.move(x, y, steps=3)
    label = tab.locator(".hovertext").first
    label.wait_for()
    text = label.text_content()
    assert picked.id in text
    assert "accuracy" in text
    assert 0 < tab.locator(".hovertext tspan.line").count() <= 8
    tab.mouse.click(x, y)
    assert tab.locator(f"#card-{picked.id}").get_attribute("open") is not None
    assert tab.locator(f"#card-{picked.id} .command").is_visible()


@pytest.mark.slow
def test_the_front_is_read_aloud_and_walked_with_keys(opened: Opened, front: pd.DataFrame) -> None:
    tab = opened.tab
    unlabelled = "[...document.querySelectorAll('#front-plot .point')].filter((p) => !p.getAttribute('aria-label'))"
    # The points are labelled once they are visible.
    wait_until(tab, f"{unlabelled}.length === 0")
    labels = tab.evaluate("[...document.querySelectorAll('#front-plot .point')].map((p) => p.ariaLabel)")
    assert all(any(label.startswith(f"{name} on the front") for label in labels) for name in front["id"])
    assert tab.evaluate("document.querySelector('a, button, input, select, summary, [tabindex]').className") == "skip"
    tab.locator(".skip").focus()
    assert tab.locator(".skip").bounding_box()["y"] >= 0
    tab.locator("#front-plot").focus()
    ids = [str(name) for name in front["id"]]
    for key, name in (("ArrowRight", ids[0]), ("ArrowRight", ids[1]), ("End", ids[-1]), ("ArrowLeft", ids[-2])):
        tab.keyboard.press(key)
        assert tab.locator("#front-point").inner_text().startswith(f"{name} on the front")
    tab.keyboard.press("Enter")
    assert tab.locator(f"#card-{ids[-2]}").get_attribute("open") is not None
    assert tab.evaluate("document.activeElement.parentElement.id") == f"card-{ids[-2]}"
    # Other figures are pictures with a title.
    tab.wait_for_selector("html.whole")
    pictures = tab.evaluate("[...document.querySelectorAll('.plot .main-svg[role=img]')].map((svg) => svg.ariaLabel)")
    assert len(pictures) > 3
    assert all(pictures)


@pytest.mark.slow
def test_other_axes_have_their_own_front(opened: Opened, run: Run) -> None:
    tab = opened.tab
    before = opened.drawn()
    tab.locator("#axis-cost").select_option(label="bytes")
    ids = "document.getElementById('front-plot').data.find((trace) => trace.meta === 'front').customdata"
    feasible = full_fidelity(run.candidates)
    feasible = feasible[is_feasible(feasible, run.info.limits)]
    values = feasible[["bytes", "accuracy"]].map(lambda value: float(f"{value:.6g}"))
    expected = set(feasible["id"][~is_dominated(values, ["minimize", "maximize"])])
    wait_until(tab, f"{ids}.length === {len(expected)}")
    assert set(tab.evaluate(ids)) == expected
    tab.locator("#axis-cost").select_option(index=0)
    wait_until(tab, f"{ids}.length === {before['front']}")
    assert opened.drawn() == before


@pytest.mark.slow
def test_every_candidate_has_a_card_and_two_are_compared(opened: Opened, run: Run, front: pd.DataFrame) -> None:
    from playwright.sync_api import expect

    tab = opened.tab
    tab.wait_for_selector("html.whole")
    # A marked range of the parallel coordinates filters the table.
    tab.evaluate(
        """() => {
          const plot = document.getElementById("coordinates"), last = plot.data[0].dimensions.length - 1;
          Plotly.restyle(plot, { [`dimensions[${last}].constraintrange`]: [[0.9, 1]] }, [0]);
        }"""
    )
    status = tab.locator("#status")
    expect(status).to_contain_text(f"{(run.candidates['accuracy'] >= 0.9).sum()} of")
    tab.evaluate(
        """() => {
          const plot = document.getElementById("coordinates"), last = plot.data[0].dimensions.length - 1;
          Plotly.restyle(plot, { [`dimensions[${last}].constraintrange`]: null }, [0]);
        }"""
    )
    expect(status).to_have_text(describe_rows(run))
    for figure in ("curves-loss", "slice-0", "coordinates"):
        assert opened.count(f"#{figure} .main-svg") > 0
    other = next(name for name in run.candidates["id"] if name not in set(front["id"]))
    row = run.candidates.set_index("id").loc[other]
    tab.locator("#filter").fill(f'id = "{other}"')
    # A click on a row that the filter replaces at that moment is lost.
    expect(status).to_have_text(f"1 of {len(run.candidates)} candidates match.")
    tab.locator(f"#table a[href='#card-{other}']").click()
    card = tab.locator(f"#card-{other}")
    card.locator(".command").wait_for()
    tab.locator("#filter").fill("")
    assert f"--candidate {other} --to onnx" in card.locator(".command").inner_text()
    assert f"{row['student']}:" in card.locator("pre").first.inner_text()
    assert f"{row['accuracy_test']:.1%}" in card.locator("table").inner_text()
    first = str(front["id"].iloc[-1])
    tab.evaluate(f"location.hash = '#card-{first}'")
    for name in (first, other):
        tab.locator(f"#card-{name} > .pin:not(.copy)").click()
    table = tab.locator("#comparison-table")
    assert table.locator("thead").inner_text().split() == [first, other, "difference"]
    change = 100 * (row["accuracy"] - run.candidates.set_index("id").loc[first, "accuracy"])
    line = table.locator("tr", has_text="accuracy, select_val").inner_text()
    assert f"{change:.1f} points".replace("-", "") in line.replace("-", "")
    card.locator(".copy").click()
    expect(card.locator(".copy")).to_have_text(re.compile("Copied|Selected"))
    rows = tab.evaluate("drawing.figureRows(document.getElementById('front-plot'))")
    assert rows[0] == ["series", "label", "effective FLOPs", "accuracy"]
    assert {name for _, name, *_ in rows} >= {other, first, "teacher"}
    tab.locator("#unpin").click()
    assert not tab.locator("#comparison").is_visible()
    # No control leads off the machine.
    assert opened.count("[data-title*='loud'], [data-title*='Share'], [data-title*='Chart Studio']") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [("desk", "dark"), ("phone", "light")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser: Any, small_path: Path, size: str, scheme: str
) -> None:
    axe = pytest.importorskip("axe_core_python")
    with Opened(browser, small_path.as_uri(), size, scheme) as result:
        result.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        # The policy of the page admits no script but its own, so the examiner comes in by the side door.
        result.tab.evaluate((Path(axe.__file__).with_name("axe.min.js")).read_text(encoding="utf-8"))
        faults = result.tab.evaluate("axe.run({ resultTypes: ['violations'] }).then((found) => found.violations)")
        assert {fault["id"]: [node["html"][:200] for node in fault["nodes"]][:4] for fault in faults} == {}
        assert result.tab.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]


_BROKEN_WORDS = """() => {
  const broken = [];
  for (const cell of document.querySelectorAll(".named th")) {
    const text = document.createRange();
    for (const { index, 0: word } of cell.textContent.matchAll(/\\S+/g)) {
      text.setStart(cell.firstChild, index);
      text.setEnd(cell.firstChild, index + word.length);
      if (new Set([...text.getClientRects()].map((box) => box.top)).size > 1) broken.push(word);
    }
  }
  return broken;
}"""


@pytest.mark.slow
def test_names_of_classes_and_layers_are_whole_words_on_a_phone(browser: Any, tmp_path: Path) -> None:
    run = make_run(6, 4)

    def lengthen(details: dict[str, Any]) -> dict[str, Any]:
        return {**details, "layers": [{**layer, "name": f"stages.0.{layer['name']}"} for layer in details["layers"]]}

    details = [lengthen(entries) if entries else entries for entries in run.candidates["details"]]
    labels = {"label": tuple(f"Intimates and dresses {number}" for number in range(10))}
    named = replace(run, candidates=run.candidates.assign(details=details), info=replace(run.info, labels=labels))
    with Opened(browser, written(named, tmp_path).as_uri(), "phone") as result:
        result.tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert result.count(".named th[scope=row]") > 10
        assert result.tab.evaluate(_BROKEN_WORDS) == []
        assert result.tab.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]


@pytest.mark.slow
def test_ticks_on_a_phone_stand_apart_and_have_the_prefixes_of_tables(browser: Any, small_path: Path) -> None:
    with Opened(browser, small_path.as_uri(), "phone") as page:
        # Four powers of ten had thirteen ticks, of which each hid a part of the next.
        page.tab.evaluate("Plotly.relayout('front-plot', { 'xaxis.range': [3, 7.2] })")
        ticks = page.tab.evaluate(
            "[...document.querySelectorAll('#front-plot .xtick text')].map((text) =>"
            " [text.textContent, text.getBoundingClientRect().left, text.getBoundingClientRect().right])"
        )
        texts = [text for text, _, _ in ticks]
        assert "10K" in texts
        assert not any("k" in text for text in texts)
        assert all(right < left for (_, _, right), (_, left, _) in pairwise(sorted(ticks, key=lambda tick: tick[1]))), (
            ticks
        )
        title = page.tab.locator("#front-plot .ytitle").bounding_box()
        labels = page.tab.evaluate(
            "Math.min(...[...document.querySelectorAll('#front-plot .ytick text')]"
            ".map((text) => text.getBoundingClientRect().left))"
        )
        assert title["x"] + title["width"] <= labels


@pytest.mark.slow
@pytest.mark.parametrize("name", ["candidates", "search", "honesty"])
def test_what_lies_below_the_front_is_there_for_whoever_goes_to_it(browser: Any, path: Path, name: str) -> None:
    with Opened(browser, path.as_uri()) as page:
        page.tab.locator(f'nav a[href="#{name}"]').click()
        heading = page.tab.locator(f"#{name}-title")
        wait_until(
            page.tab,
            "(id) => { const y = document.getElementById(id).getBoundingClientRect().y; return y >= 0 && y < 450; }",
            f"{name}-title",
        )
        assert heading.is_visible()
        page.tab.wait_for_selector("html.whole #search #hypervolume-plot .main-svg", state="attached")
        assert not page.sentence


@pytest.mark.slow
def test_a_printed_page_has_all_its_sections(browser: Any, path: Path) -> None:
    with Opened(browser, path.as_uri()) as page:
        page.tab.emulate_media(media="print")
        retained = page.tab.evaluate(
            "[...document.querySelectorAll('section')].map((each) => getComputedStyle(each).contentVisibility)"
        )
        folded = page.tab.locator("#honesty details pre")
        assert folded.is_visible()
    assert set(retained) == {"visible"}


def test_without_scripts_there_are_the_table_and_the_picture(browser: Any, path: Path, run: Run) -> None:
    with Opened(browser, path.as_uri(), script=False) as result:
        assert result.tab.locator("#front svg .cloud.front").is_visible()
        assert result.tab.locator("#front svg .whiskers").is_visible()
        assert result.count("#table tbody tr") == min(page_module.ROWS, len(run.candidates))
        assert not result.tab.locator("#limits").is_visible()


@pytest.mark.slow
def test_hostile_names_do_nothing(browser: Any, tmp_path: Path) -> None:
    run = make_run(12, 8, hostile=True)
    page = write_page(
        tmp_path / "report.html", run.candidates, run.trials, run.info, select_candidate(run.candidates, run.info)
    )
    # Names also come from the address, and go into messages and commands.
    settings = {"run": page_module._run_key(run.info), "limits": "bytes <= 100KB", "filter": HOSTILE[2]}
    address = f"{page.as_uri()}#{urlencode(settings)}"
    with Opened(browser, address) as result:
        assert result.tab.locator("#filter").input_value() == HOSTILE[2]
        assert "a condition is missing" in result.tab.locator("#filter-problem").text_content()
        assert result.tab.locator("#limited-pick h3").inner_text().startswith("Pick within the limits")
        # A script smuggled in by a name would have changed the language.
        assert result.tab.locator("html").get_attribute("lang") == "en"
        assert [url for url in result.questions if not url.startswith("blob:")] == [address.partition("#")[0]]
        assert result.sentence == []
        assert result.count("img") == 0
        assert result.count("a[href^='javascript']") == 0
        # A mark that reverses the text behind it is shown as its number.
        result.tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        # innerText leaves out sections that the browser has not drawn yet.
        for text in ("innerText", "textContent"):
            assert "\u202e" not in result.tab.evaluate(f"document.body.{text}")
        assert "\\u202egpj.exe" in result.tab.evaluate("document.body.textContent")


@pytest.mark.slow
def test_emoji_and_scripts_from_right_to_left_are_names_like_others(browser: Any, tmp_path: Path) -> None:
    run, name = make_run(4, 4), "\N{ROCKET} \u05e9\u05dc\u05d5\u05dd"
    table, info = run.candidates.assign(student=name), replace(run.info, name=name)
    page = write_page(tmp_path / "report.html", table, run.trials, info, select_candidate(table, info))
    with Opened(browser, page.as_uri()) as result:
        assert name in result.tab.locator("header .eyebrow").inner_text()
        result.tab.locator("#filter").fill(f'student == "{name}"')
        wait_until(result.tab, f"document.getElementById('status').textContent.startsWith('{len(table)} of')")
        assert result.sentence == []


FAILED = pd.DataFrame({"number": [0], "role": ["search"], "state": ["failed"], "reason": ["out of memory"]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one candidate", "only failed trials", "no trial"])
@pytest.mark.parametrize("script", [True, False])
def test_a_run_with_little_to_show_says_what_there_is(
    browser: Any, run: Run, front: pd.DataFrame, tmp_path: Path, kind: str, script: bool
) -> None:
    candidates, trials, info, picked = run.candidates.iloc[:0], FAILED, run.info, None
    if kind == "one candidate":
        candidates, trials = run.candidates[run.candidates["id"] == front["id"].iloc[0]], run.trials
        picked = select_candidate(candidates, info)
    elif kind == "no trial":
        # The description of a run whose teacher could not be trained.
        trials, info = pd.DataFrame(), RunInfo(name="digits", command="autocompress search digits")
    page = write_page(tmp_path / "report.html", candidates, trials, info, picked)
    with Opened(browser, page.as_uri(), script=script) as result:
        text = result.tab.locator("body").inner_text()
        expected = {
            "one candidate": f"Candidate {picked.id if picked else ''} was selected from 1 candidate",
            "only failed trials": "out of memory",
            "no trial": "no trial",
        }
        assert expected[kind].lower() in text.lower()
        assert result.count("#table tbody tr") == len(candidates)
        if script:
            result.tab.evaluate("location.hash = '#run=00000000&filter=zzz&card=t9c9'")
            result.tab.wait_for_timeout(200)
        assert result.sentence == []


@pytest.mark.slow
def test_a_live_page_takes_in_what_is_new_and_keeps_what_its_reader_set(browser: Any) -> None:
    run = make_run(4, 4)
    version = ["1"]

    def render() -> str:
        info = replace(run.info, command=f"version-{version[0]}")
        return render_page(Path("reports/live"), run.candidates, run.trials, info, live=True)

    with LiveServer(render, lambda: version[0]) as server:
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Opened(browser, server.url) as result:
            version[0] = f"{ENDED} 2"
            # A poll during the input does not reload the page, and must not be the last one.
            for text in ("accuracy >= 0.2", "accuracy >= 0.1") * 3:
                result.tab.locator("#filter").fill(text)
                result.tab.wait_for_timeout(400)
            result.tab.get_by_text(f"version-{version[0]}").wait_for(timeout=30_000)
            result.tab.get_by_text("The search has ended").wait_for()
            result.tab.wait_for_selector("html.ready")
            assert result.tab.locator("#filter").input_value() == "accuracy >= 0.1"
            assert {
                url.partition(
                    "/",
                )[0]
                for url in result.questions
            } <= {"http:", "blob:http:"}
            assert result.sentence == []
        server.shutdown()
