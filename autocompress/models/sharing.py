"""Layers between the features of an encoder and the logits of several heads, shared or separate.

    shared_bottom  features -> one tower a head                                           (Caruana 1997)
    shared_middle  features -> a bottom a head -> one middle for all -> a tower a head
    mixture        features -> experts for all -> weighted by a gate a head -> a tower a head  (Ma et al. 2018)

A *tower* is a linear layer, or two with a rectifier between them (``head_hidden``). A family with heads derives its
config from :class:`HeadConfig` and ends its network in :func:`make_heads`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, IntRange, Knob, Settings, knob
from autocompress.errors import UsageError

Logits = Tensor | dict[str, Tensor]


class SharedHeads(nn.Module):
    """Base class of the layers that heads share."""

    def forward_head(self, head: str, features: Tensor) -> Tensor:
        """Return the logits of one head, ``[..., F] -> [..., C]``."""
        raise NotImplementedError


class SharedBottom(nn.ModuleDict, SharedHeads):
    """One tower a head on the same features, ``[B, F] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    Only the encoder is shared (hard parameter sharing; Caruana 1997, Machine Learning 28).
    """

    def __init__(self, config: "HeadConfig", features: int, heads: Mapping[str, int]) -> None:
        super().__init__(_make_towers(features, config.head_hidden, heads))

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers whose outputs are the logits, in the order of the heads."""
        return [_name_last_layer(name, tower) for name, tower in self.items()]

    def forward_head(self, head: str, features: Tensor) -> Tensor:
        """Return the logits of one head, ``[..., F] -> [..., C]``."""
        logits: Tensor = self[head](features)
        return logits

    def forward(self, features: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        return _unwrap_single_head({head: tower(features) for head, tower in self.items()})


class SharedMiddle(SharedHeads):
    """A bottom and a tower for each head, and one layer for all heads between them.

    With ReLU as r and the features x, head k returns tower_k(r(middle(r(bottom_k(x))))), where every bottom and the
    middle are linear maps from F to F features. Private nets at both ends of a shared body are the form of Kaiser et
    al. 2017 (arXiv:1706.05137), reduced to one layer each. The middle runs once for each head, and its cost counts for
    each run.

    ``[B, F] -> [B, C]``, or ``{head: [B, C]}`` with several heads.
    """

    def __init__(self, config: "HeadConfig", features: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.bottoms = nn.ModuleDict({head: _make_hidden_layer(features) for head in heads})
        self.middle = _make_hidden_layer(features)
        self.towers = nn.ModuleDict(_make_towers(features, config.head_hidden, heads))

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers whose outputs are the logits, in the order of the heads."""
        return [_name_last_layer(f"towers.{name}", tower) for name, tower in self.towers.items()]

    def forward_head(self, head: str, features: Tensor) -> Tensor:
        """Return the logits of one head, ``[..., F] -> [..., C]``."""
        logits: Tensor = self.towers[head](self.middle(self.bottoms[head](features)))
        return logits

    def forward(self, features: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        return _unwrap_single_head({head: self.forward_head(head, features) for head in self.towers})


class Mixture(SharedHeads):
    """Experts that all heads share, with a gate for each head that mixes them.

    With experts f_i (a linear map from F to F features and a ReLU), head k returns tower_k(sum_i g_i f_i(x)), where
    g = softmax(G_k x) has one number an expert (MMoE; Ma et al. 2018, KDD, equations 5 and 6). One head makes it a
    plain mixture of experts.

    ``[B, F] -> [B, C]``, or ``{head: [B, C]}`` with several heads.
    """

    def __init__(self, config: "HeadConfig", features: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        # Not a ModuleList: depth pruning takes the children of a list for a chain and may bypass them.
        self.experts = nn.ModuleDict({str(index): _make_hidden_layer(features) for index in range(config.experts)})
        # Without a bias, because the gate of the paper is softmax(G x).
        self.gates = nn.ModuleDict({head: nn.Linear(features, config.experts, bias=False) for head in heads})
        self.towers = nn.ModuleDict(_make_towers(features, config.head_hidden, heads))

    @property
    def head_layers(self) -> list[str]:
        """Names of the layers whose outputs are the logits, in the order of the heads."""
        return [_name_last_layer(f"towers.{name}", tower) for name, tower in self.towers.items()]

    def forward_head(self, head: str, features: Tensor) -> Tensor:
        """Return the logits of one head, ``[..., F] -> [..., C]``; the experts run for this head alone."""
        outputs = torch.stack([expert(features) for expert in self.experts.values()], -2)
        shares = torch.softmax(self.gates[head](features), -1).unsqueeze(-1)
        logits: Tensor = self.towers[head]((shares * outputs).sum(-2))
        return logits

    def forward(self, features: Tensor) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        # [B, E, F]: the experts run once, and each head mixes their outputs.
        outputs = torch.stack([expert(features) for expert in self.experts.values()], 1)
        logits = {}
        for head, tower in self.towers.items():
            # [B, E, 1]: one weight for each expert.
            shares = torch.softmax(self.gates[head](features), 1).unsqueeze(2)
            logits[head] = tower((shares * outputs).sum(1))
        return _unwrap_single_head(logits)


#: Name to the module, built from a config, the number of features and the heads.
SHARING: Mapping[str, Callable[["HeadConfig", int, Mapping[str, int]], SharedHeads]] = {
    "shared_bottom": SharedBottom,
    "shared_middle": SharedMiddle,
    "mixture": Mixture,
}


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings):
    """Hyperparameters of the layers behind a family's features; a family's config derives from it.

    Example:
        >>> HeadConfig(sharing="mixture").experts
        4
    """

    sharing: str = knob("shared_bottom", Choice(tuple(SHARING)), "layers that the heads share behind the features")
    experts: int = knob(4, IntRange(2, 8), "experts of a mixture; other kinds of sharing ignore it")
    head_hidden: int = knob(0, IntRange(0, 256), "units of a hidden layer in each head; 0 = a single linear layer")

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """Return every hyperparameter by name, those of the family first."""
        declared = super().knobs()
        # A dataclass lists the fields of its base first; here the hyperparameters of the family come first.
        shared = {name: declared.pop(name) for name in ("sharing", "experts", "head_hidden")}
        return {**declared, **shared}


def make_heads(config: HeadConfig, features: int, heads: Mapping[str, int]) -> SharedHeads:
    """Return an untrained module from features ``[B, F]`` to ``[B, C]``, or ``{head: [B, C]}`` with several heads.

    At the defaults it is a dictionary of linear layers by head.

    Args:
        config: Hyperparameters of the shared layers.
        features: F, the number of features of the encoder.
        heads: Head name to number of classes.

    Raises:
        UsageError: A head has a name that a module cannot have.

    Example:
        >>> make_heads(HeadConfig(sharing="mixture"), 16, {"a": 3, "b": 2})(torch.zeros(5, 16))["a"].shape
        torch.Size([5, 3])
    """
    check_head_names(heads)
    return SHARING[config.sharing](config, features, heads)


def check_head_names(heads: Iterable[str]) -> None:
    """Check that each head's name can name a module.

    Raises:
        UsageError: A name is empty, holds a dot, or is an attribute of torch's modules.
    """
    # Heads become submodules of such a module, so its own attributes are no names for heads.
    module = SharedBottom(HeadConfig(), 1, {})
    for head in heads:
        if not head or "." in head or hasattr(module, head):
            raise UsageError(f"a head cannot be called '{head}': choose a word without dots that torch does not use")


def _make_hidden_layer(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU())


def _make_towers(features: int, hidden: int, heads: Mapping[str, int]) -> dict[str, nn.Module]:
    def tower(classes: int) -> nn.Module:
        if not hidden:
            return nn.Linear(features, classes)
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    return {head: tower(classes) for head, classes in heads.items()}


def _name_last_layer(name: str, tower: nn.Module) -> str:
    # A tower with a hidden layer ends in the last layer of its sequence.
    return f"{name}.{len(tower) - 1}" if isinstance(tower, nn.Sequential) else name


def _unwrap_single_head(logits: dict[str, Tensor]) -> Logits:
    return next(iter(logits.values())) if len(logits) == 1 else logits
