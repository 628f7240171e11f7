"""The model quantizer: a folded copy of a model whose layers a quantization method quantizes, and bias correction."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autocompress.core.method import Context, LayerBits, MethodState, match_layers
from autocompress.errors import CompressionError
from autocompress.quantize.conversion import convert_layers, find_converted, find_holders
from autocompress.quantize.fake_quantize import (
    INPUT,
    FakeQuantize,
    attach_input_quantizer,
    attach_output_quantizer,
    round_bias,
)
from autocompress.quantize.folding import find_outputs_to_quantize, fold_with_report
from autocompress.quantize.layers import (
    Layer,
    add_layer_to_errors,
    broadcast_channels,
    find_layers,
    flatten_positions,
    forward_hooks,
    is_embedding,
    is_weight_only,
    layer_bias,
    set_bias,
    set_weight,
)
from autocompress.quantize.observers import MinMaxObserver, Observer, finite_min_max
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, Grid, avoid_ties
from autocompress.quantize.serialization import grid_to_json, list_restored_names
from autocompress.quantize.weight_coding import QuantizedWeight


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


FLOAT_IN_ONNX_REASON = (
    "groups, tables and float16 have no int8 kernel: model.onnx decodes them at load and computes in floating point"
)

Ranges = dict[str, tuple[float, float]]
# A layer's input with at most this many different values is discrete, as the pixels of images are.
MOST_VALUES = 1024
# Number of values that are looked at first.
SAMPLED_VALUES = 512


class ModelQuantizer:
    """Quantizes the layers of a folded copy of a model, in evaluation mode.

    Call :meth:`observe_ranges` first, while the copy is in floating point, then :meth:`quantize_input` and
    :meth:`quantize_weight` for each layer, then :meth:`finalize`.

    Args:
        model: Model to quantize; it does not change.
        context: Context with the example and the calibration batches.
        correction: Bias correction, applied by :meth:`finalize`; it needs calibration batches.

    Attributes:
        model: The folded copy.
        layers: Convolutions, linear layers and embeddings of the copy by name; :meth:`observe_ranges` removes those
            that the forward pass does not call.

    Raises:
        CompressionError: A parameter is empty, NaN or infinite, or a layer cannot be quantized.
    """

    def __init__(self, model: nn.Module, context: Context, correction: BiasCorrection | None = None) -> None:
        if correction is not None and not context.calibration:
            raise CompressionError(
                "bias_correction needs calibration batches, and the context holds none: switch it off"
            )
        self.correction = correction
        folded, self._folding = fold_with_report(model, context.example)
        self.context = context
        self.model = convert_layers(folded, match_layers(folded, context.float_layers))
        stay = set(match_layers(self.model, context.float_layers))
        self.layers = {name: layer for name, layer in find_layers(self.model).items() if name not in stay}
        self._require_layers()
        self._candidates = tuple(self.layers)
        # The parameters in floating point, which the error report compares with.
        self._exact = {name: layer.weight.detach() for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            for parameter_name, parameter in layer.named_parameters(recurse=False):
                with add_layer_to_errors(name, parameter_name):
                    finite_min_max(parameter)
        self._outputs: dict[str, list[Tensor]] = {}
        self._discrete: Mapping[str, Tensor] = {}
        self._inputs: dict[str, tuple[Grid, int]] = {}
        self._weights: dict[str, tuple[QuantizedWeight, int]] = {}

    def observe_ranges(self, build: Callable[[str], Observer] | None, key: Hashable = None) -> Ranges:
        """Run the calibration batches and return the range of each layer's input; no ranges without ``build``.

        The inputs of an embedding are indices and have no range; a held weight has no input.

        Args:
            build: Function that returns an observer for a layer name.
            key: Key of the observers that ``build`` returns; with a key the result is computed once per model.

        Raises:
            CompressionError: ``build`` is given without calibration batches, or an input is not finite.
        """
        if build is not None and not self.context.calibration:
            raise CompressionError("activation ranges need calibration batches: the context holds none")
        calibration = (
            self._run_calibration(build)
            if key is None
            else self.context.compute_once(
                ("observed", key, self.correction is None), lambda: self._run_calibration(build)
            )
        )
        self._outputs, self._discrete = calibration.outputs, calibration.discrete
        if calibration.correction is not None:
            # The recorded statistics are shared between candidates, the corrections are not.
            self.correction = calibration.correction.copy_statistics()
        if build is not None:
            self.layers = {name: layer for name, layer in self.layers.items() if name in calibration.called}
        self._require_layers()
        return {name: calibration.ranges[name] for name in self.layers if name in calibration.ranges}

    def _run_calibration(self, build: Callable[[str], Observer] | None) -> "_Calibration":
        observers: dict[str, Observer] = {}
        called: set[str] = set()
        outputs: dict[str, list[Tensor]] = {}
        discrete: dict[str, Tensor] = {}
        is_first_batch = True

        def record_call(name: str, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> None:
            if is_first_batch:
                # A copy, because an operation in place may follow.
                outputs.setdefault(name, []).append(output.clone())
            if self.correction is not None:
                self.correction.record_output(name, self.layers[name], output, is_first_batch)
            called.add(name)
            if build is not None and not is_weight_only(self.layers[name]):
                values = args[0] if args else kwargs["input"]
                if name not in observers:
                    observers[name] = build(name)
                    discrete[name] = _list_discrete_values(values)
                with add_layer_to_errors(name, "input"):
                    observers[name].observe(values)

        with forward_hooks(self.layers, record_call):
            # Without ranges and bias correction only the outputs on the first batch are needed, for the error report.
            for batch in self.context.calibration[: None if build or self.correction else 1]:
                self.model(*batch)
                is_first_batch = False
        ranges = {name: observer.range() for name, observer in observers.items()}
        return _Calibration(ranges, frozenset(called), outputs, self.correction, discrete)

    def quantize_input(self, name: str, grid: Grid, bits: int, *, is_trained: bool = False) -> None:
        """Attach a quantizer to the input of a layer.

        Args:
            name: Name of the layer.
            grid: Grid of the input.
            bits: Number of bits.
            is_trained: Whether the model was trained with this grid, which is kept then; otherwise the scale is widened
                until no discrete value is a tie.
        """
        if name in self._discrete and not is_trained:
            grid = avoid_ties(grid, self._discrete[name])
        self._inputs[name] = grid, bits
        attach_input_quantizer(self.layers[name], FakeQuantize(grid, bits))

    def is_reduced(self, name: str) -> bool:
        """Return whether an 8-bit weight of a layer with a quantized input uses 7 bits only."""
        return self.context.reduce_range and name in self._inputs

    def quantize_weight(self, name: str, quantized: QuantizedWeight, bits: int) -> None:
        """Replace the weight of a layer by the dequantized one."""
        self._weights[name] = quantized, bits
        set_weight(self.layers[name], quantized)

    def join_batches(self) -> tuple[Tensor, ...]:
        """Return all calibration batches concatenated to one.

        Raises:
            CompressionError: The batches differ in more than their size.
        """
        try:
            return tuple(torch.cat(tensors) for tensors in zip(*self.context.calibration, strict=True))
        except (RuntimeError, ValueError) as error:
            raise CompressionError(f"calibration batches cannot be joined to one: {error}") from error

    def finalize(self, report: Mapping[str, object] | None = None) -> tuple[nn.Module, MethodState]:
        """Quantize biases and outputs as integer kernels do, and return the model with its state.

        The module :mod:`autocompress.quantize.serialization` describes the history of the state.

        Args:
            report: Entries that are added to the report of the state.
        """
        errors = _ErrorRecorder(self._outputs)
        if self.correction is None:
            for name, layer in self.layers.items():
                bias = layer_bias(layer)
                if bias is not None:
                    set_bias(layer, self._round_bias(name, bias.detach()))
        outputs = self._quantize_outputs(errors)
        entries = [self._layer_entry(name, outputs.get(name)) for name in self.layers]
        folding = self._folding.to_json()
        state_report: dict[str, object] = {
            "layers": [self._error_row(name, errors) for name in self.layers],
            "batch_norm": folding,
            "float_layers": [name for name in self._candidates if name not in self.layers],
        }
        # An embedding looks its codes up and multiplies nothing, so a graph can contain codes of any form.
        decoded = [
            name
            for name in self.layers
            if name in self._weights and not self._weights[name][0].is_integer and not is_embedding(self.layers[name])
        ]
        if decoded:
            state_report["float_in_onnx"] = {"layers": decoded, "reason": FLOAT_IN_ONNX_REASON}
        if self.correction is not None:
            uncorrected = [name for name in self.layers if name not in self.correction.shifts]
            state_report["bias_correction"] = {"shifts": self.correction.shifts, "uncorrected": uncorrected}
        return self.model, MethodState(
            history={
                "folded": folding["folded"],
                "converted": find_converted(self.model),
                "layers": entries,
                "restored": list_restored_names(entries),
            },
            tensors={
                key: t for name, (weight, _) in self._weights.items() for key, t in weight.to_tensors(name).items()
            },
            bits=self._list_bits(),
            report={**state_report, **(report or {})},
        )

    def _require_layers(self) -> None:
        if not self.layers:
            raise CompressionError(
                "the model calls no convolution, linear layer or embedding: there is nothing to quantize"
            )

    def _list_bits(self) -> dict[str, LayerBits]:
        """Return the bit-widths of the layers; those of a layer with held weights are the largest of its weights."""
        bits = {name: LayerBits(self._weight_bits(name), self._input_bits(name)) for name in self.layers}
        for name, holders in find_holders(self.model):
            bits[name] = LayerBits(max(self._weight_bits(holder) for holder in holders))
        return bits

    def _weight_bits(self, name: str) -> int:
        return self._weights[name][1] if name in self._weights else 32

    def _input_bits(self, name: str) -> int:
        return self._inputs[name][1] if name in self._inputs else 32

    def _has_integer_kernel(self, name: str) -> bool:
        return name in self._inputs and name in self._weights and self._weights[name][0].is_integer

    def _layer_entry(self, name: str, output: Grid | None) -> dict[str, object]:
        entry: dict[str, object] = {"name": name, "weight": None, "decoded": None, "input": None, "output": None}
        if name in self._weights:
            weight, bits = self._weights[name]
            entry["weight" if weight.is_integer else "decoded"] = {"bits": bits, **weight.to_json()}
        if name in self._inputs:
            entry["input"] = grid_to_json(*self._inputs[name])
        if output is not None:
            entry["output"] = grid_to_json(output, 8)
        return entry

    def _round_bias(self, name: str, bias: Tensor) -> Tensor:
        """Return the bias that the layer computes with: on the grid of the products for an integer kernel."""
        if not self._has_integer_kernel(name):
            return bias
        weight, grid = self._weights[name][0], self._weights[name][0].code_map
        assert isinstance(grid, Grid)
        return round_bias(weight.codes, grid.scale, grid.zero_point, bias, self._inputs[name][0].scale)

    def _quantize_outputs(self, errors: "_ErrorRecorder") -> dict[str, Grid]:
        """Quantize the outputs that no input quantizer of a later layer rounds, and return their grids.

        The same pass over the calibration batches corrects the biases and records the errors of the first batch.
        """
        integer = [name for name in self.layers if self._has_integer_kernel(name)]
        has_relu = self.context.compute_once(
            ("open", *integer),
            lambda: find_outputs_to_quantize(self.model, self.context.example, integer) if integer else {},
        )
        ranges = {name: MinMaxObserver() for name in has_relu}
        correction, hooked = self.correction, {**self.layers, **self._input_quantizers()}

        def process_call(name: str, args: tuple[Tensor, ...], _: object, output: Tensor) -> Tensor:
            if correction is not None and name in self.layers:
                output = correction.correct_bias(name, self.layers[name], output, partial(self._round_bias, name))
            elif correction is None and is_first_batch:
                errors.record(name, args, output)
            if name in ranges:
                with add_layer_to_errors(name, "output"):
                    ranges[name].observe(output)
            return output

        # A bias is corrected once, on all batches together, before any later layer runs.
        batches = self.context.calibration[: None if ranges else 1] if correction is None else (self.join_batches(),)
        is_first_batch = True
        with forward_hooks(hooked, process_call):
            for batch in batches:
                self.model(*batch)
                is_first_batch = False
        grids = {}
        for name, observer in ranges.items():
            low, high = observer.range()
            # A grid that starts at zero does the work of the ReLU that follows.
            grids[name] = fit_activation_grid((0.0 if has_relu[name] else low, high), "asymmetric", 8)
            attach_output_quantizer(self.layers[name], FakeQuantize(grids[name], 8))
        if correction is not None:
            # The errors of the corrected model differ from those that the pass above saw.
            with forward_hooks(hooked, lambda name, args, _, output: errors.record(name, args, output)):
                self.model(*self.context.calibration[0])
        return grids

    def _input_quantizers(self) -> dict[str, nn.Module]:
        return {f"{name}.{INPUT}": self.model.get_submodule(f"{name}.{INPUT}") for name in self._inputs}

    def _error_row(self, name: str, errors: "_ErrorRecorder") -> dict[str, object]:
        """Return a row of the error report: the errors of a layer's weight, input and output."""
        row: dict[str, object] = {"name": name}
        row |= {"weight_bits": self._weight_bits(name), "activation_bits": self._input_bits(name)}
        row |= ErrorStatistics().add(self._exact[name], self.layers[name].weight).to_row()
        for prefix, statistics in (("input_", errors.inputs.get(name)), ("output_", errors.outputs.get(name))):
            row |= statistics.to_row(prefix) if statistics is not None else {}
        return row


@dataclass(frozen=True)
class _Calibration:
    """Results of a pass over the calibration batches.

    Attributes:
        ranges: Input range of each layer.
        called: Names of the layers that ran.
        outputs: Outputs of each layer on the first batch, one per call.
        correction: Bias correction with the mean outputs, if biases will be corrected.
        discrete: Different values of each layer's input on its first call, ``[n]``; empty for a continuous input.
    """

    ranges: Ranges
    called: frozenset[str]
    outputs: dict[str, list[Tensor]]
    correction: BiasCorrection | None
    discrete: Mapping[str, Tensor]


def _list_discrete_values(values: Tensor) -> Tensor:
    """Return the different values of a discrete tensor, ``[...] -> [n]``; none of a continuous one."""
    flat = values.detach().flatten()
    # Sorting a whole tensor takes long, and a continuous one has different values nearly everywhere.
    sample = flat[:: max(1, flat.numel() // SAMPLED_VALUES)].unique()
    different = flat.unique() if len(sample) <= SAMPLED_VALUES // 2 else flat[:0]
    return different if len(different) <= MOST_VALUES else flat[:0]


class ErrorStatistics:
    """Accumulates mean squared error, signal-to-noise ratio and cosine similarity over pairs of tensors.

    Example:
        >>> ErrorStatistics().add(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).to_row()["sqnr_db"]
        0.0
    """

    def __init__(self) -> None:
        self._count = 0
        self._signal = self._noise = self._power = self._product = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> "ErrorStatistics":
        """Add a pair of tensors of the same shape, and return this object."""
        before, after = exact.detach().flatten(), rounded.detach().flatten()
        error = before - after
        self._count += before.numel()
        self._signal += _dot_product(before, before)
        self._noise += _dot_product(error, error)
        self._power += _dot_product(after, after)
        self._product += _dot_product(before, after)
        return self

    def to_row(self, prefix: str = "") -> dict[str, float | None]:
        """Return ``mse``, ``sqnr_db`` (10 log10 of signal over noise) and ``cosine`` over all pairs.

        ``sqnr_db`` is None where nothing changed, or where all values are zero.
        """
        norms = math.sqrt(self._signal) * math.sqrt(self._power)
        decibels = 10 * math.log10(self._signal / self._noise) if self._noise and self._signal else None
        return {
            f"{prefix}mse": self._noise / self._count,
            f"{prefix}sqnr_db": decibels,
            f"{prefix}cosine": (self._product / norms if norms else 0.0) if self._noise else 1.0,
        }


def _dot_product(first: Tensor, second: Tensor) -> float:
    product = float(first.dot(second))
    # In double precision where the squares overflow or underflow single precision.
    return product if product and math.isfinite(product) else float(first.double().dot(second.double()))


class _ErrorRecorder:
    """Error statistics of each layer's input and output on one batch.

    Args:
        exact: Outputs in floating point by layer, one per call.
    """

    def __init__(self, exact: Mapping[str, Sequence[Tensor]]) -> None:
        self._exact = {name: iter(outputs) for name, outputs in exact.items()}
        self.inputs: dict[str, ErrorStatistics] = {}
        self.outputs: dict[str, ErrorStatistics] = {}

    def record(self, name: str, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Add one call of a layer or of an input quantizer."""
        if name.endswith(f".{INPUT}"):
            self.inputs.setdefault(name.removesuffix(f".{INPUT}"), ErrorStatistics()).add(args[0], output)
        elif name in self._exact:
            self.outputs.setdefault(name, ErrorStatistics()).add(next(self._exact[name]), output)


def fit_activation_grid(ends: tuple[float, float], scheme: str, bits: int) -> Grid:
    """Return the grid for a range of activations."""
    # The range includes zero, because padding is zero and must have no rounding error.
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    as_tensor = torch.tensor([low, high], dtype=torch.float64)
    return ACTIVATION_QUANTIZERS[scheme].fit(as_tensor[0], as_tensor[1], bits)
