"""What every quantization method works on: a folded copy of the model that is quantized layer by layer, then closed."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.method import Context, LayerBits, MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.activation_recorder import MinMaxObserver, Observer, finite_min_max
from autocompress.quantize.bias_correction import BiasCorrection
from autocompress.quantize.fake_quantize import INPUT, FakeQuantize, attach_input_quantizer, attach_output_quantizer
from autocompress.quantize.fidelity import ErrorStatistics
from autocompress.quantize.folding import fold_with_report
from autocompress.quantize.integer_arithmetic import round_bias
from autocompress.quantize.layers import (
    add_layer_to_errors,
    find_layers,
    forward_hooks,
    is_embedding,
    set_bias,
    set_weight,
)
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, Grid
from autocompress.quantize.serialization import grid_to_json, list_restored_names
from autocompress.quantize.tracing import find_outputs_to_quantize
from autocompress.quantize.weight_coding import QuantizedWeight

NOT_INTEGER = "groups and tables have no int8 form, so model.onnx holds these layers' weights as 32-bit values"

Ranges = dict[str, tuple[float, float]]


class ModelQuantizer:
    """A folded copy in evaluation mode, on its way to being quantized.

    :meth:`observe` while it is in floating point, then :meth:`round_input` and :meth:`round_weight` for each layer,
    then :meth:`close`.

    Args:
        model: Stays as it was.
        context: Where the example and the calibration batches come from.
        correction: Corrects biases as the draft is closed, if given; it needs calibration batches.

    Attributes:
        model: The copy.
        layers: The convolutions, linear layers and embedding tables of it, by name; :meth:`observe` leaves those that
            are called.

    Raises:
        CompressionError: A parameter is empty, NaN or infinite, or a layer cannot be quantized.
    """

    def __init__(self, model: nn.Module, context: Context, correction: BiasCorrection | None = None) -> None:
        if correction is not None and not context.calibration:
            raise CompressionError(
                "bias_correction needs calibration batches, and the context holds none: switch it off"
            )
        self.correction = correction
        self.model, self._folding = fold_with_report(model, context.example)
        self.context = context
        self.layers = find_layers(self.model)
        self._refuse_nothing()
        self._candidates = tuple(self.layers)
        self.record_exact_weights()
        self._outputs: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, tuple[Grid, int]] = {}
        self._weights: dict[str, tuple[QuantizedWeight, int]] = {}

    def observe(self, build: Callable[[str], Observer] | None, key: Hashable = None) -> Ranges:
        """Pass over the calibration batches; return the range of every layer's input, or nothing without ``build``.

        The input of an embedding table is row numbers and has no range.

        Args:
            build: Makes an observer for the layer of a name.
            key: Says which observers ``build`` makes; drafts of one model that give the same one pass but once.

        Raises:
            CompressionError: Ranges are asked for and there are no batches, or an input is not finite.
        """
        if build is not None and not self.context.calibration:
            raise CompressionError("activation ranges need calibration batches: the context holds none")
        found = (
            self._pass(build)
            if key is None
            else self.context.once(("observed", key, self.correction is None), lambda: self._pass(build))
        )
        self._outputs = found.outputs
        if found.correction is not None:
            self.correction = found.correction.like()
        if build is not None:
            self.layers = {name: layer for name, layer in self.layers.items() if name in found.called}
        self._refuse_nothing()
        return {name: found.ranges[name] for name in self.layers if name in found.ranges}

    def _pass(self, build: Callable[[str], Observer] | None) -> "_Observed":
        seen: dict[str, Observer] = {}
        called: set[str] = set()
        outputs: dict[str, list[Tensor]] = {}
        first = True

        def watch(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
            if first:
                # A copy: an operation in place may follow.
                outputs.setdefault(name, []).append(output.clone())
            if self.correction is not None:
                self.correction.note(name, self.layers[name], output, first)
            called.add(name)
            if build is not None and not is_embedding(self.layers[name]):
                if name not in seen:
                    seen[name] = build(name)
                with add_layer_to_errors(name, "input"):
                    seen[name].observe(args[0] if args else kwargs["input"])

        with forward_hooks(self.layers, watch):
            for batch in self.context.calibration[: None if build or self.correction else 1]:
                self.model(*batch)
                first = False
        ranges = {name: observer.range() for name, observer in seen.items()}
        return _Observed(ranges, frozenset(called), outputs, self.correction)

    def record_exact_weights(self) -> None:
        """Take the layers' parameters as they are now for the exact ones, as after a training.

        Raises:
            CompressionError: One is empty, NaN or infinite.
        """
        self._exact = {name: layer.weight.detach() for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            for part, tensor in layer.named_parameters(recurse=False):
                with add_layer_to_errors(name, part):
                    finite_min_max(tensor)

    def quantize_input(self, name: str, grid: Grid, bits: int) -> None:
        """Round the input of a layer from now on."""
        self._inputs[name] = grid, bits
        attach_input_quantizer(self.layers[name], FakeQuantize(grid, bits))

    def quantize_weight(self, name: str, coded: QuantizedWeight, bits: int) -> None:
        """Give a layer the values of its codes."""
        self._weights[name] = coded, bits
        set_weight(self.layers[name], coded)

    def join_batches(self) -> tuple[Tensor, ...]:
        """Return all calibration batches as one.

        Raises:
            CompressionError: They differ in more than their size.
        """
        try:
            return tuple(torch.cat(tensors) for tensors in zip(*self.context.calibration, strict=True))
        except (RuntimeError, ValueError) as error:
            raise CompressionError(f"calibration batches cannot be joined to one: {error}") from error

    def finalize(self, report: Mapping[str, Any] | None = None) -> tuple[nn.Module, MethodState]:
        """Round what integer kernels round too, and return the model and what was done.

        ``report`` is added to the state's. The history is described in :mod:`autocompress.quantize.serialization`.
        """
        seen = _Seen(self._outputs)
        if self.correction is None:
            for name, layer in self.layers.items():
                if getattr(layer, "bias", None) is not None:
                    set_bias(layer, self._final_bias(name, layer.bias.detach()))
        outputs = self._round_outputs(seen)
        entries = [self._entry(name, outputs.get(name)) for name in self.layers]
        folded = self._folding.to_json()
        state_report: dict[str, Any] = {
            "layers": [self._row(name, seen) for name in self.layers],
            "batch_norm": folded,
            "float_layers": [name for name in self._candidates if name not in self.layers],
        }
        decoded = [entry["name"] for entry in entries if entry["decoded"] is not None]
        # A table's codes are looked up, not multiplied, so the graph holds them in any form.
        decoded = [name for name in decoded if not is_embedding(self.layers[name])]
        if decoded:
            state_report["float_in_onnx"] = {"layers": decoded, "reason": NOT_INTEGER}
        if self.correction is not None:
            left = [name for name in self.layers if name not in self.correction.shifts]
            state_report["bias_correction"] = {"shifts": self.correction.shifts, "uncorrected": left}
        return self.model, MethodState(
            history={"folded": folded["folded"], "layers": entries, "restored": list_restored_names(entries)},
            tensors={key: t for name, (coded, _) in self._weights.items() for key, t in coded.saved(name).items()},
            bits={name: LayerBits(self._bits(name), self._bits_of_input(name)) for name in self.layers},
            report={**state_report, **(report or {})},
        )

    def _refuse_nothing(self) -> None:
        if not self.layers:
            raise CompressionError(
                "the model calls no convolution, linear layer or embedding: there is nothing to quantize"
            )

    def _bits(self, name: str) -> int:
        return self._weights[name][1] if name in self._weights else 32

    def _bits_of_input(self, name: str) -> int:
        return self._inputs[name][1] if name in self._inputs else 32

    def _integer(self, name: str) -> bool:
        return name in self._inputs and name in self._weights and self._weights[name][0].is_integer

    def _entry(self, name: str, output: Grid | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": name, "weight": None, "decoded": None, "input": None, "output": None}
        if name in self._weights:
            coded, bits = self._weights[name]
            entry["weight" if coded.is_integer else "decoded"] = {"bits": bits, **coded.form()}
        if name in self._inputs:
            entry["input"] = grid_to_json(*self._inputs[name])
        if output is not None:
            entry["output"] = grid_to_json(output, 8)
        return entry

    def _final_bias(self, name: str, bias: Tensor) -> Tensor:
        """Return a bias as the layer will hold it: on the grid of the products where integer kernels run."""
        if not self._integer(name):
            return bias
        coded, grid = self._weights[name][0], self._weights[name][0].how
        assert isinstance(grid, Grid)
        return round_bias(coded.codes, grid.scale, grid.zero_point, bias, self._inputs[name][0].scale)

    def _round_outputs(self, seen: "_Seen") -> dict[str, Grid]:
        """Round the outputs that no input quantizer of a next layer rounds, over the range they have by now.

        On the way biases are corrected, where that is asked for, and ``seen`` notes what rounding does to a batch.
        """
        integer = [name for name in self.layers if self._integer(name)]
        rectified = self.context.once(
            ("open", *integer),
            lambda: find_outputs_to_quantize(self.model, self.context.example, integer) if integer else {},
        )
        ranges = {name: MinMaxObserver() for name in rectified}
        correction, watches = self.correction, {**self.layers, **self._quantizers()}

        def watch(name: str, args: tuple[Any, ...], _: object, output: Tensor) -> Tensor:
            if correction is not None and name in self.layers:
                output = correction.correct(name, self.layers[name], output, partial(self._final_bias, name))
            elif correction is None and first:
                seen(name, args, output)
            if name in ranges:
                with add_layer_to_errors(name, "output"):
                    ranges[name].observe(output)
            return output

        # A bias is corrected by what all batches say about it, before any layer behind it runs.
        batches = self.context.calibration[: None if ranges else 1] if correction is None else (self.join_batches(),)
        first = True
        with forward_hooks(watches, watch):
            for batch in batches:
                self.model(*batch)
                first = False
        grids = {}
        for name, observer in ranges.items():
            low, high = observer.range()
            # A grid that starts at zero does the work of the ReLU behind it.
            grids[name] = fit_activation_grid((0.0 if rectified[name] else low, high), "asymmetric", 8)
            attach_output_quantizer(self.layers[name], FakeQuantize(grids[name], 8))
        if correction is not None:
            with forward_hooks(watches, lambda name, args, _, output: seen(name, args, output)):
                self.model(*self.context.calibration[0])
        return grids

    def _quantizers(self) -> dict[str, nn.Module]:
        return {f"{name}.{INPUT}": self.model.get_submodule(f"{name}.{INPUT}") for name in self._inputs}

    def _row(self, name: str, seen: "_Seen") -> dict[str, Any]:
        """Return one line of the error report: a layer's weight, its input, its output after all that came before."""
        row: dict[str, Any] = {"name": name}
        row |= {"weight_bits": self._bits(name), "activation_bits": self._bits_of_input(name)}
        row |= ErrorStatistics().add(self._exact[name], self.layers[name].weight).row()
        for side, found in (("input_", seen.inputs.get(name)), ("output_", seen.outputs.get(name))):
            row |= found.row(side) if found is not None else {}
        return row


@dataclass(frozen=True)
class _Observed:
    """What a pass over the calibration batches has shown.

    Attributes:
        ranges: Of the inputs of each layer.
        called: Layers that ran.
        outputs: Of each layer on the first batch, one for each call.
        correction: Its mean outputs, where biases will be corrected.
    """

    ranges: Ranges
    called: frozenset[str]
    outputs: dict[str, list[Tensor]]
    correction: BiasCorrection | None


class _Seen:
    """What rounding does to each layer's input and output in one batch.

    Args:
        exact: The outputs in floating point, one for each call of a layer.
    """

    def __init__(self, exact: Mapping[str, Sequence[Tensor]]) -> None:
        self._exact = {name: iter(outputs) for name, outputs in exact.items()}
        self.inputs: dict[str, ErrorStatistics] = {}
        self.outputs: dict[str, ErrorStatistics] = {}

    def __call__(self, name: str, args: tuple[Any, ...], output: Tensor) -> None:
        if name.endswith(f".{INPUT}"):
            self.inputs.setdefault(name.removesuffix(f".{INPUT}"), ErrorStatistics()).add(args[0], output)
        elif name in self._exact:
            self.outputs.setdefault(name, ErrorStatistics()).add(next(self._exact[name]), output)


def fit_activation_grid(ends: tuple[float, float], scheme: str, bits: int) -> Grid:
    """Return the grid for a range of activations."""
    # Zero stays inside the range: padding and empty inputs are zero, and must cost nothing.
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    as_tensor = torch.tensor([low, high], dtype=torch.float64)
    return ACTIVATION_QUANTIZERS[scheme].fit(as_tensor[0], as_tensor[1], bits)
