import copy

import pytest
import torch
from torch import nn

from autocompress.core.attention import PrunedAttention, disable_nested_tensors, has_plain_projections, update_attention


def make_attention(**knobs):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, **knobs).eval()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("is_self", [True, False])
@pytest.mark.parametrize("knobs", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 8, "vdim": 6}], ids=str)
def test_it_computes_what_torch_does(knobs, is_self, need_weights):
    attention = make_attention(**knobs)
    update_attention(ours := copy.deepcopy(attention))
    assert type(ours) is PrunedAttention
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(3, 5, knobs.get("vdim", 8))
    inputs = (query,) * 3 if is_self and "vdim" not in knobs else (query, key, value)
    expected, weights = attention(*inputs, need_weights=need_weights)
    output, own_weights = ours(*inputs, need_weights=need_weights)
    assert torch.allclose(output, expected, atol=1e-6)
    assert (own_weights is None) == (weights is None)
    if weights is not None:
        assert torch.allclose(own_weights, weights, atol=1e-6)


def test_the_sizes_are_those_of_the_parameters():
    attention = make_attention(batch_first=True)
    # One head of four numbers, and six of eight inputs.
    attention.in_proj_weight = nn.Parameter(torch.randn(3 * 4, 6))
    attention.in_proj_bias = nn.Parameter(torch.randn(3 * 4))
    attention.out_proj = nn.Linear(4, 6)
    attention.num_heads = 1
    update_attention(attention)
    assert (attention.embed_dim, attention.kdim, attention.vdim) == (6, 6, 6)
    assert attention(*[torch.randn(2, 5, 6)] * 3)[0].shape == (2, 5, 6)


def test_attention_with_added_keys_stays():
    attention = make_attention(add_bias_kv=True)
    assert not has_plain_projections(attention)
    update_attention(attention)
    assert type(attention) is nn.MultiheadAttention


def test_an_encoder_makes_no_nested_tensors_for_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    assert encoder.use_nested_tensor
    padding = torch.tensor([[False, False, False], [False, False, True]])
    x = torch.randn(2, 3, 8)
    # With gradients, torch takes no nested tensors.
    expected = encoder(x, src_key_padding_mask=padding)
    update_attention(encoder.layers[0].self_attn)
    disable_nested_tensors(encoder)
    with torch.inference_mode():
        assert torch.allclose(encoder(x, src_key_padding_mask=padding)[~padding], expected[~padding], atol=1e-5)
