"""Recommenders: embedding tables of users and items, and what stands on them.

    rating or click   user [B], item [B], features [B, F] if there are any  ->  classes [B, C]
    ranking           user [B], candidates [B, K]                           ->  a score for each candidate [B, K]

The form of the inputs decides which of the two a model is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Generic

import torch
from torch import Tensor, nn

from autocompress.core.knobs import IntRange, Settings, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import C, describe, refuse_no_heads
from autocompress.models.sharing import HeadConfig, Logits, make_heads

EMBEDDING_SCALE = 0.1


@dataclass(frozen=True)
class Form:
    """What a recommender reads and gives.

    Attributes:
        users: Rows of the user table.
        items: Rows of the item table.
        candidates: Items in a list to rank; 0 where a single item is rated.
        features: Real numbers beside user and item.
    """

    users: int
    items: int
    candidates: int = 0
    features: int = 0


def form_of(family: str, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> Form:
    """Return what the inputs and heads ask of a recommender.

    Raises:
        UsageError: They fit neither a rating nor a ranking.

    Example:
        >>> form_of("two_tower", (InputSpec((), 100), InputSpec((20,), 500)), {"item": 20})
        Form(users=100, items=500, candidates=20, features=0)
    """
    refuse_no_heads(family, heads)
    shapes = tuple(spec.shape for spec in inputs)
    whole = tuple(bool(spec.vocabulary) for spec in inputs)
    if whole[:2] == (True, True) and shapes[0] == ():
        users, items = inputs[0].vocabulary, inputs[1].vocabulary
        if shapes[1] == () and (len(inputs) == 2 or (whole[2:] == (False,) and len(shapes[2]) == 1)):
            return Form(users, items, features=shapes[2][0] if len(inputs) == 3 else 0)
        if len(inputs) == 2 and len(shapes[1]) == 1:
            if list(heads.values()) != [shapes[1][0]]:
                raise UsageError(
                    f"student '{family}' ranks {shapes[1][0]} candidates, so it needs one head of as many classes, "
                    f"not {dict(heads)}"
                )
            return Form(users, items, candidates=shapes[1][0])
    raise UsageError(
        f"student '{family}' takes a user, an item and real features (features may be missing), or a user and a list "
        f"of items, not {describe(inputs)}"
    )


@dataclass(frozen=True)
class TwoTowerConfig(Settings):
    """Shape of a two-tower recommender.

    Example:
        >>> TwoTowerConfig(embedding=16).to_dict()["tower"]
        32
    """

    label: ClassVar[str] = "two_tower"

    embedding: int = knob(32, IntRange(2, 256, log=True), "numbers in a row of the user and the item table")
    width: int = knob(64, IntRange(4, 512, log=True), "outputs of each hidden layer of a tower")
    depth: int = knob(1, IntRange(0, 4), "hidden layers of a tower")
    tower: int = knob(32, IntRange(2, 256, log=True), "numbers that a tower describes its user or item by")


class TwoTower(nn.Module):
    """One tower describes the user, one the item; their element-wise product is weighted into the outputs.

    With one output this is a dot product with a weight for each element (generalized matrix factorization, He et al.
    2017, arXiv:1708.05031), so a user still finds items by inner product: the weights belong to either tower. Features
    go into both towers.
    """

    def __init__(self, config: TwoTowerConfig, form: Form, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ranks = form.candidates > 0
        self.user_embedding = _table(form.users, config.embedding)
        self.item_embedding = _table(form.items, config.embedding)
        sizes = [config.embedding + form.features, *[config.width] * config.depth, config.tower]
        self.user_tower, self.item_tower = _layers(sizes), _layers(sizes)
        self.heads = _heads(config.tower, heads, self.ranks)

    def forward(self, user: Tensor, item: Tensor, features: Tensor | None = None) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        of_user, of_item = self.user_embedding(user), self.item_embedding(item)
        if features is not None:
            of_user, of_item = torch.cat([of_user, features], -1), torch.cat([of_item, features], -1)
        of_user, of_item = self.user_tower(of_user), self.item_tower(of_item)
        if self.ranks:
            of_user = of_user.unsqueeze(1)
        logits: Logits = self.heads(of_user * of_item)
        return logits


@dataclass(frozen=True)
class InteractionConfig(Settings):
    """Shape of an interaction recommender.

    Example:
        >>> InteractionConfig(embedding=8).to_dict()["depth"]
        2
    """

    label: ClassVar[str] = "interaction"

    embedding: int = knob(16, IntRange(2, 256, log=True), "numbers in a row of the user and the item table")
    width: int = knob(64, IntRange(4, 512, log=True), "outputs of each hidden layer")
    depth: int = knob(2, IntRange(1, 4), "hidden layers above the interactions")
    bottom: int = knob(1, IntRange(0, 3), "hidden layers below them that the features go through")


class Interaction(nn.Module):
    """Pairwise dot products of embeddings and described features, then layers (DLRM, Naumov et al. 2019).

    Source: arXiv:1906.00091. Two things differ from the paper. Each pair's product has a weight for each element, 1 at
    first: as the inputs of a layer, columns of the tables can be pruned and products be rounded. And the layers on top
    see the embeddings beside the dot products, where the paper's see the features alone, of which there may be none.
    """

    def __init__(self, config: InteractionConfig, form: Form, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ranks = form.candidates > 0
        self.user_embedding = _table(form.users, config.embedding)
        self.item_embedding = _table(form.items, config.embedding)
        vectors = 2
        if form.features:
            self.bottom = _layers([form.features, *[config.width] * config.bottom, config.embedding])
            vectors = 3
        pairs = vectors * (vectors - 1) // 2
        self.dots = nn.ModuleList(_dot(config.embedding) for _ in range(pairs))
        inputs = vectors * config.embedding + pairs
        self.top = nn.Sequential(*_layers([inputs, *[config.width] * config.depth]), nn.ReLU())
        self.heads = _heads(config.width, heads, self.ranks)

    def forward(self, user: Tensor, item: Tensor, features: Tensor | None = None) -> Logits:
        """Return the logits of the only head, or of every head by name."""
        of_user, of_item = self.user_embedding(user), self.item_embedding(item)
        if self.ranks:
            of_user = of_user.unsqueeze(1).expand(-1, item.shape[1], -1)
        vectors = [of_user, of_item]
        if features is not None:
            vectors.append(self.bottom(features))
        pairs = [(one, other) for index, one in enumerate(vectors) for other in vectors[index + 1 :]]
        dots = [dot(one * other) for dot, (one, other) in zip(self.dots, pairs, strict=True)]
        logits: Logits = self.heads(self.top(torch.cat([*vectors, *dots], -1)))
        return logits


class _Recommenders(Generic[C]):
    """What both families do: they differ in their config and in the module that it describes."""

    name: ClassVar[str]
    config: type[C]
    module: Callable[[C, Form, Mapping[str, int]], nn.Module]

    def build(self, config: C, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained model that rates an item, or ranks a list of them.

        Raises:
            UsageError: The inputs are neither, or the heads do not fit them.
        """
        return self.module(config, form_of(self.name, inputs, heads), heads)


class TwoTowerFamily(_Recommenders[TwoTowerConfig]):
    """Builds two-tower recommenders.

    Example:
        >>> inputs = InputSpec((), vocabulary=100), InputSpec((20,), vocabulary=500)
        >>> net = TwoTowerFamily().build(TwoTowerConfig(), inputs, {"item": 20})
        >>> net(torch.zeros(3, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.int64)).shape
        torch.Size([3, 20])
    """

    name: ClassVar[str] = "two_tower"
    config = TwoTowerConfig
    module = TwoTower


class InteractionFamily(_Recommenders[InteractionConfig]):
    """Builds interaction recommenders.

    Example:
        >>> inputs = InputSpec((), vocabulary=100), InputSpec((), vocabulary=500), InputSpec((4,))
        >>> net = InteractionFamily().build(InteractionConfig(), inputs, {"click": 2})
        >>> net(torch.tensor([3]), torch.tensor([7]), torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """

    name: ClassVar[str] = "interaction"
    config = InteractionConfig
    module = Interaction


STUDENTS.add(TwoTowerFamily.name, TwoTowerFamily())
STUDENTS.add(InteractionFamily.name, InteractionFamily())


class _Scores(nn.ModuleDict):
    """The score of each candidate, ``[B, K, D] -> [B, K]``."""

    def __init__(self, inputs: int, heads: Mapping[str, int]) -> None:
        # A bias common to all candidates would say nothing about their order.
        super().__init__({head: nn.Linear(inputs, 1, bias=False) for head in heads})

    def forward(self, found: Tensor) -> Tensor:
        (layer,) = self.values()
        scores: Tensor = layer(found).squeeze(-1)
        return scores


def _table(rows: int, columns: int) -> nn.Embedding:
    table = nn.Embedding(rows, columns)
    # Products of rows drawn from the unit normal, torch's default, drown what the layers above them learn.
    nn.init.normal_(table.weight, std=EMBEDDING_SCALE)
    return table


def _layers(sizes: list[int]) -> nn.Sequential:
    """Return linear layers of these sizes, a ReLU between each two."""
    layers = nn.Sequential()
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        if index:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(inputs, outputs))
    return layers


def _heads(inputs: int, heads: Mapping[str, int], ranks: bool) -> nn.Module:
    """Return what makes logits of the last features."""
    return _Scores(inputs, heads) if ranks else make_heads(HeadConfig(), inputs, heads)


def _dot(size: int) -> nn.Linear:
    """Return what makes a dot product of element-wise products, ``[.., D] -> [.., 1]``."""
    layer = nn.Linear(size, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer
