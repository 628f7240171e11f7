"""Distillation of every layer of a student from a layer of the teacher: hidden states, attention and relations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.activations import list_feature_layers
from autocompress.distill.base import Activations, Batch, Needs, Term
from autocompress.distill.feature_losses import match_sizes
from autocompress.errors import TrialError

#: Names of the layers that compute queries, keys and values, in the libraries whose models are brought.
PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "q_proj", "q_lin", "q", "to_q", "query_proj"),
    "key": ("key", "k_proj", "k_lin", "k", "to_k", "key_proj"),
    "value": ("value", "v_proj", "v_lin", "v", "to_v", "value_proj"),
}
#: Names of layers that compute all three, one after the other along the last axis.
FUSED = ("qkv", "c_attn", "Wqkv", "query_key_value")
S = TypeVar("S")
T = TypeVar("T")
_SIDE = {name: side for side, names in PROJECTIONS.items() for name in names}


@dataclass(frozen=True)
class LayerMappingConfig(Settings):
    """Hyperparameters of :class:`LayerMapping`."""

    label = "distill.layer_mapping"

    hidden_weight: float = knob(0.03, FloatRange(0.0, 1e3), "weight of the hidden states, after a learned linear map")
    attention_weight: float = knob(0.0, FloatRange(0.0, 1e3), "weight of the relations of queries and keys")
    relation_weight: float = knob(
        0.0, FloatRange(0.0, 1e3), "weight of the relations among queries, among keys and among values"
    )
    mapping: str = knob(
        "spread",
        Choice(("spread", "last")),
        "teacher's layers that student layers follow: evenly spread ones, or the last for the last",
    )
    relation_heads: int = knob(8, IntRange(1, 64, log=True), "parts that queries, keys and values are divided into")


class LayerMapping(Term[LayerMappingConfig]):
    """Differences between student layers and the teacher layers that they follow.

    Layer i of m student layers follows layer ceil(i n / m) of n teacher layers, so the last follows the last. Hidden
    states: the squared error after a learned linear map (TinyBERT, Jiao et al. 2020, arXiv:1909.10351). Attention and
    relations: KL(teacher || student) of softmax(A B^T / sqrt(d)) for queries, keys and values in as many parts as both
    widths allow (MiniLM-v2, Wang et al. 2021, arXiv:2012.15828), which need no equal number of heads.

    Layers are the blocks of a transformer whose queries, keys and values are layers of their own; in another model,
    they are its feature layers, which have hidden states alone.
    """

    name = "layer_mapping"
    kind = "feature"
    config = LayerMappingConfig

    def needs(self, config: LayerMappingConfig) -> Needs:
        """Return :attr:`Needs.MODEL`: the teacher runs live, because its layers are not cached."""
        return Needs.MODEL

    def select_layers(self, config: LayerMappingConfig, model: nn.Module) -> tuple[str, ...]:
        """Return the blocks, and their projections where relations are compared.

        Raises:
            TrialError: Relations have a weight, and the model has no such projections.
        """
        blocks = find_attention_blocks(model)
        projections = [name for names in blocks.values() for name in names]
        if not blocks and (config.attention_weight or config.relation_weight):
            raise TrialError(
                f"{type(model).__name__} has no layers for queries, keys and values ({', '.join(_SIDE)} or "
                f"{', '.join(FUSED)}); set attention_weight and relation_weight of distill.layer_mapping to 0"
            )
        hidden = list(blocks) or list_feature_layers(model)
        return (*(hidden if config.hidden_weight else ()), *(projections if _reads_relations(config) else ()))

    def build_adapter(self, config: LayerMappingConfig, student: Activations, teacher: Activations) -> nn.Module:
        """Return a linear map from the channels of each student layer to those of the layer that it follows."""
        pairs = map_layers(_list_hidden(student), _list_hidden(teacher), config.mapping)
        return nn.ModuleList(nn.Linear(ours.shape[1], theirs.shape[1]) for ours, theirs in pairs)

    def loss(self, config: LayerMappingConfig, batch: Batch) -> Tensor:
        """Return the weighted sum of the three differences, each a mean over layers, ``[]``."""
        pairs = map_layers(_list_hidden(batch.student), _list_hidden(batch.teacher), config.mapping)
        adapters = batch.adapter if isinstance(batch.adapter, nn.ModuleList) else nn.ModuleList()
        losses = [
            config.hidden_weight * _hidden_loss(adapter, ours, theirs) / len(pairs)
            for adapter, (ours, theirs) in zip(adapters, pairs, strict=True)
        ]
        layers = map_layers(_list_projections(batch.student), _list_projections(batch.teacher), config.mapping)
        for ours, theirs in layers:
            if config.attention_weight:
                relation = _relation_loss(ours, theirs, ("query", "key"), config.relation_heads)
                losses.append(config.attention_weight * relation / len(layers))
            for side in PROJECTIONS if config.relation_weight else ():
                relation = _relation_loss(ours, theirs, (side, side), config.relation_heads)
                losses.append(config.relation_weight * relation / (len(PROJECTIONS) * len(layers)))
        if not losses:
            raise TrialError("all weights of distill.layer_mapping are 0; set one of them, or leave the term out")
        return torch.stack(losses).sum()


def _reads_relations(config: LayerMappingConfig) -> bool:
    return bool(config.attention_weight or config.relation_weight)


def find_attention_blocks(model: nn.Module) -> dict[str, list[str]]:
    """Return the blocks of a transformer with the layers that compute queries, keys and values in each, by name.

    A block is the item of a module list or sequence that contains them.

    Example:
        >>> attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
        >>> find_attention_blocks(nn.ModuleDict({"layers": nn.ModuleList([attention])}))
        {'layers.0': ['layers.0.query', 'layers.0.key', 'layers.0.value']}
    """
    modules = dict(model.named_modules())
    blocks: dict[str, list[str]] = {}
    for name, module in modules.items():
        sides = {_SIDE[key]: f"{name}.{key}" if name else key for key, _ in module.named_children() if key in _SIDE}
        fused = [f"{name}.{key}" if name else key for key, _ in module.named_children() if key in FUSED]
        names = fused or (list(sides.values()) if len(sides) == len(PROJECTIONS) else [])
        block = _find_block(name, modules)
        if names and block not in blocks:
            blocks[block] = names
    return blocks


def _find_block(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the innermost item of a list or sequence that contains a module; the module itself without one."""
    block = name
    while block:
        parent = block.rpartition(".")[0]
        if isinstance(modules[parent], nn.ModuleList | nn.Sequential):
            return block
        block = parent
    return name


def map_layers(student: Sequence[S], teacher: Sequence[T], mapping: str) -> list[tuple[S, T]]:
    """Return each student layer with the teacher layer that it follows.

    Example:
        >>> map_layers(["a", "b"], [1, 2, 3, 4], "spread"), map_layers(["a", "b"], [1, 2, 3, 4], "last")
        ([('a', 2), ('b', 4)], [('b', 4)])
    """
    if not student or not teacher:
        return []
    if mapping == "last":
        return [(student[-1], teacher[-1])]
    count, total = len(student), len(teacher)
    return [(layer, teacher[-(-(index + 1) * total // count) - 1]) for index, layer in enumerate(student)]


def _is_projection(name: str) -> bool:
    key = name.rpartition(".")[2]
    return key in _SIDE or key in FUSED


def _first_tensor(name: str, value: object) -> Tensor:
    parts = [part for part in (value if isinstance(value, tuple | list) else (value,)) if isinstance(part, Tensor)]
    if not parts:
        raise TrialError(f"layer '{name}' returns no tensor; choose another distillation term")
    return parts[0].float()


def _list_hidden(activations: Activations) -> list[Tensor]:
    """Return the hidden states of each layer, ``[B, C, ...]``, in the order of the pass."""
    hidden = []
    for name, value in activations.layer_outputs.items():
        if not _is_projection(name):
            states = _first_tensor(name, value)
            hidden.append(states.movedim(-1, 1) if name in activations.tokens and states.dim() == 3 else states)
    return hidden


def _list_projections(activations: Activations) -> list[dict[str, Tensor]]:
    """Return queries, keys and values of each layer, ``[B, T, D]`` each, in the order of the pass."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in activations.layer_outputs.items():
        if not _is_projection(name):
            continue
        owner, _, key = name.rpartition(".")
        output = _first_tensor(name, value)
        parts = dict(zip(PROJECTIONS, output.chunk(3, -1), strict=True)) if key in FUSED else {_SIDE[key]: output}
        layers.setdefault(owner, {}).update(parts)
    return list(layers.values())


def _hidden_loss(adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = match_sizes(student, teacher)
    predicted: Tensor = adapter(ours.movedim(1, -1)).movedim(-1, 1)
    return F.mse_loss(predicted.float(), theirs)


def _relation_loss(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], sides: tuple[str, str], heads: int
) -> Tensor:
    """Return KL(teacher || student) of the relations between two sides, mean over tokens and parts, ``[]``.

    Raises:
        TrialError: The sequences of student and teacher, or queries and keys, differ in length or width.
    """
    widths = [layer[side].shape[-1] for layer in (student, teacher) for side in sides]
    parts = gcd(heads, *widths)
    ours, theirs = (_log_relation(layer[sides[0]], layer[sides[1]], parts) for layer in (student, teacher))
    if ours.shape != theirs.shape:
        raise TrialError(
            f"relations of {ours.shape[-1]} and {theirs.shape[-1]} tokens cannot be compared; set attention_weight and "
            "relation_weight of distill.layer_mapping to 0"
        )
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean()


def _log_relation(first: Tensor, second: Tensor, parts: int) -> Tensor:
    """Return log softmax(A B^T / sqrt(d)) for each part of the last axis, ``[B, T, D] -> [B, parts, T, T]``."""
    if first.shape != second.shape:
        raise TrialError("queries and keys differ in shape (grouped-query attention); set attention_weight to 0")
    a, b = (side.unflatten(-1, (parts, -1)).movedim(-2, 1) for side in (first, second))
    return F.log_softmax(a @ b.mT / a.shape[-1] ** 0.5, -1)


DISTILL.add(LayerMapping.name, LayerMapping())
