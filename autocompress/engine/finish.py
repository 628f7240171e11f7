"""End of a search: freeze the front, train the baseline without distillation, and read the test split."""

import math
from collections.abc import Mapping
from dataclasses import replace

from autocompress.analysis.pareto import full_fidelity, pareto_front, primary_objectives
from autocompress.analysis.selection import select_candidate
from autocompress.core.config import Part
from autocompress.core.records import CompressionRecipe, Job, Role
from autocompress.errors import NoCandidateError
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup
from autocompress.trial.runner import TrialRunner, score_test_split

PLAIN = (Part("none"),)
# Share of the time budget that the baseline without distillation may add to it.
BASELINE_TIME_SHARE = 0.1
# Gap of a teacher's accuracy between validation and test that counts as a leak: at least two points, and at least four
# standard errors.
LEAK_GAP = 0.02
LEAK_STANDARD_ERRORS = 4.0


def finish_run(setup: Setup, minutes: float | None, store: RunStore) -> None:
    """Freeze the front on select_val, train the selected candidate without distillation, and read the test split.

    Args:
        setup: Setup of the run.
        minutes: Time budget of the run, in minutes; ``None`` for no limit.
        store: The open store of the run.
    """
    table, info = store.candidate_table(), store.run_info()
    front = list(pareto_front(full_fidelity(table), info.objectives, info.limits)["id"])
    try:
        recommended = select_candidate(table, info).id
    except NoCandidateError:
        recommended = ""
    baselines = _train_baseline(setup, minutes, store, [recommended, *reversed(front)] if recommended else [])
    models = {}
    for identity in dict.fromkeys([*front, *filter(None, [recommended]), *baselines]):
        candidate = store.read_candidate(identity)
        models[identity] = (candidate, store.checkpoint_path(candidate.checkpoint).read_bytes())
    scores, teacher = score_test_split(models, setup)
    store.add_scores({identity: {"test": values} for identity, values in scores.items()})
    store.update_run_info(
        replace(
            info,
            teacher=replace(info.teacher, scores={**info.teacher.scores, "test": teacher}),
            front=tuple(front),
            recommended=recommended,
            baselines=baselines,
            test_reads=info.test_reads + 1,
            notices=tuple(dict.fromkeys([*info.notices, *detect_validation_leak(store, teacher)])),
        )
    )


def detect_validation_leak(store: RunStore, test: Mapping[str, float]) -> list[str]:
    """Return a notice where the teacher scores so much better on validation than on test that it has seen the former.

    It is common for models that users bring, and makes every candidate seem to lose more than it does.
    """
    info = store.run_info()
    sizes = info.splits
    _, score = primary_objectives(info.objectives)
    name = score.name
    before, after = info.teacher.score(name), test.get(name)
    if name != "accuracy" or before is None or after is None:
        return []
    both = (before * sizes["select_val"] + after * sizes["test"]) / (sizes["select_val"] + sizes["test"])
    # Standard error of the difference of two proportions, pooled.
    error = math.sqrt(both * (1 - both) * (1 / sizes["select_val"] + 1 / sizes["test"]))
    if before - after < max(LEAK_GAP, LEAK_STANDARD_ERRORS * error):
        return []
    return [
        f"the teacher's {name} is {before:.1%} on the validation split and {after:.1%} on the test split: it has "
        "probably been trained on the validation data, so every candidate seems to lose more than it does"
    ]


def _train_baseline(setup: Setup, minutes: float | None, store: RunStore, ids: list[str]) -> dict[str, str]:
    """Train the first distilled one of some candidates again without distillation; return the new id and its label.

    The result is empty where no candidate is distilled, or where the trial would exceed its share of the time budget.
    """
    distilled = [candidate for candidate in map(store.read_candidate, ids) if candidate.config.distill != PLAIN]
    if not distilled:
        return {}
    candidate = distilled[0]
    label = f"{candidate.id} without distillation"
    config = replace(candidate.config, distill=PLAIN)
    stored = store.read_trials()
    # A resumed run may have trained it already.
    for trial in stored:
        if trial.job.role is Role.BASELINE:
            for earlier in store.read_trial_candidates(trial.job.number):
                if earlier.config == config:
                    return {earlier.id: label}
    seconds = sum(trial.seconds or 0.0 for trial in stored if trial.job.training == candidate.config.training)
    # The user set the budget; a comparison is not worth exceeding it by much.
    if minutes is not None and seconds > BASELINE_TIME_SHARE * minutes * 60:
        return {}
    number = max(trial.job.number for trial in stored) + 1
    job = Job(number, config.training, (CompressionRecipe(config.prune, config.quantize),), Role.BASELINE)
    store.add_job(job, None)
    result = TrialRunner(setup)(job)
    store.record_result(result, elapsed=store.run_info().seconds or 0.0, hypervolume=float("nan"))
    return {baseline.id: label for baseline in result.candidates}
