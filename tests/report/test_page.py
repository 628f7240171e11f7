"""The page: whole, offline, readable without scripts, deaf to hostile names, quick."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import EnvironmentInfo, ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.errors import StorageError
from autocompress.report import page
from autocompress.report.cards import build_cards
from autocompress.report.figures import axis_settings
from autocompress.report.page import write_page
from tests.report.factory import ALL_OBJECTIVES, HOSTILE, OBJECTIVES, Run, make_run


class Reader(HTMLParser):
    """Collects what a browser without scripts would see: text, elements, table rows."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.data: dict[str, str] = {}
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.data[str(self.tags[-1][1].get("id"))] = data
        elif "style" not in self.open:
            self.text += data


def written(run: Run, folder: Path, **changes: Any) -> str:
    parts = {"candidates": run.candidates, "trials": run.trials, "info": run.info} | changes
    if "picked" not in parts:
        parts["picked"] = select_candidate(parts["candidates"], parts["info"])
    path = write_page(folder / "report.html", **parts)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def payload(reader: Reader) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(reader.data["run-data"])))
    return result


@pytest.fixture(scope="module")
def source(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(run, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def reader(source: str) -> Reader:
    return Reader(source)


@pytest.mark.slow
def test_the_page_says_the_verdict_the_pick_and_how_to_export_it(run: Run, reader: Reader) -> None:
    picked = select_candidate(run.candidates, run.info)
    assert "fewer effective FLOPs than the teacher; " in reader.text
    assert picked.reason in reader.text
    assert all(f"{neighbour.text}." in reader.text for neighbour in picked.neighbours)
    assert f"--candidate {picked.id} --to onnx --verify" in reader.text
    assert "All bit-widths have a native kernel: nothing is simulated." in reader.text


def test_the_page_says_what_of_the_pick_is_simulated(run: Run, tmp_path: Path) -> None:
    picked = select_candidate(run.candidates, run.info, knee=True)
    (card,) = build_cards(run.candidates[run.candidates["id"] == picked.id], run.candidates, run.trials, run.info)
    assert card["simulated"]
    assert f"Simulated precision: {card['simulated']}." in Reader(written(run, tmp_path, picked=picked)).text


def test_every_section_is_there_and_every_link_leads_somewhere(reader: Reader) -> None:
    ids = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
    assert {"pick", "front", "candidates", "confidence", "search", "honesty"} <= ids
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a"]
    assert links
    assert all(str(link).removeprefix("#") in ids for link in links)


def test_every_element_is_closed(reader: Reader) -> None:
    assert set(reader.open) <= {"meta", "path", "input", "circle"}


def test_nothing_comes_from_the_network(source: str) -> None:
    shown = re.sub(r'(<script type="text/plain"[^>]*>)[^<]*', r"\1", source)
    assert len(shown) < len(source) - 500_000
    assert not re.search(r"https?:|//\w|@import|url\(", shown)
    assert "default-src 'none'" in source


def test_the_policy_admits_the_two_scripts_and_no_other(source: str, reader: Reader) -> None:
    plotly = gzip.decompress(base64.b64decode(reader.data["plotly-source"]))
    own = b"".join(Path(page.__file__).with_name(name).read_bytes() for name in page.SCRIPTS if name != "live.js")
    hashes = re.findall(r"'(sha256-[^']+)'", source)
    assert hashes == ["sha256-" + base64.b64encode(hashlib.sha256(code).digest()).decode() for code in (own, plotly)]
    assert b"plotly.js (scatter, bar, parcoords; strict - minified) v" in plotly
    kinds = [attrs.get("type") for tag, attrs in reader.tags if tag == "script"]
    assert kinds == ["text/plain", "text/plain", None]
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]


def test_without_scripts_there_are_a_table_and_a_picture(run: Run, front: pd.DataFrame, reader: Reader) -> None:
    rows = [attrs for tag, attrs in reader.tags if tag == "tr" and "class" in attrs]
    assert len(rows) == min(page.ROWS, len(run.candidates))
    assert [str(row["class"]).split()[0] for row in rows[: len(front)]] == ["front"] * len(front)
    clouds = {attrs["class"]: attrs["d"] for tag, attrs in reader.tags if str(attrs.get("class")).startswith("cloud")}
    assert str(clouds["cloud front"]).count("M") == len(front)
    assert "nan" not in reader.text.lower().split()


def test_the_script_gets_every_candidate_in_the_order_of_the_table(
    run: Run, front: pd.DataFrame, reader: Reader
) -> None:
    data = payload(reader)
    identity = data["columns"].index("id")
    ids = [row[identity] for row in data["data"]]
    assert sorted(ids) == sorted(run.candidates["id"])
    assert ids[: len(front)] == front["id"].tolist()[::-1]
    assert all(name in row.partition("</th>")[0] for name, row in zip(ids, data["rows"], strict=True))
    assert data["directions"]["accuracy"] == "maximize"
    assert {trace["meta"] for trace in data["front"]["data"]} >= {"front", "line", "pick", "teacher"}
    assert len(data["hypervolume"]["data"]) == 2


def test_front_candidates_have_cards_with_scores_and_layers(run: Run, front: pd.DataFrame, reader: Reader) -> None:
    ids = [str(attrs["id"]) for tag, attrs in reader.tags if tag == "details" and "id" in attrs]
    picked = select_candidate(run.candidates, run.info).id
    # A recommended baseline is no candidate of the front.
    extra = [] if picked in set(front["id"]) else [picked]
    assert ids == ["cards", *(f"card-{name}" for name in [*extra, *front["id"][::-1]])]
    assert "Per class: label" in reader.text
    assert "blocks.0.conv" in reader.text


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    assert written(run, tmp_path) == written(run, tmp_path)


@pytest.mark.slow
def test_the_command_names_the_run_folder_without_the_machines_paths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reports" / "digits"
    assert str(tmp_path) not in written(run, folder)
    monkeypatch.chdir(tmp_path)
    assert "autocompress export reports/digits --candidate" in written(run, folder)


@pytest.mark.slow
def test_what_was_exported_is_linked_relative_to_the_page(run: Run, tmp_path: Path) -> None:
    picked = select_candidate(run.candidates, run.info)
    (tmp_path / "picks" / picked.id).mkdir(parents=True)
    assert 'href="picks/' not in written(run, tmp_path)
    (tmp_path / "picks" / picked.id / "manifest.json").touch()
    assert f'href="picks/{picked.id}/"' in written(run, tmp_path)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = make_run(12, 8, hostile=True)
    source = written(run, tmp_path)
    reader = Reader(source)
    for name in HOSTILE[:1] + HOSTILE[2:4]:
        assert name in reader.text
    assert "\\u202egpj.exe" in source
    assert "\u202e" not in source
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert len([tag for tag, _ in reader.tags if tag == "script"]) == 3
    rows = "".join(payload(reader)["rows"])
    assert "<img" not in rows
    assert "<script" not in rows


@pytest.mark.slow
def test_many_candidates_are_all_in_the_plot_and_the_page_stays_small(tmp_path: Path) -> None:
    run = make_run(112, 35)
    assert len(run.candidates) >= 3000
    source = written(run, tmp_path)
    assert len(source.encode()) < 6_000_000
    reader = Reader(source)
    data = payload(reader)
    drawn = [name for trace in data["front"]["data"] for name in trace.get("customdata", [])]
    assert set(run.candidates["id"]) <= set(drawn)
    assert len([attrs for tag, attrs in reader.tags if tag == "tr" and "class" in attrs]) == page.ROWS


@pytest.mark.parametrize("trials", [0, 3])
def test_a_run_without_candidates_has_a_page(run: Run, tmp_path: Path, trials: int) -> None:
    summary = run.trials.head(trials).assign(state="failed", reason="out of memory", hypervolume=float("nan"))
    reader = Reader(written(run, tmp_path, candidates=pd.DataFrame(), trials=summary, info=RunInfo(), picked=None))
    assert ("out of memory" in reader.text) == (trials > 0)
    assert "front" not in payload(reader)


def test_a_run_without_a_feasible_candidate_has_a_page(run: Run, tmp_path: Path) -> None:
    info = replace(run.info, limits={"effective_flops": {"max": 1.0}})
    reader = Reader(written(run, tmp_path, info=info, picked=None))
    assert "No candidate can be recommended." in reader.text
    assert "violates a limit" in reader.text


UNKNOWN = {"teacher": TeacherInfo(), "baselines": {}, "splits": {}, "environment": EnvironmentInfo(), "limits": {}}
THREE = {"objectives": [*OBJECTIVES, replace(ALL_OBJECTIVES[-1], bounds=(1e7, 1.0))]}


@pytest.mark.slow
@pytest.mark.parametrize("change", [UNKNOWN, THREE], ids=["nothing known", "three objectives"])
def test_other_kinds_of_runs_have_a_page(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    assert "</html>" in written(run, tmp_path, info=replace(run.info, **change))


def test_a_run_whose_test_split_was_not_read_says_so(tmp_path: Path) -> None:
    reader = Reader(written(make_run(6, 6, tested=False), tmp_path))
    assert "The test split was not read for this candidate." in reader.text


def test_a_failing_write_leaves_the_old_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        written(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_score_to_be_minimized_is_marked_on_its_axis_and_in_the_examples_of_conditions(
    run: Run, tmp_path: Path
) -> None:
    error = ObjectiveSpec("rmse", "minimize", "", "score", (2.0, 0.0))
    table = run.candidates.rename(columns=lambda name: name.replace("accuracy", "rmse"))
    info = replace(run.info, objectives=(error, OBJECTIVES[1]), all_objectives=(error,))
    source = write_page(tmp_path / "report.html", table, run.trials, info).read_text(encoding="utf-8")
    assert re.search(r'placeholder="effective_flops &lt;= 20K and rmse &lt;= 0\.\d+"', source)
    assert axis_settings(error)["title"]["text"] == "RMSE (less is better)"
    assert axis_settings(OBJECTIVES[0])["title"]["text"] == "accuracy"
