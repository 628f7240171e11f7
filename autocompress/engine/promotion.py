"""The seam of promotion: which trainings go on past a rung."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from autocompress.records import Candidate
from autocompress.registry import PROMOTION_RULES


class PromotionRule(Protocol):
    """A pure function of the candidates at one rung; it knows neither torch nor a backend."""

    name: str

    def goes_on(self, trial: int, rung: int, candidates: Mapping[int, Sequence[Candidate]]) -> bool:
        """Return whether ``trial`` continues past ``rung``.

        Args:
            trial: The trial to decide on; a key of ``candidates``.
            rung: Index of the rung, 0 the first.
            candidates: Every trial that has reached the rung, with its candidates there.
        """
        ...


@PROMOTION_RULES.register("always")
class Always:
    """Every training runs to its last epoch."""

    name = "always"

    def goes_on(self, trial: int, rung: int, candidates: Mapping[int, Sequence[Candidate]]) -> bool:
        """Return ``True``."""
        return True
