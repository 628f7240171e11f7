"""Models of other libraries: `python -m benchmarks.zoo`, with the extra `zoo`.

Each model of transformers, timm and torchvision with a small random configuration is brought with `bring_model`. Its
FLOPs are compared with those of `torch.utils.flop_counter` (fused kernels off), half of its channels are removed, the
pruned model is rebuilt from its history and compared, and it is exported and run in onnxruntime. Each model has a
process of its own with a limit of processor time. Rows are stored at once, so that a run resumes.
"""

import argparse
import copy
import logging
import math
import multiprocessing
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import Task, logits_by_head
from autocompress.errors import AutocompressError
from autocompress.export.onnx import export_float
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.quantize.folding import fold_batch_norm
from autocompress.targets.onnx_session import create_session
from autocompress.tasks.module import Module
from benchmarks.common import append_row, describe_benchmark, load_rows
from benchmarks.zoo_models import ZooModel, list_models

RATIO = 0.5
# Relative difference of FLOPs that counts as equal, and largest difference of outputs in their standard deviations.
EQUAL_FLOPS, EQUAL_OUTPUTS = 0.01, 1e-3
# Share of the parameters whose removal counts.
REMOVED = 0.1
CALIBRATION = 16
# Characters of a remark in the table; the stored row has all.
REMARK = 300
# Wall-clock time relative to the limit of processor time: other processes may share the machine.
PATIENCE = 8
GOALS = {"accepted": 0.95, "flops": 0.98, "removed": 0.85, "exported": 0.90}


@dataclass
class ZooRow:
    """What became of one model; a step that was not reached or failed is False.

    Attributes:
        name: Name of the model.
        accepted: Whether `bring_model` took it.
        flops: Whether its FLOPs are within 1% of those of `torch.utils.flop_counter`.
        removed: Whether a tenth of the parameters or more is removed at a ratio of one half, and the model runs.
        exported: Whether the pruned model gives the same outputs in onnxruntime.
        parameters: Number of parameters before.
        remaining: Share of the parameters after pruning.
        flops_ratio: FLOPs relative to the counter of torch.
        wrong: What is wrong with a model that was returned without an error.
        traceback: Last line of an error that is no message of autocompress.
        reason: Messages of the steps that failed.
        seconds: Processor time.
    """

    name: str
    accepted: bool = False
    flops: bool = False
    removed: bool = False
    exported: bool = False
    parameters: int = 0
    remaining: float = math.nan
    flops_ratio: float = math.nan
    wrong: str = ""
    traceback: str = ""
    reason: str = ""
    seconds: float = 0.0


class WrongModelError(Exception):
    """A model was returned that computes something else than it should."""


def measure_model(model: ZooModel) -> ZooRow:
    """Return the row of one model; errors become reasons."""
    row = ZooRow(model.name)
    started = time.process_time()
    torch.manual_seed(0)
    module, data = model.build()
    fill_zero_weights(module)
    pruned: list[nn.Module] = []
    task: list[Module] = []

    def bring() -> None:
        task.append(Module(module, data))
        row.accepted = True

    def count() -> None:
        row.parameters = sum(parameter.numel() for parameter in task[0].model.parameters())
        row.flops_ratio = compare_flops(task[0].model, task[0].example())
        row.flops = abs(row.flops_ratio - 1) <= EQUAL_FLOPS

    def prune() -> None:
        pruned.append(prune_model(task[0]))
        row.remaining = sum(parameter.numel() for parameter in pruned[0].parameters()) / row.parameters
        row.removed = row.remaining <= 1 - REMOVED

    def export() -> None:
        check_export(pruned[0] if pruned else task[0].model, task[0])
        row.exported = True

    steps: dict[str, Callable[[], None]] = {"bring": bring, "FLOPs": count, "prune": prune, "export": export}
    for name, step in steps.items():
        if name != "bring" and not task:
            break
        _run_step(name, step, row)
    row.seconds = round(time.process_time() - started, 1)
    return row


@torch.no_grad()
def fill_zero_weights(module: nn.Module) -> None:
    """Fill weight matrices of zeros with random numbers: an untrained head of zeros returns the same for all inputs."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)


def _run_step(name: str, step: Callable[[], None], row: ZooRow) -> None:
    """Run a step, and note in the row why it fails."""
    try:
        step()
    except WrongModelError as error:
        row.wrong = f"{name}: {error}"
    except AutocompressError as error:
        row.reason += f"{'; ' if row.reason else ''}{name}: {' '.join(str(error).split())}"
    except Exception as error:  # Any other error is a fault of autocompress, and is counted.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        row.traceback = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]} ({place})"


def compare_flops(model: nn.Module, example: tuple[Tensor, ...]) -> float:
    """Return our count of the operations of a model relative to that of torch with its fused kernels off."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            # The counter cannot follow a view of a parameter that is given to a submodule, if that has gradients.
            copy.deepcopy(model).requires_grad_(False).eval()(*example)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
    return count_flops(layer_costs(model, example)) / counter.get_total_flops()


def prune_model(task: Module) -> nn.Module:
    """Return the model without half of its channels.

    Raises:
        CompressionError: No channel can be removed.
        WrongModelError: The model that is rebuilt from the history computes something else, or nothing finite.
    """
    splits = task.splits(0)
    batch = splits.calibration.take(slice(0, CALIBRATION))
    context = Context(
        task.example(),
        (batch.inputs,),
        (batch.targets,),
        lambda output, targets: task.loss(logits_by_head(output, task.heads), targets),
    )
    method = PRUNE.get("structured")
    config = method.config.of({"pruning_ratio": RATIO})
    pruned, state = method.apply(task.model, config, context)
    rebuilt = method.restore(copy.deepcopy(task.model), config, state)
    rebuilt.load_state_dict(pruned.state_dict())
    inputs = splits.test.take(slice(0, 4)).inputs
    ours, again = (run_model(model, inputs, task) for model in (pruned, rebuilt))
    if not all(np.isfinite(values).all() for values in ours):
        raise WrongModelError("outputs are not finite")
    if (difference := measure_difference(ours, again)) > EQUAL_OUTPUTS:
        raise WrongModelError(f"outputs of the rebuilt model differ by {difference:.2g}")
    return pruned


def check_export(model: nn.Module, task: Module) -> None:
    """Export a model and compare its outputs in onnxruntime.

    Raises:
        ArtifactError: torch cannot export the model, or onnxruntime cannot run it.
        WrongModelError: The outputs differ.
    """
    folded = fold_batch_norm(model, task.example())
    content = export_float(folded, task.example(), task.heads).SerializeToString()
    session = create_session(content, 1)
    # Two batch sizes, because a graph may hold that of the example.
    for size in (1, 3):
        inputs = task.splits(0).test.take(slice(0, size)).inputs
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
        outputs = [np.asarray(values) for values in session.run(None, feed)]
        difference = measure_difference(outputs, run_model(model, inputs, task))
        if difference > EQUAL_OUTPUTS:
            raise WrongModelError(f"outputs in onnxruntime differ by {difference:.2g} for a batch of {size}")


def run_model(model: nn.Module, inputs: tuple[Tensor, ...], task: Task) -> list[np.ndarray]:
    """Return the outputs of a model by head, ``[B, ...]`` each."""
    with torch.no_grad():
        outputs = logits_by_head(model.eval()(*inputs), task.heads)
    return [values.numpy() for values in outputs.values()]


def measure_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the largest difference in standard deviations of the expected outputs, or in 1 if these are constant."""
    return max(float(np.abs(a - b).max() / max(float(b.std()), 1e-2)) for a, b in zip(ours, theirs, strict=True))


def run_in_process(model: ZooModel, limit: int) -> ZooRow:
    """Return the row of a model, measured in a process of its own.

    Args:
        model: The model.
        limit: Limit of the processor time in seconds.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_row, args=(model, limit, sender))
    process.start()
    sender.close()
    has_answer = receiver.poll(limit * PATIENCE)
    try:
        row: ZooRow = receiver.recv() if has_answer else ZooRow(model.name, reason="no answer")
    except EOFError:
        process.join()
        row = ZooRow(model.name, reason=f"longer than {limit} s of processor time, or killed ({process.exitcode})")
    process.kill()
    process.join()
    return row


def _report_row(model: ZooModel, limit: int, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + limit, spent + limit + 5))
    sender.send(measure_model(model))


def write_table(rows: Sequence[ZooRow], out: Path, total: int) -> None:
    """Write the totals against the goals, and a row for each model.

    Args:
        rows: Rows of the measured models.
        out: Path of the table.
        total: Number of models that can be measured.
    """
    count = max(len(rows), 1)
    pending = f"{len(rows)} of {total} models are measured." if total > len(rows) else ""
    lines = [
        "# Models of other libraries",
        "",
        f"{describe_benchmark(__doc__)} {pending}".rstrip(),
        "",
        "| | models | share | goal |",
        "|---|---|---|---|",
    ]
    for name, goal in GOALS.items():
        passed = sum(bool(getattr(row, name)) for row in rows)
        lines.append(f"| {name} | {passed} of {len(rows)} | {passed / count:.1%} | {goal:.0%} |")
    lines += [
        *(f"| {name} | {sum(bool(getattr(row, name)) for row in rows)} | | 0 |" for name in ("traceback", "wrong")),
        "",
        "| model | parameters | FLOPs to counter | parameters left | accepted | removed | exported | s | remark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        marks = " | ".join("yes" if passed else "no" for passed in (row.accepted, row.removed, row.exported))
        remark = " ".join(filter(None, (row.wrong, row.traceback, row.reason))).replace("|", "/")
        remark = f"{remark[:REMARK]} ..." if len(remark) > REMARK else remark
        lines.append(
            f"| {row.name} | {row.parameters:,} | {_format_ratio(row.flops_ratio, 3)} | "
            f"{_format_ratio(row.remaining, 2)} | {marks} | "
            f"{row.seconds:.0f} | {remark} |"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")


def _format_ratio(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def main() -> None:
    """Measure every model without a stored row, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="measure models whose name holds one of these again")
    parser.add_argument("--limit", type=int, default=120, help="processor time of a model in seconds")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/zoo.md"))
    options = parser.parse_args()
    file = options.out.with_suffix(".jsonl")
    models = list_models()
    torch.set_num_threads(1)
    # Torch's exporter imports its parts when it runs; processes that are forked from this one have them.
    export_float(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), {"label": 2})
    stored = {row["name"]: ZooRow(**row) for row in load_rows(file)}
    for model in models:
        is_again = any(part in model.name for part in options.only)
        if (model.name in stored and not is_again) or (options.only and not is_again):
            continue
        stored[model.name] = run_in_process(model, options.limit)
        append_row(file, asdict(stored[model.name]))
        print(stored[model.name], flush=True)
    write_table([stored[model.name] for model in models if model.name in stored], options.out, len(models))


if __name__ == "__main__":
    main()
