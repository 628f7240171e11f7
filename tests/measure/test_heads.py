import math

import pytest
import torch

from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UnknownNameError, UsageError
from autocompress.measure import Subject, measure, quality
from autocompress.measure.heads import check_head, get_objective, list_scores

HEADS = ("language", "kind")


def subject(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(classes):
        return {head: torch.randn(60, size, generator=generator) for head, size in zip(HEADS, classes, strict=True)}

    logits = noise((4, 3))
    targets = {head: torch.randint(values.shape[1], (60,), generator=generator) for head, values in logits.items()}
    return Subject(logits, targets, noise((4, 3)), {"pgd": noise((4, 3))})


class TestOneHead:
    @pytest.mark.parametrize("head", HEADS)
    def test_it_scores_as_its_functions_do(self, head):
        both = subject()
        logits, targets, teacher = both.logits[head], both.targets[head], both.teacher_logits[head]
        expected = {
            f"accuracy@{head}": quality.accuracy(logits, targets),
            f"f1_macro@{head}": quality.f1_macro(logits, targets),
            f"loss@{head}": quality.cross_entropy(logits, targets),
            f"kl@{head}": quality.kl_divergence(logits, teacher),
            f"retention@{head}": quality.retention(logits, targets, teacher),
            f"pgd_accuracy@{head}": quality.accuracy(both.attacked["pgd"][head], targets),
        }
        assert measure(both, expected) == expected

    def test_it_has_the_direction_and_unit_of_the_score(self):
        found, base = get_objective("loss@kind"), OBJECTIVES.get("loss")
        assert (found.name, found.direction, found.unit, found.kind) == ("loss@kind", "minimize", base.unit, "score")
        assert "'kind'" in found.doc
        assert "loss@kind" not in OBJECTIVES

    def test_the_other_head_may_fail(self):
        both = subject()
        both.logits["kind"][0, 0] = math.nan
        assert math.isfinite(measure(both, ["accuracy@language"])["accuracy@language"])
        assert math.isnan(measure(both, ["accuracy@kind"])["accuracy@kind"])

    def test_what_cannot_be_asked_is_refused(self):
        with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
            get_objective("acuracy@kind")
        with pytest.raises(UsageError, match="write 'bytes' for 'bytes@kind'"):
            get_objective("bytes@kind")
        with pytest.raises(TrialError, match="no head 'knd': did you mean 'kind'"):
            measure(subject(), ["accuracy@knd"])
        with pytest.raises(UsageError, match="no head 'knd': did you mean 'kind'"):
            check_head("accuracy@knd", HEADS)
        check_head("accuracy@kind", HEADS)
        check_head("accuracy", HEADS)


class TestWorstHead:
    @pytest.mark.parametrize("score", ["accuracy", "f1_macro", "retention"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_it_is_the_lowest_of_the_heads(self, score, seed):
        found = measure(subject(seed), [f"{score}_worst", *(f"{score}@{head}" for head in HEADS)])
        assert found[f"{score}_worst"] == min(found[f"{score}@{head}"] for head in HEADS)
        assert found[f"{score}@kind"] != found[f"{score}@language"]

    def test_of_one_head_it_is_the_score(self):
        both = subject()
        one = Subject({"kind": both.logits["kind"]}, both.targets, both.teacher_logits)
        found = measure(one, ["accuracy", "accuracy_worst", "retention", "retention_worst"])
        assert found["accuracy"] == found["accuracy_worst"]
        assert found["retention"] == found["retention_worst"]

    @pytest.mark.parametrize("head", HEADS)
    def test_a_head_that_is_no_number_is_the_worst(self, head):
        both = subject()
        both.logits[head][0, 0] = math.nan
        assert math.isnan(measure(both, ["accuracy_worst"])["accuracy_worst"])

    def test_no_logits_are_refused(self):
        with pytest.raises(TrialError, match="needs logits"):
            measure(Subject(), ["f1_macro_worst"])


class TestScoresToMeasure:
    def test_one_head_adds_nothing(self):
        assert list_scores(["retention", "accuracy", "bytes"], ["label"]) == ["accuracy", "retention"]

    def test_several_heads_add_each_head(self):
        assert list_scores(["accuracy", "loss"], HEADS) == [
            "accuracy", "accuracy@kind", "accuracy@language", "loss",
        ]  # fmt: skip

    def test_a_score_of_one_head_brings_the_mean_along(self):
        assert list_scores(["pgd_accuracy@kind"], HEADS) == ["pgd_accuracy", "pgd_accuracy@kind"]
