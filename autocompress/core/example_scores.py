"""Scores of single examples of a split, or bootstrap replicates of a score, as a short text in a run folder.

Paired comparisons read them: two models are compared on the same examples, or on the same bootstrap draws.
"""

import base64
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["bits", "shares", "replicates"]
_KINDS = get_args(Kind)


@dataclass(frozen=True)
class ExampleScores:
    """Scores of one model on one split.

    Attributes:
        kind: ``bits`` for scores of 0 or 1, one per example; ``shares`` for scores between 0 and 1, one per example;
            ``replicates`` for bootstrap replicates of a score that is no mean over examples.
        examples: Number of independent units: examples, or groups of examples such as users.
        values: The scores ``[N]``, or the replicates ``[B]``.
    """

    kind: Kind
    examples: int
    values: NDArray[np.float64]

    @property
    def deviation(self) -> float:
        """Standard deviation of the score of one example.

        Bootstrap replicates are scores of the whole split, which vary less by the root of its number of examples.

        Example:
            >>> ExampleScores("bits", 4, np.array([1.0, 1.0, 0.0, 0.0])).deviation
            0.5
        """
        return float(self.values.std()) * (math.sqrt(self.examples) if self.kind == "replicates" else 1.0)

    def pack(self) -> str:
        """Return the scores as text: bits are packed, other values have single precision.

        Example:
            >>> ExampleScores("bits", 3, np.array([1.0, 1.0, 0.0])).pack()
            'bits:3:wA=='
        """
        packed = np.packbits(self.values > 0.5) if self.kind == "bits" else self.values.astype("<f4")
        return f"{self.kind}:{self.examples}:{base64.b64encode(packed.tobytes()).decode()}"

    @classmethod
    def unpack(cls, text: object) -> "ExampleScores | None":
        """Return the scores that :meth:`pack` wrote; None for a missing value and for a kind of a later version.

        Example:
            >>> ExampleScores.unpack("bits:3:wA==").values.tolist()
            [1.0, 1.0, 0.0]
        """
        kind, _, rest = str(text).partition(":")
        size, _, code = rest.partition(":")
        if kind not in _KINDS:
            return None
        content = base64.b64decode(code)
        if kind == "bits":
            # The count before the colon tells the padding of the last byte.
            bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=int(size))
            return cls("bits", int(size), bits.astype(np.float64))
        return cls(kind, int(size), np.frombuffer(content, dtype="<f4").astype(np.float64))  # type: ignore[arg-type]
