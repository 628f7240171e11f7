"""Embedding tables: their columns are channels, and single numbers of them may go."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import InputSpec
from autocompress.models.base import build_family_model
from autocompress.prune.importance import flatten_by_channel

USERS, ITEMS, K = 40, 60, 12
RATING = (InputSpec((), vocabulary=USERS), InputSpec((), vocabulary=ITEMS), InputSpec((5,)))
RANKING = (InputSpec((), vocabulary=USERS), InputSpec((K,), vocabulary=ITEMS))
FORMS = {"rating": (RATING, {"rating": 5}), "ranking": (RANKING, {"item": K})}


def batch(inputs: tuple[InputSpec, ...], size: int = 32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return tuple(
        torch.randint(spec.vocabulary, (size, *spec.shape), generator=generator)
        if spec.vocabulary
        else torch.randn(size, *spec.shape, generator=generator)
        for spec in inputs
    )


def context(inputs: tuple[InputSpec, ...]) -> Context:
    data = batch(inputs)
    return Context(tuple(tensor[:1] for tensor in data), (data,))


def structured(model: nn.Module, given: Context, **settings: object) -> tuple[nn.Module, dict[str, object]]:
    method = PRUNE.get("structured")
    config = method.config.of(settings)
    pruned, state = method.apply(model, config, given)
    return pruned, dict(state.report)


@pytest.mark.parametrize("form", FORMS)
class TestTwoTower:
    def test_columns_go_with_what_reads_them(self, form: str) -> None:
        inputs, heads = FORMS[form]
        torch.manual_seed(0)
        student = Part.of("two_tower", embedding=16, width=20, tower=12)
        model = build_family_model(student, inputs, heads).eval()
        method = PRUNE.get("structured")
        config = method.config.of({"pruning_ratio": 0.5})
        pruned, state = method.apply(model, config, context(inputs))
        for table in ("user_embedding", "item_embedding"):
            assert state.report["channels"][table] == [16, 8]
            assert pruned.get_submodule(table).embedding_dim == 8
            assert pruned.get_parameter(f"{table}.weight").shape[1] == 8
        fresh = method.restore(build_family_model(student, inputs, heads), config, state)
        fresh.load_state_dict(pruned.state_dict())
        assert torch.equal(fresh(*batch(inputs)), pruned(*batch(inputs)))

    def test_columns_that_say_nothing_go_first_and_are_not_missed(self, form: str) -> None:
        inputs, heads = FORMS[form]
        torch.manual_seed(0)
        model = build_family_model(Part.of("two_tower", embedding=16, width=20, tower=12), inputs, heads).eval()
        idle = [0, 3, 4, 9, 11, 12, 14, 15]
        with torch.no_grad():
            model.get_parameter("user_embedding.weight")[:, idle] = 0
            model.get_parameter("user_tower.0.weight")[:, idle] = 0
        before = model(*batch(inputs))
        method = PRUNE.get("structured")
        pruned, state = method.apply(model, method.config.of({"pruning_ratio": 0.5}), context(inputs))
        assert ["user_embedding", True, idle] in state.history["layers"]
        kept = [column for column in range(16) if column not in idle]
        table = pruned.get_parameter("user_embedding.weight")
        assert torch.equal(table, model.get_parameter("user_embedding.weight")[:, kept])
        assert before.shape == pruned(*batch(inputs)).shape


@pytest.mark.parametrize("form", FORMS)
def test_tables_whose_rows_are_multiplied_lose_the_same_columns(form: str) -> None:
    inputs, heads = FORMS[form]
    torch.manual_seed(0)
    model = build_family_model(Part.of("interaction", embedding=8, width=16), inputs, heads).eval()
    pruned, report = structured(model, context(inputs), pruning_ratio=0.5)
    assert report["channels"]["user_embedding"] == report["channels"]["item_embedding"] == [8, 4]
    assert pruned.get_submodule("dots.0").in_features == 4
    assert report["channels"]["top.0"] == [16, 8]


def test_a_product_of_matrices_keeps_tables_whole_and_says_why() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
            self.layers = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            rows = self.one(one), self.other(other)
            return self.layers(torch.bmm(rows[0].unsqueeze(1), rows[1].unsqueeze(2)).squeeze(1))

    torch.manual_seed(0)
    pruned, report = structured(Product().eval(), context(RATING[:2]), pruning_ratio=0.5)
    assert pruned.get_parameter("one.weight").shape == (USERS, 8)
    assert "it runs through matrix product (test_embeddings.py" in report["uncut"]["one"]
    assert report["channels"] == {"layers.0": [6, 3]}


class Shared(nn.Module):
    """Two tables that are added, and one that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        both = self.one(one) + self.other(other)
        return self.left(both) + self.right(self.one(one).relu())


def test_tables_that_are_added_lose_the_same_columns() -> None:
    torch.manual_seed(0)
    inputs = RATING[:2]
    pruned, report = structured(Shared().eval(), context(inputs), pruning_ratio=0.25)
    assert report["channels"]["one"] == report["channels"]["other"] == [8, 6]
    assert pruned.get_submodule("left").in_features == pruned.get_submodule("right").in_features == 6


class Dot(nn.Module):
    """The sum over products of rows is no layer's input: no cut of a column can be checked."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8), nn.Linear(1, 3)
        self.more = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        rows = self.one(one), self.other(other)
        return self.head((rows[0] * rows[1]).sum(-1, keepdim=True)) + self.more(rows[0])


def test_a_sum_over_columns_never_gives_a_wrong_model() -> None:
    torch.manual_seed(0)
    pruned, report = structured(Dot().eval(), context(RATING[:2]), pruning_ratio=0.5)
    assert pruned.get_submodule("one").embedding_dim == 8
    assert set(report["uncut"]) >= {"one"}
    assert report["channels"] == {"more.0": [6, 3]}


def test_features_in_front_of_rows_stay_and_columns_go() -> None:
    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(USERS, 8), nn.Linear(13, 6), nn.Linear(6, 3)

        def forward(self, user: Tensor, features: Tensor) -> Tensor:
            return self.head(self.layer(torch.cat([features, self.table(user)], -1)).relu())

    torch.manual_seed(0)
    inputs = (RATING[0], RATING[2])
    _, report = structured(Front().eval(), context(inputs), pruning_ratio=0.5)
    assert report["channels"] == {"table": [8, 4], "layer": [6, 3]}


def test_unstructured_pruning_reaches_tables() -> None:
    torch.manual_seed(0)
    inputs, heads = FORMS["rating"]
    model = build_family_model(Part.of("two_tower", embedding=16, width=20, tower=12), inputs, heads).eval()
    method = PRUNE.get("unstructured")
    settings = method.config.of({"pruning_ratio": 0.8, "scope": "uniform"})
    pruned, state = method.apply(model, settings, context(inputs))
    for table in ("user_embedding.weight", "item_embedding.weight"):
        weight = pruned.get_parameter(table)
        assert int((weight == 0).sum()) == round(0.8 * weight.numel())
        assert torch.equal(state.masks[table], weight != 0)


def test_the_channels_of_a_table_are_its_columns() -> None:
    table = nn.Embedding(5, 3)
    assert torch.equal(flatten_by_channel(table, table.weight, outputs=True), table.weight.T)
