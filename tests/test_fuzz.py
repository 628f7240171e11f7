"""A sample of ``benchmarks.fuzz``; the whole of it is run by hand."""

from pathlib import Path

import pytest

from benchmarks.fuzz import KINDS, Watch, fuzz

# An audit hook stays in the process, so the tests share one.
WATCH = Watch()


@pytest.mark.parametrize(("kind", "cases"), [("search spaces", 15), ("stores", 15), ("pipelines", 30)])
def test_hostile_input_is_refused_by_a_message(kind: str, cases: int, tmp_path: Path) -> None:
    result = fuzz(kind, cases, tmp_path / "fuzz", watch=WATCH)
    assert result.cases >= cases
    assert result.refused
    assert result.passed, (result.code, result.outside, result.tracebacks)


def test_the_watch_sees_what_it_counts(tmp_path: Path) -> None:
    result = fuzz("search spaces", 1, tmp_path / "fuzz", watch=WATCH)
    with WATCH.observe(tmp_path / "inside", result):
        (tmp_path / "outside.txt").write_text("x")
        (tmp_path / "inside").mkdir()
        (tmp_path / "inside" / "file").write_text("x")
        compile_and_unpickle()
    assert [path for path in result.outside if "outside.txt" in path]
    assert not [path for path in result.outside if "inside/file" in path]
    assert result.code
    assert not result.passed


def compile_and_unpickle() -> None:
    import pickle

    pickle.loads(pickle.dumps(Path))


def test_every_kind_is_known() -> None:
    assert set(KINDS) == {"artifacts", "joined models", "pipelines", "search spaces", "stores", "pages"}
