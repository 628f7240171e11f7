import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.heads import Dense
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.base import build_family_model

HEADS = {"mask": Dense(3)}


def build(**settings: object) -> torch.nn.Module:
    return build_family_model(Part.of("unet", width=4, **settings), (InputSpec((1, 13, 10)),), HEADS).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"stages": 3}, {"stages": 1}, {"stem_stride": 2, "stages": 2}])
def test_each_pixel_has_logits_in_images_of_odd_sizes(settings: dict[str, int]) -> None:
    assert build(depth=1, **settings)(torch.zeros(2, 1, 13, 10)).shape == (2, 3, 13, 10)


def test_channels_of_encoder_skips_and_decoder_are_removed_together() -> None:
    model, example = build(depth=1, stages=2), torch.randn(8, 1, 13, 10)
    context = Context(
        (example[:1],), ((example,),), ({"mask": torch.zeros(8, 13, 10).long()},), lambda *_: example.sum()
    )
    method = PRUNE.get("structured")
    pruned, state = method.apply(model, method.config.of({"pruning_ratio": 0.5}), context)
    assert list(state.report["uncut"]) == ["classifiers.mask"]
    # A half of inputs and outputs of each layer.
    left = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert left == pytest.approx(0.25, abs=0.05)


def test_a_head_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="a class for each pixel, which the head 'label' has not"):
        build_family_model(Part.of("unet"), (InputSpec((1, 8, 8)),), {"label": 3})
