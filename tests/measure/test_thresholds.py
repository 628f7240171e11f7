import pickle
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from autocompress.core.heads import Binary, Head, Levels, MultiLabel, Regression, head_from_json
from autocompress.errors import TrialError, UsageError
from autocompress.measure.example_scores import pack_examples
from autocompress.measure.heads import count_confusions, measure
from autocompress.measure.objectives import Subject
from autocompress.measure.thresholds import (
    choose_threshold,
    choose_thresholds,
    describe_threshold,
    read_thresholds,
    set_head_thresholds,
    set_thresholds,
)


def make_subject(head=None, size=400):
    """A rare second class, which the outputs rank well and rarely predict."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(size, generator=generator) < 0.1).long()
    score = torch.randn(size, generator=generator) + 2 * labels - 2.5
    outputs = score[:, None] if head is not None else torch.stack([torch.zeros(size), score], 1)
    return Subject({"label": outputs}, {"label": labels}, heads={"label": Head(2) if head is None else head})


def predict_at(subject, threshold):
    outputs = subject.logits["label"]
    score = outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]
    return (score.sigmoid() > threshold).long()


@pytest.mark.parametrize("head", [None, Binary()])
@pytest.mark.parametrize("threshold", [0.07, 0.5, 0.9])
def test_scores_are_scikit_learns_of_the_predictions_at_the_threshold(head, threshold):
    subject = make_subject(head)
    decided = set_thresholds(subject, {"label": threshold})
    predicted, true = predict_at(subject, threshold), subject.targets["label"]
    scores = measure(decided, ["balanced_accuracy", "f1_macro", "accuracy"])
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted))
    assert scores["f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert scores["accuracy"] == pytest.approx(float((predicted == true).double().mean()))
    assert count_confusions(decided, "label")[1][1] == int((predicted & true).sum())


def test_scores_of_probabilities_stay_as_they_are():
    subject = make_subject()
    names = ["loss", "ece", "auc", "log_loss"]
    assert measure(set_thresholds(subject, {"label": 0.1}), names) == measure(subject, names)


def test_stored_scores_of_examples_read_the_threshold():
    subject = make_subject()
    assert pack_examples(set_thresholds(subject, {"label": 0.1}), "accuracy") != pack_examples(subject, "accuracy")


@pytest.mark.parametrize("score", ["balanced_accuracy", "f1_macro"])
def test_no_other_threshold_is_better(score):
    subject = make_subject()
    chosen = choose_threshold(subject, "label", score)
    best = measure(set_thresholds(subject, {"label": chosen}), [score])[score]
    others = [measure(set_thresholds(subject, {"label": k / 50}), [score])[score] for k in range(1, 50)]
    assert best >= max(others) - 0.01
    assert best > measure(subject, [score])[score] + 0.05


def test_of_equal_thresholds_the_nearest_to_a_half_is_chosen():
    outputs = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    subject = Subject({"label": outputs}, {"label": torch.tensor([0, 1])}, heads={"label": 2})
    assert choose_threshold(subject, "label", "accuracy") == 0.5


def test_a_sentence_tells_both_scores_on_both_splits():
    subject = Subject(**{**vars(make_subject()), "labels": {"label": ["common", "rare"]}})
    parts = {"search_val": subject, "select_val": subject, "test": subject}
    text = describe_threshold(parts, "label", "f1_macro", 0.31, is_chosen=True)
    assert text.startswith("threshold 0.31 for 'rare' of label, the best one on the 400 examples of search_val: macro")
    assert text.count("at 0.5)") == 3
    assert "as requested" in describe_threshold(parts, "label", "f1_macro", 0.3, is_chosen=False)


class TestHead:
    @pytest.mark.parametrize("head", [Head(2), Binary()])
    def test_it_survives_json_and_pickle(self, head):
        decided = head.with_threshold(0.3)
        for copied in (head_from_json(decided.to_json()), pickle.loads(pickle.dumps(decided))):
            assert (type(copied), copied.threshold, copied.metric) == (type(head), 0.3, "accuracy")
        assert decided.with_threshold(None).to_json() == head.to_json()
        assert head.threshold is None

    @pytest.mark.parametrize("head", [Head(3), Levels(2, levels=(1.0, 2.0)), MultiLabel(2), Regression(1)])
    def test_other_kinds_have_none(self, head):
        with pytest.raises(TrialError, match="does not fit a head of"):
            head.with_threshold(0.3)

    def test_a_share_outside_of_0_and_1_is_refused(self):
        with pytest.raises(TrialError, match="does not fit a head of 2 classes"):
            Head(2, threshold=1.0)


class TestRead:
    def test_a_single_head_needs_no_name(self):
        assert read_thresholds(("auto",), {"label": 2, "other": 5}, "accuracy") == {"label": None}

    def test_each_head_has_its_own(self):
        heads = {"a": 2, "b": Binary()}
        assert read_thresholds(("a=0.3", "b=auto"), heads, "f1_macro") == {"a": 0.3, "b": None}

    @pytest.mark.parametrize(
        ("text", "heads", "message"),
        [
            ("0.3", {"label": 4}, "'label' is a head of 4 classes"),
            ("label=auto", {"label": Regression(1)}, "'label' is a head of one number"),
            ("labl=0.3", {"label": 2}, "did you mean 'label'"),
            ("0.3", {"a": 2, "b": 2}, "name one, as in a=0.3, in a search space {a"),
            ("1.5", {"label": 2}, "is 1.5; give a probability"),
            ("nan", {"label": 2}, "give a probability"),
            ("high", {"label": 2}, "give a number between 0 and 1, or auto"),
        ],
    )
    def test_mistakes_are_named(self, text, heads, message):
        with pytest.raises(UsageError, match=message):
            read_thresholds((text,), heads, "accuracy")

    def test_a_score_without_decisions_has_no_best_threshold(self):
        assert read_thresholds(("auto",), {"label": 2}, "accuracy@label") == {"label": None}
        assert read_thresholds(("0.3",), {"label": 2}, "auc") == {"label": 0.3}
        with pytest.raises(UsageError, match="no threshold of 'label' is best for auc"):
            read_thresholds(("auto",), {"label": 2}, "auc")


def test_several_heads_get_theirs_and_a_number_stays():
    one = make_subject()
    subject = Subject(
        {"label": one.logits["label"], "other": one.logits["label"]},
        {"label": one.targets["label"], "other": one.targets["label"]},
        heads={"label": Head(2), "other": Head(2)},
    )
    chosen = choose_thresholds({"label": None, "other": 0.9}, subject, "f1_macro@label")
    assert chosen == {"label": choose_threshold(subject, "label", "f1_macro"), "other": 0.9}
    assert choose_thresholds({}, subject, "auc") == {}


def test_teacher_and_candidate_are_compared_each_at_its_own_threshold():
    subject = make_subject()
    # The teacher has the same outputs, moved by 2: at a threshold moved alike it decides alike.
    outputs = subject.logits["label"] + torch.tensor([0.0, 2.0])
    ours, theirs = 0.5, float(torch.tensor(2.0).sigmoid())
    heads = set_head_thresholds({"label": 2}, {"label": theirs})
    both = replace(subject, teacher_logits={"label": outputs}, teacher_heads=heads)
    decided = set_thresholds(both, {"label": ours})
    assert measure(decided, ["agreement", "retention"]) == {"agreement": 1.0, "retention": 1.0}
    assert measure(set_thresholds(both, {"label": theirs}), ["agreement"])["agreement"] < 1


@pytest.mark.parametrize("head", [Head(2, threshold=0.2), Binary(threshold=0.2)])
def test_shifted_outputs_decide_without_a_threshold(head):
    outputs = torch.linspace(-3, 3, 25)[:, None] if head.kind == "binary" else torch.randn(25, 2)
    assert head.with_threshold(None).predict(head.shift_outputs(outputs)).equal(head.predict(outputs))
