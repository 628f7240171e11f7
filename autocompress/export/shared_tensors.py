"""Tensors of several models in one file, without loss: what one model can derive from another is not stored again.

Each tensor of a model is stored in one of these forms, whichever takes the fewest bytes.

    own      the tensor itself
    slice    equal to a part of a tensor of an earlier model: one list of indices for each axis
    codes    integers that are close to a multiple of a part of an earlier tensor: per channel a factor and an offset,
             and the difference between the codes and the rounded product

Codes of 4 bits are nearly determined by those of 8 bits, and both by the float weights, so that the difference consists
of zeros but for ties and clipped values. :mod:`autocompress.measure.tensor_storage` leaves the zeros out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from autocompress.errors import ArtifactError
from autocompress.measure.tensor_storage import Count, count_stored_bytes

# Names of the codes and of the weight of a layer in an artifact.
CODES, CODES_PREFIX, MODEL_PREFIX = ".weight_codes", "quantize/", "model/"
FACTOR, OFFSET, DIFFERENCE = "@factor", "@offset", "@difference"
# Products beyond these are no codes; clamping keeps the difference within 8 bits.
LOWEST_CODE, HIGHEST_CODE = -128, 255

Axes = list[list[Count] | None]


class Shared(BaseModel):
    """The derivation of a tensor from a tensor of an earlier model.

    Attributes:
        model: Name of the earlier model.
        tensor: Name of the earlier tensor.
        axes: Indices along each axis of the earlier tensor; None for all.
        dtype: Type of the derived codes; empty if the tensor equals the part of the earlier one.
    """

    # An unknown entry or a value of another type is an error: the file is damaged or of another version.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    tensor: str
    axes: list[list[Count] | None] = Field(max_length=8)
    dtype: str = ""


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of one model.

    Attributes:
        name: Name of the model.
        tensors: Tensors by name, as an artifact holds them.
        positions: Flat positions of the values of each parameter in the model before pruning, by parameter name, as
            :meth:`OriginalPositions.list_positions` returns them; empty where they are not known.
        shapes: Shapes of the parameters before pruning.
    """

    name: str
    tensors: Mapping[str, Tensor]
    positions: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    def find_axes(self, tensor: str) -> list[Tensor] | None:
        """Return the original indices of a tensor's values along each axis; None if they form no grid.

        A tensor without positions has lost nothing: its indices are all of each axis.
        """
        parameter = tensor.removeprefix(MODEL_PREFIX)
        if tensor.startswith(CODES_PREFIX):
            parameter = tensor.removeprefix(CODES_PREFIX).removesuffix(CODES) + ".weight"
        values = self.tensors[tensor]
        positions, shape = self.positions.get(parameter), self.shapes.get(parameter)
        if positions is None or shape is None or positions.shape != values.shape:
            return [torch.arange(size) for size in values.shape]
        if not positions.numel():
            return None
        coordinates = torch.unravel_index(positions, shape)
        axes = []
        for axis, coordinate in enumerate(coordinates):
            first = coordinate.movedim(axis, 0).reshape(coordinate.shape[axis], -1)[:, 0]
            sizes = [-1 if other == axis else 1 for other in range(coordinate.ndim)]
            # The index along an axis must not depend on the other axes, as it does in grouped convolutions.
            if not torch.equal(first.view(sizes).expand_as(coordinate), coordinate):
                return None
            axes.append(first)
        return axes


def share_tensors(models: Sequence[ModelTensors]) -> tuple[dict[str, Tensor], dict[str, dict[str, Shared]]]:
    """Return the tensors to store, named ``<model>/<tensor>``, and the derivations by model and tensor.

    Args:
        models: The models, those that others are derived from first.
    """
    stored: dict[str, Tensor] = {}
    shared: dict[str, dict[str, Shared]] = {}
    for number, model in enumerate(models):
        derivations: dict[str, Shared] = {}
        for name, tensor in model.tensors.items():
            smallest = count_stored_bytes({name: tensor})
            parts, derivation = {f"{model.name}/{name}": tensor}, None
            for candidate, options in _derive_tensor(model, name, models[:number]):
                named = {f"{model.name}/{name}{suffix}": part for suffix, part in options.items()}
                nbytes = count_stored_bytes(named)
                if nbytes < smallest or (nbytes == smallest == 0):
                    smallest, parts, derivation = nbytes, named, candidate
            stored |= parts
            if derivation is not None:
                derivations[name] = derivation
        shared[model.name] = derivations
    return stored, shared


def restore_tensors(
    stored: Mapping[str, Tensor], shared: Mapping[str, Mapping[str, Shared]]
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each model that :func:`share_tensors` was given.

    Raises:
        ArtifactError: A tensor is missing, or a derivation does not fit the tensor that it names.
    """
    models: dict[str, dict[str, Tensor]] = {name: {} for name in shared}
    for model, derivations in shared.items():
        prefix = f"{model}/"
        for name, tensor in stored.items():
            if name.startswith(prefix) and "@" not in name:
                models[model][name.removeprefix(prefix)] = tensor
        for name, derivation in derivations.items():
            parts = {suffix: stored.get(f"{prefix}{name}{suffix}") for suffix in (FACTOR, OFFSET, DIFFERENCE)}
            try:
                models[model][name] = _restore_tensor(models[derivation.model][derivation.tensor], derivation, parts)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ArtifactError(f"'{name}' of '{model}' cannot be derived: {error!r}") from error
    return models


def _derive_tensor(
    model: ModelTensors, name: str, earlier: Sequence[ModelTensors]
) -> Iterator[tuple[Shared, dict[str, Tensor]]]:
    """Yield each derivation of a tensor with the parts that it needs."""
    tensor = model.tensors[name]
    ours = model.find_axes(name)
    if ours is None:
        return
    for other in earlier:
        for source in _list_sources(name):
            if source not in other.tensors:
                continue
            axes = _locate_axes(ours, other.find_axes(source), other.tensors[source].shape)
            if axes is None:
                continue
            part = _take_part(other.tensors[source], axes)
            if part.dtype == tensor.dtype and torch.equal(part, tensor):
                yield Shared(model=other.name, tensor=source, axes=axes), {}
            elif not tensor.is_floating_point() and tensor.ndim > 1:
                dtype = str(tensor.dtype).removeprefix("torch.")
                derivation = Shared(model=other.name, tensor=source, axes=axes, dtype=dtype)
                for factor, offset in _fit_codes(part, tensor, model, other, name):
                    yield derivation, _split_codes(part, tensor, factor, offset)


def _list_sources(name: str) -> list[str]:
    """Return the names of the tensors that a tensor may be derived from."""
    if not (name.startswith(CODES_PREFIX) and name.endswith(CODES)):
        return [name]
    layer = name.removeprefix(CODES_PREFIX).removesuffix(CODES)
    # A float model has a weight where a quantized one has codes.
    return [name, f"{MODEL_PREFIX}{layer}.weight"]


def _locate_axes(ours: Sequence[Tensor], theirs: Sequence[Tensor] | None, shape: Sequence[int]) -> Axes | None:
    """Return our original indices as positions along the axes of an earlier tensor; None if it lacks some."""
    if theirs is None or len(ours) != len(theirs):
        return None
    axes: Axes = []
    for mine, other, size in zip(ours, theirs, shape, strict=True):
        if torch.equal(mine, other):
            axes.append(None)
            continue
        order = other.argsort()
        position = torch.searchsorted(other[order], mine.contiguous()).clamp_max(size - 1)
        if not torch.equal(other[order][position], mine):
            return None
        axes.append(order[position].tolist())
    return axes


def _take_part(tensor: Tensor, axes: Axes) -> Tensor:
    for axis, indices in enumerate(axes):
        if indices is not None:
            tensor = tensor.index_select(axis, torch.tensor(indices, dtype=torch.long))
    return tensor


def _fit_codes(
    part: Tensor, codes: Tensor, model: ModelTensors, other: ModelTensors, name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield factors and offsets ``[C]``: by the stored scales, and by least squares without and with offsets."""
    x, y = part.double().flatten(1), codes.double().flatten(1)
    zeros = torch.zeros(len(codes))
    scale = name.removesuffix("_codes") + "_scale"
    ours, theirs = model.tensors.get(scale), other.tensors.get(scale)
    if ours is not None and ours.numel() in (1, len(codes)):
        numerator = torch.ones(()) if part.is_floating_point() else theirs
        if numerator is not None and numerator.numel() in (1, len(codes)):
            yield (numerator.double().flatten() / ours.double().flatten()).float().expand(len(codes)).clone(), zeros
    tiny = torch.finfo(torch.float64).tiny
    yield ((x * y).sum(1) / x.square().sum(1).clamp_min(tiny)).float(), zeros
    centred = x - x.mean(1, keepdim=True)
    slope = (centred * y).sum(1) / centred.square().sum(1).clamp_min(tiny)
    yield slope.float(), (y.mean(1) - slope * x.mean(1)).float()


def _split_codes(part: Tensor, codes: Tensor, factor: Tensor, offset: Tensor) -> dict[str, Tensor]:
    difference = codes.long() - _predict_codes(part, factor, offset)
    return {FACTOR: factor, OFFSET: offset, DIFFERENCE: difference}


def _predict_codes(part: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    shape = [-1, *[1] * (part.ndim - 1)]
    # One product, one sum and one rounding in double precision: IEEE 754 gives the same on every machine.
    product = part.double() * factor.double().view(shape) + offset.double().view(shape)
    return product.round().clamp(LOWEST_CODE, HIGHEST_CODE).long()


def _restore_tensor(source: Tensor, derivation: Shared, parts: Mapping[str, Tensor | None]) -> Tensor:
    if len(derivation.axes) != source.ndim:
        raise ValueError(f"{len(derivation.axes)} axes for a tensor of {source.ndim}")
    part = _take_part(source, derivation.axes)
    if not derivation.dtype:
        return part
    factor, offset, difference = (parts[suffix] for suffix in (FACTOR, OFFSET, DIFFERENCE))
    if factor is None or offset is None or difference is None:
        raise ValueError("a part is missing")
    dtype = getattr(torch, derivation.dtype)
    codes = _predict_codes(part, factor, offset) + difference.long()
    restored: Tensor = codes.to(dtype)
    return restored
