import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from autocompress.core.method import MethodState
from autocompress.errors import CompressionError
from autocompress.prune.importance import WEIGHT_CRITERIA
from autocompress.prune.masking import (
    apply_masks,
    check_masks,
    masks_from_zeros,
    prunable_weights,
    score_weights,
    tighten_masks,
)
from tests.prune.toys import cnn, labelled_context

SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


def scores_of(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {str(index): torch.rand(shape, generator=generator) for index, shape in enumerate(shapes)}


def all_kept(scores):
    return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}


class TestWeights:
    def test_matrices_and_kernels_take_part_and_nothing_else(self):
        names = set(prunable_weights(cnn(block="plain")))
        assert names == {"stem.0.weight", "stages.0.0.0.weight", "stages.1.0.0.weight", "heads.label.weight"}

    def test_layers_of_every_kind(self):
        class Kinds(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
                self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
                self.recurrent = nn.LSTM(4, 3)
                self.transposed = nn.ConvTranspose1d(3, 2, 2)
                self.position = nn.Parameter(torch.zeros(2, 4))

        assert set(prunable_weights(Kinds())) == {
            "embedding.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "recurrent.weight_ih_l0",
            "recurrent.weight_hh_l0",
            "transposed.weight",
        }

    def test_a_shared_weight_occurs_once(self):
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        assert set(prunable_weights(model)) == {"a.weight"}

    def test_a_bare_layer(self):
        assert set(prunable_weights(nn.Linear(2, 3))) == {"weight"}

    def test_a_model_without_any(self):
        with pytest.raises(CompressionError, match="ReLU has no layer whose weights could be removed"):
            prunable_weights(nn.ReLU())

    def test_an_empty_one_is_named(self):
        with pytest.warns(UserWarning, match="zero-element"):
            model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
        with pytest.raises(CompressionError, match="layer '0' has no channels"):
            prunable_weights(model)


class TestWeightScores:
    @pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
    def test_scores_are_shaped_like_the_weights(self, criterion):
        model = cnn()
        scores = score_weights(model, prunable_weights(model), criterion, labelled_context(), torch.Generator())
        assert {name: score.shape for name, score in scores.items()} == {
            name: weight.shape for name, weight in prunable_weights(model).items()
        }
        assert all((score >= 0).all() for score in scores.values())

    @pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_weights_that_are_not_finite_are_refused(self, criterion, bad):
        model = cnn()
        model.stem[0].weight.data[0, 0, 0, 0] = bad
        with pytest.raises(CompressionError, match="not finite"):
            score_weights(model, prunable_weights(model), criterion, labelled_context(), torch.Generator())


class TestKeepBest:
    @given(SHAPES, st.floats(0, 0.95), st.booleans(), st.booleans(), st.integers(0, 99))
    def test_the_number_is_the_nearest_and_the_best_stays(self, shapes, ratio, pooled, adapted, seed):
        scores = scores_of(shapes, seed)
        masks = tighten_masks(scores, all_kept(scores), ratio, pooled, adapted)
        for name, mask in masks.items():
            assert mask.shape == scores[name].shape
            assert mask.view(-1)[scores[name].argmax()]
        sizes = [score.numel() for score in scores.values()]
        gone = [int((~mask).sum()) for mask in masks.values()]
        if sum(gone) > 1 and pooled:
            assert abs(sum(gone) - ratio * sum(sizes)) <= 0.5 or sum(gone) == sum(sizes) - len(sizes)
        if sum(gone) > 1 and not pooled:
            assert all(
                abs(less - ratio * size) <= 0.5 or less == size - 1 for less, size in zip(gone, sizes, strict=True)
            )
        assert sum(gone) > 0 or ratio == 0 or max(sizes) == 1

    @given(SHAPES, st.floats(0, 0.95), st.floats(0, 0.95), st.booleans(), st.integers(0, 99))
    def test_what_is_gone_stays_gone(self, shapes, one, other, pooled, seed):
        scores = scores_of(shapes, seed)
        first = tighten_masks(scores, all_kept(scores), min(one, other), pooled)
        second = tighten_masks(scores_of(shapes, seed + 1), first, max(one, other), pooled)
        assert all((second[name] <= first[name]).all() for name in scores)

    def test_pooled_takes_the_smallest_of_all(self):
        scores = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[10.0, 20.0, 30.0, 40.0]])}
        masks = tighten_masks(scores, all_kept(scores), 1 / 3, pooled=True)
        # 1 and then 10: the best weight of each tensor stays, however small.
        assert masks["a"].tolist() == [[False, True]]
        assert masks["b"].tolist() == [[False, True, True, True]]

    def test_adapted_scores_are_those_of_lamp(self):
        """Lee 2021: the square, divided by the sum of the squares that are no smaller."""
        squares = {"a": torch.tensor([[1.0, 4.0]]), "b": torch.tensor([[100.0, 400.0, 100.1]])}
        # a: 1/5, 1;  b: 100 / 600.1, 1, 100.1 / 500.1
        masks = tighten_masks(squares, all_kept(squares), 1 / 5, pooled=True, layer_adaptive=True)
        assert masks["a"].tolist() == [[True, True]]
        assert masks["b"].tolist() == [[False, True, True]]
        both = tighten_masks(squares, all_kept(squares), 3 / 5, pooled=True, layer_adaptive=True)
        assert both["a"].tolist() == [[False, True]]

    def test_zeros_are_ranked_like_any_number(self):
        scores = {"a": torch.zeros(4, 4)}
        for adapted in (False, True):
            assert int(tighten_masks(scores, all_kept(scores), 0.5, True, adapted)["a"].sum()) == 8


class TestMaskedState:
    def test_zeros_are_set_reported_and_named(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        masks = {
            "0.weight": torch.tensor([[True, False], [False, False]]),
            "1.weight": torch.tensor([[True, True]]),
        }
        state = apply_masks(model, masks, note="x")
        assert state.report == {"sparsity": 0.5, "density": {"0.weight": 0.25, "1.weight": 1.0}, "note": "x"}
        assert state.history == {"masked": ["0.weight", "1.weight"]}
        assert (model[0].weight == 0).tolist() == [[False, True], [True, True]]

    def test_masks_come_back_from_the_weights(self):
        model = nn.Sequential(nn.Linear(8, 8))
        masks = {"0.weight": torch.rand(8, 8) < 0.5}
        state = apply_masks(model, masks)
        fresh = nn.Sequential(nn.Linear(8, 8))
        assert check_masks(fresh.train(), state) is fresh
        assert not fresh.training
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(masks_from_zeros(fresh, state)["0.weight"], masks["0.weight"])

    @pytest.mark.parametrize(
        ("history", "reason"),
        [
            ({}, "no list of masked weights"),
            ({"masked": "0.weight"}, "no list of masked weights"),
            ({"masked": ["5.weight"]}, "has no weight '5.weight'"),
            ({"masked": [3]}, "has no weight '3'"),
        ],
    )
    def test_a_history_that_does_not_fit(self, history, reason):
        with pytest.raises(CompressionError, match=reason):
            check_masks(nn.Sequential(nn.Linear(2, 2)), MethodState(history=history))
