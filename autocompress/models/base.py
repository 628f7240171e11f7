"""The seam of model families: a config of knobs in, an untrained module out."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

from torch import nn

from autocompress.knobs import Settings

C = TypeVar("C", bound=Settings)


class Family(Protocol[C]):
    """A family of models; registered by name as an instance."""

    name: ClassVar[str]
    config: type[C]

    def build(self, config: C, input_shape: tuple[int, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained module; one head returns a tensor ``[B, C]``, several return ``{head: [B, C]}``.

        Args:
            config: The family's knobs.
            input_shape: Shape of one example without the batch axis.
            heads: Head name to number of classes, ``{"label": 10}``.

        Raises:
            UsageError: The family cannot be built for this input or these heads.
        """
        ...
