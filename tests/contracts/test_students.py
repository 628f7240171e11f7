"""What every registered family of models promises, whatever it is made of."""

import json
from dataclasses import fields

import pytest
import torch
from torch import nn

from autocompress.core.boxes import BOX_OUTPUTS
from autocompress.core.heads import Dense, Detection
from autocompress.core.knobs import Choice, FloatRange, IntRange
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import KnobError, UsageError
from autocompress.measure import layer_costs
from autocompress.measure.cost import count_flops

# What the teacher is, only a task knows that brings one: see tests/tasks/test_module.py.
FAMILIES = [pytest.param(STUDENTS.get(name), id=name) for name in STUDENTS.names() if name != "from_teacher"]

# What one example of each family looks like.
INPUTS = {
    "cnn": (InputSpec((1, 8, 8)),),
    "cnn1d": (InputSpec((1, 40)),),
    "detector": (InputSpec((1, 16, 24)),),
    "interaction": (InputSpec((), vocabulary=40), InputSpec((), vocabulary=60), InputSpec((5,))),
    "table_mlp": (InputSpec((5,)), InputSpec((3,), vocabulary=9)),
    "table_resnet": (InputSpec((5,)), InputSpec((3,), vocabulary=9)),
    "table_transformer": (InputSpec((5,)), InputSpec((3,), vocabulary=9)),
    "text_cnn": (InputSpec((12,), vocabulary=40, missing=0),),
    "text_ngrams": (InputSpec((12,), vocabulary=40, missing=0),),
    "transformer": (InputSpec((12,), vocabulary=40, missing=0),),
    "two_tower": (InputSpec((), vocabulary=40), InputSpec((), vocabulary=60), InputSpec((5,))),
    "unet": (InputSpec((1, 8, 8)),),
}
# Positions with logits of their own in one example.
POSITIONS = {"unet": (8, 8), "detector": (2, 3)}
# Kind of head, and outputs at each position besides its classes, of families with positions.
KINDS, MORE = {"unet": Dense, "detector": Detection}, {"detector": BOX_OUTPUTS}
HEADS = {"label": 10}


def inputs_of(family):
    assert family.name in INPUTS, f"say in this file what one example of the family '{family.name}' looks like"
    return INPUTS[family.name]


def ends(family):
    """Every end of every range, one knob at a time, and every choice."""
    for name, knob in family.config.knobs().items():
        domain = knob.domain
        for value in domain.options if isinstance(domain, Choice) else (domain.low, domain.high):
            yield {name: value}


def build(family, seed=0, heads=HEADS, **knobs):
    torch.manual_seed(seed)
    return family.build(family.config.of(knobs), inputs_of(family), heads_of(family, heads))


def heads_of(family, heads):
    if family.name not in POSITIONS:
        return heads
    return {name: KINDS[family.name](size) if size else size for name, size in heads.items()}


def batch(family, size=3):
    generator = torch.Generator().manual_seed(5)
    return tuple(
        torch.randint(spec.vocabulary, (size, *spec.shape), generator=generator)
        if spec.vocabulary
        else torch.randn(size, *spec.shape, generator=generator)
        for spec in inputs_of(family)
    )


@pytest.mark.parametrize("family", FAMILIES)
class TestConfig:
    def test_it_survives_a_round_trip(self, family):
        config = family.config()
        assert family.config.of(json.loads(json.dumps(config.to_dict()))) == config

    def test_every_field_declares_its_range_and_meaning(self, family):
        knobs = family.config.knobs()
        assert set(knobs) == {field.name for field in fields(family.config)}
        assert all(knob.doc for knob in knobs.values())
        assert all(isinstance(knob.domain, Choice | FloatRange | IntRange) for knob in knobs.values())

    def test_it_answers_to_its_name(self, family):
        assert STUDENTS.get(family.name) is family
        assert family.config.label == family.name

    def test_an_unknown_knob_is_refused(self, family):
        with pytest.raises(KnobError, match="no hyperparameter 'no_such_knob'"):
            family.config.of({"no_such_knob": 1})


@pytest.mark.parametrize("family", FAMILIES)
class TestBuild:
    @pytest.mark.slow
    def test_any_end_of_any_range_gives_a_model(self, family):
        for knobs in ends(family):
            with torch.no_grad():
                logits = build(family, **knobs).eval()(*batch(family))
            assert logits.shape == (3, 10 + MORE.get(family.name, 0), *POSITIONS.get(family.name, ()))
            assert logits.isfinite().all()

    @pytest.mark.slow
    def test_every_knob_changes_the_model_somewhere(self, family):
        """A knob may be without effect at the default; with some other choice it is not."""
        contexts = [{}, *ends(family)]
        for name, knob in family.config.knobs().items():
            domain = knob.domain
            values = domain.options if isinstance(domain, Choice) else (domain.low, domain.high)
            assert any(
                len({repr(build(family, **{**context, name: value})) for value in values}) > 1
                for context in contexts
                if name not in context
            ), f"{family.name}.{name} changes nothing"

    def test_the_seed_decides_the_weights(self, family):
        one, same, other = (build(family, seed=seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    def test_its_cost_can_be_counted_without_data(self, family):
        with torch.device("meta"):
            model = family.build(family.config(), inputs_of(family), heads_of(family, HEADS))
        example = batch(family, 1)
        counted = layer_costs(model, tuple(tensor.to("meta") for tensor in example))
        assert count_flops(counted) == count_flops(layer_costs(build(family), example)) > 0

    @pytest.mark.slow
    def test_it_learns(self, family):
        model, inputs, targets = build(family), batch(family, 40), torch.arange(40) % 10
        loss_of = nn.functional.cross_entropy
        if family.name == "detector":
            # A bright pixel is the corner of an object.
            inputs, loss_of = (inputs[0].clamp(max=0),), Detection(10).loss
            inputs[0][:20, :, :8] += 3
            targets = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.5]]).repeat(40, 1, 1)
            targets[20:, :, 0] = -1
        elif family.name in POSITIONS:
            # What a position is shows in the input there.
            targets = (inputs[0].squeeze(1) > 0).long()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        losses = []
        for _ in range(20):
            loss = loss_of(model(*inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not unused

    def test_several_heads_return_a_mapping(self, family):
        heads = {"label": 10, "more": 3}
        found = build(family, heads=heads).eval()(*batch(family))
        assert {head: logits.shape[1] - MORE.get(family.name, 0) for head, logits in found.items()} == heads

    def test_an_example_does_not_depend_on_its_batch(self, family):
        model = build(family).eval()
        inputs = batch(family, 6)
        with torch.no_grad():
            whole, alone = model(*inputs), model(*(tensor[2:3] for tensor in inputs))
        torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)

    def test_no_heads_are_refused(self, family):
        for heads in ({}, {"label": 0}):
            with pytest.raises(UsageError, match="at least one"):
                build(family, heads=heads)

    def test_a_saved_model_is_rebuilt_from_its_config_and_tensors(self, family):
        model, fresh = build(family, seed=1).eval(), build(family, seed=2).eval()
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(fresh(*batch(family)), model(*batch(family)))
