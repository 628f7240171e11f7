from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut
from autocompress.engine.archive import Archive
from autocompress.engine.sampler.acquisition import MAX_NEW_STUDENTS, SurrogateSampler
from autocompress.engine.space import Space
from autocompress.errors import TrialError
from tests.engine.test_space import space
from tests.fakes import OBJECTIVES

TEXT = "student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}\ndistill: {none: {}}"
QUANTIZE = Part.of("post_training", weight_bits=4)


def training(width: int, depth: int = 1) -> CompressionConfig:
    return space(TEXT.replace("{low: 4, high: 64}", str(width)).replace("[1, 2]", str(depth))).suggest_config(
        _Never(), with_compression=False
    )[0]


class _Never:
    def __getattr__(self, name: str) -> object:
        raise AssertionError("nothing is searched")


def price(config: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
    flops = 100.0 * float(config.student.values["width"]) ** 2 * float(config.student.values["depth"])  # type: ignore[arg-type]
    return [{"effective_flops": flops, "flops": flops, "layers": 4.0}]


def finished(number: int, config: CompressionConfig, score: float, epochs: int = 30) -> list[Candidate]:
    costs = price(config, [])[0]
    complete = epochs == 30
    scores = {"search_val": {"accuracy": score}}
    uncut = Candidate(f"t{number}c0", number, config, epochs, scores, costs, complete=complete)
    cut = CompressionConfig(config.student, config.distill, config.fit, quantize=QUANTIZE, seed=config.seed)
    low = {**costs, "effective_flops": costs["effective_flops"] / 64}
    return [uncut, Candidate(f"t{number}c1", number, cut, epochs, scores, low, complete=complete)]


def surrogate(found: Space | None = None, pricing: object = price) -> tuple[SurrogateSampler, Archive]:
    archive = Archive(OBJECTIVES)
    return SurrogateSampler(found or space(TEXT), pricing, archive.normalize, OBJECTIVES, 0), archive  # type: ignore[arg-type]


def never(config: CompressionConfig) -> bool:
    return False


def tell(guide: SurrogateSampler, archive: Archive, number: int, config: CompressionConfig, score: float) -> None:
    candidates = finished(number, config, score)
    guide.record_trial(number, candidates)
    archive.add(candidates)


def test_it_proposes_what_costs_say_would_help() -> None:
    """A dear student that is good and a cheap one that is nearly as good: what lies below is worth trying."""
    guide, archive = surrogate()
    tell(guide, archive, 0, training(64), 0.97)
    tell(guide, archive, 1, training(32), 0.97)
    front, _ = archive.front_points()
    chosen = guide.select_trial(front, 2, {}, {}, never)
    assert isinstance(chosen, CompressionConfig)
    assert int(chosen.student.values["width"]) < 32  # type: ignore[arg-type]
    assert guide.sampler_values(chosen)["student.cnn.width"] == chosen.student.values["width"]
    # The same is proposed again for the same job, and never what was begun.
    assert guide.select_trial(front, 2, {}, {}, never) == chosen
    assert guide.select_trial(front, 2, {}, {}, lambda config: config == chosen) != chosen


def test_a_paused_training_that_does_well_goes_on_and_a_poor_one_waits() -> None:
    guide, archive = surrogate()
    tell(guide, archive, 0, training(48), 0.9)
    guide.record_trial(1, finished(1, training(8), 0.88, epochs=10))
    guide.record_trial(2, finished(2, training(8, 2), 0.12, epochs=10))
    front, _ = archive.front_points()
    assert guide.select_trial(front, 3, {1: 20.0, 2: 20.0}, {}, None) == 1
    # What another worker has in hand is its own.
    assert guide.select_trial(front, 3, {2: 20.0}, {1: training(8)}, None) in (None, 2)


def test_dear_trainings_have_to_promise_more() -> None:
    guide, archive = surrogate()
    tell(guide, archive, 0, training(24), 0.8)
    guide.record_trial(1, finished(1, training(16), 0.79, epochs=10))
    guide.record_trial(2, finished(2, training(16, 2), 0.79, epochs=10))
    front, _ = archive.front_points()
    assert guide.select_trial(front, 3, {1: 1.0, 2: 20.0}, {}, None) == 1
    assert guide.select_trial(front, 3, {1: 2000.0, 2: 2.0}, {}, None) == 2


def test_nothing_is_expected_of_nothing() -> None:
    guide, _ = surrogate()
    assert not guide.has_complete_trial
    assert guide.select_trial(np.empty((0, 2)), 0, {}, {}, never) is None
    # The teacher alone is enough to begin with, but tells no paused training from another.
    guide.record_trial(-1, finished(-1, training(64, 2), 0.99)[:1])
    assert not guide.has_complete_trial
    assert isinstance(guide.select_trial(np.empty((0, 2)), 0, {}, {}, never), CompressionConfig)


def test_where_all_is_reached_nothing_is_proposed() -> None:
    guide, archive = surrogate(space("student: {cnn: {width: [48, 64]}}\ndistill: {none: {}}"))
    for number, width in enumerate((48, 64)):
        tell(guide, archive, number, training(width), 1.0)
    perfect = np.array([[0.0, 0.0]])
    assert guide.select_trial(perfect, 2, {}, {}, never) is None


def test_few_students_are_priced_at_once_and_what_has_no_price_is_left_out() -> None:
    asked: list[Part] = []

    def counted(config: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
        asked.append(config.student)
        if int(config.student.values["width"]) % 2:  # type: ignore[arg-type]
            raise TrialError("cannot be built")
        return price(config, cuts)

    guide, archive = surrogate(pricing=counted)
    tell(guide, archive, 0, training(64), 0.97)
    front, _ = archive.front_points()
    for number in range(1, 6):
        chosen = guide.select_trial(front, number, {}, {}, never)
        assert chosen is None or int(chosen.student.values["width"]) % 2 == 0  # type: ignore[union-attr, arg-type]
        assert len(asked) <= number * MAX_NEW_STUDENTS
    assert len(set(asked)) == len(asked)


def test_what_is_priced_ahead_is_not_priced_again_and_changes_no_choice() -> None:
    asked: list[Part] = []

    def counted(config: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
        asked.append(config.student)
        return price(config, cuts)

    wide = TEXT.replace("high: 64", "high: 128")

    def chosen(idle: bool) -> tuple[object, int]:
        guide, archive = surrogate(space(wide), counted)
        assert not guide.price_ahead(np.empty((0, 2)), 0, {}), "nothing is known yet"
        for number, width in enumerate((64, 32, 48)):
            # Before each result, as while a worker trains it.
            while idle and guide.price_ahead(archive.front_points()[0], number + 1, {number: training(width)}):
                pass
            tell(guide, archive, number, training(width), 0.9 + width / 1000)
        before = len(asked)
        return guide.select_trial(archive.front_points()[0], 3, {}, {}, never), len(asked) - before

    hurried, in_hurry = chosen(idle=False)
    prepared, at_leisure = chosen(idle=True)
    assert hurried == prepared
    assert isinstance(hurried, CompressionConfig)
    assert in_hurry == MAX_NEW_STUDENTS
    assert at_leisure == 0


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_what_is_not_a_number_teaches_nothing(score: float) -> None:
    guide, archive = surrogate()
    guide.record_trial(0, finished(0, training(16), score))
    assert not guide.has_complete_trial
    tell(guide, archive, 1, training(32), 0.9)
    assert guide.select_trial(archive.front_points()[0], 2, {}, {}, never) is not None


def test_what_further_cuts_did_is_expected_of_others_and_what_never_helps_is_left_out() -> None:
    guide, archive = surrogate()
    tell(guide, archive, 0, training(24), 0.9)
    # The uncut model costs more than the rounded one and scores no better.
    (rounded,) = guide._median_effects
    uncut = finished(0, training(24), 0.9)[0]
    pruned = CompressionConfig(uncut.config.student, uncut.config.distill, uncut.config.fit, prune=Part("structured"))
    costs = {**uncut.costs, "effective_flops": uncut.costs["effective_flops"] / 1000}
    worse = {"search_val": {"accuracy": 0.8}}
    guide.record_compressions([Candidate("t1c0", 1, pruned, 30, worse, costs)])
    after = guide._median_effects[np.argsort(guide._median_effects[:, 1])]
    assert after[1] == pytest.approx(rounded)
    assert after[0] == pytest.approx([0.1 / 0.9, -3 / 4])
    # Of a training that is not known to have ended, nothing can be learned.
    other = CompressionConfig(training(32).student, uncut.config.distill, uncut.config.fit, prune=Part("structured"))
    guide.record_compressions([Candidate("t2c0", 2, other, 30, worse, costs)])
    assert len(guide._median_effects) == 2


def test_students_drawn_anew_have_a_price_however_many_are_near_the_front() -> None:
    """Eight wide students on the front: those near them alone would take all that may be priced."""
    asked: list[float] = []

    def pricing(config: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
        asked.append(float(config.student.values["width"]))  # type: ignore[arg-type]
        return price(config, cuts)

    wide = TEXT.replace("low: 4, high: 64", "low: 2, high: 128")
    guide, archive = surrogate(space(wide), pricing)
    for number in range(8):
        width = 128 - 4 * number
        tell(guide, archive, number, training(width), 0.95 + width / 1e4)
    front, _ = archive.front_points()
    guide.select_trial(front, 8, {}, {}, never)
    assert len(asked) == MAX_NEW_STUDENTS
    assert sum(width < 32 for width in asked) >= 6
