import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune import NMConfig
from autocompress.prune.importance import WEIGHT_CRITERIA
from autocompress.prune.n_m import has_n_m_pattern, input_axis, n_m_mask
from tests.prune.toys import EXAMPLE, Tuner, cnn, labelled_context

METHOD = PRUNE.get("n_m")
PATTERNS = [(2, 4), (1, 4), (1, 8), (2, 8), (4, 8)]


def apply(model, context=None, **knobs):
    return METHOD.apply(model, NMConfig(**knobs), context or labelled_context())


@pytest.mark.parametrize(("n", "m"), PATTERNS)
class TestPattern:
    @pytest.mark.slow
    @pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
    def test_every_group_of_inputs_keeps_n_of_m(self, n, m, criterion):
        model = cnn(width=8)
        pruned, state = apply(model, n=n, m=m, criterion=criterion)
        assert state.masks
        for name, mask in state.masks.items():
            weight = pruned.get_parameter(name)
            assert has_n_m_pattern(weight, n, m)
            assert torch.equal(weight, model.get_parameter(name) * mask)
            assert float(mask.float().mean()) == n / m
        assert state.report["sparsity"] == 1 - n / m
        assert state.report["pattern"] == f"{n}:{m}"

    def test_it_still_holds_after_training_on(self, n, m):
        pruned, state = apply(cnn(width=8), n=n, m=m)
        Tuner(steps=10)(pruned, 1, 0.05, lambda: state.apply_masks(pruned))
        assert all(has_n_m_pattern(pruned.get_parameter(name), n, m) for name in state.masks)
        assert all(torch.equal(pruned.get_parameter(name) != 0, mask) for name, mask in state.masks.items())


class TestChoice:
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
    def test_the_largest_of_each_group_stay(self, rows, groups, seed):
        scores = torch.rand(rows, groups * 4, generator=torch.Generator().manual_seed(seed))
        mask = n_m_mask(scores, 2, 4)
        for row in range(rows):
            for group in range(groups):
                part = slice(group * 4, group * 4 + 4)
                best = scores[row, part].topk(2).indices
                assert set(mask[row, part].nonzero().flatten().tolist()) == set(best.tolist())

    def test_a_kernel_is_grouped_along_its_inputs_at_each_place(self):
        scores = torch.zeros(1, 4, 1, 2)
        scores[0, :, 0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
        scores[0, :, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        mask = n_m_mask(scores, 1, 4)
        assert mask[0, :, 0, 0].tolist() == [True, False, False, False]
        assert mask[0, :, 0, 1].tolist() == [False, False, False, True]

    def test_a_transposed_convolution_has_its_inputs_in_front(self):
        layer = nn.ConvTranspose2d(8, 6, 3)
        assert input_axis(layer) == 0
        pruned, state = METHOD.apply(layer, NMConfig(), Context((torch.zeros(1, 8, 4, 4),)))
        assert has_n_m_pattern(pruned.weight, 2, 4, axis=0)
        assert state.report["sparsity"] == 0.5

    def test_more_than_n_is_seen(self):
        weight = torch.ones(2, 8)
        assert not has_n_m_pattern(weight, 2, 4)
        weight[:, ::2] = 0
        assert has_n_m_pattern(weight, 2, 4)
        weight[1, 0] = 1
        assert not has_n_m_pattern(weight, 2, 4)


class TestWhatStaysDense:
    def test_layers_whose_inputs_do_not_divide(self):
        _, state = apply(cnn(width=6, block="plain"))
        assert state.report["uncut"]["stem.0.weight"] == "its 1 inputs do not divide by 4"
        assert state.report["uncut"]["stages.0.0.0.weight"] == "its 6 inputs do not divide by 4"
        assert set(state.masks) == {"heads.label.weight"}

    def test_embeddings(self):
        model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 2))
        _, state = METHOD.apply(model, NMConfig(), Context((torch.zeros(1, 3, dtype=torch.long),)))
        assert state.report["uncut"] == {"0.weight": "Embedding has no input axis"}
        assert set(state.masks) == {"1.weight"}

    def test_where_nothing_divides_it_is_refused(self):
        with pytest.raises(CompressionError, match=r"no layer can follow the pattern 2:8 \('stem.0.weight': its 1 in"):
            apply(cnn(width=3), m=8)


class TestIdentity:
    def test_four_of_four_is_nothing(self):
        assert METHOD.is_identity(NMConfig(n=4, m=4))
        assert not METHOD.is_identity(NMConfig(n=4, m=8))


def test_weights_that_are_not_finite_are_refused():
    model = cnn(width=8)
    model.heads["label"].weight.data[0, 0] = torch.inf
    with pytest.raises(CompressionError, match=r"'heads\.label\.weight' are not finite"):
        apply(model)


def test_a_measured_criterion_without_evidence_is_refused():
    with pytest.raises(CompressionError, match="needs the task's loss"):
        apply(cnn(width=8), Context(EXAMPLE), criterion="taylor")
