import math

import pytest
import torch

from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UnknownNameError, UsageError
from autocompress.measure import Subject, measure, quality
from autocompress.measure.heads import check_head, get_objective, list_scores

HEADS = {"language": 3, "kind": 4}


def subject(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(classes):
        return {head: torch.randn(60, size, generator=generator) for head, size in zip(HEADS, classes, strict=True)}

    logits = noise((4, 3))
    targets = {head: torch.randint(values.shape[1], (60,), generator=generator) for head, values in logits.items()}
    return Subject(logits, targets, noise((4, 3)), {"pgd": noise((4, 3))})


class TestOneHead:
    @pytest.mark.parametrize("head", HEADS)
    def test_score_of_one_head_equals_the_function(self, head):
        both = subject()
        logits, targets, teacher = both.logits[head], both.targets[head], both.teacher_logits[head]
        expected = {
            f"accuracy@{head}": quality.accuracy(logits, targets),
            f"f1_macro@{head}": quality.f1_macro(logits, targets),
            f"loss@{head}": quality.cross_entropy(logits, targets),
            f"kl@{head}": quality.kl_divergence(logits, teacher),
            f"retention@{head}": quality.accuracy(logits, targets) / quality.accuracy(teacher, targets),
            f"pgd_accuracy@{head}": quality.accuracy(both.attacked["pgd"][head], targets),
        }
        assert measure(both, expected) == expected

    def test_score_of_one_head_has_direction_and_unit_of_the_score(self):
        result, base = get_objective("loss@kind"), OBJECTIVES.get("loss")
        assert (result.name, result.direction, result.unit, result.kind) == (
            "loss@kind",
            "minimize",
            base.unit,
            "score",
        )
        assert "'kind'" in result.doc
        assert "loss@kind" not in OBJECTIVES

    def test_non_finite_values_of_another_head_do_not_matter(self):
        both = subject()
        both.logits["kind"][0, 0] = math.nan
        assert math.isfinite(measure(both, ["accuracy@language"])["accuracy@language"])
        assert math.isnan(measure(both, ["accuracy@kind"])["accuracy@kind"])

    def test_invalid_names_are_errors(self):
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
    def test_worst_head_has_the_lowest_score(self, score, seed):
        result = measure(subject(seed), [f"{score}_worst", *(f"{score}@{head}" for head in HEADS)])
        assert result[f"{score}_worst"] == min(result[f"{score}@{head}"] for head in HEADS)
        assert result[f"{score}@kind"] != result[f"{score}@language"]

    def test_worst_of_one_head_is_its_score(self):
        both = subject()
        one = Subject({"kind": both.logits["kind"]}, both.targets, both.teacher_logits)
        result = measure(one, ["accuracy", "accuracy_worst", "retention", "retention_worst"])
        assert result["accuracy"] == result["accuracy_worst"]
        assert result["retention"] == result["retention_worst"]

    @pytest.mark.parametrize("head", HEADS)
    def test_nan_is_the_worst_score(self, head):
        both = subject()
        both.logits[head][0, 0] = math.nan
        assert math.isnan(measure(both, ["accuracy_worst"])["accuracy_worst"])

    def test_missing_logits_are_an_error(self):
        with pytest.raises(TrialError, match="needs logits"):
            measure(Subject(), ["f1_macro_worst"])


class TestScoresToMeasure:
    def test_one_head_adds_nothing(self):
        assert list_scores(["retention", "accuracy", "bytes"], {"label": 3}) == ["accuracy", "retention"]

    def test_several_heads_add_each_head(self):
        assert list_scores(["accuracy", "loss"], HEADS) == [
            "accuracy", "accuracy@kind", "accuracy@language", "loss",
        ]  # fmt: skip

    def test_score_of_one_head_adds_the_mean(self):
        assert list_scores(["pgd_accuracy@kind"], HEADS) == ["pgd_accuracy", "pgd_accuracy@kind"]
