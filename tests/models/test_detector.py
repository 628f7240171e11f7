"""The family of detectors: its grid, what pruning removes, and heads that it refuses."""

import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.heads import Detection
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import build_family_model

HEADS = {"boxes": Detection(3)}


def build(**settings: object) -> torch.nn.Module:
    return build_family_model(Part.of("detector", width=4, **settings), (InputSpec((1, 32, 48)),), HEADS).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_cell_has_eight_pixels_whatever_the_stages(stages: int, stem_stride: int) -> None:
    model = build(depth=1, stages=stages, stem_stride=stem_stride)
    assert model(torch.zeros(2, 1, 32, 48)).shape == (2, 8, 4, 6)


def test_an_untrained_network_sees_no_objects() -> None:
    maps = build(depth=1)(torch.randn(2, 1, 32, 48)).detach()
    assert float(maps[:, :3].sigmoid().mean()) < 0.1


@pytest.mark.parametrize("block", ["plain", "separable", "residual"])
def test_channels_are_removed_through_the_joints(block: str) -> None:
    model, example = build(depth=1, stages=4, stem_stride=2, block=block), torch.randn(8, 1, 32, 48)
    context = Context((example[:1],), ((example,),), ({"boxes": torch.zeros(8, 1, 5)},), lambda *_: example.sum())
    method = PRUNE.get("structured")
    pruned, state = method.apply(model, method.config.of({"pruning_ratio": 0.5}), context)
    assert list(state.report["uncut"]) == ["predictors.boxes"]
    left = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert left < 0.4
    assert pruned(example).shape == (8, 8, 4, 6)


def test_a_head_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="predicts boxes, which the head 'label' has not"):
        build_family_model(Part.of("detector"), (InputSpec((1, 32, 32)),), {"label": 3})
    with pytest.raises(UsageError, match="no outputs for the head 'boxes' of boxes of 3 classes"):
        build_family_model(Part.of("cnn"), (InputSpec((1, 32, 32)),), HEADS)
