"""Calibration of a latency model on the students of a search: a few of them, untrained, are exported and timed.

The general calibration knows kernels; the students of a search space show what else their graphs contain. Latency does
not depend on the values of weights, so nothing is trained.
"""

import logging
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from pydantic import JsonValue
from torch import nn

from autocompress.core.config import Part
from autocompress.core.latency_model import LatencyModel, LayerWork
from autocompress.core.method import Context
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.core.run_info import TargetInfo
from autocompress.core.task import Split, Task
from autocompress.errors import AutocompressError
from autocompress.export.graph_choice import GraphRequest, list_mixtures
from autocompress.export.onnx import export_float, trace_quantized
from autocompress.measure import layer_costs
from autocompress.measure.cost import list_layer_work
from autocompress.quantize.folding import fold_batch_norm
from autocompress.targets import Target, make_target
from autocompress.targets.calibration import (
    INTEGER,
    NETWORKS,
    REFERENCES,
    Measurements,
    TimedNetwork,
    build_references,
    fit_latency_model,
    load_measurements,
    measure_networks,
    time_networks,
)
from autocompress.trial.pipeline import list_computed_bits, reproducible_torch

logger = logging.getLogger(__name__)

STUDENTS = 10
# Of so many students, one is timed in integers, too: its export takes twice as long.
INTEGER_EVERY = 2
EXAMPLES = 32
INT8 = Part.of("post_training", weight_bits=8, activation_bits=8)

#: A student and its compression.
Variant = tuple[Part, CompressionRecipe]


def calibrate_students(
    task: Task, examples: Split, variants: Sequence[Variant], info: TargetInfo, networks: int = NETWORKS
) -> LatencyModel:
    """Return the latency model of a target, fitted to the general networks and to students of a search.

    Both measurements are read from the cache where they were made before on this processor with this version.

    Args:
        task: The task that builds the students.
        examples: Examples for the ranges of quantization.
        variants: Students with compression recipes, of which pruning is used.
        info: Description of the target.
        networks: Number of general networks.

    Raises:
        ArtifactError: The target cannot run or measure a general network.
    """
    target = make_target(info.name, info.options)
    general = load_measurements(info, ["chains", networks], lambda: measure_networks(target, info, networks))
    inputs = [str(list(tensor.shape)) for tensor in task.example()]
    described = [repr((student, recipe.prune)) for student, recipe in variants]
    identity: list[JsonValue] = ["students", networks, INTEGER_EVERY, task.name, repr(dict(task.heads))]
    students = load_measurements(
        info,
        [*identity, *inputs, *described],
        lambda: _measure_students(task, examples, variants, target, info, general),
    )
    works, times = [*general.works, *students.works], [*general.times, *students.times]
    return fit_latency_model(works, times, target.channel_multiple)


def _measure_students(
    task: Task,
    examples: Split,
    variants: Sequence[Variant],
    target: Target,
    info: TargetInfo,
    general: Measurements,
) -> Measurements:
    works: list[tuple[LayerWork, ...]] = []
    networks: list[TimedNetwork] = []
    for at, variant in enumerate(variants):
        build = _build_float_network if at % INTEGER_EVERY else _build_networks
        try:
            with reproducible_torch():
                for layers, network in build(task, examples, variant, info):
                    works.append(layers)
                    networks.append(network)
        except AutocompressError as error:
            # The others suffice; the trial itself reports the error.
            logger.info("the latency of %s is not calibrated: %s", variant[0], error)
    references = build_references()
    times = time_networks(target, [*references, *networks])
    # The load of the machine may have changed since the general networks were timed.
    factor = median(then / now for then, now in zip(general.times[:REFERENCES], times, strict=False))
    return Measurements(tuple(works), tuple(factor * value for value in times[len(references) :]))


def _build_model(task: Task, examples: Split, variant: Variant) -> tuple[nn.Module, Context]:
    """Return an untrained student, pruned and with folded batch norms, and the context of its quantization."""
    student, recipe = variant
    torch.manual_seed(0)
    model, example = task.build(student).eval(), task.example()
    context = Context(example, (examples.take(slice(0, EXAMPLES)).inputs,))
    if recipe.prune is not None:
        method = PRUNE.get(recipe.prune.name)
        model, _ = method.apply(model, method.config.of(recipe.prune.values), context)
    return fold_batch_norm(model.eval(), example), context


def _build_float_network(
    task: Task, examples: Split, variant: Variant, info: TargetInfo
) -> Iterator[tuple[tuple[LayerWork, ...], TimedNetwork]]:
    """Yield the graph of an untrained student in floating point."""
    model, context = _build_model(task, examples, variant)
    content = bytes(export_float(model, context.example, task.heads).SerializeToString())
    works = tuple(list_layer_work(layer_costs(model, context.example), {}))
    yield works, TimedNetwork(content, [tensor.numpy() for tensor in context.example])


def _build_networks(
    task: Task, examples: Split, variant: Variant, info: TargetInfo
) -> Iterator[tuple[tuple[LayerWork, ...], TimedNetwork]]:
    """Yield the graphs of an untrained student among which an export chooses: in floating point, integers and both."""
    folded, context = _build_model(task, examples, variant)
    example = context.example
    quantizer = QUANTIZE.get(INT8.name)
    quantized, state = quantizer.apply(folded, quantizer.config.of(INT8.values), context)
    bits = list_computed_bits(state, info.precisions)
    signed = info.precisions.weight_type == "int8" and not info.precisions.reduce_range
    traced = trace_quantized(quantized, state, example, task.heads, signed=signed)
    request = GraphRequest(quantized, state, example, task.heads)
    choices = [request.integer_layers]
    if INTEGER in info.precisions.kernels and request.integer_layers:
        choices += [[], *list_mixtures(request).values()]
    layers, inputs = layer_costs(folded, example), [tensor.numpy() for tensor in example]
    target = make_target(info.name, info.options)
    for in_float in choices:
        computed = {name: widths for name, widths in bits.items() if name not in in_float}
        graph = traced.build([*in_float, *request.float_layers])
        content = bytes(target.adapt_graph(graph).SerializeToString())
        yield tuple(list_layer_work(layers, computed)), TimedNetwork(content, inputs)
