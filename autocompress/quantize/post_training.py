"""Post-training quantization: ranges from one pass over the calibration split, then rounding; nothing is trained."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from autocompress.errors import CompressionError
from autocompress.knobs import Choice, FloatRange, Settings, knob
from autocompress.method import Context, LayerBits, MethodState
from autocompress.quantize.fake_quantize import INPUT, OUTPUT, FakeQuantize, quantize_input, quantize_output
from autocompress.quantize.folding import fold, fold_structure
from autocompress.quantize.integer import rounded_bias
from autocompress.quantize.observers import OBSERVERS, MinMax, Observer, extremes
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Grid, Linear
from autocompress.quantize.tracing import open_outputs
from autocompress.registry import QUANTIZE

BITS = Choice((2, 3, 4, 5, 6, 7, 8, 32))
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class PostTrainingConfig(Settings):
    """What one rounding is made of; 32 bits leave weights or activations as they are."""

    label: ClassVar[str] = "quantize.post_training"

    weight_bits: int = knob(8, BITS, "bits of a weight")
    activation_bits: int = knob(8, BITS, "bits of a layer's input")
    weight_scheme: str = knob("symmetric", Choice(tuple(WEIGHT_QUANTIZERS)), "where a weight's codes lie around zero")
    activation_scheme: str = knob(
        "asymmetric", Choice(tuple(ACTIVATION_QUANTIZERS)), "where an input's codes lie around zero"
    )
    granularity: str = knob("per_channel", Choice(("per_tensor", "per_channel")), "what shares one weight scale")
    observer: str = knob("minmax", Choice(tuple(OBSERVERS)), "how an input's range is found")
    percentile: float = knob(99.9, FloatRange(90.0, 100.0), "upper end of the range for the observer 'percentile'")


class PostTraining:
    """Rounds weights and layer inputs of convolutions and linear layers (Jacob et al. 2018).

    The model then computes what integer kernels will: biases lie on the grid of the products, and the output of
    a convolution that other operations read too (a sum, an average) is rounded to 8 bits.

    ``state.history`` holds ``folded`` (pairs of layer and batch normalization), ``layers`` (one entry a
    quantized layer: ``name``, and what is known of its ``weight``, ``input`` and ``output``, None where those stay
    in floating point) and ``restored`` (names in the ``state_dict`` that :meth:`restore` fills by itself).
    ``state.tensors`` holds ``<layer>.weight_codes``, ``.weight_scale`` and ``.weight_zero_point``.
    """

    name: ClassVar[str] = "post_training"
    config = PostTrainingConfig

    def is_identity(self, config: PostTrainingConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return config.weight_bits == 32 and config.activation_bits == 32

    def apply(self, model: nn.Module, config: PostTrainingConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, quantized copy in evaluation mode, and what was done.

        Raises:
            CompressionError: A weight or an activation is empty, NaN or infinite, no layer can be quantized,
                or calibration batches are missing.
        """
        with torch.no_grad():
            model, folding = fold(model, context.example)
            candidates = layers = _layers(model)
            for name, layer in layers.items():
                for part, tensor in layer.named_parameters(recurse=False):
                    with _naming(name, part):
                        extremes(tensor)
            ranges: dict[str, tuple[float, float]] = {}
            if config.activation_bits < 32:
                ranges = _watch_inputs(model, layers, config, context)
                layers = {name: layer for name, layer in layers.items() if name in ranges}
            if not layers:
                raise CompressionError("the model calls no convolution or linear layer: there is nothing to quantize")
            done = [_quantize(name, layer, config, ranges.get(name)) for name, layer in layers.items()]
            entries = [layer.entry for layer in done]
            if ranges and config.weight_bits < 32:
                _quantize_outputs(model, layers, entries, context)
        bits = LayerBits(config.weight_bits, config.activation_bits)
        folded = folding.to_json()
        return model, MethodState(
            history={"folded": folded["folded"], "layers": entries, "restored": _restored(entries)},
            tensors={name: tensor for layer in done for name, tensor in layer.tensors.items()},
            bits=dict.fromkeys(layers, bits),
            report={
                "layers": [layer.row for layer in done],
                "batch_norm": folded,
                "float_layers": [name for name in candidates if name not in layers],
            },
        )

    def restore(self, model: nn.Module, config: PostTrainingConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        model.eval()
        try:
            fold_structure(model, state.history["folded"])
            layers = _layers(model)
            for entry in state.history["layers"]:
                layer = layers[entry["name"]]
                if entry["weight"] is not None:
                    codes, grid = _saved_weight(entry["name"], state.tensors)
                    if codes.shape != layer.weight.shape:
                        shapes = f"{list(codes.shape)} codes, {list(layer.weight.shape)} weights"
                        raise CompressionError(f"layer '{entry['name']}' has another shape: {shapes}")
                    _put(layer, codes, grid)
                if entry["input"] is not None:
                    quantize_input(layer, FakeQuantize(_grid_of(entry["input"]), entry["input"]["bits"]))
                if entry["output"] is not None:
                    quantize_output(layer, FakeQuantize(_grid_of(entry["output"]), entry["output"]["bits"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise CompressionError(f"the quantization history does not fit the model: {error!r}") from error
        return model


QUANTIZE.add(PostTraining.name, PostTraining())


@dataclass(frozen=True)
class _Done:
    entry: dict[str, Any]
    row: dict[str, Any]
    tensors: dict[str, Tensor]


@contextmanager
def _naming(layer: str, what: str) -> Iterator[None]:
    """Put the layer's name in front of an error about one of its tensors."""
    try:
        yield
    except CompressionError as error:
        raise CompressionError(f"layer '{layer}', {what}: {error}") from None


def _layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that can be quantized, by name.

    The output projection of torch's attention is none of them: attention reads its weight without calling it.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise CompressionError(f"layer '{name}' computes its weight; remove its parametrization first")
        if hasattr(layer, INPUT):
            raise CompressionError(f"layer '{name}' is quantized already; quantize the float model")
    return layers


def _watch_inputs(
    model: nn.Module, layers: Mapping[str, Any], config: PostTrainingConfig, context: Context
) -> dict[str, tuple[float, float]]:
    """Return the range of the input of every layer that is called."""
    if not context.calibration:
        raise CompressionError("activation ranges need calibration batches: the context holds none")
    seen: dict[str, Observer] = {}

    def watch(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Tensor) -> None:
        if name not in seen:
            seen[name] = OBSERVERS[config.observer](config.percentile)
        with _naming(name, "input"):
            seen[name].observe(args[0] if args else kwargs["input"])

    _watch(model, layers, context, watch)
    return {name: seen[name].range() for name in layers if name in seen}


def _quantize_outputs(
    model: nn.Module, layers: Mapping[str, Any], entries: list[dict[str, Any]], context: Context
) -> None:
    """Round the outputs that no input quantizer of a next layer rounds, over the range they have by now."""
    rectified = open_outputs(model, context.example, layers)
    if not rectified:
        return
    seen = {name: MinMax() for name in rectified}

    def watch(name: str, _: object, __: object, output: Tensor) -> None:
        with _naming(name, "output"):
            seen[name].observe(output)

    _watch(model, {name: layers[name] for name in seen}, context, watch)
    for entry in entries:
        name = entry["name"]
        if name in seen:
            low, high = seen[name].range()
            # A grid that starts at zero does the work of the ReLU behind it.
            grid = _fit((0.0 if rectified[name] else low, high), "asymmetric", 8)
            quantize_output(layers[name], FakeQuantize(grid, 8))
            entry["output"] = _grid_json(grid, 8)


def _watch(model: nn.Module, layers: Mapping[str, Any], context: Context, watch: Callable[..., None]) -> None:
    """Pass over the calibration batches and show ``watch`` every call: name, arguments, output."""
    handles = [
        layer.register_forward_hook(lambda _, *call, name=name: watch(name, *call), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        for batch in context.calibration:
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()


def _quantize(name: str, layer: Any, config: PostTrainingConfig, ends: tuple[float, float] | None) -> _Done:
    """Quantize one layer in place."""
    entry: dict[str, Any] = {"name": name, "weight": None, "input": None, "output": None}
    tensors: dict[str, Tensor] = {}
    inputs: Grid | None = None
    weight = rounded = layer.weight.detach()
    if ends is not None:
        inputs = _fit(ends, config.activation_scheme, config.activation_bits)
        quantize_input(layer, FakeQuantize(inputs, config.activation_bits))
        entry["input"] = _grid_json(inputs, config.activation_bits)
    if config.weight_bits < 32:
        codes, grid = _round(weight, config)
        rounded = _put(layer, codes, grid)
        tensors = _weight_tensors(name, codes, grid)
        entry["weight"] = {"bits": config.weight_bits}
        if inputs is not None and layer.bias is not None:
            bias = rounded_bias(codes, grid.scale, grid.zero_point, layer.bias, inputs.scale)
            layer.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    return _Done(entry, _row(name, config, weight, rounded), tensors)


def _round(weight: Tensor, config: PostTrainingConfig) -> tuple[Tensor, Grid]:
    quantizer = WEIGHT_QUANTIZERS[config.weight_scheme]
    if config.granularity == "per_channel":
        low, high = torch.aminmax(weight.flatten(1), dim=1)
    else:
        low, high = torch.aminmax(weight)
    grid = quantizer.fit(low, high, config.weight_bits)
    return quantizer.encode(weight, grid), grid


def _fit(ends: tuple[float, float], scheme: str, bits: int) -> Grid:
    # Zero stays inside the range: padding and empty inputs are zero, and must cost nothing.
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    as_tensor = torch.tensor([low, high], dtype=torch.float64)
    return ACTIVATION_QUANTIZERS[scheme].fit(as_tensor[0], as_tensor[1], bits)


def _put(layer: Any, codes: Tensor, grid: Grid) -> Tensor:
    """Give ``layer`` the values of the codes; as a new parameter, so that a shared weight stays as it was elsewhere."""
    values = Linear().decode(codes, grid).to(layer.weight.dtype)
    layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)
    return values


def _weight_tensors(name: str, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
    return {
        f"{name}.weight_codes": codes,
        f"{name}.weight_scale": grid.scale,
        f"{name}.weight_zero_point": grid.zero_point,
    }


def _saved_weight(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    codes = tensors[f"{name}.weight_codes"]
    limits = torch.iinfo(codes.dtype)
    scale, zero_point = tensors[f"{name}.weight_scale"], tensors[f"{name}.weight_zero_point"]
    if scale.shape != zero_point.shape or scale.shape not in ((), codes.shape[:1]):
        raise CompressionError(f"layer '{name}' has {list(scale.shape)} scales for {list(codes.shape)} codes")
    return codes, Grid(scale, zero_point, limits.min, limits.max)


def _grid_json(grid: Grid, bits: int) -> dict[str, Any]:
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return {"bits": bits, "scale": scale, "zero_point": zero_point, "low": grid.low, "high": grid.high}


def _grid_of(saved: Mapping[str, Any]) -> Grid:
    bits, scale, zero_point, low, high = (saved[key] for key in ("bits", "scale", "zero_point", "low", "high"))
    sound = 2 <= bits <= 8 and high - low == 2**bits - 1 and -128 <= low <= zero_point <= high <= 255
    if not (sound and 0 < scale < math.inf):
        raise CompressionError(f"a tensor cannot be quantized to {dict(saved)}")
    return Grid(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), low, high)


def _restored(entries: list[dict[str, Any]]) -> list[str]:
    def names() -> Iterator[str]:
        for entry in entries:
            if entry["weight"] is not None:
                yield f"{entry['name']}.weight"
            for side, name in (("input", INPUT), ("output", OUTPUT)):
                if entry[side] is not None:
                    yield f"{entry['name']}.{name}.scale"
                    yield f"{entry['name']}.{name}.zero_point"

    return list(names())


def _row(name: str, config: PostTrainingConfig, weight: Tensor, rounded: Tensor) -> dict[str, Any]:
    """Return one line of the error report; ``sqnr_db`` is None where the weights came through exactly."""
    exact, got = weight.double().flatten(), rounded.double().flatten()
    error = exact - got
    signal, noise, power = float(exact.dot(exact)), float(error.dot(error)), float(got.dot(got))
    both = math.sqrt(signal) * math.sqrt(power)
    return {
        "name": name,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "mse": noise / exact.numel(),
        "sqnr_db": 10 * math.log10(signal / noise) if noise and signal else None,
        "cosine": (float(exact.dot(got)) / both if both else 0.0) if noise else 1.0,
    }
