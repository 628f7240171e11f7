"""How sure a score is, from its examples: what it would be on other draws of them, and which of them are right.

Resampling draws as many examples as there are, with replacement (Efron and Tibshirani 1993). The draws depend on the
number of examples alone, so that two models of one split are scored on the same draws.
"""

import base64
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autocompress.measure.heads import objective_called
from autocompress.measure.objectives import Subject

DRAWS = 1000
# Above this many examples a difference that matters is not one of chance, and the record would grow with the split.
KEPT = 20_000
_SEED = 20_593


def replicates(subject: Subject, name: str, draws: int = DRAWS) -> list[float]:
    """Return a score on each of ``draws`` resamplings of a split's examples.

    Args:
        subject: A model's outputs on the split.
        name: The score.
        draws: How many resamplings.

    Raises:
        TrialError: The subject lacks what the score reads.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> subject = Subject({"label": logits}, {"label": torch.tensor([0, 0, 0])})
        >>> found = replicates(subject, "accuracy", 400)
        >>> len(found), min(found), max(found), abs(sum(found) / 400 - 2 / 3) < 0.05
        (400, 0.0, 1.0, True)
    """
    score = objective_called(name)
    (size,) = {len(values) for values in subject.logits.values()}
    generator = np.random.default_rng([_SEED, size])
    found = []
    for _ in range(draws):
        rows = torch.from_numpy(generator.integers(0, size, size))
        # Six digits are finer than any split can tell.
        found.append(round(float(score.measure(_drawn(subject, rows))), 6))
    return found


def which_are_right(subject: Subject) -> dict[str, dict[str, str]]:
    """Return ``{"right": {head: bits}}``, one bit an example, packed; nothing for a very large split.

    It is what paired tests between candidates need.

    Example:
        >>> subject = Subject({"label": torch.eye(3)}, {"label": torch.tensor([0, 1, 1])})
        >>> which_are_right(subject)
        {'right': {'label': '3:wA=='}}
    """
    if any(len(targets) > KEPT for targets in subject.targets.values()):
        return {}
    found = {}
    for head, logits in subject.logits.items():
        right = (logits.argmax(1) == subject.targets[head]).numpy()
        found[head] = f"{len(right)}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"
    return {"right": found}


def _drawn(subject: Subject, rows: Tensor) -> Subject:
    return replace(
        subject,
        logits={head: values[rows] for head, values in subject.logits.items()},
        targets={head: values[rows] for head, values in subject.targets.items()},
        teacher_logits={head: values[rows] for head, values in subject.teacher_logits.items()},
        attacked={
            attack: {head: values[rows] for head, values in outputs.items()}
            for attack, outputs in subject.attacked.items()
        },
    )
