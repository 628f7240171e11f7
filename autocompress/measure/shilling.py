"""How far a pushed item gets with real users, for recommenders under shilling.

The outputs are those of real users for the pushed item, under the name :data:`PUSHED` of ``Subject.attacked``. The
prediction shift of an attack is the difference of ``pushed_rating`` between models trained with and without it
(Mobasher et al. 2007).
"""

from statistics import fmean

import torch
from torch import Tensor

from autocompress.core.heads import Levels, as_head
from autocompress.core.task import Targets
from autocompress.errors import TrialError
from autocompress.measure.objectives import Subject, objective
from autocompress.measure.ranking_metrics import hit_rate

#: Name of the outputs for the pushed item.
PUSHED = "pushed"


@objective("pushed_rating", "minimize", "score", reads="classes")
def pushed_rating(subject: Subject) -> float:
    """Mean predicted rating of the pushed item for real users, or its mean probability of a click."""
    return fmean(
        float((logits.double().softmax(1) @ _list_levels(subject, head, logits)).mean())
        for head, logits in _require_outputs(subject).items()
    )


@objective("pushed_hit_rate_at_10", "minimize", "score", reads="classes")
def pushed_hit_rate_at_10(subject: Subject) -> float:
    """Share of real users whose list has the pushed item among its ten highest candidates."""
    outputs = _require_outputs(subject)
    return fmean(hit_rate(logits, subject.targets[head]) for head, logits in outputs.items())


def _require_outputs(subject: Subject) -> Targets:
    if PUSHED not in subject.attacked:
        raise TrialError(
            "a score of the pushed item needs a task with fake users: poisoned_ratings or poisoned_ranking"
        )
    return subject.attacked[PUSHED]


def _list_levels(subject: Subject, head: str, logits: Tensor) -> Tensor:
    """Return the value of each class; without values, 0 and 1 of no click and a click."""
    kind = as_head(subject.heads.get(head, logits.shape[1]))
    if isinstance(kind, Levels):
        return torch.tensor(kind.levels, dtype=torch.float64)
    return torch.arange(logits.shape[1], dtype=torch.float64)
