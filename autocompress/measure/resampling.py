"""Bootstrap replicates of a score, and the correctness of each prediction, for confidence intervals and paired tests.

Each replicate draws as many examples as the split has, with replacement (Efron and Tibshirani 1993). The draws depend
on the number of examples only, so that two models are scored on the same draws of a split.
"""

import base64
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autocompress.measure.heads import get_objective
from autocompress.measure.objectives import Subject

DRAWS = 1000
# With more examples, a difference that matters is beyond chance, and the stored record would grow with the split.
MAX_PACKED_EXAMPLES = 20_000
# Arbitrary, but fixed: stored replicates of different runs pair up.
_SEED = 20_593


def resample_score(subject: Subject, name: str, draws: int = DRAWS) -> list[float]:
    """Return the bootstrap replicates of a score, one for each resampling of a split's examples.

    Args:
        subject: Outputs of a model on the split.
        name: Name of the score.
        draws: Number of resamplings.

    Raises:
        TrialError: The subject lacks the outputs or targets that the score needs.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> subject = Subject({"label": logits}, {"label": torch.tensor([0, 0, 0])})
        >>> replicates = resample_score(subject, "accuracy", 400)
        >>> len(replicates), min(replicates), max(replicates), abs(sum(replicates) / 400 - 2 / 3) < 0.05
        (400, 0.0, 1.0, True)
    """
    score = get_objective(name)
    (size,) = {len(values) for values in subject.logits.values()}
    generator = np.random.default_rng([_SEED, size])
    replicates = []
    for _ in range(draws):
        rows = torch.from_numpy(generator.integers(0, size, size))
        # Six digits are finer than the resolution of any split.
        replicates.append(round(float(score.measure(_select_examples(subject, rows))), 6))
    return replicates


def pack_correct(subject: Subject) -> dict[str, dict[str, str]]:
    """Return ``{"right": {head: bits}}``: whether each prediction is correct, packed, one bit an example.

    Paired tests between candidates read it. It is empty for a split of more than ``MAX_PACKED_EXAMPLES``.

    Example:
        >>> subject = Subject({"label": torch.eye(3)}, {"label": torch.tensor([0, 1, 1])})
        >>> pack_correct(subject)
        {'right': {'label': '3:wA=='}}
    """
    if any(len(targets) > MAX_PACKED_EXAMPLES for targets in subject.targets.values()):
        return {}
    packed = {}
    for head, logits in subject.logits.items():
        correct = (logits.argmax(1) == subject.targets[head]).numpy()
        packed[head] = f"{len(correct)}:{base64.b64encode(np.packbits(correct).tobytes()).decode()}"
    return {"right": packed}


def _select_examples(subject: Subject, rows: Tensor) -> Subject:
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
