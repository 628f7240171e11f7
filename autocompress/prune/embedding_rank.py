"""Factorized embeddings: a table of fewer columns and a linear layer that widens what is looked up.

    Embedding(V, d)  ->  Embedding(V, k), Linear(k, d)      V d  ->  V k + k d parameters

as ALBERT does (Lan et al. 2020, arXiv:1909.11942, section 3.1). The product is the closest table of rank ``k``.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import FloatRange, knob
from autocompress.core.method import Context, MethodState, Recovery, match_layers
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import check_output_varies, format_error
from autocompress.prune.layer_channels import EMBEDDINGS
from autocompress.prune.schedule import round_half_up

SMALL = "fewer columns and a linear layer are no smaller"


@dataclass(frozen=True)
class EmbeddingRankConfig(Recovery):
    """The share of the columns that the tables do without.

    Example:
        >>> EmbeddingRankConfig(pruning_ratio=0.75).choose_rank(64)
        16
    """

    label: ClassVar[str] = "prune.embedding_rank"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.98), "share of the columns of each embedding table to remove")

    def choose_rank(self, width: int) -> int:
        """Return the number of columns of the table that replaces one of ``width`` columns."""
        return max(round_half_up((1 - self.pruning_ratio) * width), 1)


class FactorizedEmbedding(nn.Module):
    """A table of embeddings with few columns, and a linear layer behind it.

    Args:
        embedding: The table that it replaces, ``[V, d]``, whose options it keeps.
        rank: Number of columns ``k``.
    """

    def __init__(self, embedding: nn.Embedding | nn.EmbeddingBag, rank: int) -> None:
        super().__init__()
        rows, width = embedding.weight.shape
        self.num_embeddings, self.embedding_dim = rows, width
        self.padding_idx = embedding.padding_idx
        self.table = copy.deepcopy(embedding)
        self.table.embedding_dim = rank
        # On the meta device, because a new layer draws random weights.
        self.widen = nn.Linear(rank, width, bias=False, device="meta")
        for layer, shape in ((self.table, (rows, rank)), (self.widen, (width, rank))):
            layer.weight = nn.Parameter(embedding.weight.detach().new_zeros(shape), embedding.weight.requires_grad)

    @property
    def weight(self) -> Tensor:
        """The table that the two factors stand for, ``[V, d]``."""
        return self.table.weight @ self.widen.weight.T

    def forward(self, *inputs: Tensor, **named: Tensor | None) -> Tensor:
        """Return the embeddings, ``[..., d]``; the arguments are those of the table that it replaces."""
        widened: Tensor = self.widen(self.table(*inputs, **named))
        return widened


class EmbeddingRank:
    """Replaces embedding tables by a narrower table and a linear layer, initialized from the trained table.

    The rows of the narrow table are coordinates along the ``k`` directions that carry most of the rows (singular value
    decomposition). Left alone, with the reason, are tables that another layer shares, such as a tied output layer,
    tables that ``ignore`` protects, and tables that would not become smaller. Parameters and bytes fall; the linear
    layer adds ``k d`` multiply-accumulates for each look-up.

    The report holds ``sparsity`` (removed share of the weights of all tables), ``tables`` (name to the number of
    columns before and after, and the relative error of the product in the Frobenius norm) and ``uncut`` (name to the
    reason).
    """

    name: ClassVar[str] = "embedding_rank"
    config = EmbeddingRankConfig

    def is_identity(self, config: EmbeddingRankConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: EmbeddingRankConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with factorized tables and a record of them; ``model`` is not changed.

        Raises:
            CompressionError: No table can be factorized, or the weights of one are not finite.
        """
        pruned = copy.deepcopy(model).eval()
        report: dict[str, object] = {"sparsity": 0.0, "tables": {}, "uncut": {}}
        if self.is_identity(config):
            return pruned, MethodState(history={"factorized": []}, report=report)
        tables = find_tables(pruned)
        reasons = _find_obstacles(pruned, tables, config, match_layers(pruned, context.ignore))
        ranks = {
            name: config.choose_rank(table.weight.shape[1]) for name, table in tables.items() if name not in reasons
        }
        if len(reasons) == len(tables) and SMALL not in reasons.values():
            listed = ", ".join(f"'{name}': {reason}" for name, reason in reasons.items())
            raise CompressionError(f"no embedding table can be factorized ({listed or 'the model has none'})")
        before = sum(table.weight.numel() for table in tables.values())
        removed, rows = 0, {}
        for name, rank in ranks.items():
            weight = tables[name].weight.detach()
            factorized = _replace_table(pruned, name, rank)
            narrow, directions = factorize_table(weight, rank, name)
            with torch.no_grad():
                factorized.table.weight.copy_(narrow)
                factorized.widen.weight.copy_(directions)
                error = float((factorized.weight - weight).norm() / weight.norm().clamp_min(1e-12))
            removed += weight.numel() - sum(parameter.numel() for parameter in factorized.parameters())
            rows[name] = {"columns": [weight.shape[1], rank], "error": error}
        check_output_varies(pruned, context)
        report = {"sparsity": removed / before, "tables": rows, "uncut": reasons}
        history = {"factorized": [[name, rank] for name, rank in ranks.items()]}
        return pruned.eval(), MethodState(history=history, report=report)

    def restore(self, model: nn.Module, config: EmbeddingRankConfig, state: MethodState) -> nn.Module:
        """Replace the same tables of a freshly built model, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        entries = state.history.get("factorized")
        if not isinstance(entries, list):
            raise CompressionError("the pruning history has no list of factorized tables")
        if len(entries) > (count := len(find_tables(model))):
            raise CompressionError(f"the pruning history names {len(entries)} embedding tables of {count}")
        for entry in entries:
            try:
                name, rank = entry
                width = find_tables(model)[name].weight.shape[1]
                fits = 0 < rank < width
            except (KeyError, TypeError, ValueError) as error:
                raise CompressionError(f"the pruning history does not fit the model: {format_error(error)}") from error
            if not fits:
                raise CompressionError(f"the pruning history does not fit table '{name}', which has {width} columns")
            _replace_table(model, name, rank)
        return model.eval()


Tables = Mapping[str, nn.Embedding | nn.EmbeddingBag]


def find_tables(model: nn.Module) -> dict[str, nn.Embedding | nn.EmbeddingBag]:
    """Return the embedding tables of a model by name; classes that derive from torch's may compute something else."""
    return {name: module for name, module in model.named_modules() if type(module) in EMBEDDINGS and name}


def _find_obstacles(
    model: nn.Module, tables: Tables, config: EmbeddingRankConfig, protected: list[str]
) -> dict[str, str]:
    """Return the tables that are left alone, each with the reason."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for tensor in module._parameters.values():
            users.setdefault(id(tensor), []).append(name)
    reasons = {}
    for name, table in tables.items():
        rows, width = table.weight.shape
        rank = config.choose_rank(width)
        shared = [user for user in users[id(table.weight)] if user != name]
        if name in protected:
            reasons[name] = "it is protected by ignore"
        elif shared:
            reasons[name] = f"'{shared[0]}' shares its weight"
        elif table.max_norm is not None or getattr(table, "mode", "mean") == "max":
            reasons[name] = "max_norm or the mode max reads whole rows"
        elif rank * (rows + width) >= rows * width:
            reasons[name] = SMALL
    return reasons


def _replace_table(model: nn.Module, name: str, rank: int) -> FactorizedEmbedding:
    parent, _, key = name.rpartition(".")
    factorized = FactorizedEmbedding(find_tables(model)[name], rank)
    setattr(model.get_submodule(parent), key, factorized)
    return factorized


def factorize_table(weight: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the factors ``[V, k]`` and ``[d, k]`` of the closest matrix of rank ``k``.

    The columns of the second are orthonormal.

    Args:
        weight: The table, ``[V, d]``.
        rank: Number of columns ``k``.
        name: Name of the table, for the message.

    Raises:
        CompressionError: A weight is not finite.
    """
    if not bool(weight.isfinite().all()):
        raise CompressionError(f"the weights of table '{name}' are not finite and cannot be factorized")
    # The right singular vectors are eigenvectors of a matrix [d, d], which is small where the vocabulary is large.
    exact = weight.double()
    _, vectors = torch.linalg.eigh(exact.T @ exact)
    directions = vectors.flip(1)[:, :rank]
    # Libraries of linear algebra choose the signs differently.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    return (exact @ directions).to(weight), directions.to(weight)


PRUNE.add(EmbeddingRank.name, EmbeddingRank())
