"""What every trivial baseline must do: outputs in the form of each kind of head, equal for equal data."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from autocompress.baselines.base import describe_baseline
from autocompress.core.config import Part
from autocompress.core.heads import (
    IGNORED,
    Binary,
    Candidates,
    Dense,
    Head,
    Levels,
    MultiLabel,
    Regression,
    Tags,
    as_head,
)
from autocompress.core.registry import BASELINES
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.tasks.base import Supervised

COUNT, ITEMS = 60, 12


class Given(Supervised):
    """A task of given inputs and heads, whose splits no baseline reads."""

    name = "given"

    def __init__(self, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> None:
        self.inputs, self.heads = inputs, heads

    def splits(self, seed: int) -> Splits:
        raise NotImplementedError

    def teacher(self) -> tuple[Part, Part]:
        raise NotImplementedError


def make_split(task: Given, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)

    def numbers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (COUNT, *shape), generator=generator)

    inputs = tuple(
        numbers(spec.vocabulary, *spec.shape)
        if spec.vocabulary
        else torch.randn(COUNT, *spec.shape, generator=generator)
        for spec in task.inputs
    )
    targets: dict[str, Tensor] = {}
    for name, size in task.heads.items():
        head = as_head(size)
        if not head.has_classes:
            targets[name] = torch.randn(COUNT, int(size), generator=generator)
            targets[name][0] = float("nan")
            continue
        shape = {"multilabel": (int(size),), "dense": task.inputs[0].shape[1:], "tags": task.inputs[0].shape}
        targets[name] = numbers(head.classes if head.kind != "candidates" else int(size), *shape.get(head.kind, ()))
        if head.kind != "multilabel":
            targets[name][0] = IGNORED
    return Split(inputs, targets)


IMAGES, TOKENS = (InputSpec((3, 8, 8)),), (InputSpec((10,), vocabulary=30, missing=0),)
ROWS = (InputSpec(()), InputSpec((4,)), InputSpec((), vocabulary=3))
LISTS = (InputSpec((), vocabulary=9), InputSpec((), vocabulary=ITEMS), InputSpec((4,), vocabulary=ITEMS))
TASKS = {
    "images": Given(IMAGES, {"label": 3, "yes": Binary(), "tags": MultiLabel(4), "pixels": Dense(3)}),
    "large images": Given((InputSpec((3, 40, 40)),), {"label": 3}),
    "long series": Given((InputSpec((2, 900)),), {"label": 3, "next": Regression(2)}),
    "texts": Given(TOKENS, {"label": 3, "words": Tags(4), "score": Levels(5, levels=(1.0, 2.0, 3.0, 4.0, 5.0))}),
    "rows": Given(ROWS, {"value": Regression(2), "label": Head(2, "auc")}),
    "lists": Given(LISTS, {"item": Candidates(5), "rating": Levels(3, levels=(1.0, 3.0, 4.0)), "click": Head(2)}),
}
# What a baseline is for: elsewhere it leaves a task alone.
EXPECTED = {
    "constant": set(TASKS),
    "linear": {"images", "large images", "long series", "texts", "rows"},
    "popularity": {"lists"},
    "item_knn": {"lists"},
    "biases": {"lists"},
    "series_mean": {"long series"},
    "seasonal_naive": {"long series"},
}


@pytest.mark.parametrize("name", BASELINES.names())
class TestBaseline:
    def test_it_describes_itself_in_a_line(self, name: str) -> None:
        assert 10 < len(describe_baseline(name)) < 120

    @pytest.mark.parametrize("kind", TASKS)
    def test_its_outputs_have_the_form_of_each_head(self, name: str, kind: str) -> None:
        task = TASKS[kind]
        train, other = make_split(task, 0), make_split(task, 1)
        predict = BASELINES.get(name)(task, train)
        assert (predict is not None) == (kind in EXPECTED[name])
        if predict is None:
            return
        outputs = predict(other)
        assert outputs
        assert set(outputs) <= set(task.heads)
        for head, values in outputs.items():
            assert len(values) == COUNT
            assert bool(values.isfinite().all())
            assert bool(as_head(task.heads[head]).loss(values, other.targets[head]).isfinite())
        again = BASELINES.get(name)(task, train)
        assert again is not None
        assert all(torch.equal(values, outputs[head]) for head, values in again(other).items())
