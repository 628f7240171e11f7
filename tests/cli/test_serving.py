from pathlib import Path
from typing import Any

import pytest

from autocompress.analysis.cascade import CASCADE, CascadePoint, CascadeSearch, CascadeTest, SingleModel
from autocompress.cli.app import app
from autocompress.errors import AutocompressError, UsageError
from autocompress.export.origin import describe_origin
from autocompress.front import Front
from autocompress.store.run_store import RunStore
from tests.runtime.artifacts import describe_origin as make_origin, write_model
from tests.test_front import write_run

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from autocompress.runtime import http_service
from autocompress.runtime.service import ModelService


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[ModelService]:
    """The services that the command started; none of them waits for requests."""
    started: list[ModelService] = []

    def run(server: http_service.HttpServer) -> None:
        server._socket.close()
        started.append(server._service)
        server._service.close()

    monkeypatch.setattr(http_service.HttpServer, "run", run)
    return started


def serve(*words: object) -> None:
    app(["serve", *map(str, words), "--port", "0"], standalone_mode=False)


def export_run(folder: Path) -> tuple[Path, list[str]]:
    """Write a run whose candidates are exported, and return it with their ids, the cheapest first."""
    run = write_run(folder / "run")
    identities = Front(run).to_pandas()["id"].tolist()
    for identity in Front(run).candidates["id"]:
        with RunStore.read(run) as store:
            origin = describe_origin(store.read_candidate(identity), store.run_info())
        write_model(run / "picks" / identity, origin)
    return run, identities


def test_exported_folders_are_served_with_and_without_a_budget(
    tmp_path: Path, services: list[ModelService], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_model(tmp_path / name, make_origin(name, score)) for name, score in (("a", 0.8), ("b", 0.9))]
    serve(*folders, "--budget-ms", "1000")
    serve(*folders)
    assert [len(service.levels) for service in services] in ([2, 1], [1, 1])
    assert services[1].level.name == "b"
    text = capsys.readouterr().out
    assert "serving b at http://127.0.0.1:" in text
    assert "score 0.9000 on select_val" in text


def test_a_run_is_served_by_its_front_or_by_its_cascade(tmp_path: Path, services: list[ModelService]) -> None:
    run, identities = export_run(tmp_path)
    serve(run, "--candidate", identities[0])
    assert services[0].level.model.name == identities[0]
    serve(run, "--budget-ms", "1000")
    assert {level.model.name for level in services[1].levels} <= set(identities)
    point = CascadePoint(identities[0], identities[-1], 0.5, 0.1, 1.0, 0.99)
    single = SingleModel(identities[0], 1.0, 0.9)
    test = CascadeTest(0.9, 0.8, 0.1, 0.01, 0.1, 1.0)
    search = CascadeSearch("small", "accuracy", "maximize", "effective_flops", (point,), point, single, test)
    (run / CASCADE).write_text(search.to_json())
    serve(run, "--cascade")
    assert services[2].level.larger is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no run 'nowhere'"),
        (["a", "nowhere"], "'nowhere' is no exported folder"),
        (["a", "--cascade"], "belong to a run"),
        (["a", "--candidate", "t1c0"], "belong to a run"),
        (["a", "--budget-ms", "0"], "positive number of milliseconds"),
        (["a", "--budget-ms", "1e-9"], "raise the budget"),
        (["run", "--cascade"], "run autocompress cascade first"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_fix(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: list[ModelService]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", make_origin("a", 0.9))
    if words[0] == "run":
        export_run(tmp_path)
    with pytest.raises(AutocompressError, match=message):
        serve(*words)
    assert services == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("autocompress.runtime.http_service"):
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"serve needs uvicorn: pip install 'autocompress\[serve\]'"):
        serve(write_model(tmp_path / "a"))
