"""The objectives that ship: scores of logits, averaged over the heads, and costs of layers."""

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
    return _on_targets(subject, quality.accuracy)


@objective("f1_macro", "maximize", "score")
def f1_macro(subject: Subject) -> float:
    """Harmonic mean of precision and recall, every class counting alike."""
    return _on_targets(subject, quality.f1_macro)


@objective("f1_weighted", "maximize", "score")
def f1_weighted(subject: Subject) -> float:
    """Harmonic mean of precision and recall, classes counting by how often they occur."""
    return _on_targets(subject, quality.f1_weighted)


@objective("precision_macro", "maximize", "score")
def precision_macro(subject: Subject) -> float:
    """Share of the predictions of a class that are right, every class counting alike."""
    return _on_targets(subject, quality.precision_macro)


@objective("recall_macro", "maximize", "score")
def recall_macro(subject: Subject) -> float:
    """Share of the examples of a class that are found, every class counting alike."""
    return _on_targets(subject, quality.recall_macro)


@objective("loss", "minimize", "score", unit="nats")
def loss(subject: Subject) -> float:
    """Mean cross-entropy."""
    return _on_targets(subject, quality.cross_entropy)


@objective("ece", "minimize", "score")
def ece(subject: Subject) -> float:
    """Expected calibration error: how far confidence lies from accuracy, over 15 bins."""
    return _on_targets(subject, quality.calibration_error)


@objective("kl", "minimize", "score", unit="nats")
def kl(subject: Subject) -> float:
    """Mean divergence of the student's distribution from the teacher's."""
    return fmean(quality.kl_divergence(logits, _teacher(subject, head)) for head, logits in _logits(subject))


@objective("agreement", "maximize", "score")
def agreement(subject: Subject) -> float:
    """Share of examples on which student and teacher choose the same class."""
    return fmean(quality.agreement(logits, _teacher(subject, head)) for head, logits in _logits(subject))


@objective("retention", "maximize", "score")
def retention(subject: Subject) -> float:
    """The student's accuracy divided by the teacher's."""
    return fmean(
        quality.retention(logits, _targets(subject, head), _teacher(subject, head)) for head, logits in _logits(subject)
    )


@objective("fgsm_accuracy", "maximize", "score")
def fgsm_accuracy(subject: Subject) -> float:
    """Accuracy after one step of the gradient's sign, 0.3 in each number of the inputs."""
    return _attacked(subject, "fgsm")


@objective("pgd_accuracy", "maximize", "score")
def pgd_accuracy(subject: Subject) -> float:
    """Accuracy after ten projected steps, 0.3 at most in each number of the inputs."""
    return _attacked(subject, "pgd")


@objective("flops", "minimize", "cost", unit="FLOPs")
def flops(subject: Subject) -> float:
    """Floating-point operations of one example: 2 x multiply-accumulates."""
    return float(cost.flops(subject.layers))


@objective("macs", "minimize", "cost", unit="MACs")
def macs(subject: Subject) -> float:
    """Multiply-accumulates of one example."""
    return float(cost.macs(subject.layers))


@objective("bops", "minimize", "cost", unit="BOPs")
def bops(subject: Subject) -> float:
    """Bit operations of one example: multiply-accumulates x weight bits x activation bits."""
    return float(cost.bops(subject.layers, subject.bits))


@objective("effective_flops", "minimize", "cost", unit="FLOPs")
def effective_flops(subject: Subject) -> float:
    """FLOPs x (weight bits x activation bits) / (32 x 32): pruning and bit-width on one axis."""
    return cost.effective_flops(subject.layers, subject.bits)


@objective("parameters", "minimize", "cost")
def parameters(subject: Subject) -> float:
    """Number of parameters."""
    return float(cost.parameters(subject.layers))


@objective("nonzero_parameters", "minimize", "cost")
def nonzero_parameters(subject: Subject) -> float:
    """Number of parameters that are not zero."""
    return float(cost.nonzero_parameters(subject.layers))


@objective("layers", "minimize", "cost")
def layers(subject: Subject) -> float:
    """Number of layers that multiply: what small models spend their time on is beginning the next one."""
    return float(sum(layer.macs > 0 for layer in subject.layers.values()))


@objective("activations", "minimize", "cost")
def activations(subject: Subject) -> float:
    """Number of outputs of all layers that multiply: what small models wait for is memory."""
    return float(cost.activations(subject.layers))


@objective("bytes", "minimize", "cost", unit="B")
def model_bytes(subject: Subject) -> float:
    """Bytes of the packed parameters, with one scale per quantized output channel."""
    return float(cost.model_bytes(subject.layers, subject.bits))


@objective("sparse_bytes", "minimize", "cost", unit="B")
def sparse_bytes(subject: Subject) -> float:
    """Bytes of the parameters with the zeros of pruned layers left out: one bit a weight, and the values that stay."""
    return float(cost.sparse_bytes(subject.layers, subject.bits))


def _on_targets(subject: Subject, score: Callable[[Tensor, Tensor], float]) -> float:
    return fmean(score(logits, _targets(subject, head)) for head, logits in _logits(subject))


def _logits(subject: Subject) -> list[tuple[str, Tensor]]:
    if not subject.logits:
        raise TrialError("a score needs logits, but the subject has none")
    return list(subject.logits.items())


def _targets(subject: Subject, head: str) -> Tensor:
    if head not in subject.targets:
        raise TrialError(f"the head '{head}' has no targets: they cover {sorted(subject.targets)}")
    return subject.targets[head]


def _teacher(subject: Subject, head: str) -> Tensor:
    if head not in subject.teacher_logits:
        raise TrialError(f"the head '{head}' has no teacher logits: they cover {sorted(subject.teacher_logits)}")
    return subject.teacher_logits[head]


def _attacked(subject: Subject, attack: str) -> float:
    if attack not in subject.attacked:
        raise TrialError(f"{attack}_accuracy needs the outputs under that attack")
    return _on_targets(replace(subject, logits=subject.attacked[attack]), quality.accuracy)
