"""The ways to compress ResNet-8: each yields its models while time remains.

A size is that of the publication: the bits of all weights of convolutions and linear layers, without biases and scales.
"""

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.knobs import Leaf
from autocompress.core.method import Context, LayerBits
from autocompress.core.registry import QUANTIZE
from autocompress.core.task import Split, Splits
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import parse_spec
from autocompress.measure.cost import layer_costs
from autocompress.measure.objectives import Subject, objective
from autocompress.tasks.module import Module
from autocompress.trial.teacher import load_teacher
from benchmarks.resnet8.problem import bring_resnet8

BATCH = 128
BITS_PER_KILOBYTE = 8000
CALIBRATION_BATCHES = 2

SPACE = """
task: module
search: {{mode: amortized, trials: {trials}, backend: serial, timing_seconds: 0, promotion: always,
  refine: 3}}
student:
  from_teacher: {{pruning_ratio: {ratios}, allocation: uniform}}
distill: {{soft_target: {{temperature: 4.0, alpha: 0.9}}}}
fit:
  sgd: {{epochs: {epochs}, learning_rate: 0.05, batch_size: 128, weight_decay: 5e-4, precision: bfloat16}}
quantize:
  none:
  post_training: {{weight_bits: {bits}, activation_bits: 8, observer: mse, weight_observer: mse}}
  {training}
objectives: {{accuracy: [0.5, 1.0], weight_kilobytes: [78, 1]}}
"""
TRAINING = "lsq: {{weight_bits: [3, 2], activation_bits: 8, epochs: {epochs}, learning_rate: 0.02}}"
RATIOS, BITS = "[0.0, 0.15, 0.3, 0.5, 0.7]", "[6, 5, 4]"


@dataclass(frozen=True)
class Settings:
    """What all ways share.

    Attributes:
        folder: Class folders of CIFAR-10 in ``train`` and ``test``.
        seconds: Wall-clock time of a way.
        epochs: Epochs of a student; a training under rounding has twice as many.
        teacher_epochs: Epochs of the teacher.
        limit: Largest number of images of each class; ``None`` for all.
        weights: File with the weights of the trained teacher; without one, it is trained.
    """

    folder: str
    seconds: float
    epochs: int
    teacher_epochs: int
    limit: int | None = None
    weights: str = ""


@dataclass(frozen=True)
class Point:
    """One compressed model.

    Attributes:
        settings: Its settings in words.
        kilobytes: Size of its weights, in 1,000 bytes.
        val: Share of right classes on the validation images that choose between models.
        test: Share of right classes on test.
    """

    settings: str
    kilobytes: float
    val: float
    test: float


@dataclass
class Problem:
    """The trained network and its data.

    Attributes:
        settings: What all ways share.
        seed: Seed of the way.
        task: The network and its data.
        splits: The data, without images that look the same as one of an earlier split.
        teacher: The trained network, in evaluation mode.
        started: Time at which the way was started, in seconds of ``time.monotonic``.
        epochs: Passes over the training images so far, for the page.
    """

    settings: Settings
    seed: int
    task: Module
    splits: Splits
    teacher: nn.Module
    started: float = field(default_factory=time.monotonic)
    epochs: float = 0.0


def load_problem(settings: Settings, seed: int) -> Problem:
    """Return the problem; the teacher is trained, or read from the cache."""
    # For this process alone: a search of another one has no use for the size.
    objective("weight_kilobytes", "minimize", "cost", " kB")(weight_kilobytes)
    task = bring_resnet8(settings.folder, settings.teacher_epochs, settings.limit, settings.weights)
    # The splits and the teacher of a search.
    text = SPACE.format(trials=1, ratios=0.0, bits=8, epochs=1, training="")
    plan = make_plan(parse_spec(text, "resnet8", []))
    plan.backend.shutdown()
    teacher = load_teacher(plan.task, plan.splits, plan.setup.teacher)
    return Problem(settings, seed, task, plan.splits, teacher.model)


def weight_kilobytes(subject: Subject) -> float:
    """Bits of the weights of all layers, in 1,000 bytes."""
    layers = subject.layers.values()
    return sum(layer.weights * subject.bits.get(layer.name, LayerBits()).weight for layer in layers) / BITS_PER_KILOBYTE


def count_weights(model: nn.Module) -> int:
    """Return the number of weights of convolutions and linear layers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def run_float(problem: Problem) -> Iterator[Point]:
    """Yield the teacher itself."""
    yield measure_point("teacher", 32 * count_weights(problem.teacher) / BITS_PER_KILOBYTE, problem.teacher, problem)


def run_eight_bits(problem: Problem) -> Iterator[Point]:
    """Yield the teacher with 8 bits of weights and activations, without training."""
    yield _quantize_teacher(problem, "post_training", {"weight_bits": 8})


def run_whole(problem: Problem) -> Iterator[Point]:
    """Yield the teacher with fewer bits of weights, the same in all layers and chosen by layer, without training."""
    for bits in (6, 5, 4):
        yield _quantize_teacher(problem, "post_training", {"weight_bits": bits})
    for budget in (4.0, 3.0):
        yield _quantize_teacher(problem, "mixed_precision", {"budget": "size", "budget_bits": budget})


def _quantize_teacher(problem: Problem, name: str, settings: Mapping[str, Leaf]) -> Point:
    method = QUANTIZE.get(name)
    shared: dict[str, Leaf] = {"activation_bits": 8, "observer": "mse", "weight_observer": "mse"}
    # Some batches: sensitivities take a pass over them for each layer and width.
    batches = tuple(batch.inputs for batch in problem.splits.calibration.batches(BATCH))[:CALIBRATION_BATCHES]
    example = problem.task.example()
    model, state = method.apply(problem.teacher, method.config.of({**shared, **settings}), Context(example, batches))
    size = weight_kilobytes(Subject(layers=layer_costs(model, example), bits=state.bits))
    text = ", ".join(f"{key} {value}" for key, value in settings.items())
    return measure_point(f"{name}: {text}", size, model, problem)


def run_trained_eight_bits(problem: Problem) -> Iterator[Point]:
    """Train the whole network on as a student, and yield it with 8 bits of weights and activations."""
    yield from _search(problem, {"trials": 1, "ratios": 0.0, "bits": 8, "training": ""})


def run_joint(problem: Problem) -> Iterator[Point]:
    """Search pruning ratios and bits together, and yield the front."""
    training = TRAINING.format(epochs=2 * problem.settings.epochs)
    yield from _search(problem, {"trials": 1000, "ratios": RATIOS, "bits": BITS, "training": training})


def _search(problem: Problem, space: Mapping[str, object]) -> Iterator[Point]:
    import autocompress

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "resnet8.yaml"
        spec.write_text(SPACE.format(epochs=problem.settings.epochs, **space))
        seconds = max(problem.settings.seconds - (time.monotonic() - problem.started), 1.0)
        front = autocompress.search(spec, minutes=seconds / 60, seed=problem.seed, workers=1, runs=folder, name="run")
        table = front.to_pandas()
        for _, row in table.iterrows():
            val = (row["accuracy"] + row["accuracy_search"]) / 2
            yield Point(str(row["id"]), float(row["weight_kilobytes"]), float(val), float(row["accuracy_test"]))


#: Strengths of the size in the loss: a run each, which share the time.
STRENGTHS = (5e-7, 3e-6)


def run_plinio(problem: Problem) -> Iterator[Point]:
    """PLiNIO's MPS: bits of each channel (0, 2, 4, 8) by gradient descent, then fine-tuning with them fixed.

    As in the scripts of its authors, Adam trains the weights and gradient descent the choice of bits; half of the time
    is for the search. The scripts take up to 500 epochs for each half. Here the learning rates fall to zero within the
    time, the temperature falls as far as within 100 epochs, and the choice of bits has 100 times their learning rate.
    """
    from plinio.cost import params_bit
    from plinio.methods.mps import MPS, MPSType, get_default_qinfo

    share = problem.settings.seconds / len(STRENGTHS)
    for number, strength in enumerate(STRENGTHS):
        start = problem.started + number * share
        model = MPS(
            copy.deepcopy(problem.teacher),
            input_shape=problem.task.inputs[0].shape,
            qinfo=get_default_qinfo(w_precision=(0, 2, 4, 8), a_precision=(8,)),
            w_search_type=MPSType.PER_CHANNEL,
            cost=params_bit,
        )
        _train_mps(model, problem, start, share / 2, strength)
        for choice in _list_choices(model):
            choice.requires_grad_(False)
        model.update_softmax_options(hard=True)
        _train_mps(model, problem, start + share / 2, share / 2, 0.0)
        model.eval()
        with torch.no_grad():
            model(*problem.task.example())  # the choices are sampled anew, so that the cost is that of evaluation
        yield measure_point(f"strength {strength:g}", float(model.cost) / BITS_PER_KILOBYTE, model, problem)


def _train_mps(model: Any, problem: Problem, start: float, seconds: float, strength: float) -> None:
    """Train a model of PLiNIO until its time is over, with learning rates that fall linearly to zero.

    Args:
        model: The model, trained in place.
        problem: The data; its epochs are counted.
        start: Time at which the training was due to start.
        seconds: Time of the training.
        strength: Factor of the size in the loss; 0 trains the weights alone.
    """
    splits = problem.splits
    choices = _list_choices(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if not name.endswith(".alpha")]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in named if "clip_val" not in name]},
        # As in the scripts, the ranges of activations do not decay.
        {"params": [parameter for name, parameter in named if "clip_val" in name], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(groups, lr=1e-3, weight_decay=1e-4)]
    if strength:
        optimizers.append(torch.optim.SGD(choices, lr=1.0, momentum=0.9))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    order = torch.Generator().manual_seed(problem.seed)
    model.train()
    for epoch in itertools.count():
        view = problem.task.view(splits.train, epoch % problem.task.views)
        for rows in torch.randperm(len(view), generator=order).split(BATCH):
            progress = (time.monotonic() - start) / seconds
            if progress >= 1:
                return
            examples = view.take(rows)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(examples.inputs[0])
            loss = F.cross_entropy(logits.float(), examples.targets["label"])
            if strength:
                model.update_softmax_options(temperature=math.exp(-4.5 * progress))
                loss = loss + strength * model.cost
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * (1 - progress)
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            problem.epochs += len(rows) / len(view)


def _list_choices(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that choose the bits."""
    return [parameter for name, parameter in model.named_parameters() if name.endswith(".alpha")]


def measure_point(settings: str, kilobytes: float, model: nn.Module, problem: Problem) -> Point:
    """Return a model's point: its accuracies in floating point arithmetic with 32 bits."""
    splits = problem.splits
    val = [score(model, getattr(splits, name)) for name in ("search_val", "select_val")]
    return Point(settings, kilobytes, sum(val) / 2, score(model, splits.test))


@torch.no_grad()
def score(model: nn.Module, split: Split) -> float:
    """Return the share of right classes."""
    right = 0
    for rows in torch.arange(len(split)).split(512):
        examples = split.take(rows)
        right += int((model(examples.inputs[0]).argmax(1) == examples.targets["label"]).sum())
    return right / len(split)


#: Ways that have no seed.
FIXED = frozenset({"float", "w8a8", "whole"})
WAYS: dict[str, Callable[[Problem], Iterator[Point]]] = {
    "float": run_float,
    "w8a8": run_eight_bits,
    "w8a8_trained": run_trained_eight_bits,
    "whole": run_whole,
    "joint": run_joint,
    "plinio": run_plinio,
}


def run_way(settings: Settings, way: str, seed: int) -> dict[str, Any]:
    """Run a way; return its time, the epochs that it counted, its points, and the error with which it ended."""
    problem = load_problem(settings, seed)
    torch.manual_seed(seed)
    points: list[dict[str, object]] = []
    error = ""
    processor = time.process_time()
    problem.started = time.monotonic()
    try:
        # Extended one by one: what a peer made before its error counts.
        points.extend(map(asdict, WAYS[way](problem)))
    except Exception as failure:  # a peer may raise anything
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
    times = {"seconds": time.monotonic() - problem.started, "processor_seconds": time.process_time() - processor}
    return {**times, "epochs": problem.epochs, "error": error, "points": points}
