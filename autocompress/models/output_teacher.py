"""Teachers without layers: any function of examples that returns the outputs of the heads."""

from collections.abc import Callable

from torch import Tensor, nn

from autocompress.core.task import Split
from autocompress.errors import TrialError


class OutputTeacher(nn.Module):
    """A teacher that is no torch module: it has outputs, and neither layers nor weights.

    Args:
        predict_split: Function from examples to outputs by head, ``{head: [N, ...]}``.
        file_bytes: Bytes of the file that holds the teacher; None if there is no file. Its other costs are unknown.
    """

    def __init__(self, predict_split: Callable[[Split], dict[str, Tensor]], file_bytes: int | None = None) -> None:
        super().__init__()
        self.predict_split = predict_split
        self.file_bytes = file_bytes

    def forward(self, *inputs: Tensor) -> Tensor:
        """Refuse to run.

        Raises:
            TrialError: Always.
        """
        raise TrialError("the teacher is no torch module: it has outputs, and no layers that could be run")
