"""The end of a search: the front is frozen, the pick gets its twin, and the test split is read."""

import math
from collections.abc import Mapping
from dataclasses import replace

from autocompress.analysis.pareto import axes, full_fidelity, pareto_front
from autocompress.analysis.selection import pick
from autocompress.core.config import Part
from autocompress.core.records import Cut, Job, Role
from autocompress.errors import NoCandidateError
from autocompress.store.run_store import Study
from autocompress.trial.pipeline import Setup
from autocompress.trial.runner import TrialRunner, score_test_split

PLAIN = (Part("none"),)
# Share of the budget in time that the twin of the pick may add to it.
TWIN = 0.1
# A teacher's gap between validation and test that says something: two points, and four standard errors.
LARGE_GAP = 0.02
SURE = 4.0


def finish(setup: Setup, minutes: float | None, study: Study) -> None:
    """Freeze the front on select_val, train a twin of the pick without distillation, and read the test split.

    Args:
        setup: The run's.
        minutes: Its budget in time.
        study: Its open store.
    """
    table = study.candidates()
    front = list(pareto_front(full_fidelity(table), study.meta("objectives"), study.meta("limits"))["id"])
    try:
        recommended = pick(table, study.all_meta()).id
    except NoCandidateError:
        recommended = ""
    baselines = _twin(setup, minutes, study, [recommended, *reversed(front)] if recommended else [])
    chosen = {}
    for identity in dict.fromkeys([*front, *filter(None, [recommended]), *baselines]):
        candidate = study.candidate(identity)
        chosen[identity] = (candidate, study.checkpoint_path(candidate.checkpoint).read_bytes())
    scores, teacher = score_test_split(chosen, setup)
    study.add_scores({identity: {"test": values} for identity, values in scores.items()})
    record = study.meta("teacher")
    record["scores"]["test"] = teacher
    study.set_meta(
        {
            "teacher": record,
            "front": front,
            "recommended": recommended,
            "baselines": baselines,
            "test_reads": study.meta("test_reads", 0) + 1,
            "notices": list(dict.fromkeys([*study.meta("notices", []), *seen_before(study, teacher)])),
        }
    )


def seen_before(study: Study, test: Mapping[str, float]) -> list[str]:
    """Return a notice where the teacher is so much better on the validation split that it must have seen it.

    A model of one's own often has: its losses are then measured against a score that it has nowhere else.
    """
    sizes = study.meta("splits", {})
    _, score = axes(study.meta("objectives"))
    name = score["name"]
    before, after = study.meta("teacher")["scores"]["select_val"].get(name), test.get(name)
    if name != "accuracy" or before is None or after is None:
        return []
    both = (before * sizes["select_val"] + after * sizes["test"]) / (sizes["select_val"] + sizes["test"])
    error = math.sqrt(both * (1 - both) * (1 / sizes["select_val"] + 1 / sizes["test"]))
    if before - after < max(LARGE_GAP, SURE * error):
        return []
    return [
        f"the teacher's {name} is {before:.1%} on the validation split and {after:.1%} on the test split: it has "
        "probably been trained on what it is validated on, so every candidate looks worse beside it than it is"
    ]


def _twin(setup: Setup, minutes: float | None, study: Study, wanted: list[str]) -> dict[str, str]:
    """Train the first distilled one of ``wanted`` once more without distillation; return the twin's id and label.

    There is none where nothing is distilled, or where it would take long beside the budget.
    """
    distilled = [candidate for candidate in map(study.candidate, wanted) if candidate.config.distill != PLAIN]
    if not distilled:
        return {}
    candidate = distilled[0]
    label = f"{candidate.id} without distillation"
    config = replace(candidate.config, distill=PLAIN)
    stored = study.stored_trials()
    for trial in stored:
        if trial.job.role is Role.BASELINE:
            for earlier in study.candidates_of(trial.job.number):
                if earlier.config == config:
                    return {earlier.id: label}
    seconds = sum(trial.seconds or 0.0 for trial in stored if trial.job.training == candidate.config.training)
    if minutes is not None and seconds > TWIN * minutes * 60:
        # The budget is what was promised; a comparison is not worth going far beyond it.
        return {}
    number = max(trial.job.number for trial in stored) + 1
    job = Job(number, config.training, (Cut(config.prune, config.quantize),), Role.BASELINE)
    study.add_job(job, None)
    result = TrialRunner(setup)(job)
    study.finish(result, elapsed=study.meta("seconds", 0.0), hypervolume=float("nan"))
    return {twin.id: label for twin in result.candidates}
