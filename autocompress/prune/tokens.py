"""Token pruning: after the attention of each block, the tokens that receive little attention are dropped."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autocompress.core.knobs import FloatRange, knob
from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import check_layers_not_empty, check_output_varies, format_error
from autocompress.prune.heads import MultiHeadAttention

ROUNDING = 1e-9


@runtime_checkable
class SelectingAttention(MultiHeadAttention, Protocol):
    """An attention layer that can choose the tokens that the rest of the model reads.

    ``kept_tokens`` is the number of tokens that it keeps; 0 keeps all.
    """

    kept_tokens: int


@dataclass(frozen=True)
class TokensConfig(Recovery):
    """The share of the tokens to drop.

    Example:
        >>> TokensConfig(pruning_ratio=0.75).count_tokens(32, blocks=2)
        [16, 8]
    """

    label: ClassVar[str] = "prune.tokens"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.95), "share of the positions that the output does not read")

    def count_tokens(self, length: int, blocks: int) -> list[int]:
        """Return the number of tokens after the attention of each block; each drops the same share of what it has.

        Args:
            length: Positions of the input.
            blocks: Number of blocks.
        """
        numbers = [length * (1 - self.pruning_ratio) ** ((block + 1) / blocks) for block in range(blocks)]
        # The root of a quarter may be a little above a half, and then half of 32 would be 17.
        return [max(1, math.ceil(number - ROUNDING)) for number in numbers]


class Tokens:
    """Drops the tokens that receive the least attention, the same share of the positions after each attention layer.

    The tokens are chosen anew for each text (PoWER-BERT, Goyal et al. 2020, arXiv:2001.08950, section 3). The weights
    stay as they are; the layers behind compute fewer positions. Padding is dropped first, so short texts lose no token.
    Known are attention layers of the form of :class:`SelectingAttention`, such as those of the student ``transformer``.
    The report holds ``sparsity`` (share of the positions that the output does not read) and ``kept_tokens`` (layer to
    number).
    """

    name: ClassVar[str] = "tokens"
    config = TokensConfig

    def is_identity(self, config: TokensConfig) -> bool:
        """Return whether the config drops nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: TokensConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy that drops tokens, and a record of the shares; ``model`` is not changed.

        Raises:
            CompressionError: The model has no attention layer that can choose tokens, it has outputs for each token, or
                the pruned model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"tokens": []}, report={"sparsity": 0.0, "kept_tokens": {}})
        check_layers_not_empty(pruned)
        layers = find_selecting_attention(pruned)
        if not layers:
            raise CompressionError("no token can be dropped: the model has no attention layer that can choose tokens")
        _check_outputs_of_texts(pruned, context)
        length = context.example[0].shape[1]
        counts = dict(zip(layers, config.count_tokens(length, len(layers)), strict=True))
        for name, layer in layers.items():
            layer.kept_tokens = counts[name]
        check_output_varies(pruned, context)
        report = {"sparsity": 1 - min(counts.values()) / length, "kept_tokens": counts}
        history = [[name, count] for name, count in counts.items()]
        return pruned, MethodState(history={"tokens": history}, report=report)

    def restore(self, model: nn.Module, config: TokensConfig, state: MethodState) -> nn.Module:
        """Let a freshly built model drop tokens in the same layers, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        entries = state.history.get("tokens")
        if not isinstance(entries, list):
            raise CompressionError("the pruning history has no list of numbers of tokens")
        layers = find_selecting_attention(model)
        if len(entries) > len(layers):
            raise CompressionError(f"the pruning history names {len(entries)} layers of {len(layers)}")
        for entry in entries:
            try:
                name, count = entry
                layer = layers[name]
                fits = count > 0 and int(count) == count
            except (KeyError, TypeError, ValueError) as error:
                raise CompressionError(f"the pruning history does not fit the model: {format_error(error)}") from error
            if not fits:
                raise CompressionError(f"the pruning history keeps {count} tokens of '{name}'")
            layer.kept_tokens = int(count)
        return model.eval()


def find_selecting_attention(model: nn.Module) -> dict[str, SelectingAttention]:
    """Return the attention layers that can choose tokens, by name.

    Example:
        >>> find_selecting_attention(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, SelectingAttention)}


@torch.no_grad()
def _check_outputs_of_texts(model: nn.Module, context: Context) -> None:
    # A dropped token would have no output of its own.
    outputs = model(*context.example)
    named = {"output": outputs} if isinstance(outputs, Tensor) else outputs
    for name, values in named.items():
        if values.dim() > 2:
            raise CompressionError(
                f"no token can be dropped: '{name}' has an output for each token, {list(values.shape)}"
            )


PRUNE.add(Tokens.name, Tokens())
