"""Built-in objectives: scores of logits, averaged over the heads, and costs of layers."""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

from torch import Tensor

from autocompress.errors import TrialError
from autocompress.measure import cost, quality
from autocompress.measure.objectives import Subject, objective


@objective("accuracy", "maximize", "score")
def accuracy(subject: Subject) -> float:
    """Share of examples whose class is predicted."""
    return _score_targets(subject, quality.accuracy)


@objective("f1_macro", "maximize", "score")
def f1_macro(subject: Subject) -> float:
    """Harmonic mean of precision and recall, every class counting alike."""
    return _score_targets(subject, quality.f1_macro)


@objective("f1_weighted", "maximize", "score")
def f1_weighted(subject: Subject) -> float:
    """Harmonic mean of precision and recall, classes counting by how often they occur."""
    return _score_targets(subject, quality.f1_weighted)


@objective("precision_macro", "maximize", "score")
def precision_macro(subject: Subject) -> float:
    """Share of the predictions of a class that are right, every class counting alike."""
    return _score_targets(subject, quality.precision_macro)


@objective("recall_macro", "maximize", "score")
def recall_macro(subject: Subject) -> float:
    """Share of the examples of a class that are predicted as it, every class counting alike."""
    return _score_targets(subject, quality.recall_macro)


@objective("loss", "minimize", "score", unit="nats")
def loss(subject: Subject) -> float:
    """Mean cross-entropy."""
    return _score_targets(subject, quality.cross_entropy)


@objective("ece", "minimize", "score")
def ece(subject: Subject) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, over 15 bins."""
    return _score_targets(subject, quality.calibration_error)


@objective("kl", "minimize", "score", unit="nats")
def kl(subject: Subject) -> float:
    """Mean divergence of the student's distribution from the teacher's."""
    return fmean(quality.kl_divergence(logits, _head_teacher(subject, head)) for head, logits in _list_logits(subject))


@objective("agreement", "maximize", "score")
def agreement(subject: Subject) -> float:
    """Share of examples on which student and teacher choose the same class."""
    return fmean(quality.agreement(logits, _head_teacher(subject, head)) for head, logits in _list_logits(subject))


@objective("retention", "maximize", "score")
def retention(subject: Subject) -> float:
    """The student's accuracy divided by the teacher's."""
    # A mean of ratios, not a ratio of means: each head is compared with the teacher on that head.
    return fmean(
        quality.retention(logits, _head_targets(subject, head), _head_teacher(subject, head))
        for head, logits in _list_logits(subject)
    )


@objective("fgsm_accuracy", "maximize", "score")
def fgsm_accuracy(subject: Subject) -> float:
    """Accuracy after one step of the gradient's sign, 0.3 in each number of the inputs."""
    return _score_under_attack(subject, "fgsm")


@objective("pgd_accuracy", "maximize", "score")
def pgd_accuracy(subject: Subject) -> float:
    """Accuracy after ten projected steps, 0.3 at most in each number of the inputs."""
    return _score_under_attack(subject, "pgd")


@objective("hotflip_accuracy", "maximize", "score")
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


@objective("sparse_bytes", "minimize", "cost", unit="B")
def sparse_bytes(subject: Subject) -> float:
    """The same as bytes, which leave out the zeros of pruned weights."""
    if subject.stored_bytes is not None:
        return float(subject.stored_bytes)
    return float(cost.count_sparse_bytes(subject.layers, subject.bits))


def _score_targets(subject: Subject, score: Callable[[Tensor, Tensor], float]) -> float:
    # Every head counts alike, whatever its number of classes.
    return fmean(score(logits, _head_targets(subject, head)) for head, logits in _list_logits(subject))


def _list_logits(subject: Subject) -> list[tuple[str, Tensor]]:
    if not subject.logits:
        # The mean of no heads is undefined, so the missing logits are named here.
        raise TrialError("a score needs logits, but the subject has none")
    return list(subject.logits.items())


def _head_targets(subject: Subject, head: str) -> Tensor:
    if head not in subject.targets:
        raise TrialError(f"the head '{head}' has no targets; heads with targets: {sorted(subject.targets)}")
    return subject.targets[head]


def _head_teacher(subject: Subject, head: str) -> Tensor:
    if head not in subject.teacher_logits:
        raise TrialError(f"the head '{head}' has no teacher logits; heads with them: {sorted(subject.teacher_logits)}")
    return subject.teacher_logits[head]


def _score_under_attack(subject: Subject, attack: str) -> float:
    if attack not in subject.attacked:
        # Outputs under an attack are produced by the caller, because an attack needs the model itself.
        raise TrialError(f"{attack}_accuracy needs the outputs under that attack")
    # The attacked outputs take the place of the logits, so clean and attacked accuracy share one definition.
    return _score_targets(replace(subject, logits=subject.attacked[attack]), quality.accuracy)
