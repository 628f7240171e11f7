"""What every objective must do: name itself, measure a finite number, and point in the stated direction."""

import math

import pytest
import torch

from autocompress.core.custom_head import BoundHead, CustomHead, number_targets
from autocompress.core.heads import Custom, Detection, Levels, Tags
from autocompress.core.latency_model import LatencyModel
from autocompress.core.method import LayerBits
from autocompress.core.registry import OBJECTIVES
from autocompress.measure import LayerCost, Subject

# More than the ten that stand in a list.
CLASSES = 20
LAYERS = {
    "a": LayerCost("a", macs=1000, weights=90, parameters=100, nonzero=90),
    "b": LayerCost("b", macs=500, weights=40, parameters=50, nonzero=45),
}


def subject(quality: float, bits: dict[str, LayerBits] | None = None) -> Subject:
    """Outputs that are right for a share of the examples, with a teacher that is always right.

    The head ``label`` has classes that are numbers, the head ``entity`` tags of two tokens for each text.
    """
    targets = torch.arange(100) % CLASSES
    right = torch.nn.functional.one_hot(targets, CLASSES).float() * 5
    wrong = torch.nn.functional.one_hot((targets + 1) % CLASSES, CLASSES).float() * 5
    is_right = (torch.arange(100) < 100 * quality).unsqueeze(1)
    logits = torch.where(is_right, right, wrong)
    outputs = {"label": logits, "entity": logits.unflatten(0, (50, 2))}
    teacher = {"label": right, "entity": right.unflatten(0, (50, 2))}
    # An item that is pushed less has lower scores.
    first, last = (torch.nn.functional.one_hot(torch.tensor(number), CLASSES).float() for number in (0, CLASSES - 1))
    pushed = torch.where(is_right, 5 * first - right, 5 * last + 2 * right)
    attacked = dict.fromkeys(("fgsm", "pgd", "hotflip"), outputs) | {"pushed": {"label": pushed}}
    heads = {"label": Levels(CLASSES, levels=tuple(map(float, range(CLASSES)))), "entity": Tags(CLASSES)}
    labels = {"entity": [f"B-{number}" for number in range(CLASSES)]}
    latency = LatencyModel(
        0.01,
        (
            (("linear", False, 32, 32), (1e-3, 1e-6, 0.0, 1e-7, 0.0)),
            (("linear", False, 4, 4), (1e-3, 1e-7, 0.0, 0.0, 0.0)),
        ),
    )
    return Subject(
        outputs,
        {"label": targets, "entity": targets.reshape(50, 2)},
        teacher,
        attacked,
        LAYERS,
        bits or {},
        heads=heads,
        labels=labels,
        latency=latency,
    )


def custom_subject(quality: float) -> Subject:
    """Outputs of a model with a loss of its own, the mean error, that are right for a share of the examples."""
    targets = torch.arange(100.0)
    outputs = torch.where(torch.arange(100) < 100 * quality, targets, targets + 1)
    items = targets.tolist()
    head = Custom(1, bound=BoundHead(CustomHead(torch.nn.functional.l1_loss), items, is_stacked=True))
    return Subject({"output": outputs}, {"output": number_targets(items)}, heads={"output": head})


def box_subject(quality: float) -> Subject:
    """Outputs of a detector with one cell, whose object has the right class in a share of the images."""
    targets = torch.tensor([0.0, 0.25, 0.25, 0.75, 0.75]).repeat(100, 1, 1)
    targets[1::2, :, 0] = 1
    is_right = torch.arange(100) < 100 * quality
    # Center and size of the box: half of the cell.
    size = torch.tensor(0.5).expm1().log()
    right = torch.tensor([5.0, -5.0, 5.0, 0.0, 0.0, size, size]).repeat(100, 1)
    right[1::2, :2] *= -1
    maps = torch.where(is_right[:, None], right, right[:, [1, 0, 2, 3, 4, 5, 6]])[..., None, None]
    return Subject({"boxes": maps}, {"boxes": targets}, heads={"boxes": Detection(2)})


def subject_of(name: str, quality: float) -> Subject:
    """Outputs that the objective reads, right for a share of the examples."""
    if OBJECTIVES.get(name).reads == "boxes":
        return box_subject(quality)
    return custom_subject(quality) if OBJECTIVES.get(name).reads == "outputs" else subject(quality)


@pytest.mark.parametrize("name", OBJECTIVES.names())
class TestObjective:
    def test_it_describes_itself(self, name: str) -> None:
        found = OBJECTIVES.get(name)
        assert found.name == name
        assert found.direction in ("maximize", "minimize")
        assert found.kind in ("score", "cost")
        assert found.doc.endswith(".")

    def test_it_is_finite_and_repeatable(self, name: str) -> None:
        found = OBJECTIVES.get(name)
        value = found.measure(subject_of(name, 0.7))
        assert math.isfinite(value)
        assert value == found.measure(subject_of(name, 0.7))

    def test_better_is_in_the_stated_direction(self, name: str) -> None:
        found = OBJECTIVES.get(name)
        if found.kind == "score":
            worse, better = (found.measure(subject_of(name, quality)) for quality in (0.5, 1.0))
            assert better > worse if found.direction == "maximize" else better < worse
        else:
            low = dict.fromkeys(LAYERS, LayerBits(4, 4))
            assert found.measure(subject(1.0, low)) <= found.measure(subject(1.0))
            assert found.direction == "minimize"
