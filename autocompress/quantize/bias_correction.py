"""Bias correction: rounding moves the mean of a layer's outputs, and its bias moves it back."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from autocompress.quantize.layers import broadcast_channels, flatten_positions, set_bias


class BiasCorrection:
    """Remembers each layer's mean outputs in floating point, and gives them back (Nagel et al. 2019, arXiv:1906.04721).

    Layers without a bias, and those that are called more than once, are left alone.

    Attributes:
        shifts: Layer to the largest change of its bias.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self.shifts: dict[str, float] = {}

    def like(self) -> "BiasCorrection":
        """Return another one with the same mean outputs, that has corrected nothing yet."""
        other = BiasCorrection()
        other._sums, other._rows, other._calls = self._sums, self._rows, self._calls
        return other

    def note(self, name: str, layer: Any, output: Tensor, first: bool) -> None:
        """Take note of one call in floating point; ``first`` is True for those of the first batch."""
        if getattr(layer, "bias", None) is None:
            return
        rows = flatten_positions(layer, output)
        self._sums[name] = self._sums.get(name, 0.0) + rows.sum(0)
        self._rows[name] = self._rows.get(name, 0) + len(rows)
        self._calls[name] = self._calls.get(name, 0) + first

    def shift(self, name: str, layer: Any, output: Tensor) -> Tensor | None:
        """Return what a layer's mean output over all batches lacks, ``[C]``, or None where it is left alone."""
        if getattr(layer, "bias", None) is None or self._calls.get(name) != 1:
            return None
        return self._sums[name] / self._rows[name] - flatten_positions(layer, output).mean(0)

    def correct(self, name: str, layer: Any, output: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """Change the bias of a layer by what its mean output lacks; return the output that the layer then gives.

        Args:
            name: The layer's name.
            layer: The layer.
            output: Its output over all calibration batches.
            finish: Rounds the bias as the layer will hold it.
        """
        shift = self.shift(name, layer, output)
        if shift is None:
            return output
        before = layer.bias.detach()
        after = finish(before + shift)
        set_bias(layer, after)
        self.shifts[name] = float(shift.abs().max())
        # The layers behind see what the corrected layer gives.
        return output + broadcast_channels(layer, after - before, output)
