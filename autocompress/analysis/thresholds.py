"""Sentences on the thresholds at which the candidates of a run predict their classes."""

from collections.abc import Mapping

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import describe_decision, label_column
from autocompress.core.records import THRESHOLDS
from autocompress.core.run_info import RunInfo


def describe_thresholds(details: object, info: RunInfo) -> list[str]:
    """Return a sentence on the threshold of each head of a candidate that has another one than 0.5.

    Args:
        details: Details of the candidate.
        info: Description of its run.
    """
    thresholds = details.get(THRESHOLDS) if isinstance(details, Mapping) else None
    requested = info.setup.get(THRESHOLDS)
    sentences = []
    for head, threshold in (thresholds or {}).items():
        source = "as requested"
        if isinstance(requested, Mapping) and requested.get(head) is None:
            score = label_column(primary_objectives(info.objectives)[1].name.partition("@")[0])
            source = f"the best one for {score} on the {info.splits.get('search_val', 0):,} examples of search_val"
            if head in info.teacher.thresholds:
                source += f" (the teacher's is {info.teacher.thresholds[head]:.3g})"
        sentences.append(f"{describe_decision(threshold, head, info.labels)}, {source}")
    return sentences
