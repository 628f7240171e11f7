from autocompress.core.records import State
from autocompress.engine.archive import Archive, summarize_progress
from autocompress.engine.spec import SearchSection
from tests.engine.test_archive import candidates
from tests.fakes import OBJECTIVES


def test_a_stopped_trial_is_done_and_a_paused_one_is_neither_done_nor_failed() -> None:
    archive = Archive(OBJECTIVES)
    archive.add(candidates([(0.5, 1e3), (0.9, 1e4), (0.4, 1e4)]))
    counts = dict.fromkeys(State, 0) | {
        State.COMPLETE: 3,
        State.STOPPED: 4,
        State.FAILED: 2,
        State.RUNNING: 1,
        State.PAUSED: 5,
    }
    progress = summarize_progress(counts, SearchSection(trials=20, minutes=1.5), 7.5, 12, archive, OBJECTIVES)
    assert (progress.done, progress.failed, progress.running, progress.total) == (7, 2, 1, 20)
    assert (progress.elapsed, progress.limit, progress.candidates) == (7.5, 90.0, 12)
    assert [(score, cost) for _, score, cost in progress.front] == [(0.5, 1e3), (0.9, 1e4)]
    assert progress.hypervolume == archive.hypervolume > 0
    assert summarize_progress(counts, SearchSection(minutes=None), 7.5, 12, archive, OBJECTIVES).limit is None
