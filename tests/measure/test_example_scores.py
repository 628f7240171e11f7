"""Scores of examples and replicates are those of the plain scores, on the same draws for every model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autocompress.core.example_scores import ExampleScores
from autocompress.core.heads import IGNORED, Levels, Tags
from autocompress.measure import Subject, measure
from autocompress.measure.example_scores import (
    DRAWS,
    EXAMPLE_FUNCTIONS,
    FEW_DRAWS,
    RESAMPLE_FUNCTIONS,
    pack_examples,
)


def make_subject(classes: int = 4, size: int = 120, seed: int = 0) -> Subject:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator).round(decimals=1)
    targets = torch.randint(0, classes, (size,), generator=torch.Generator().manual_seed(9))
    head = Levels(classes, levels=tuple(map(float, range(classes))))
    return Subject({"label": logits}, {"label": targets}, heads={"label": head})


def unpack(text: str) -> ExampleScores:
    scores = ExampleScores.unpack(text)
    assert scores is not None
    return scores


@pytest.mark.parametrize("name", sorted(EXAMPLE_FUNCTIONS))
def test_the_mean_of_the_examples_is_the_score(name: str) -> None:
    subject = make_subject(classes=30)
    values = EXAMPLE_FUNCTIONS[name](subject, "label")
    assert float(values.mean()) == pytest.approx(measure(subject, [name])[name], abs=1e-9)


@pytest.mark.parametrize("name", [*sorted(RESAMPLE_FUNCTIONS), "loss"])
@pytest.mark.parametrize("classes", [2, 4])
def test_replicates_are_the_scores_of_the_drawn_examples(name: str, classes: int) -> None:
    subject = make_subject(classes)
    scores = unpack(pack_examples(subject, name))
    assert (scores.kind, scores.examples, len(scores.values)) == ("replicates", 120, DRAWS)
    generator = np.random.default_rng([41_077, 120])
    for replicate in scores.values[:3]:
        rows = torch.from_numpy(generator.integers(0, 120, 120))
        drawn = replace(
            subject, logits={"label": subject.logits["label"][rows]}, targets={"label": subject.targets["label"][rows]}
        )
        assert replicate == pytest.approx(measure(drawn, [name])[name], abs=1e-5)


def test_a_score_without_a_formula_is_measured_on_fewer_draws() -> None:
    scores = unpack(pack_examples(make_subject(), "precision_macro"))
    assert len(scores.values) == FEW_DRAWS
    assert float(scores.values.mean()) == pytest.approx(
        measure(make_subject(), ["precision_macro"])["precision_macro"], abs=0.03
    )


def test_models_share_the_draws() -> None:
    one, other = (unpack(pack_examples(make_subject(seed=seed), "rmse")).values for seed in (1, 2))
    shifted = make_subject(seed=1)
    near = unpack(pack_examples(replace(shifted, logits={"label": shifted.logits["label"] * 1.05}), "rmse")).values
    assert np.corrcoef(one, near)[0, 1] > 0.95
    assert not np.allclose(one, other)


def test_several_heads_are_shares_and_one_head_is_bits() -> None:
    subject = make_subject()
    both = replace(
        subject,
        logits={**subject.logits, "kind": subject.logits["label"].flip(0)},
        targets={**subject.targets, "kind": subject.targets["label"]},
    )
    assert unpack(pack_examples(both, "accuracy")).kind == "shares"
    alone = unpack(pack_examples(both, "accuracy@label"))
    assert alone.kind == "bits"
    assert alone.values.mean() == measure(subject, ["accuracy"])["accuracy"]


def test_groups_are_drawn_as_wholes() -> None:
    # Ten users with twelve equal rows each: replicates spread as the mean of ten examples, not of 120.
    targets = torch.arange(10).remainder(2).repeat_interleave(12)
    logits = torch.zeros(120, 2)
    logits[:, 1] = 1.0
    subject = Subject({"label": logits}, {"label": targets})
    grouped = replace(subject, groups=torch.arange(10).repeat_interleave(12))
    spread = unpack(pack_examples(grouped, "accuracy")).values.std()
    assert unpack(pack_examples(subject, "accuracy")).kind == "bits"
    assert unpack(pack_examples(grouped, "accuracy")).examples == 10
    assert spread == pytest.approx((0.25 / 10) ** 0.5, rel=0.15)


def test_missing_labels_and_tags_are_resampled_by_example() -> None:
    """A score that is no mean over examples is measured on draws of whole examples."""
    subject = make_subject(size=60)
    targets = subject.targets["label"].clone()
    targets[::3] = IGNORED
    assert unpack(pack_examples(replace(subject, targets={"label": targets}), "accuracy")).kind == "replicates"
    outputs = torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0))
    tagged = Subject({"tags": outputs}, {"tags": outputs.argmax(-1)}, heads={"tags": Tags(3, "accuracy")})
    scores = unpack(pack_examples(tagged, "accuracy"))
    assert (scores.kind, scores.examples, set(scores.values.tolist())) == ("replicates", 20, {1.0})
