"""Faults of models and numbers: extreme pruning ratios, dead models, weights and logits at their limits."""

import itertools
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.faults.injection import OBJECTIVES, FaultResult, search_in_process

RATIOS = (0.0, 0.01, 0.5, 0.9, 0.99, 1.0)


def prune_few_channels(folder: Path, widest: int = 8) -> FaultResult:
    """Row 10: pruning ratios from 0 to 1 on layers of 1 to 8 channels."""
    import torch
    from torch import nn

    from autocompress.core.method import Context
    from autocompress.core.registry import PRUNE
    from autocompress.errors import CompressionError, KnobError
    from autocompress.measure.cost import count_flops, layer_costs

    method, example = PRUNE.get("structured"), (torch.rand(1, 1, 6, 6),)
    cases = refused = nothing = wrong = 0
    for width in range(1, widest + 1):
        torch.manual_seed(width)
        layers = (nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(4 * width, 3))
        model = nn.Sequential(*layers).eval()
        before = count_flops(layer_costs(model, example))
        for ratio in RATIOS:
            cases += 1
            try:
                pruned, _ = method.apply(
                    model, method.config.of({"pruning_ratio": ratio}), Context(example, (example,))
                )
            except KnobError:
                refused += 1
                # The range of the hyperparameter ends at 0.9.
                wrong += ratio <= 0.9
                continue
            except CompressionError:
                nothing += 1
                continue
            flops = count_flops(layer_costs(pruned, example))
            channels = [layer.out_channels for layer in pruned.modules() if isinstance(layer, nn.Conv2d)]
            wrong += flops > before or min(channels) < 1 or not bool(pruned(*example).isfinite().all())
            before = flops
    measured = (
        f"{cases} cases: {refused} ratios above 0.9 refused, {nothing} refused because nothing can be removed, "
        f"{wrong} without a channel, with more FLOPs than at the ratio before, or not finite"
    )
    held = not wrong and refused == 2 * widest and nothing < cases // 2
    return FaultResult("at least one channel kept; FLOPs monotone; 1.0 refused", measured, held)


def recommend_dead_models(folder: Path, tables: int = 20) -> FaultResult:
    """Row 11: a constant model among the candidates, one class only, and a last batch of one."""
    import numpy as np
    import torch

    from autocompress import Tensors
    from autocompress.analysis.selection import select_candidate
    from autocompress.core.config import Part
    from autocompress.core.run_info import TeacherInfo
    from autocompress.errors import NoCandidateError, UsageError
    from autocompress.store.run_store import RunStore
    from autocompress.training.fit import fit
    from autocompress.training.trainer import FitRequest

    list(search_in_process(folder, 6))
    with RunStore.open(folder) as store:
        table, info = store.candidate_table(), store.run_info()
    teacher = TeacherInfo({split: {"accuracy": 0.99} for split in ("search_val", "select_val")}, {})
    info = replace(info, objectives=tuple(OBJECTIVES), all_objectives=tuple(OBJECTIVES), teacher=teacher)
    draw, recommended, choices = random.Random(0), 0, 0
    limits: tuple[dict[str, Any], ...] = ({}, {"knee": True}, {"max": {"effective_flops": 2.0}})
    for number, arguments in itertools.product(range(tables), limits):
        dead = table.iloc[[draw.randrange(len(table))]].assign(id="dead", complete=True, effective_flops=1.0)
        for column in ("accuracy", "accuracy_search"):
            dead[column] = OBJECTIVES[0].require_bounds()[0] - 0.01 * (number % 3)
        with suppress(NoCandidateError):
            recommended += select_candidate(pd.concat([table, dead]), info, **arguments).row["id"] == "dead"
        choices += 1
    inputs = np.random.default_rng(0).random((66, 4), dtype=np.float32)
    try:
        Tensors((inputs, {"label": np.zeros(66, dtype=np.int64)})).splits(0)
        refusal = "accepted"
    except UsageError as error:
        refusal = str(error)
    task = Tensors((inputs, {"label": np.arange(66) % 2}))
    rows = task.splits(0).train.take(slice(0, 33))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    fit(model, FitRequest(task, rows, Part.of("adamw", epochs=1, batch_size=32)))
    is_finite = all(bool(values.isfinite().all()) for values in model.state_dict().values())
    measured = (
        f"recommended in {recommended} of {choices} choices; one class: {refusal}; "
        f"33 examples in batches of 32: {'finite' if is_finite else 'not finite'}"
    )
    held = not recommended and refusal != "accepted" and is_finite
    return FaultResult("never recommended; named error before any trial", measured, held)


def _list_weights() -> Iterator[tuple[str, Any]]:
    import torch

    spread = torch.linspace(-1, 1, 24).view(4, 6)
    yield from {
        "zeros": torch.zeros(4, 6),
        "constant": torch.full((4, 6), 0.3),
        "one element": torch.full((1, 1), -0.7),
        "dead channel": torch.cat([spread[:3], torch.zeros(1, 6)]),
        "tiny": spread * 1e-30,
        "huge": spread * 1e30,
        "even": spread,
        "empty": torch.zeros(4, 0),
        "NaN": torch.tensor([[float("nan"), 1.0]]),
        "infinite": torch.tensor([[float("inf"), 1.0]]),
    }.items()


def quantize_extremes(folder: Path, cases: int = 500) -> FaultResult:
    """Row 12: weights that are zero, constant, single, empty, NaN or 1e30, with 1 to 8 bits."""
    import torch

    from autocompress.core.registry import QUANTIZERS
    from autocompress.quantize.weight_coding import GRANULARITIES, WEIGHT_OBSERVERS

    schemes = (("linear", "symmetric"), ("linear", "asymmetric"), ("power_of_two", "symmetric"))
    kinds = [*schemes, *((name, "symmetric") for name in QUANTIZERS if name not in ("linear", "power_of_two"))]
    grid = list(itertools.product(_list_weights(), kinds, GRANULARITIES, WEIGHT_OBSERVERS, range(1, 9)))
    counts = {"finite": 0, "refused": 0, "not finite": 0, "error above scale / 2": 0, "other exception": 0}
    with torch.random.fork_rng():
        for case in random.Random(0).sample(grid, cases):
            counts[_quantize_case(*case)] += 1
    measured = f"{cases} cases: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    held = counts["finite"] + counts["refused"] == cases and counts["finite"] > cases // 2
    return FaultResult("a finite result or a named error; error <= scale / 2 inside the range", measured, held)


def _quantize_case(weight: tuple[str, Any], kind: tuple[str, str], granularity: str, observer: str, bits: int) -> str:
    """Return what happens to a linear layer with a weight."""
    import torch

    from autocompress.core.knobs import Leaf
    from autocompress.core.method import Context
    from autocompress.core.registry import QUANTIZE
    from autocompress.errors import CompressionError, KnobError
    from autocompress.quantize.quantizers import SMALLEST_SCALE

    _, values = weight
    layer = torch.nn.Linear(1, 1)
    layer.weight, layer.bias = torch.nn.Parameter(values.clone()), torch.nn.Parameter(torch.zeros(len(values)))
    inputs = (torch.full((4, values.shape[1]), 0.5),)
    method = QUANTIZE.get("post_training")
    settings: dict[str, Leaf] = {
        "quantizer": kind[0],
        "weight_scheme": kind[1],
        "granularity": granularity,
        "group_size": 3,
    }
    settings |= {"weight_observer": observer, "weight_bits": bits, "activation_bits": 32}
    try:
        config = method.config.of(settings)
        model, _ = method.apply(torch.nn.Sequential(layer).eval(), config, Context((inputs[0][:1],), (inputs,)))
    except (CompressionError, KnobError):
        return "refused"
    except Exception:
        return "other exception"
    after = model.get_submodule("0").get_parameter("weight").detach()
    if not bool(after.isfinite().all()):
        return "not finite"
    if kind[0] == "linear" and observer == "minmax" and granularity == "per_tensor":
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        # Symmetric codes have as many positive as negative levels.
        step = 2 * torch.maximum(-low, high) / (2**bits - 2) if kind[1] == "symmetric" else (high - low) / (2**bits - 1)
        step = step.nan_to_num(0.0).clamp(min=SMALLEST_SCALE)
        return "finite" if (after - values).abs().max() <= 0.501 * step else "error above scale / 2"
    return "finite"


def distill_extremes(folder: Path) -> FaultResult:
    """Row 13: logits of +-1e4 and temperatures from 0.01 to 1000 in every distillation term on logits."""
    import torch
    from torch.nn import functional as F

    from autocompress.core.knobs import FloatRange
    from autocompress.core.registry import DISTILL
    from autocompress.distill.base import Activations, Batch

    terms = {name: DISTILL.get(name) for name in DISTILL if DISTILL.get(name).kind == "logit"}
    heads, targets = {"label": 5}, {"label": torch.tensor([0, 1, 2, 3])}
    cases, broken = 0, []
    for (name, term), temperature, size, seed in itertools.product(
        terms.items(), (0.01, 1.0, 30.0, 1000.0), (0.0, 1.0, 1e4), range(3)
    ):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = (torch.randn(4, 5, generator=generator).sign() * size for _ in range(2))
        student.requires_grad_()
        # Where the range of the hyperparameter ends earlier, its end is the extreme.
        knob = term.config.knobs().get("temperature")
        settings = {}
        if knob is not None and isinstance(knob.domain, FloatRange):
            settings = {"temperature": min(max(temperature, knob.domain.low), knob.domain.high)}
        config = term.config.of(settings)
        outputs = Activations({"label": student}), Activations({"label": teacher})
        adapter = term.build_adapter(config, *outputs)
        batch = Batch(*outputs, targets, lambda z, t: F.cross_entropy(z["label"], t["label"]), adapter, heads)
        loss = term.loss(config, batch)
        loss.backward()
        cases += 1
        if not (bool(loss.isfinite()) and student.grad is not None and bool(student.grad.isfinite().all())):
            broken.append(f"{name} at temperature {temperature:g} and logits {size:g}")
    measured = f"{cases} cases of {len(terms)} terms ({', '.join(terms)}): {len(broken)} not finite {broken[:3] or ''}"
    return FaultResult("finite loss and gradient", measured.rstrip(), cases > 0 and not broken)


def _randomize(value: Any) -> Any:
    import torch

    is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return torch.rand_like(value) if is_real else value


def prune_untraceable(folder: Path) -> FaultResult:
    """Row 14: models with data-dependent branches, dict inputs, shared modules and other traps for a tracer."""
    import torch
    from torch import nn

    from autocompress.core.method import Context
    from autocompress.core.registry import PRUNE
    from autocompress.errors import CompressionError
    from autocompress.prune.channels import verify_pruned_model
    from tests.prune import zoo

    cases: list[tuple[Any, Any]] = [(kind, example) for kind, example, _ in (*zoo.REFUSED, *zoo.FOLLOWED)]
    structured, fallback = PRUNE.get("structured"), PRUNE.get("unstructured")
    counts = {"pruned and equal to the masked original": 0, "refused by name": 0, "wrong": 0, "crashed": 0}
    unstructured = 0
    for kind, example in cases:
        torch.manual_seed(0)
        model: nn.Module = kind().eval()
        inputs = tuple(map(_randomize, example))
        context = Context(example, (inputs,))
        try:
            pruned, state = structured.apply(model, structured.config.of({"pruning_ratio": 0.5}), context)
        except CompressionError:
            counts["refused by name"] += 1
            # The search falls back to zeroed weights, which need no trace.
            with suppress(CompressionError):
                fallback.apply(model, fallback.config.of({"pruning_ratio": 0.5, "recovery_epochs": 0}), context)
                unstructured += 1
            continue
        except Exception:
            counts["crashed"] += 1
            continue
        try:
            verify_pruned_model(model, pruned, state.history["layers"], inputs)
            counts["pruned and equal to the masked original"] += 1
        except CompressionError:
            counts["wrong"] += 1
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    measured = f"{len(cases)} models: {shown}; zeroed weights work on {unstructured} of those refused"
    held = not (counts["wrong"] or counts["crashed"]) and counts["refused by name"] == len(zoo.REFUSED)
    return FaultResult("a named error or a fallback; 0 wrong models", measured, held)
