"""Bias correction: the bias of a quantized layer compensates the shift of its mean output."""

from collections.abc import Callable

from torch import Tensor

from autocompress.quantize.layers import Layer, broadcast_channels, flatten_positions, layer_bias, set_bias


class BiasCorrection:
    """Restores the mean output that each layer had in floating point (Nagel et al. 2019, arXiv:1906.04721).

    Layers without a bias and layers that are called more than once are not corrected.

    Attributes:
        shifts: Largest absolute change of the bias, by layer.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self.shifts: dict[str, float] = {}

    def copy_statistics(self) -> "BiasCorrection":
        """Return a new object with the same recorded outputs that has not corrected any layer."""
        # The sums are shared, not copied: nothing is recorded after the calibration pass.
        other = BiasCorrection()
        other._sums, other._rows, other._calls = self._sums, self._rows, self._calls
        return other

    def record_output(self, name: str, layer: Layer, output: Tensor, is_first_batch: bool) -> None:
        """Add the output of one call in floating point to the mean output of the layer."""
        if layer_bias(layer) is None:
            return
        rows = flatten_positions(layer, output)
        # Sums and counts of positions, because calibration batches can differ in size.
        self._sums[name] = self._sums.get(name, 0.0) + rows.sum(0)
        self._rows[name] = self._rows.get(name, 0) + len(rows)
        self._calls[name] = self._calls.get(name, 0) + is_first_batch

    def compute_shift(self, name: str, layer: Layer, output: Tensor) -> Tensor | None:
        """Return the difference of exact and current mean output, ``[C]``, or None without a correction."""
        if layer_bias(layer) is None or self._calls.get(name) != 1:
            return None
        return self._sums[name] / self._rows[name] - flatten_positions(layer, output).mean(0)

    def correct_bias(self, name: str, layer: Layer, output: Tensor, round_bias: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the shift of the mean output to the bias of a layer and return the output with the new bias.

        Args:
            name: Name of the layer.
            layer: Layer whose bias is changed.
            output: Output of the layer for all calibration batches.
            round_bias: Function that rounds the bias to the values that the layer can represent.
        """
        # A layer with several calls per batch has several mean outputs, which one bias cannot correct.
        shift, bias = self.compute_shift(name, layer, output), layer_bias(layer)
        if shift is None or bias is None:
            return output
        before = bias.detach()
        after = round_bias(before + shift)
        set_bias(layer, after)
        self.shifts[name] = float(shift.abs().max())
        # The forward pass continues with the corrected output, which later layers are corrected for.
        return output + broadcast_channels(layer, after - before, output)
