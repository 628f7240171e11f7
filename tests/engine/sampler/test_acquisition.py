from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, CompressionRecipe
from autocompress.engine.archive import Archive
from autocompress.engine.sampler.acquisition import (
    MAX_NEW_STUDENTS,
    MAX_SCREENED_STUDENTS,
    MIN_SCREENING_TRIALS,
    QUADRATURE,
    ErrorModels,
    ExpectedHypervolumeImprovement,
    SurrogateSampler,
)
from autocompress.engine.sampler.gaussian_process import Inputs
from autocompress.engine.space import Space
from autocompress.errors import TrialError
from tests.engine.test_space import space
from tests.fakes import OBJECTIVES

TEXT = "student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}\ndistill: {none: {}}"
QUANTIZE = Part.of("post_training", weight_bits=4)


def config_of(width: int, depth: int = 1) -> CompressionConfig:
    return space(TEXT.replace("{low: 4, high: 64}", str(width)).replace("[1, 2]", str(depth))).suggest_config(
        _Never(), with_compression=False
    )[0]


class _Never:
    def __getattr__(self, name: str) -> object:
        raise AssertionError("nothing is searched")


def price(config: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
    flops = 100.0 * float(config.student.values["width"]) ** 2 * float(config.student.values["depth"])  # type: ignore[arg-type]
    return [{"effective_flops": flops, "flops": flops, "layers": 4.0}]


def make_candidates(number: int, config: CompressionConfig, score: float, epochs: int = 30) -> list[Candidate]:
    costs = price(config, [])[0]
    complete = epochs == 30
    scores = {"search_val": {"accuracy": score}}
    parent = Candidate(f"t{number}c0", number, config, epochs, scores, costs, complete=complete)
    cut = CompressionConfig(config.student, config.distill, config.fit, quantize=QUANTIZE, seed=config.seed)
    low = {**costs, "effective_flops": costs["effective_flops"] / 64}
    return [parent, Candidate(f"t{number}c1", number, cut, epochs, scores, low, complete=complete)]


def make_sampler(searched: Space | None = None, pricing: object = price) -> tuple[SurrogateSampler, Archive]:
    archive = Archive(OBJECTIVES)
    return SurrogateSampler(searched or space(TEXT), pricing, archive.normalize, OBJECTIVES, 0), archive  # type: ignore[arg-type]


def accept_all(config: CompressionConfig) -> bool:
    return False


def record(sampler: SurrogateSampler, archive: Archive, number: int, config: CompressionConfig, score: float) -> None:
    candidates = make_candidates(number, config, score)
    sampler.record_trial(number, candidates)
    archive.add(candidates)


def test_improvement_is_the_added_hypervolume() -> None:
    ehvi = ExpectedHypervolumeImprovement(np.array([[0.5, 0.5], [0.6, 0.6]]))
    # Points beyond the reference are clipped to it, and dominated ones add nothing.
    trials = np.array([[[0.25, 0.25], [0.25, 0.25]], [[0.25, 3.0], [0.7, 0.5]]])
    assert ehvi.compute_improvements(trials) == pytest.approx([0.75**2 - 0.5**2, 0.0])
    empty = ExpectedHypervolumeImprovement(np.empty((0, 2)))
    assert empty.compute_improvements(np.array([[[0.5, 0.5]]])) == pytest.approx([0.25])


@pytest.mark.parametrize("objectives", [2, 3])
def test_improvements_equal_differences_of_hypervolumes(objectives: int) -> None:
    draw = np.random.default_rng(objectives)
    front = draw.uniform(0.2, 1.1, (9, objectives))
    trials = draw.uniform(-0.1, 1.1, (30, 4, objectives))
    volume = moocore.Hypervolume(ref=np.ones(objectives))
    clipped = [np.clip(np.vstack([front, trial]), 0.0, 1.0) for trial in trials]
    expected = [volume(points) - volume(np.clip(front, 0.0, 1.0)) for points in clipped]
    assert max(expected) > 0
    assert ExpectedHypervolumeImprovement(front).compute_improvements(trials) == pytest.approx(expected, abs=1e-12)


def test_expectation_is_over_the_quadrature() -> None:
    assert sum(weight for _, weight in QUADRATURE) == pytest.approx(1.0)
    assert sum(weight * node for node, weight in QUADRATURE) == pytest.approx(0.0)
    ehvi = ExpectedHypervolumeImprovement(np.array([[0.5, 0.5]]))

    def place_candidates(log_errors: np.ndarray) -> np.ndarray:
        return np.stack([log_errors, np.zeros_like(log_errors)], axis=2)

    sure, unsure = ehvi.compute_expectations(np.array([[0.5], [0.5]]), np.array([[0.0], [0.1]]), place_candidates)
    assert sure == pytest.approx(0.5 * 0.5)
    # The improvement grows by 1 for each unit below 0.5 and by 0.5 for each unit above: a spread adds to it.
    assert unsure == pytest.approx(sure + 0.1 * 0.5 * (0.1 * 2.0 + 0.4 * 0.7))


def test_models_predict_errors_above_the_irreducible_one() -> None:
    draw = np.random.default_rng(0)
    seen = Inputs(draw.uniform(size=(30, 1)), np.empty((30, 0)), draw.uniform(3, 6, 30), np.zeros(30), np.zeros(30))
    reducible = np.exp(-1.0 * (seen.costs - 3))
    errors = np.column_stack([0.7 + 0.2 * reducible, reducible])
    models = ErrorModels.fit(seen, errors, np.array([0]))
    assert models.irreducible[0] > 0.6
    assert models.irreducible[1] < 0.05
    means, deviations = models.predict(seen)
    assert models.compute_errors(means) == pytest.approx(errors, abs=0.03)
    # However unsure the model is, the first score does not promise the impossible.
    assert models.compute_errors(means - 5 * deviations)[:, 0].min() > 0.6


def test_selects_students_that_dominate_on_cost() -> None:
    """A costly student and a cheaper one that scores the same: a still cheaper one may improve the front."""
    sampler, archive = make_sampler()
    record(sampler, archive, 0, config_of(64), 0.97)
    record(sampler, archive, 1, config_of(32), 0.97)
    front, _ = archive.front_points()
    chosen = sampler.select_trial(front, 2, {}, {}, accept_all)
    assert isinstance(chosen, CompressionConfig)
    assert int(chosen.student.values["width"]) < 32  # type: ignore[arg-type]
    assert sampler.sampler_values(chosen)["student.cnn.width"] == chosen.student.values["width"]
    # The same job gets the same proposal, and duplicates are excluded.
    assert sampler.select_trial(front, 2, {}, {}, accept_all) == chosen
    assert sampler.select_trial(front, 2, {}, {}, lambda config: config == chosen) != chosen


def test_selects_the_paused_trial_with_the_better_score() -> None:
    sampler, archive = make_sampler()
    record(sampler, archive, 0, config_of(48), 0.9)
    sampler.record_trial(1, make_candidates(1, config_of(8), 0.88, epochs=10))
    sampler.record_trial(2, make_candidates(2, config_of(8, 2), 0.12, epochs=10))
    front, _ = archive.front_points()
    assert sampler.select_trial(front, 3, {1: 20.0, 2: 20.0}, {}, None) == 1
    # The improvement expected of a running trial does not count again.
    assert sampler.select_trial(front, 3, {2: 20.0}, {1: config_of(8)}, None) in (None, 2)


def test_improvement_counts_per_compute_cost() -> None:
    sampler, archive = make_sampler()
    record(sampler, archive, 0, config_of(24), 0.8)
    sampler.record_trial(1, make_candidates(1, config_of(16), 0.79, epochs=10))
    sampler.record_trial(2, make_candidates(2, config_of(16, 2), 0.79, epochs=10))
    front, _ = archive.front_points()
    assert sampler.select_trial(front, 3, {1: 1.0, 2: 20.0}, {}, None) == 1
    assert sampler.select_trial(front, 3, {1: 2000.0, 2: 2.0}, {}, None) == 2


def test_trials_without_training_have_a_cost() -> None:
    """With 0 epochs a trial would be chosen for any improvement, and 0 / 0 is no rate."""
    sampler, archive = make_sampler(space(f"{TEXT}\nfit: {{adamw: {{epochs: [0, 10]}}}}"))
    record(sampler, archive, 0, config_of(64), 0.97)
    record(sampler, archive, 1, config_of(32), 0.97)
    front, _ = archive.front_points()
    assert isinstance(sampler.select_trial(front, 2, {}, {}, accept_all), CompressionConfig)
    paused = {1: 0.0}
    sampler.record_trial(1, make_candidates(1, config_of(16), 0.79, epochs=10))
    assert sampler.select_trial(front, 3, paused, {}, None) in (None, 1)


def test_nothing_is_selected_without_observations() -> None:
    sampler, _ = make_sampler()
    assert not sampler.has_complete_trial
    assert sampler.select_trial(np.empty((0, 2)), 0, {}, {}, accept_all) is None
    # The teacher is enough for a first selection, but predictions cannot record paused trials apart yet.
    sampler.record_trial(-1, make_candidates(-1, config_of(64, 2), 0.99)[:1])
    assert not sampler.has_complete_trial
    assert isinstance(sampler.select_trial(np.empty((0, 2)), 0, {}, {}, accept_all), CompressionConfig)


def test_nothing_is_selected_when_no_improvement_is_possible() -> None:
    sampler, archive = make_sampler(space("student: {cnn: {width: [48, 64]}}\ndistill: {none: {}}"))
    for number, width in enumerate((48, 64)):
        record(sampler, archive, number, config_of(width), 1.0)
    perfect = np.array([[0.0, 0.0]])
    assert sampler.select_trial(perfect, 2, {}, {}, accept_all) is None


def test_number_of_new_students_is_limited_and_failed_ones_are_excluded() -> None:
    priced: list[Part] = []

    def counted(config: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
        priced.append(config.student)
        if int(config.student.values["width"]) % 2:  # type: ignore[arg-type]
            raise TrialError("cannot be built")
        return price(config, cuts)

    sampler, archive = make_sampler(pricing=counted)
    record(sampler, archive, 0, config_of(64), 0.97)
    front, _ = archive.front_points()
    for number in range(1, 6):
        chosen = sampler.select_trial(front, number, {}, {}, accept_all)
        assert chosen is None or int(chosen.student.values["width"]) % 2 == 0  # type: ignore[union-attr, arg-type]
        assert len(priced) <= number * MAX_NEW_STUDENTS
    assert len(set(priced)) == len(priced)


def test_pricing_ahead_is_cached_and_changes_no_selection() -> None:
    priced: list[Part] = []

    def counted(config: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
        priced.append(config.student)
        return price(config, cuts)

    wide = TEXT.replace("high: 64", "high: 128")

    def chosen(idle: bool) -> tuple[object, int]:
        sampler, archive = make_sampler(space(wide), counted)
        assert not sampler.price_ahead(np.empty((0, 2)), 0, {}), "nothing was observed yet"
        for number, width in enumerate((64, 32, 48)):
            # Before each result, as while a worker is training.
            while idle and sampler.price_ahead(archive.front_points()[0], number + 1, {number: config_of(width)}):
                pass
            record(sampler, archive, number, config_of(width), 0.9 + width / 1000)
        before = len(priced)
        return sampler.select_trial(archive.front_points()[0], 3, {}, {}, accept_all), len(priced) - before

    direct, direct_prices = chosen(idle=False)
    prepared, prepared_prices = chosen(idle=True)
    assert direct == prepared
    assert isinstance(direct, CompressionConfig)
    assert direct_prices == MAX_NEW_STUDENTS
    assert prepared_prices == 0


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_non_finite_scores_are_not_recorded(score: float) -> None:
    sampler, archive = make_sampler()
    sampler.record_trial(0, make_candidates(0, config_of(16), score))
    assert not sampler.has_complete_trial
    record(sampler, archive, 1, config_of(32), 0.9)
    assert sampler.select_trial(archive.front_points()[0], 2, {}, {}, accept_all) is not None


def test_median_effects_include_refinements_and_exclude_dominated_recipes() -> None:
    sampler, archive = make_sampler()
    record(sampler, archive, 0, config_of(24), 0.9)
    # The uncompressed model costs more than the quantized one and scores no better.
    (quantized,) = sampler._median_effects
    parent = make_candidates(0, config_of(24), 0.9)[0]
    pruned = CompressionConfig(
        parent.config.student, parent.config.distill, parent.config.fit, prune=Part("structured")
    )
    costs = {**parent.costs, "effective_flops": parent.costs["effective_flops"] / 1000}
    worse = {"search_val": {"accuracy": 0.8}}
    sampler.record_compressions([Candidate("t1c0", 1, pruned, 30, worse, costs)])
    after = sampler._median_effects[np.argsort(sampler._median_effects[:, 1])]
    assert after[1] == pytest.approx(quantized)
    assert after[0] == pytest.approx([0.1 / 0.9, -3 / 4])
    # A trial that is not known to be complete has no effects.
    other = CompressionConfig(config_of(32).student, parent.config.distill, parent.config.fit, prune=Part("structured"))
    sampler.record_compressions([Candidate("t2c0", 2, other, 30, worse, costs)])
    assert len(sampler._median_effects) == 2


def test_random_students_are_priced_however_many_parents_there_are() -> None:
    """The mutations of eight wide students on the front alone would exceed the limit of new students."""
    priced: list[float] = []

    def pricing(config: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
        priced.append(float(config.student.values["width"]))  # type: ignore[arg-type]
        return price(config, cuts)

    wide = TEXT.replace("low: 4, high: 64", "low: 2, high: 128")
    sampler, archive = make_sampler(space(wide), pricing)
    for number in range(8):
        width = 128 - 4 * number
        record(sampler, archive, number, config_of(width), 0.95 + width / 1e4)
    front, _ = archive.front_points()
    sampler.select_trial(front, 8, {}, {}, accept_all)
    assert len(priced) == MAX_NEW_STUDENTS
    assert sum(width < 32 for width in priced) >= 6


@pytest.mark.parametrize("trials", [MIN_SCREENING_TRIALS - 1, MIN_SCREENING_TRIALS])
def test_screening_prices_only_promising_students_after_enough_trials(trials: int) -> None:
    priced: list[float] = []

    def pricing(config: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
        priced.append(float(config.student.values["width"]))  # type: ignore[arg-type]
        return price(config, cuts)

    sampler, archive = make_sampler(space(TEXT.replace("low: 4, high: 64", "low: 2, high: 128")), pricing)
    for number in range(trials):
        record(sampler, archive, number, config_of(60 + 5 * number), 0.95)
    front, _ = archive.front_points()
    chosen = sampler.select_trial(front, 91, {}, {}, accept_all)
    screened = priced[MAX_NEW_STUDENTS:]
    if trials < MIN_SCREENING_TRIALS:
        assert not screened
    else:
        assert 0 < len(screened) <= MAX_SCREENED_STUDENTS
        # Every trained student scores the same, so that only narrower ones are promising.
        assert max(screened) < 60
    # The prices are cached now, and the same job gets the same proposal.
    assert sampler.select_trial(front, 91, {}, {}, accept_all) == chosen
