from autocompress.engine.time_budget import SPARE, Pace


def test_a_job_that_would_end_after_the_budget_is_late_at_the_median_pace() -> None:
    clock = [0.0]
    pace = Pace(100.0, lambda: clock[0])
    assert not pace.late(1000)
    for seconds in (1.0, 2.0, 30.0):
        pace.note(1, seconds)
    clock[0] = 90.0
    assert not pace.late(5)
    assert pace.late(6)
    assert pace.late(1, share=0.5)
    pace.note(0, 99.0)
    assert pace.late(6)


def test_time_is_short_when_an_effort_would_barely_be_done() -> None:
    clock = [0.0]
    pace = Pace(100.0, lambda: clock[0])
    assert not pace.short(1e12)
    pace.note(10, 5.0, effort=50.0)
    pace.note(10, 5.0, effort=50.0)
    # A tenth of a second for each.
    assert not pace.short(100 / 0.1 / SPARE)
    clock[0] = 1.0
    assert pace.short(100 / 0.1 / SPARE)
    assert not pace.short(10.0)


def test_without_a_limit_nothing_is_late_and_time_is_never_short() -> None:
    pace = Pace(None, lambda: 1e9)
    pace.note(1, 1.0, effort=1.0)
    assert not pace.late(1e9)
    assert not pace.short(1e9)
