"""Recommenders: embedding tables of users and items, and layers on them.

    rating or click   user [B], item [B], features [B, F] if there are any  ->  classes [B, C]
    ranking           user [B], candidates [B, K]                           ->  a score for each candidate [B, K]
    several tasks     user [B], item [B], other items [B, K - 1]            ->  both: classes of the item [B, C], and
                                                                                scores of it and of the others [B, K]

The shapes of the inputs decide which of the three a model is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Generic

import torch
from torch import Tensor, nn

from autocompress.core.heads import as_head
from autocompress.core.knobs import IntRange, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import C, check_heads, describe_inputs
from autocompress.models.sharing import HeadConfig, Logits, SharedHeads, make_heads

# Standard deviation of the rows of an untrained table.
EMBEDDING_SCALE = 0.1


@dataclass(frozen=True)
class Form:
    """Sizes of a recommender's inputs.

    Attributes:
        users: Number of rows of the user table.
        items: Number of rows of the item table.
        candidates: Number of items in a list to rank; 0 if a single item is rated.
        features: Number of real features beside user and item.
        has_own_item: Whether the first candidate is an input of its own, for which other heads predict classes.
    """

    users: int
    items: int
    candidates: int = 0
    features: int = 0
    has_own_item: bool = False


def infer_form(family: str, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> Form:
    """Return the sizes that inputs and heads imply.

    Raises:
        UsageError: Inputs and heads fit neither a rating nor a ranking.

    Example:
        >>> infer_form("two_tower", (InputSpec((), 100), InputSpec((20,), 500)), {"item": 20})
        Form(users=100, items=500, candidates=20, features=0, has_own_item=False)
    """
    check_heads(family, heads)
    shapes = tuple(spec.shape for spec in inputs)
    whole = tuple(bool(spec.vocabulary) for spec in inputs)
    # A user is one whole number; what follows decides between a rating and a ranking.
    if whole[:2] == (True, True) and shapes[0] == ():
        users, items = inputs[0].vocabulary, inputs[1].vocabulary
        # A single item is rated, with or without real features.
        if shapes[1] == () and (len(inputs) == 2 or (whole[2:] == (False,) and len(shapes[2]) == 1)):
            return Form(users, items, features=shapes[2][0] if len(inputs) == 3 else 0)
        # An item and others: at least one head ranks them, the other heads predict something about the item.
        if len(inputs) == 3 and whole[2] and shapes[1] == () and len(shapes[2]) == 1:
            _check_ranking_heads(family, heads, shapes[2][0] + 1)
            return Form(users, items, candidates=shapes[2][0] + 1, has_own_item=True)
        # A list of items is ranked: the head has one class per candidate.
        if len(inputs) == 2 and len(shapes[1]) == 1:
            if list(heads.values()) != [shapes[1][0]]:
                raise UsageError(
                    f"student '{family}' ranks {shapes[1][0]} candidates, so it needs one head of as many classes, "
                    f"not {dict(heads)}"
                )
            return Form(users, items, candidates=shapes[1][0])
    raise UsageError(
        f"student '{family}' takes a user, an item and real features (features may be missing), a user and a list of "
        f"items, or a user, an item and a list of others, not {describe_inputs(inputs)}"
    )


def _check_ranking_heads(family: str, heads: Mapping[str, int], candidates: int) -> None:
    ranked = {name: size for name, size in heads.items() if as_head(size).kind == "candidates"}
    if not ranked or any(size != candidates for size in ranked.values()):
        raise UsageError(
            f"student '{family}' ranks {candidates} candidates, so it needs a head of as many, not {dict(heads)}"
        )


@dataclass(frozen=True)
class TwoTowerConfig(HeadConfig):
    """Shape of a two-tower recommender.

    Example:
        >>> TwoTowerConfig(embedding=16).to_dict()["tower"]
        32
    """

    label: ClassVar[str] = "two_tower"

    embedding: int = knob(32, IntRange(2, 256, log=True), "numbers in a row of the user and the item table")
    width: int = knob(64, IntRange(4, 512, log=True), "outputs of each hidden layer of a tower")
    depth: int = knob(1, IntRange(0, 4), "hidden layers of a tower")
    tower: int = knob(32, IntRange(2, 256, log=True), "outputs of a tower")


class TwoTower(nn.Module):
    """One tower for the user and one for the item; a weighted sum of their element-wise product gives the outputs.

    With one output this is a dot product with a weight for each element (generalized matrix factorization, He et al.
    2017, arXiv:1708.05031), so items can still be retrieved by inner product: either tower can take in
    the weights. Features enter both towers.
    """

    def __init__(self, config: TwoTowerConfig, form: Form, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ranks, self.has_own_item = form.candidates > 0, form.has_own_item
        self.user_embedding = _make_embedding(form.users, config.embedding)
        self.item_embedding = _make_embedding(form.items, config.embedding)
        sizes = [config.embedding + form.features, *[config.width] * config.depth, config.tower]
        self.user_tower, self.item_tower = _make_layers(sizes), _make_layers(sizes)
        self.heads = _make_heads(config, config.tower, heads, form)

    def forward(self, user: Tensor, item: Tensor, features: Tensor | None = None) -> Logits:
        """Return the logits of the only head, or of every head by name; the third input may hold other items."""
        if self.has_own_item and features is not None:
            item, features = torch.cat([item.unsqueeze(1), features], 1), None
        of_user, of_item = self.user_embedding(user), self.item_embedding(item)
        if features is not None:
            of_user, of_item = torch.cat([of_user, features], -1), torch.cat([of_item, features], -1)
        of_user, of_item = self.user_tower(of_user), self.item_tower(of_item)
        if self.ranks:
            # [B, D] -> [B, 1, D], to be multiplied with each of the K candidates.
            of_user = of_user.unsqueeze(1)
        logits: Logits = self.heads(of_user * of_item)
        return logits


@dataclass(frozen=True)
class InteractionConfig(HeadConfig):
    """Shape of an interaction recommender.

    Example:
        >>> InteractionConfig(embedding=8).to_dict()["depth"]
        2
    """

    label: ClassVar[str] = "interaction"

    embedding: int = knob(16, IntRange(2, 256, log=True), "numbers in a row of the user and the item table")
    width: int = knob(64, IntRange(4, 512, log=True), "outputs of each hidden layer")
    depth: int = knob(2, IntRange(1, 4), "hidden layers above the interactions")
    bottom: int = knob(1, IntRange(0, 3), "hidden layers of the features below the interactions")


class Interaction(nn.Module):
    """Pairwise dot products of embeddings and transformed features, then layers (DLRM, Naumov et al. 2019).

    Source: arXiv:1906.00091, with two differences. Each pair's product has a weight for each element, initially 1: as
    inputs of a layer, columns of the tables can be pruned and products can be quantized. Besides the dot products the
    layers on top read the embeddings; those of the paper read the features only, which may be missing here.
    """

    def __init__(self, config: InteractionConfig, form: Form, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ranks, self.has_own_item = form.candidates > 0, form.has_own_item
        self.user_embedding = _make_embedding(form.users, config.embedding)
        self.item_embedding = _make_embedding(form.items, config.embedding)
        vectors = 2
        if form.features:
            self.bottom = _make_layers([form.features, *[config.width] * config.bottom, config.embedding])
            vectors = 3
        # Every pair of different vectors once.
        pairs = vectors * (vectors - 1) // 2
        self.dots = nn.ModuleList(_make_dot_product(config.embedding) for _ in range(pairs))
        inputs = vectors * config.embedding + pairs
        self.top = nn.Sequential(*_make_layers([inputs, *[config.width] * config.depth]), nn.ReLU())
        self.heads = _make_heads(config, config.width, heads, form)

    def forward(self, user: Tensor, item: Tensor, features: Tensor | None = None) -> Logits:
        """Return the logits of the only head, or of every head by name; the third input may hold other items."""
        if self.has_own_item and features is not None:
            item, features = torch.cat([item.unsqueeze(1), features], 1), None
        of_user, of_item = self.user_embedding(user), self.item_embedding(item)
        if self.ranks:
            # expand repeats the user for each candidate without copying memory.
            of_user = of_user.unsqueeze(1).expand(-1, item.shape[1], -1)
        vectors = [of_user, of_item]
        if features is not None:
            vectors.append(self.bottom(features))
        pairs = [(one, other) for index, one in enumerate(vectors) for other in vectors[index + 1 :]]
        dots = [dot(one * other) for dot, (one, other) in zip(self.dots, pairs, strict=True)]
        logits: Logits = self.heads(self.top(torch.cat([*vectors, *dots], -1)))
        return logits


class _Recommenders(Generic[C]):
    """Common base of both families, which differ in their config and their module."""

    name: ClassVar[str]
    config: type[C]
    module: Callable[[C, Form, Mapping[str, int]], nn.Module]

    def build(self, config: C, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained model that rates an item, or ranks a list of them.

        Raises:
            UsageError: The inputs are of another form, or the heads do not fit them.
        """
        return self.module(config, infer_form(self.name, inputs, heads), heads)


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
        # A bias common to all candidates would not change their order.
        super().__init__({head: nn.Linear(inputs, 1, bias=False) for head in heads})

    def forward(self, features: Tensor) -> Tensor:
        (layer,) = self.values()
        scores: Tensor = layer(features).squeeze(-1)
        return scores


def _make_embedding(rows: int, columns: int) -> nn.Embedding:
    table = nn.Embedding(rows, columns)
    # With torch's default, the unit normal, products of rows are too large for the layers above to learn.
    nn.init.normal_(table.weight, std=EMBEDDING_SCALE)
    return table


def _make_layers(sizes: list[int]) -> nn.Sequential:
    """Return linear layers of these sizes, a ReLU between each two."""
    layers = nn.Sequential()
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        if index:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(inputs, outputs))
    return layers


class _ItemHeads(nn.Module):
    """Scores of every candidate, and classes of the first one, ``[B, K, D] -> {head: [B, K] or [B, C]}``."""

    def __init__(self, config: HeadConfig, inputs: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ranked = tuple(name for name, size in heads.items() if as_head(size).kind == "candidates")
        # One score for each candidate.
        self.names = tuple(heads)
        sizes = {name: 1 if name in self.ranked else size for name, size in heads.items()}
        self.shared: SharedHeads = make_heads(config, inputs, sizes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        own = features[:, 0]
        return {
            name: self.shared.forward_head(name, features).squeeze(-1)
            if name in self.ranked
            else self.shared.forward_head(name, own)
            for name in self.names
        }


def _make_heads(config: HeadConfig, inputs: int, heads: Mapping[str, int], form: Form) -> nn.Module:
    """Return the module from the last features to the logits."""
    if form.has_own_item:
        return _ItemHeads(config, inputs, heads)
    return _Scores(inputs, heads) if form.candidates else make_heads(config, inputs, heads)


def _make_dot_product(size: int) -> nn.Linear:
    """Return a layer that sums element-wise products, ``[.., D] -> [.., 1]``, with a weight for each."""
    layer = nn.Linear(size, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer
