"""Attention of :class:`torch.nn.MultiheadAttention` whose heads and inputs may have any width.

torch's own forward pass needs ``heads * head size`` numbers in each input: neither heads nor inputs can shrink alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectedAttention:
    """Forward pass of :class:`torch.nn.MultiheadAttention` behind the projections of a subclass.

    Layers of :class:`torch.nn.TransformerEncoder` read some of its attributes.
    """

    num_heads: int
    batch_first: bool
    dropout: float
    training: bool
    out_proj: nn.Linear

    def project_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the projections of the inputs, ``[..., E] -> [..., H D]``: queries, keys and values."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs, ``[B, T, E]``, and the attention weights where they are needed, ``[B, (H,) T, S]``.

        Args:
            query: Queries ``[B, T, E]``; ``[T, B, E]`` without ``batch_first``, ``[T, E]`` without a batch.
            key: Keys ``[B, S, E]``, in the same layout.
            value: Values ``[B, S, E]``, in the same layout.
            key_padding_mask: Keys that are left out, ``bool [B, S]``, or numbers that are added to their scores.
            need_weights: Whether the attention weights are returned.
            attn_mask: Pairs that are left out, ``bool [T, S]`` or ``[B * H, T, S]``, or numbers to add.
            average_attn_weights: Whether returned weights are averaged over heads.
            is_causal: Hint that ``attn_mask`` is causal; the mask itself is applied.
        """
        is_batched = query.dim() == 3
        projected = self.project_inputs(query, key, value)
        if not is_batched:
            projected = tuple(tensor.unsqueeze(0) for tensor in projected)
        elif not self.batch_first:
            projected = tuple(tensor.transpose(0, 1) for tensor in projected)
        q, k, v = (tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tensor in projected)
        mask = self._join_masks(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * q.shape[-1] ** -0.5 @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _join_masks(self, queries: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Return both masks as numbers that are added to the scores, broadcast to ``[B, H, T, S]``."""
        masks = []
        if attn_mask is not None:
            mask = _to_additive_mask(attn_mask, queries.dtype)
            masks.append(mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 and len(mask) > 1 else mask)
        if key_padding_mask is not None:
            padding = key_padding_mask.view(-1, 1, 1, key_padding_mask.shape[-1])
            masks.append(_to_additive_mask(padding, queries.dtype))
        return sum(masks[1:], masks[0]) if masks else None


class PrunedAttention(ProjectedAttention, nn.MultiheadAttention):  # type: ignore[misc]
    """:class:`torch.nn.MultiheadAttention` with the same parameters, of which heads or inputs were removed."""

    def project_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the projections of the inputs, ``[..., E] -> [..., H D]``: queries, keys and values."""
        weights, biases = list_projections(self)
        if self.in_proj_weight is not None and query is key and key is value:
            # One product instead of three.
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        inputs = (query, key, value)
        return tuple(F.linear(*arguments) for arguments in zip(inputs, weights, biases, strict=True))


def list_projections(attention: nn.MultiheadAttention) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Return the weights ``[H D, E]`` and the biases ``[H D]`` of queries, keys and values."""
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    if attention.in_proj_weight is not None:
        return attention.in_proj_weight.chunk(3), biases
    return (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight), biases


def has_plain_projections(module: nn.Module) -> bool:
    """Return whether a module is attention of torch without added keys, which :class:`ProjectedAttention` computes."""
    is_attention = type(module) in (nn.MultiheadAttention, PrunedAttention)
    return is_attention and module.bias_k is None and not module.add_zero_attn


def update_attention(attention: nn.MultiheadAttention) -> None:
    """Set the sizes of an attention layer, some of whose parameters shrank, to those of its parameters, in place."""
    if not has_plain_projections(attention):
        return
    # The class alone changes, so that names and layouts of the parameters stay those of torch.
    attention.__class__ = PrunedAttention
    # Without packed projections, torch's encoder layer does not take its fused path, which needs equal widths.
    attention._qkv_same_embed_dim = False
    weights, _ = list_projections(attention)
    for name, weight in zip(("embed_dim", "kdim", "vdim"), weights, strict=True):
        setattr(attention, name, weight.shape[1])


def disable_nested_tensors(model: nn.Module) -> None:
    """Switch nested tensors off in each encoder with :class:`ProjectedAttention`, in place.

    Nested tensors need the fused path of torch's attention layers.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, ProjectedAttention) for m in module.modules()
        ):
            module.use_nested_tensor = False


def _to_additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
