import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.distill.activations import has_token_output, head_layers, list_feature_layers, record_activations
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits


def test_recorded_activations_are_those_of_the_last_pass_and_no_hooks_remain() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with record_activations(net, ["0", "1", "0"]) as outputs:
        x = torch.randn(4, 2)
        net(x)
        assert torch.equal(outputs["0"], net[0](x))
        assert torch.equal(outputs["1"], net[0](x).relu())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_tap_that_does_not_exist_is_named_and_nothing_is_left() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(TrialError, match="no layer '7'"), record_activations(net, ["0", "7"]):
        pass
    assert not net[0]._forward_hooks


class Net(nn.Module):
    """Its children as given, in that order."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU())


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (Digits().build(Part.of("cnn", width=4, stages=3)), ["stages.0", "stages.1", "stages.2"]),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), ["0", "1", "2"]),
        (Net(conv=nn.Conv2d(1, 2, 3), head=nn.Linear(2, 2)), ["conv"]),
        (Net(a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3)), ["a", "b"]),
        (
            Net(
                conv1=nn.Conv2d(1, 2, 3), layer1=block(2, 2), layer2=block(2, 4), pool=nn.Flatten(), fc=nn.Linear(4, 2)
            ),
            ["conv1", "layer1", "layer2"],
        ),
        (
            Net(
                features=nn.Sequential(block(1, 2), block(2, 4)),
                classifier=nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
            ),
            ["features.0", "features.1", "classifier.0"],
        ),
        (
            Net(words=nn.Embedding(9, 8), layers=nn.ModuleList([encoder(), encoder()]), head=nn.Linear(8, 2)),
            ["words", "layers.0", "layers.1"],
        ),
        (Net(inner=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), ["inner.0", "inner.1"]),
        (
            Net(
                tables=nn.ModuleDict({"user": nn.Embedding(3, 2), "item": nn.Embedding(3, 2)}),
                body=nn.Linear(4, 6),
                heads=nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}),
            ),
            ["tables.user", "tables.item", "body"],
        ),
    ],
    ids=["family", "sequence", "one layer", "mlp", "resnet", "vgg", "transformer", "wrapper", "recommender"],
)
def test_feature_layers_lie_between_the_input_and_the_head(model: nn.Module, layers: list[str]) -> None:
    assert list_feature_layers(model) == layers


def test_a_model_that_is_all_head_has_no_feature_layers() -> None:
    with pytest.raises(TrialError, match="no layers"):
        list_feature_layers(nn.Sequential(nn.Linear(2, 2)))


def test_heads_are_the_last_linear_layers_side_by_side() -> None:
    assert head_layers(nn.Conv2d(1, 1, 1)) == []
    assert head_layers(Digits().build(Part.of("cnn", width=4))) == ["heads.label"]
    assert head_layers(Net(a=nn.Linear(4, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 3))) == ["b", "c"]


def test_a_module_that_lists_its_heads_is_believed() -> None:
    model = Digits().build(Part.of("cnn", width=4, sharing="mixture", head_hidden=8))
    assert head_layers(model) == ["heads.towers.label.2"]
    # Gates read as many features as the towers, and give another number of values: by shape they would be heads.
    plain = Digits().build(Part.of("cnn", width=4, sharing="mixture"))
    assert head_layers(plain) == ["heads.towers.label"]
    assert not any(point.startswith("heads") for point in list_feature_layers(plain))


def test_a_list_of_something_else_is_none() -> None:
    net = Net(a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    net.head_layers = [1, 2]  # type: ignore[assignment]
    assert head_layers(net) == ["b"]


def test_layers_with_token_output_put_features_last() -> None:
    assert has_token_output(encoder())
    assert has_token_output(nn.Embedding(3, 2))
    assert not has_token_output(nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()))
    assert not has_token_output(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))
    assert not has_token_output(nn.ReLU())
