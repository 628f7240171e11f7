"""Built-in objectives: scores of logits, averaged over the heads, and costs of layers."""

import math
from dataclasses import replace
from statistics import fmean

from autocompress.core.latency_model import LATENCY
from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError
from autocompress.measure import cost, quality
from autocompress.measure.cost import list_layer_work
from autocompress.measure.objectives import Subject, objective

# Keeps the ratio of two errors finite where the student has none.
TINY = 1e-12


@objective("accuracy", "maximize", "score", reads="classes")
def accuracy(subject: Subject) -> float:
    """Share of examples whose class is predicted."""
    return subject.mean_over_heads(quality.accuracy)


@objective("balanced_accuracy", "maximize", "score", reads="classes")
def balanced_accuracy(subject: Subject) -> float:
    """Share of the examples of a class that are predicted as it, every class that occurs counting alike."""
    return subject.mean_over_heads(quality.balanced_accuracy)


@objective("f1_macro", "maximize", "score", reads="classes")
def f1_macro(subject: Subject) -> float:
    """Harmonic mean of precision and recall, every class counting alike."""
    return subject.mean_over_heads(quality.f1_macro)


@objective("f1_weighted", "maximize", "score", reads="classes")
def f1_weighted(subject: Subject) -> float:
    """Harmonic mean of precision and recall, classes counting by how often they occur."""
    return subject.mean_over_heads(quality.f1_weighted)


@objective("precision_macro", "maximize", "score", reads="classes")
def precision_macro(subject: Subject) -> float:
    """Share of the predictions of a class that are right, every class counting alike."""
    return subject.mean_over_heads(quality.precision_macro)


@objective("recall_macro", "maximize", "score", reads="classes")
def recall_macro(subject: Subject) -> float:
    """Share of the examples of a class that are predicted as it, every class counting alike."""
    return subject.mean_over_heads(quality.recall_macro)


@objective("mean_iou", "maximize", "score", reads="classes")
def mean_iou(subject: Subject) -> float:
    """Intersection over union of predicted and true positions, every class counting alike."""
    return subject.mean_over_heads(quality.mean_iou)


@objective("loss", "minimize", "score", unit="nats", reads="classes")
def loss(subject: Subject) -> float:
    """Mean cross-entropy."""
    return subject.remove_thresholds().mean_over_heads(quality.cross_entropy)


@objective("ece", "minimize", "score", reads="classes")
def ece(subject: Subject) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, over 15 bins."""
    return subject.remove_thresholds().mean_over_heads(quality.calibration_error)


@objective("kl", "minimize", "score", unit="nats", reads="classes")
def kl(subject: Subject) -> float:
    """Mean divergence of the student's distribution from the teacher's."""
    return fmean(quality.kl_divergence(*subject.paired_rows(name)) for name in subject.class_heads())


@objective("agreement", "maximize", "score", reads="classes")
def agreement(subject: Subject) -> float:
    """Share of examples on which student and teacher choose the same class."""
    return fmean(_score_agreement(subject, name) for name in subject.class_heads())


def _score_agreement(subject: Subject, name: str) -> float:
    """Return the share of equal classes of one head, each decided at the threshold of its model."""
    ours, theirs = subject.paired_rows(name)
    decided = subject.select_teacher().head(name).shift_rows(theirs)
    return quality.agreement(subject.head(name).shift_rows(ours), decided)


@objective("mean_score", "maximize", "score")
def mean_score(subject: Subject) -> float:
    """Mean over the heads of the metric of each: accuracy, entity F1, R2, AUC or NDCG."""
    if not subject.logits:
        raise TrialError("a score needs logits, but the subject has none")
    return fmean(_score_head(subject, name) for name in subject.logits)


@objective("retention", "maximize", "score")
def retention(subject: Subject) -> float:
    """The student's score divided by the teacher's; of numbers, the teacher's error divided by the student's."""
    if not subject.logits:
        raise TrialError("a score needs logits, but the subject has none")
    ratios = []
    for name in subject.logits:
        # Missing outputs of the teacher are named here.
        subject.teacher_outputs(name)
        teacher = subject.select_teacher()
        if subject.head(name).metric == "r2":
            # R2 may be negative, so errors are compared: the teacher's divided by the student's.
            theirs, ours = _score_head(teacher, name, "rmse"), _score_head(subject, name, "rmse")
            ratios.append(max(theirs, TINY) / max(ours, TINY))
            continue
        ratios.append(divide_scores(_score_head(subject, name), _score_head(teacher, name)))
    # A mean of ratios, not a ratio of means: each head is compared with the teacher on that head.
    return fmean(ratios)


def divide_scores(ours: float, theirs: float) -> float:
    """Return a student's score divided by the teacher's; NaN if one of them is.

    A teacher that scores 0 has nothing to lose, so a student that is not worse keeps all of it. Such a value must be
    finite: a candidate with another one has failed.

    Example:
        >>> divide_scores(0.4, 0.8), divide_scores(0.0, 0.0), divide_scores(0.3, 0.0)
        (0.5, 1.0, 1.0)
    """
    if theirs > 0 or math.isnan(theirs) or math.isnan(ours):
        return ours / theirs
    return float(ours >= theirs)


def _score_head(subject: Subject, name: str, metric: str = "") -> float:
    """Return a score of one head, by default its own metric."""
    only = replace(subject, logits={name: subject.logits[name]})
    return float(OBJECTIVES.get(metric or subject.head(name).metric).measure(only))


@objective("fgsm_accuracy", "maximize", "score", reads="classes")
def fgsm_accuracy(subject: Subject) -> float:
    """Accuracy after one step of the gradient's sign, 0.3 in each number of the inputs."""
    return _score_under_attack(subject, "fgsm")


@objective("pgd_accuracy", "maximize", "score", reads="classes")
def pgd_accuracy(subject: Subject) -> float:
    """Accuracy after ten projected steps, 0.3 at most in each number of the inputs."""
    return _score_under_attack(subject, "pgd")


@objective("hotflip_accuracy", "maximize", "score", reads="classes")
def hotflip_accuracy(subject: Subject) -> float:
    """Accuracy of texts after up to two tokens of each are replaced, chosen by the gradient."""
    return _score_under_attack(subject, "hotflip")


@objective("flops", "minimize", "cost", unit="FLOPs")
def flops(subject: Subject) -> float:
    """Floating-point operations of one example: 2 x multiply-accumulates."""
    return float(cost.count_flops(subject.layers))


@objective("macs", "minimize", "cost", unit="MACs")
def macs(subject: Subject) -> float:
    """Multiply-accumulates of one example."""
    return float(cost.count_macs(subject.layers))


@objective("bops", "minimize", "cost", unit="BOPs")
def bops(subject: Subject) -> float:
    """Bit operations of one example: multiply-accumulates x weight bits x activation bits."""
    return float(cost.count_bops(subject.layers, subject.bits))


@objective("effective_flops", "minimize", "cost", unit="FLOPs")
def effective_flops(subject: Subject) -> float:
    """FLOPs x (weight bits x activation bits) / (32 x 32): pruning and bit-width on one axis."""
    return cost.count_effective_flops(subject.layers, subject.bits)


@objective("parameters", "minimize", "cost")
def parameters(subject: Subject) -> float:
    """Number of parameters."""
    return float(cost.count_parameters(subject.layers))


@objective("nonzero_parameters", "minimize", "cost")
def nonzero_parameters(subject: Subject) -> float:
    """Number of parameters that are not zero."""
    return float(cost.count_nonzero_parameters(subject.layers))


@objective("layers", "minimize", "cost")
def layers(subject: Subject) -> float:
    """Number of layers that multiply; starting a layer dominates the latency of small models."""
    return float(sum(layer.macs > 0 for layer in subject.layers.values()))


@objective("activations", "minimize", "cost")
def activations(subject: Subject) -> float:
    """Number of outputs of all layers that multiply; small models are bound by memory."""
    return float(cost.count_activations(subject.layers))


@objective("bytes", "minimize", "cost", unit="B")
def model_bytes(subject: Subject) -> float:
    """Bytes of the exported tensors: packed codes, scales, tables, masks of pruned weights, everything else."""
    if subject.stored_bytes is not None:
        return float(subject.stored_bytes)
    return float(cost.count_model_bytes(subject.layers, subject.bits))


@objective(LATENCY, "minimize", "cost", unit="ms")
def latency_ms(subject: Subject) -> float:
    """Milliseconds of one example, predicted for the target, and timed for the front."""
    if subject.latency is None:
        raise TrialError(f"{LATENCY} needs a calibrated target: name one in the search space, and {LATENCY} as a cost")
    return subject.latency.predict(list_layer_work(subject.layers, subject.bits))


@objective("sparse_bytes", "minimize", "cost", unit="B")
def sparse_bytes(subject: Subject) -> float:
    """The same as bytes, which leave out the zeros of pruned weights."""
    if subject.stored_bytes is not None:
        return float(subject.stored_bytes)
    return float(cost.count_sparse_bytes(subject.layers, subject.bits))


def _score_under_attack(subject: Subject, attack: str) -> float:
    if attack not in subject.attacked:
        # Outputs under an attack are produced by the caller, because an attack needs the model itself.
        raise TrialError(f"{attack}_accuracy needs the outputs under that attack")
    # The attacked outputs take the place of the logits, so clean and attacked accuracy share one definition.
    return replace(subject, logits=subject.attacked[attack]).mean_over_heads(quality.accuracy)
