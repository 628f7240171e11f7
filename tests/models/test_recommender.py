import pytest
import torch
from torch import Tensor, fx, nn

from autocompress.core.config import Part
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.export.onnx import export_float
from autocompress.measure import layer_costs
from autocompress.models.base import build_family_model
from autocompress.quantize.folding import trace_graph
from autocompress.targets.onnx_session import create_session

USERS, ITEMS, K = 30, 50, 8
USER, ITEM, LIST = InputSpec((), vocabulary=USERS), InputSpec((), vocabulary=ITEMS), InputSpec((K,), vocabulary=ITEMS)
FORMS = {
    "features": ((USER, ITEM, InputSpec((5,))), {"rating": 4}),
    "bare": ((USER, ITEM), {"click": 2}),
    "heads": ((USER, ITEM), {"click": 2, "rating": 5}),
    "list": ((USER, LIST), {"item": K}),
}
FAMILIES = ("two_tower", "interaction")


def batch(inputs: tuple[InputSpec, ...], size: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randint(spec.vocabulary, (size, *spec.shape), generator=generator)
        if spec.vocabulary
        else torch.randn(size, *spec.shape, generator=generator)
        for spec in inputs
    )


def build(family: str, form: str, **knobs: int) -> tuple[nn.Module, tuple[InputSpec, ...], dict[str, int]]:
    inputs, heads = FORMS[form]
    torch.manual_seed(0)
    return build_family_model(Part.of(family, **knobs), inputs, heads).eval(), inputs, heads


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
class TestEveryForm:
    def test_outputs_have_a_column_a_class(self, family: str, form: str) -> None:
        model, inputs, heads = build(family, form)
        found = model(*batch(inputs, 6))
        found = found if isinstance(found, dict) else {next(iter(heads)): found}
        assert {head: tuple(logits.shape) for head, logits in found.items()} == {h: (6, c) for h, c in heads.items()}

    @pytest.mark.slow
    def test_it_can_be_traced_and_exported(self, family: str, form: str) -> None:
        model, inputs, heads = build(family, form)
        example, data = batch(inputs, 1), batch(inputs, 6)
        traced = fx.GraphModule(model, trace_graph(model, example))
        expected = model(*data)
        expected = list(expected.values()) if isinstance(expected, dict) else [expected]
        again = traced(*data)
        again = list(again.values()) if isinstance(again, dict) else [again]
        running = create_session(export_float(model, example, heads).SerializeToString())
        names = [entry.name for entry in running.get_inputs()]
        out = running.run(list(heads), {name: value.numpy() for name, value in zip(names, data, strict=True)})
        for ours, tracing, theirs in zip(expected, again, out, strict=True):
            assert torch.equal(ours, tracing)
            torch.testing.assert_close(torch.from_numpy(theirs), ours.detach(), rtol=1e-4, atol=1e-5)

    def test_tables_are_most_of_it(self, family: str, form: str) -> None:
        inputs, heads = FORMS[form]
        large = tuple(InputSpec(spec.shape, 5000) if spec.vocabulary else spec for spec in inputs)
        model = build_family_model(Part.of(family), large, heads)
        costs = layer_costs(model, batch(inputs, 1))
        tables = costs["user_embedding"].weights + costs["item_embedding"].weights
        assert tables > 0.8 * sum(cost.parameters for cost in costs.values())


@pytest.mark.parametrize("family", FAMILIES)
class TestRanking:
    def test_the_score_of_a_candidate_does_not_depend_on_the_others(self, family: str) -> None:
        model, inputs, _ = build(family, "list")
        users, lists = batch(inputs, 5)
        order = torch.randperm(K, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(users, lists[:, order]), model(users, lists)[:, order])

    def test_users_are_told_apart(self, family: str) -> None:
        model, inputs, _ = build(family, "list")
        lists = batch(inputs, 1)[1].expand(2, K)
        found = model(torch.tensor([0, 1]), lists)
        assert not torch.allclose(found[0], found[1])


def test_two_towers_are_an_inner_product_of_what_each_tower_says() -> None:
    model, inputs, _ = build("two_tower", "list")
    users, lists = batch(inputs, 5)
    of_user = model.get_submodule("user_tower")(model.get_submodule("user_embedding")(users))
    of_item = model.get_submodule("item_tower")(model.get_submodule("item_embedding")(lists))
    weighted = of_user * model.get_parameter("heads.item.weight")[0]
    torch.testing.assert_close(model(users, lists), torch.einsum("bd,bkd->bk", weighted, of_item))


def test_interactions_are_the_dot_products_of_all_pairs() -> None:
    model, inputs, _ = build("interaction", "features", embedding=6)
    seen: list[Tensor] = []
    model.get_submodule("top").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    user, item, features = batch(inputs, 3)
    model(user, item, features)
    vectors = [model.get_submodule(f"{name}_embedding")(ids) for name, ids in (("user", user), ("item", item))]
    vectors.append(model.get_submodule("bottom")(features))
    pairs = [(vectors[0] * vectors[1]).sum(1), (vectors[0] * vectors[2]).sum(1), (vectors[1] * vectors[2]).sum(1)]
    torch.testing.assert_close(seen[0], torch.cat([*vectors, torch.stack(pairs, 1)], 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("inputs", "heads", "message"),
    [
        ((InputSpec((3, 8, 8)),), {"label": 2}, "takes a user, an item"),
        ((USER,), {"label": 2}, "takes a user, an item"),
        ((USER, InputSpec((4,))), {"label": 2}, "takes a user, an item"),
        ((LIST, USER), {"label": 2}, "takes a user, an item"),
        ((USER, ITEM, InputSpec((4, 4))), {"label": 2}, "takes a user, an item"),
        ((USER, ITEM, USER), {"label": 2}, "takes a user, an item"),
        ((USER, LIST, InputSpec((4,))), {"item": K}, "takes a user, an item"),
        ((USER, LIST), {"item": K + 1}, "ranks 8 candidates, so it needs one head of as many classes"),
        ((USER, LIST), {"item": K, "more": K}, "one head of as many classes"),
        ((USER, ITEM), {}, "at least one head"),
    ],
)
def test_inputs_of_another_form_are_refused(
    family: str, inputs: tuple[InputSpec, ...], heads: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_family_model(Part.of(family), inputs, heads)
