"""Networks for rows of tables: numbers and categories to features, then heads.

    numbers [B, F], categories [B, K] -> features [B, width] -> heads

    table_mlp           hidden layers on numbers and embeddings of categories side by side
    table_resnet        the same with residual blocks
    table_transformer   a token for each column, blocks of attention, the features of an additional token

Either input may be absent. The families are the strong simple ones of Gorishniy et al. 2021 (arXiv:2106.11959).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.heads import Regression
from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import check_heads, describe_inputs
from autocompress.models.sharing import HeadConfig, Logits, make_heads
from autocompress.models.transformer import INITIAL_DEVIATION


@dataclass(frozen=True)
class RowForm:
    """Sizes of a row.

    Attributes:
        numbers: Count of real numbers.
        categories: Count of categories.
        vocabulary: Number of rows of the table of embeddings that all categories share.
    """

    numbers: int
    categories: int
    vocabulary: int


def infer_row_form(family: str, inputs: tuple[InputSpec, ...]) -> RowForm:
    """Return the sizes of a row that the inputs of a model imply.

    Raises:
        UsageError: The inputs are no row: real numbers ``(F,)``, categories ``(K,)``, or both in this order.

    Example:
        >>> infer_row_form("table_mlp", (InputSpec((3,)), InputSpec((2,), 9)))
        RowForm(numbers=3, categories=2, vocabulary=9)
    """
    numbers = [spec for spec in inputs if not spec.vocabulary]
    categories = [spec for spec in inputs if spec.vocabulary]
    is_row = len(numbers) <= 1 and len(categories) <= 1 and bool(inputs) and [*numbers, *categories] == list(inputs)
    if not is_row or any(len(spec.shape) != 1 for spec in inputs):
        raise UsageError(
            f"student '{family}' takes the numbers (F,) of a row, its categories (K,), or both in this order, not "
            f"{describe_inputs(inputs)}"
        )
    return RowForm(
        numbers[0].shape[0] if numbers else 0,
        categories[0].shape[0] if categories else 0,
        categories[0].vocabulary if categories else 0,
    )


class Embeddings(nn.Module):
    """Numbers and embeddings of categories side by side, ``[B, F], [B, K] -> [B, F + K E]``."""

    def __init__(self, form: RowForm, size: int) -> None:
        super().__init__()
        self.form = form
        self.width = form.numbers + form.categories * size
        self.table = nn.Embedding(form.vocabulary, size) if form.categories else None

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the vector of each row."""
        if self.table is None:
            return first
        # A row without numbers has its categories as the first input.
        if second is None:
            embedded: Tensor = self.table(first).flatten(1)
            return embedded
        return torch.cat([first, self.table(second).flatten(1)], 1)


class RowModel(nn.Module):
    """An encoder of rows with its heads, ``[B, F], [B, K] -> [B, C]``, or ``{head: [B, C]}`` with several heads.

    The outputs of a regression head are multiplied by the deviation of the targets and moved to their mean, so that an
    untrained model starts there: optimizers take steps of one size for all weights.

    Args:
        encoder: Module from the inputs to features ``[B, width]``.
        config: Hyperparameters of the layers behind it.
        width: Number of features.
        heads: Heads of the task.
    """

    def __init__(self, encoder: nn.Module, config: HeadConfig, width: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, make_heads(config, width, heads)
        self.scaled = {name: head for name, head in heads.items() if isinstance(head, Regression)}
        self.only_head = next(iter(heads)) if len(heads) == 1 else ""
        for name, head in self.scaled.items():
            self.register_buffer(f"{name}_scale", torch.tensor(head.scale))
            self.register_buffer(f"{name}_center", torch.tensor(head.center))

    def forward(self, first: Tensor, second: Tensor | None = None) -> Logits:
        """Return the outputs of the only head, or of every head by name."""
        features = self.encoder(first) if second is None else self.encoder(first, second)
        outputs: Logits = self.heads(features)
        if isinstance(outputs, Tensor):
            return self._scale_outputs(self.only_head, outputs)
        return {name: self._scale_outputs(name, values) for name, values in outputs.items()}

    def _scale_outputs(self, name: str, values: Tensor) -> Tensor:
        if name not in self.scaled:
            return values
        scaled: Tensor = values * getattr(self, f"{name}_scale") + getattr(self, f"{name}_center")
        return scaled


def _make_hidden_layer(inputs: int, outputs: int) -> list[nn.Module]:
    # Batch norms are folded into the linear layer before quantization.
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]


@dataclass(frozen=True)
class TableMLPConfig(HeadConfig):
    """Shape of a perceptron for rows of a table.

    Example:
        >>> TableMLPConfig(width=16).to_dict()["depth"]
        2
    """

    label: ClassVar[str] = "table_mlp"

    width: int = knob(64, IntRange(2, 1024, log=True), "units of each hidden layer")
    depth: int = knob(2, IntRange(1, 8), "hidden layers")
    embedding: int = knob(8, IntRange(1, 64, log=True), "numbers in the embedding of a category")
    dropout: float = knob(0.0, FloatRange(0.0, 0.7), "share of the units that a training step leaves out")


class MLPEncoder(nn.Module):
    """Hidden layers on a row, ``[B, F], [B, K] -> [B, width]``."""

    def __init__(self, config: TableMLPConfig, form: RowForm) -> None:
        super().__init__()
        self.embeddings = Embeddings(form, config.embedding)
        sizes = [self.embeddings.width, *[config.width] * config.depth]
        self.layers = nn.ModuleList(
            nn.Sequential(*_make_hidden_layer(inputs, config.width), nn.ReLU(), nn.Dropout(config.dropout))
            for inputs in sizes[:-1]
        )

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the features of each row."""
        x = self.embeddings(first, second)
        for layer in self.layers:
            x = layer(x)
        features: Tensor = x
        return features


@dataclass(frozen=True)
class TableResNetConfig(HeadConfig):
    """Shape of a residual network for rows of a table.

    Example:
        >>> TableResNetConfig(width=16).to_dict()["expansion"]
        2
    """

    label: ClassVar[str] = "table_resnet"

    width: int = knob(64, IntRange(2, 512, log=True), "numbers between the blocks")
    depth: int = knob(2, IntRange(1, 8), "residual blocks")
    expansion: int = knob(2, IntRange(1, 4), "units inside a block as a multiple of the width")
    embedding: int = knob(8, IntRange(1, 64, log=True), "numbers in the embedding of a category")
    dropout: float = knob(
        0.0, FloatRange(0.0, 0.7), "share of the units inside a block that a training step leaves out"
    )


class ResidualBlock(nn.Module):
    """Two linear layers with a shortcut, ``[B, width] -> [B, width]``."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_make_hidden_layer(width, hidden), nn.ReLU(), nn.Dropout(dropout), *_make_hidden_layer(hidden, width)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of both branches."""
        out: Tensor = self.relu(x + self.body(x))
        return out


class ResNetEncoder(nn.Module):
    """Residual blocks on a row, ``[B, F], [B, K] -> [B, width]``."""

    def __init__(self, config: TableResNetConfig, form: RowForm) -> None:
        super().__init__()
        self.embeddings = Embeddings(form, config.embedding)
        self.stem = nn.Sequential(*_make_hidden_layer(self.embeddings.width, config.width), nn.ReLU())
        hidden = config.width * config.expansion
        self.stages = nn.ModuleList(ResidualBlock(config.width, hidden, config.dropout) for _ in range(config.depth))

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the features of each row."""
        x = self.stem(self.embeddings(first, second))
        for stage in self.stages:
            x = stage(x)
        features: Tensor = x
        return features


@dataclass(frozen=True)
class TableTransformerConfig(HeadConfig):
    """Shape of a transformer over the columns of a table; its width is ``attention_heads`` times ``head_size``.

    Example:
        >>> TableTransformerConfig(layers=1).to_dict()["attention_heads"]
        4
    """

    label: ClassVar[str] = "table_transformer"

    layers: int = knob(2, IntRange(1, 6), "blocks of attention and feed-forward layers")
    attention_heads: int = knob(4, IntRange(1, 8), "attentions side by side in each block")
    head_size: int = knob(8, IntRange(2, 64, log=True), "numbers of each attention head")
    feed_forward: int = knob(2, Choice((1, 2, 3, 4)), "width of the feed-forward layer as a multiple of the model's")


class ColumnTokens(nn.Module):
    """A token for each column, and one more in front, ``[B, F], [B, K] -> [B, 1 + F + K, D]``.

    A number x of column i is the token x w_i + b_i, a category its embedding plus b_i (FT-Transformer; Gorishniy et al.
    2021, arXiv:2106.11959, section 3.3).
    """

    def __init__(self, form: RowForm, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(form.numbers, width)) if form.numbers else None
        self.bias = nn.Parameter(torch.empty(1 + form.numbers + form.categories, width))
        self.table = nn.Embedding(form.vocabulary, width) if form.categories else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INITIAL_DEVIATION if parameter is self.bias else width**-0.5)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the tokens of each row."""
        # The additional token is its bias alone.
        tokens = [self.bias[:1].unsqueeze(0).expand(first.shape[0], -1, -1)]
        if self.weight is not None:
            tokens.append(first.unsqueeze(2) * self.weight + self.bias[1 : 1 + self.weight.shape[0]])
        if self.table is not None:
            categories = first if second is None else second
            tokens.append(self.table(categories) + self.bias[-categories.shape[1] :])
        return torch.cat(tokens, 1)


class ColumnBlock(nn.Module):
    """Attention between columns, then two linear layers with a ReLU between them, ``[B, T, D] -> [B, T, D]``.

    The form of a block of :mod:`autocompress.models.transformer`, without padding: every column is there, and none of
    the tokens may be dropped, because the features are those of the first one.
    """

    def __init__(self, config: TableTransformerConfig) -> None:
        super().__init__()
        width = config.attention_heads * config.head_size
        self.heads, self.head_size = config.attention_heads, config.head_size
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.probabilities = nn.Softmax(dim=-1)
        self.out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        hidden = width * config.feed_forward
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the input and both halves."""
        normed = self.attention_norm(x)
        # [B, T, H d] -> [B, H, T, d]: the heads side by side.
        query, key, value = (
            layer(normed).unflatten(2, (self.heads, self.head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        gathered = self.probabilities(query @ key.transpose(2, 3) * self.head_size**-0.5) @ value
        x = x + self.out(gathered.transpose(1, 2).flatten(2))
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class ColumnTransformer(nn.Module):
    """Attention between the columns of a row, ``[B, F], [B, K] -> [B, D]``."""

    def __init__(self, config: TableTransformerConfig, form: RowForm) -> None:
        super().__init__()
        width = config.attention_heads * config.head_size
        self.tokens = ColumnTokens(form, width)
        self.stages = nn.ModuleList(ColumnBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the features of each row: the additional token after the last block."""
        x = self.tokens(first, second)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.norm(x[:, 0])
        return features


class _RowFamily:
    """Builds networks of one kind for rows; subclasses say which."""

    name: ClassVar[str]
    encoder: ClassVar[Callable[..., nn.Module]]

    def _build_model(
        self, config: HeadConfig, width: int, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]
    ) -> nn.Module:
        form = infer_row_form(self.name, inputs)
        check_heads(self.name, heads)
        return RowModel(type(self).encoder(config, form), config, width, heads)


class TableMLPFamily(_RowFamily):
    """Builds perceptrons for rows of a table."""

    name: ClassVar[str] = "table_mlp"
    config = TableMLPConfig
    encoder = MLPEncoder

    def build(self, config: TableMLPConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for rows of ``(F,)`` numbers, ``(K,)`` categories, or both.

        Raises:
            UsageError: The inputs are no row, or there is no head, or one of another kind.

        Example:
            >>> net = TableMLPFamily().build(TableMLPConfig(), (InputSpec((3,)), InputSpec((2,), 9)), {"label": 4})
            >>> net(torch.zeros(5, 3), torch.zeros(5, 2, dtype=torch.int64)).shape
            torch.Size([5, 4])
        """
        return self._build_model(config, config.width, inputs, heads)


class TableResNetFamily(_RowFamily):
    """Builds residual networks for rows of a table."""

    name: ClassVar[str] = "table_resnet"
    config = TableResNetConfig
    encoder = ResNetEncoder

    def build(self, config: TableResNetConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained network for rows of ``(F,)`` numbers, ``(K,)`` categories, or both.

        Raises:
            UsageError: The inputs are no row, or there is no head, or one of another kind.
        """
        return self._build_model(config, config.width, inputs, heads)


class TableTransformerFamily(_RowFamily):
    """Builds transformers over the columns of a table."""

    name: ClassVar[str] = "table_transformer"
    config = TableTransformerConfig
    encoder = ColumnTransformer

    def build(
        self, config: TableTransformerConfig, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]
    ) -> nn.Module:
        """Return an untrained network for rows of ``(F,)`` numbers, ``(K,)`` categories, or both.

        Raises:
            UsageError: The inputs are no row, or there is no head, or one of another kind.
        """
        return self._build_model(config, config.attention_heads * config.head_size, inputs, heads)


STUDENTS.add(TableMLPFamily.name, TableMLPFamily())
STUDENTS.add(TableResNetFamily.name, TableResNetFamily())
STUDENTS.add(TableTransformerFamily.name, TableTransformerFamily())
