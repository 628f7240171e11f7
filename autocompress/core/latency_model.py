"""A model of latency: a constant per run, and for each layer a sum over its work, fitted to times on a target.

Which kernel computes a layer matters more than its multiply-accumulates: runtimes store images in blocks of 8 or 16
channels where the channels allow it, have kernels of their own for depthwise and pointwise convolutions, and multiply
integers four channels at a time. So a layer has coefficients by kind, by whether its channels suit the fast kernel, and
by bits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, TypeAlias

from pydantic import JsonValue

#: Name of the cost, as a column, an objective and a limit.
LATENCY = "latency_ms"
#: Coefficients of one layer: a constant, multiply-accumulates, output elements, weights, copied input elements.
FEATURES = 5
#: Kind of a layer whose own kind was not calibrated, such as attention: the one with the same matrix product.
LINEAR = "linear"
FLOAT = (32, 32)
#: Kind of a layer that reads rows of a table, which costs what it reads and not what the table holds.
LOOKUP = "lookup"
#: What a network computes beside its layers: other operators, changes between plain and blocked storage, and between
#: floating point and integers.
OPERATOR, REORDER, ROUND, DECODE = "operator", "reorder", "quantize", "dequantize"
BETWEEN_LAYERS = (OPERATOR, REORDER, ROUND, DECODE)
#: Kinds that a runtime may compute in blocks of channels: convolutions over two dimensions.
BLOCKED_KINDS = ("conv2", "pointwise2", "depthwise2")
#: Channels that a fast kernel needs a multiple of. One in blocks copies so many at once; one for integers multiplies
#: and rounds so many at once, and what remains one by one.
ALIGNMENT = 4

#: Kind of a layer, whether its channels suit the fast kernel, weight bits and activation bits.
Kernel: TypeAlias = tuple[str, bool, int, int]


@dataclass(frozen=True)
class LayerWork:
    """The work of one layer for one example.

    Attributes:
        macs: Multiply-accumulates.
        activations: Output elements.
        weights: Elements of its weights.
        bits: (weight bits, activation bits) of the kernel that computes it.
        kind: ``conv``, ``pointwise`` or ``depthwise`` with the number of spatial dimensions, such as ``conv2``;
            ``lookup`` for rows of a table; ``operator`` for the operators before the first layer; ``linear`` for any
            other layer.
        channels: Input channels of one group, and output channels.
        operators: Other operators before the next layer, such as the addition of a shortcut.
        elements: Output elements of these operators.
    """

    macs: int
    activations: int
    weights: int
    bits: tuple[int, int] = FLOAT
    kind: str = LINEAR
    channels: tuple[int, int] = (1, 1)
    operators: int = 0
    elements: int = 0

    @property
    def has_integer_kernel(self) -> bool:
        """Whether it multiplies integers."""
        return self.bits != FLOAT and self.kind != LOOKUP

    def features(self, block: int) -> tuple[Kernel, tuple[float, ...]]:
        """Return the kernel that computes the layer, and the factors of its coefficients.

        Args:
            block: Channels that the runtime stores together; 1 if it has no such kernels.
        """
        is_blocked = self.is_blocked(block)
        if self.kind == LOOKUP:
            return (self.kind, False, *self.bits), (1.0, 0.0, float(self.activations), 0.0, 0.0)
        # Blocks are padded with zeros, which are multiplied, too.
        macs = self.macs * (self._padding(block) if is_blocked else 1.0)
        # Kernels in blocks and those for integers read their inputs in place.
        copies = self._copies() if self.bits == FLOAT and not is_blocked else 0.0
        is_fast = is_blocked or (self.bits != FLOAT and self._is_aligned())
        return (self.kind, is_fast, *self.bits), (1.0, macs, float(self.activations), float(self.weights), copies)

    def is_blocked(self, block: int) -> bool:
        """Return whether the layer writes blocks of channels."""
        # The rules of onnxruntime's NCHWc transformer. Integer kernels store the channels last instead.
        if block == 1 or self.bits != FLOAT or self.kind not in BLOCKED_KINDS:
            return False
        inputs, outputs = self.channels
        if self.kind == "depthwise2":
            return outputs % ALIGNMENT == 0
        return inputs < block or inputs % ALIGNMENT == 0

    def reads_blocks(self, block: int) -> bool:
        """Return whether the layer reads blocks of channels; a few channels are read as they are."""
        return self.is_blocked(block) and (self.kind == "depthwise2" or self.channels[0] >= block)

    def pad_channels(self, multiple: int, has_plain_input: bool) -> "LayerWork":
        """Return the layer in floating point with its channels padded to whole blocks.

        Args:
            multiple: Channels of a block.
            has_plain_input: Whether it reads the input of the network, which is not padded.
        """
        if self.kind == LOOKUP:
            return self
        if self.kind not in BLOCKED_KINDS:
            return replace(self, bits=FLOAT)
        inputs, outputs = self.channels
        padded = ceil(outputs / multiple) * multiple
        read = inputs if has_plain_input or self.kind == "depthwise2" else ceil(inputs / multiple) * multiple
        wider = padded / outputs
        return replace(
            self,
            bits=FLOAT,
            macs=round(self.macs * wider * read / inputs),
            activations=round(self.activations * wider),
            weights=round(self.weights * wider * read / inputs),
            channels=(read, padded),
            elements=round(self.elements * wider),
        )

    def _is_aligned(self) -> bool:
        inputs, outputs = self.channels
        return outputs % ALIGNMENT == 0 and (inputs % ALIGNMENT == 0 or self.kind.startswith("depthwise"))

    def _copies(self) -> float:
        """Return the input elements that a convolution copies before it multiplies, one for each weight and position.

        A matrix product of kernels larger than 1 reads its inputs from such a copy (im2col).
        """
        return self.macs / self.channels[1] if self.kind.startswith("conv") else 0.0

    def _padding(self, block: int) -> float:
        inputs, outputs = self.channels
        factor = ceil(outputs / block) * block / outputs
        if self.kind == "depthwise2" or inputs < block:
            return factor
        return factor * ceil(inputs / block) * block / inputs


def list_features(layers: Sequence[LayerWork], block: int) -> list[tuple[Kernel, tuple[float, ...]]]:
    """Return every kernel of a network with its factors: those of the layers, and of what lies between them.

    Args:
        layers: Layers in the order in which they run.
        block: Channels that the runtime stores together; 1 if it has no such kernels.
    """
    rows = [layer.features(block) for layer in layers if layer.kind != OPERATOR]
    for before, after in pairwise(layers):
        if before.is_blocked(block) != after.reads_blocks(block) and after.kind != LINEAR:
            rows.append(((REORDER, True, *FLOAT), (1.0, 0.0, float(before.activations), 0.0, 0.0)))
    for layer in layers:
        if layer.operators:
            kernel = (OPERATOR, layer.is_blocked(block), *FLOAT)
            rows.append((kernel, (float(layer.operators), 0.0, float(layer.elements), 0.0, 0.0)))
    return rows + [
        ((kind, False, *FLOAT), (1.0, 0.0, float(elements), 0.0, 0.0)) for kind, elements in _list_roundings(layers)
    ]


def _list_roundings(layers: Sequence[LayerWork]) -> Iterator[tuple[str, int]]:
    """Yield each change between floating point and integers with its elements.

    An integer kernel writes integers where another one reads its output. Operators between them compute in floating
    point, and so do the input and the output of the network.
    """
    for before, after in pairwise([None, *layers, None]):
        is_float = before is None or after is None or before.operators > 0
        elements = before.activations if before is not None else 0
        reads, writes = (layer is not None and layer.has_integer_kernel for layer in (after, before))
        if writes and (is_float or not reads):
            yield DECODE, elements
        if reads and (is_float or not writes):
            yield ROUND, elements


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one example on a target, from the work of its layers.

    Attributes:
        base: Milliseconds of a run without layers.
        coefficients: Each kernel with its :data:`FEATURES` coefficients.
        block: Channels that the runtime stores together; 1 if it has no such kernels.
        multiple: Channels to a multiple of which an export may pad; 1 if it does not.

    Example:
        >>> model = LatencyModel(0.01, ((("linear", False, 32, 32), (0.001, 1e-6, 0.0, 0.0, 0.0)),))
        >>> model.predict([LayerWork(4000, 10, 400)])
        0.015
    """

    base: float
    # Pairs and no mapping, because a model is part of the key of a cache.
    coefficients: tuple[tuple[Kernel, tuple[float, ...]], ...]
    block: int = 1
    multiple: int = 1

    def predict(self, layers: Iterable[LayerWork]) -> float:
        """Return the milliseconds of one example in the fastest graph that an export would choose from.

        Those are the graphs of :mod:`autocompress.export.graph_choice`: integer kernels in all layers that can have
        them, in the half with the most work, in all but the first and the last, and in none, there also with padded
        channels.
        """
        layers = list(layers)
        integer = [at for at, layer in enumerate(layers) if layer.has_integer_kernel]
        by_work = sorted(integer, key=lambda at: layers[at].macs)
        # Floating point in: no layer, all, the half with the least work, the first and the last.
        choices: tuple[list[int], ...] = ([], integer, by_work[: len(by_work) // 2], [*integer[:1], *integer[-1:]])
        times = [self._sum_times(layers, choice) for choice in choices]
        if self.multiple > 1:
            first = next((at for at, layer in enumerate(layers) if layer.kind != OPERATOR), 0)
            padded = [layer.pad_channels(self.multiple, at == first) for at, layer in enumerate(layers)]
            times.append(self._sum_times(padded, []))
        return round(min(times), 9)

    def _sum_times(self, layers: Sequence[LayerWork], in_float: Sequence[int]) -> float:
        works = [replace(layer, bits=FLOAT) if at in in_float else layer for at, layer in enumerate(layers)]
        table = dict(self.coefficients)
        return self.base + sum(_kernel_time(table, *row) for row in list_features(works, self.block))

    def to_json(self) -> dict[str, JsonValue]:
        """Return the model as JSON values, which :meth:`from_json` reads."""
        rows: list[JsonValue] = [[*kernel, list(values)] for kernel, values in self.coefficients]
        return {"base": self.base, "coefficients": rows, "block": self.block, "multiple": self.multiple}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyModel":
        """Return the model that :meth:`to_json` described, also one of an earlier version."""
        coefficients: list[tuple[Kernel, tuple[float, ...]]] = []
        for *kernel, weight, activation, values in data["coefficients"]:
            # Earlier versions had one kind of layer.
            kind, is_blocked = kernel or (LINEAR, False)
            key = (str(kind), bool(is_blocked), int(weight), int(activation))
            # Earlier versions had fewer coefficients.
            padded = [*values, *[0.0] * (FEATURES - len(values))]
            coefficients.append((key, tuple(float(value) for value in padded)))
        return cls(float(data["base"]), tuple(coefficients), int(data.get("block", 1)), int(data.get("multiple", 1)))


def _kernel_time(table: Mapping[Kernel, Sequence[float]], kernel: Kernel, factors: Sequence[float]) -> float:
    """Return the milliseconds of a kernel."""
    kind, is_blocked, weight, activation = kernel
    keys: list[Kernel] = [kernel, (kind, not is_blocked, weight, activation)]
    if kind not in BETWEEN_LAYERS:
        # A layer that was not calibrated is estimated by a matrix product, in floating point if need be.
        keys += [(LINEAR, False, weight, activation), (LINEAR, False, *FLOAT)]
    for key in keys:
        if key in table:
            return sum(a * b for a, b in zip(table[key], factors, strict=True))
    return 0.0
