import pytest
import torch

from autocompress.core.custom_head import (
    TASK_LOSS,
    BoundHead,
    CustomHead,
    digest_target,
    have_one_shape,
    number_targets,
)
from autocompress.core.heads import Custom, head_from_json
from autocompress.errors import TrialError


def squared(outputs, targets):
    return (outputs - torch.stack(targets)).square().mean()


def bind(head, items, **options):
    return BoundHead(head, items, **options)


BOXES = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]


class TestTargets:
    def test_functions_get_the_items_of_the_numbered_examples(self):
        seen = []
        head = CustomHead(lambda outputs, targets: seen.append(targets) or outputs.sum())
        numbers = number_targets(BOXES)[[2, 0]]
        bind(head, BOXES).compute_loss({"output": torch.zeros(2, 2)}, {"output": numbers})
        assert [item.tolist() for item in seen[0]] == [[5.0, 6.0], [1.0, 2.0]]

    def test_targets_of_one_shape_are_stacked_and_a_collate_function_takes_its_place(self):
        items = [{"a": torch.ones(2), "n": 1}, {"a": torch.zeros(2), "n": 2}]
        assert have_one_shape(items)
        numbers = {"output": number_targets(items)}
        stacked = bind(CustomHead(squared), items, is_stacked=True).collate(numbers, {"output": torch.zeros(2)})
        assert stacked["a"].shape == (2, 2)
        assert stacked["n"].tolist() == [1, 2]
        own = bind(CustomHead(squared, collate=len), items, is_stacked=True)
        assert own.collate(numbers, {"output": torch.zeros(2)}) == 2

    @pytest.mark.parametrize(
        "items", [[torch.ones(1, 4), torch.ones(2, 4)], [[1], [1]], [{"a": 1}, {"b": 1}], [torch.ones(1), 1.0]]
    )
    def test_other_targets_remain_a_list(self, items):
        assert not have_one_shape(items)

    @pytest.mark.parametrize(
        "other", [[1, {"a": torch.ones(2, 1)}], [2, {"a": torch.ones(2)}], [1, {"b": torch.ones(2)}]]
    )
    def test_a_digest_tells_contents_apart(self, other):
        item = [1, {"a": torch.ones(2)}]
        assert digest_target(item) == digest_target([1, {"a": torch.ones(2)}]) != digest_target(other)


class TestScores:
    def test_a_number_for_each_example_is_averaged(self):
        head = CustomHead(squared, {"error": lambda outputs, targets: (outputs - torch.stack(targets)).abs().mean(1)})
        outputs, targets = {"output": torch.zeros(3, 2)}, {"output": number_targets(BOXES)}
        assert bind(head, BOXES).score_examples("error", outputs, targets).tolist() == [1.5, 3.5, 5.5]
        assert bind(head, BOXES).measure("error", outputs, targets) == 3.5

    def test_the_loss_is_a_score(self):
        outputs, targets = {"output": torch.stack(BOXES)}, {"output": number_targets(BOXES)}
        assert bind(CustomHead(squared), BOXES).measure(TASK_LOSS, outputs, targets) == 0

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            (lambda outputs, targets: 1 / 0, "'map' fails on 3 examples: ZeroDivisionError"),
            (lambda outputs, targets: outputs, "returns 6 numbers for 3 examples"),
            (lambda outputs, targets: "good", "'map' fails on 3 examples"),
        ],
    )
    def test_a_metric_that_fails_is_named(self, metric, message):
        with pytest.raises(TrialError, match=message):
            bind(CustomHead(squared, {"map": metric}), BOXES).measure(
                "map", {"output": torch.zeros(3, 2)}, {"output": number_targets(BOXES)}
            )

    def test_directions_are_those_of_all_or_of_each(self):
        assert CustomHead(squared, {"a": len}, higher_is_better=False).is_maximized("a") is False
        head = CustomHead(squared, {"a": len, "b": len}, higher_is_better={"b": False})
        assert (head.is_maximized("a"), head.is_maximized("b"), head.is_maximized(TASK_LOSS)) == (True, False, False)


class TestDistillation:
    def test_by_default_outputs_are_compared_in_standard_deviations_of_the_teacher(self):
        teacher = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
        bound = bind(CustomHead(squared), BOXES)
        for scale in (1.0, 100.0):
            distance = bound.distill({"a": scale * (teacher + 1)}, {"a": scale * teacher}, {})
            assert float(distance) == pytest.approx(1.0)

    def test_a_function_of_the_users_gets_all_outputs_and_the_targets(self):
        def distill(student, teacher, targets):
            return (student["a"] - teacher["b"]).mean() + len(targets)

        bound = bind(CustomHead(squared, distillation=distill), BOXES, is_single=False)
        outputs = {"a": torch.ones(3), "b": torch.zeros(3)}
        assert float(bound.distill(outputs, outputs, dict.fromkeys(outputs, number_targets(BOXES)))) == 4


def test_a_head_is_stored_without_the_functions_and_read_again():
    head = Custom(12, "map", bind(CustomHead(squared), BOXES))
    again = head_from_json(head.to_json())
    assert (again.kind, int(again), again.metric, again.bound) == ("custom", 12, "map", None)
