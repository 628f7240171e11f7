import pytest
import torch

from autocompress.core.heads import Tags
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.core.task import InputSpec
from autocompress.distill.substitution import find_token_table
from autocompress.errors import TrialError, UsageError
from autocompress.export.onnx import export_float, export_quantized
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.models import text_ngrams
from autocompress.models.text_ngrams import HashedNGrams
from tests.models.texts import (
    EXAMPLE,
    HEADS,
    INPUTS,
    VOCABULARY,
    accuracy,
    assert_graph_is,
    assert_padding_is_nothing,
    build as build_family,
    context,
    replayed,
    settled as settle,
    tokens,
)

SMALL = {"embedding": 8, "buckets": 512, "longest": 3}


def build(**knobs):
    return build_family("text_ngrams", **{**SMALL, **knobs})


def rows(text, **options):
    return HashedNGrams(**{"longest": 3, "buckets": 2**16, "missing": 0, **options})(torch.tensor([text]))[0]


@pytest.fixture(scope="module")
def trained():
    return {width: settle("text_ngrams", **SMALL, width=width) for width in (0, 12)}


class TestHashedNGrams:
    def test_every_ngram_of_text_and_borders_has_a_row(self):
        # a, b, c; ^a, ab, bc, c$; ^ab, abc, bc$.
        present = rows([5, 6, 7, 0, 0])
        assert (present > 0).sum() == 3 + 4 + 3
        assert len(set(present[present > 0].tolist())) == 10

    def test_the_same_ngram_has_the_same_row_anywhere(self):
        one, other = (set(rows(text).tolist()) - {0} for text in ([5, 6, 7, 8, 0], [9, 9, 5, 6, 7, 8]))
        # Tokens, pairs and triples of 5 6 7 8, the end of the text included, and not its beginning.
        assert len(one & other) == 4 + 4 + 3

    def test_a_beginning_differs_from_an_end_and_from_the_middle(self):
        beginning, end, middle = (set(rows(text).tolist()) for text in ([5, 9, 9], [9, 9, 5], [9, 5, 9]))
        assert beginning - end - middle
        assert end - beginning - middle

    def test_padding_adds_nothing(self):
        assert set(rows([5, 6, 0]).tolist()) == set(rows([5, 6, 0, 0, 0, 0]).tolist())
        assert not rows([0, 0, 0]).any()

    def test_without_padding_every_token_counts(self):
        assert (rows([0, 0], missing=None) > 0).sum() == 2 + 3 + 2

    def test_codes_fit_integers_of_32_bits(self):
        # The largest code before the remainder is taken, for the largest table and vocabulary.
        assert (max(text_ngrams._BUCKETS) - 1) * text_ngrams._MULTIPLIER + 2**20 + 2 < 2**31


@pytest.mark.parametrize("width", [0, 12])
class TestNetwork:
    def test_padding_is_nothing(self, width, trained):
        assert_padding_is_nothing(trained[width])

    def test_it_learns_a_rule(self, width, trained):
        assert accuracy(trained[width]) > 0.6

    def test_ngrams_are_dropped_in_training_alone(self, width, trained):
        model = trained[width]
        texts = tokens(8)
        assert torch.equal(model(texts), model(texts))
        model.encoder.train()
        assert not torch.equal(model.encoder(texts), model.encoder(texts))
        model.eval()

    def test_channels_are_removed(self, width, trained):
        method = PRUNE.get("structured")
        config = method.config(pruning_ratio=0.5)
        pruned, state = method.apply(trained[width], config, context())
        assert pruned.encoder.table.embedding_dim < SMALL["embedding"]
        fresh = build(width=width)
        assert torch.equal(replayed(method, config, state, fresh, pruned)(tokens(5)), pruned(tokens(5)))


class TestBranchDrop:
    def logits(self, model, *, is_trained=False):
        """Logits of many copies of one text, whose statistics of batch norm are those of evaluation."""
        model.encoder.training = is_trained
        return model(tokens(1).expand(400, -1)).detach()

    def test_a_text_of_a_training_step_has_one_branch_and_the_logits_are_their_mean(self):
        model = build(width=12, drop=0.0, branch_drop=1.0).eval()
        torch.manual_seed(0)
        variants, counts = self.logits(model, is_trained=True).unique(dim=0, return_counts=True)
        assert len(variants) == 2
        assert counts.min() > 150
        torch.testing.assert_close(self.logits(model)[0], variants.mean(0))

    def test_a_share_of_the_texts_keeps_both(self):
        model = build(width=12, drop=0.0, branch_drop=0.5).eval()
        both = self.logits(model)[0]
        torch.manual_seed(0)
        trained = self.logits(model, is_trained=True)
        is_whole = torch.isclose(trained, both).all(1)
        assert 150 < is_whole.sum() < 250

    def test_without_convolutions_there_is_no_branch_to_drop(self):
        model = build(width=0, drop=0.0, branch_drop=1.0).eval()
        assert torch.equal(self.logits(model, is_trained=True), self.logits(model))


@pytest.mark.slow
def test_a_bag_is_exported(trained):
    assert_graph_is(export_float(trained[0], EXAMPLE, HEADS), trained[0])


@pytest.mark.slow
def test_a_quantized_one_is_exported(trained):
    method = QUANTIZE.get("post_training")
    quantized, state = method.apply(trained[12], method.config(), context())
    assert accuracy(quantized) > accuracy(trained[12]) - 0.1
    assert_graph_is(export_quantized(quantized, state, EXAMPLE, HEADS), quantized)


def test_a_bag_costs_a_hundredth_of_convolutions():
    bag, convolutions = (count_flops(layer_costs(build(width=width), EXAMPLE)) for width in (0, 64))
    assert 0 < bag < convolutions / 100


def test_heads_for_each_token_are_refused():
    with pytest.raises(UsageError, match="text_ngrams"):
        build(heads={"tag": Tags(3)})


def test_an_attack_on_tokens_is_refused_where_no_table_reads_them():
    with pytest.raises(TrialError, match="no embedding table"):
        find_token_table(build().eval(), (tokens(2),))


def test_the_length_of_a_text_may_be_one():
    model = build(inputs=(InputSpec((1,), vocabulary=VOCABULARY, missing=0),)).eval()
    assert model(torch.tensor([[3], [0]])).isfinite().all()
    assert INPUTS[0].shape != (1,)
