from pathlib import Path

import pytest

from autocompress.targets import int8_probe
from autocompress.targets.int8_probe import (
    FORMS,
    Int8Form,
    Int8Measurement,
    choose_int8_form,
    measure_forms,
    select_form,
)

FULL, WIDE, REDUCED = FORMS
EXACT, FAST = 0.0, 0.5


def test_an_overflowing_form_is_never_chosen_while_another_is_exact() -> None:
    rows = {FULL: Int8Measurement(40, 0.1), WIDE: Int8Measurement(1, 0.9), REDUCED: Int8Measurement(0, 0.6)}
    assert select_form(rows) == REDUCED
    assert select_form({**rows, REDUCED: Int8Measurement(30, 0.6)}) == WIDE
    # If all are wrong, the least wrong one.
    assert select_form({form: Int8Measurement(error, 1) for form, error in zip(FORMS, (9, 5, 7), strict=True)}) == WIDE


def test_all_eight_bits_stay_unless_seven_are_clearly_faster() -> None:
    def choose(full: float, wide: float, reduced: float) -> Int8Form:
        times = zip(FORMS, (full, wide, reduced), strict=True)
        return select_form({form: Int8Measurement(EXACT, time) for form, time in times})

    assert choose(1.0, 1.0, 0.95) == FULL
    assert choose(1.5, 1.0, 1.0) == WIDE
    assert choose(1.5, 1.5, 1.0) == REDUCED


@pytest.mark.slow
def test_the_chosen_form_is_exact_on_this_processor_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measure_forms()
    assert set(rows) == set(FORMS)
    # Seven bits never overflow, whatever the processor.
    assert rows[REDUCED].error <= 1
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    choose_int8_form.cache_clear()
    form = choose_int8_form()
    assert rows[form].error <= 1
    (path,) = tmp_path.rglob("int8-*.json")
    # The next process reads the result and measures nothing.
    choose_int8_form.cache_clear()
    monkeypatch.setattr(int8_probe, "measure_forms", lambda: pytest.fail("it was measured again"))
    assert choose_int8_form() == form
    path.write_text("damaged")
    choose_int8_form.cache_clear()
    monkeypatch.setattr(int8_probe, "measure_forms", lambda: rows)
    assert choose_int8_form() in FORMS
    choose_int8_form.cache_clear()
