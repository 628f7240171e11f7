"""Names that plugins of earlier versions use, and the names that replace them.

There are no aliases: a plugin that imports or defines an old name fails, and the error gives the new one.
"""

import re
import sys
from collections.abc import Mapping

from autocompress.errors import did_you_mean

PACKAGE = "autocompress."

#: Former module to present module, both below ``autocompress``.
MODULES: Mapping[str, str] = {
    "arguments": "cli.options",
    "backends.guard": "backends.watchdog",
    "backends.ray_seat": "backends.ray_worker",
    "catalogue": "cli.catalogue",
    "checkpoints": "trial.checkpoints",
    "checkup": "cli.doctor",
    "cli": "cli.app",
    "config": "core.config",
    "confirmation": "analysis.confirmation",
    "console": "cli.tables",
    "database": "store.connection",
    "display": "cli.progress",
    "distill.feature_terms": "distill.feature_losses",
    "distill.fit": "training.fit",
    "distill.heads": "distill.head_weighting",
    "distill.lesson": "training.objective",
    "distill.logit_terms": "distill.logit_losses",
    "distill.loop": "training.trainer",
    "distill.losses": "distill.kernels",
    "distill.optimizers": "training.optimizers",
    "distill.parallel": "training.distributed",
    "distill.pause": "training.state",
    "distill.place": "training.device",
    "distill.precision": "training.precision",
    "distill.taps": "distill.activations",
    "distill.teacher": "trial.teacher",
    "distill.team": "training.process_group",
    "distill.transfer": "trial.transfer",
    "engine.answers": "engine.driver",
    "engine.climbing": "engine.scheduler.asha",
    "engine.cutting": "engine.refinement",
    "engine.drawing": "engine.sampler.proposals",
    "engine.earlier": "engine.preflight",
    "engine.effort": "engine.scheduler.compute_cost",
    "engine.encoding": "engine.sampler.encoding",
    "engine.gaussian": "engine.sampler.gaussian_process",
    "engine.hosting": "engine.backend_factory",
    "engine.identity": "engine.space",
    "engine.ladder": "engine.scheduler.asha",
    "engine.memory": "engine.sampler.optuna_storage",
    "engine.openings": "engine.initial_design",
    "engine.pace": "engine.driver",
    "engine.promotion": "engine.scheduler.promotion",
    "engine.publishing": "engine.sampler.optuna_export",
    "engine.results": "engine.result_validation",
    "engine.run": "engine.runner",
    "engine.sampler": "engine.sampler.optuna",
    "engine.segments": "engine.scheduler.asha",
    "engine.spending": "engine.scheduler.asha",
    "engine.starts": "engine.initial_design",
    "engine.surrogate": "engine.sampler.acquisition",
    "export.integer": "export.integer_graph",
    "export.lookup": "export.embedding_tables",
    "export.stopwatch": "export.bench_worker",
    "export.timing": "export.front_latency",
    "export.tracking": "export.mlflow_export",
    "front": "analysis.pareto",
    "knobs": "core.knobs",
    "lab": "trial.pipeline",
    "latency": "analysis.latency",
    "machine": "core.machine",
    "measure.ranking": "measure.ranking_metrics",
    "method": "core.method",
    "native": "analysis.simulated",
    "operations": "trial.recipe",
    "outcome": "cli.output",
    "pick": "analysis.selection",
    "plugins": "core.plugins",
    "pricing": "trial.cost_estimate",
    "prune.cutting": "prune.channel_pruning",
    "prune.evidence": "prune.calibration",
    "prune.inherit": "prune.weight_inheritance",
    "prune.sensitivity": "prune.channel_sensitivity",
    "prune.storage": "prune.sparse_storage",
    "quantize.aware": "quantize.quantization_aware",
    "quantize.coding": "quantize.weight_coding",
    "quantize.copying": "quantize.model_copy",
    "quantize.draft": "quantize.model_quantizer",
    "quantize.histograms": "quantize.histogram_observers",
    "quantize.history": "quantize.serialization",
    "quantize.integer": "quantize.integer_arithmetic",
    "quantize.sensitivity": "quantize.bit_sensitivity",
    "quantize.steps": "quantize.ste",
    "quantize.tables": "quantize.lookup_quantizers",
    "quantize.watching": "quantize.activation_recorder",
    "records": "core.records",
    "registry": "core.registry",
    "report.confidence": "report.uncertainty",
    "report.knobs": "report.hyperparameters",
    "report.picture": "report.static_figure",
    "report.points": "report.figure_data",
    "report.steps": "report.recipe_view",
    "report.tables": "report.data_files",
    "report.verdict": "report.summary",
    "report.view": "report.table_view",
    "results": "front",
    "rows": "store.schema",
    "standing": "analysis.ranking",
    "stopping": "cli.signals",
    "storage": "core.atomic",
    "study": "store.run_store",
    "supernet": "trial.supernet",
    "task": "core.task",
    "tasks.candidates": "tasks.negative_sampling",
    "tasks.decoding": "tasks.image_decoding",
    "tasks.names": "tasks.text",
    "ties": "analysis.significance",
    "trial": "trial.runner",
    "where": "analysis.query",
    "words": "core.formatting",
}

#: Former name to present name of what plugins import: functions, classes and constants.
NAMES: Mapping[str, str] = {
    "five_splits": "complete_splits",
    "masked_state": "apply_masks",
    "refuse_dead_model": "check_output_varies",
    "restore_masked": "check_masks",
    "stratified_rows": "stratify_rows",
    "stratified_splits": "stratify_examples",
    "weighted": "find_prunable_weights",
}

#: Former name to present name of methods and attributes that plugins define.
MEMBERS: Mapping[str, str] = {"pinned": "identity_options"}

_MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")
_MISSING_NAME = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")
_MISSING_ATTRIBUTE = re.compile(r"has no attribute '(\w+)'")


def explain_missing_name(error: BaseException) -> str:
    """Return the present name of what a plugin could not find, as a sentence; empty if the error is another one.

    Args:
        error: The exception that the plugin raised.

    Example:
        >>> explain_missing_name(ModuleNotFoundError("No module named 'autocompress.knobs'"))
        'autocompress.knobs is now autocompress.core.knobs'
    """
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and (match := _MISSING_MODULE.search(text)):
        return _explain_module(match[1])
    if isinstance(error, ImportError) and (match := _MISSING_NAME.search(text)):
        return _explain_import(match[1], match[2])
    if isinstance(error, AttributeError) and (match := _MISSING_ATTRIBUTE.search(text)):
        present = NAMES.get(match[1]) or MEMBERS.get(match[1])
        return f"{match[1]} is now {present}" if present else ""
    return ""


def _explain_module(module: str) -> str:
    if not module.startswith(PACKAGE):
        return ""
    present = MODULES.get(module.removeprefix(PACKAGE))
    return f"{module} is now {PACKAGE}{present}" if present else ""


def _explain_import(name: str, module: str) -> str:
    """Return where ``from module import name`` finds the name today."""
    if f"{module}.".startswith(PACKAGE):
        if name in NAMES:
            return f"{name} is now {NAMES[name]}"
        if moved := _explain_module(f"{module}.{name}") or _explain_module(module):
            return moved
        # The module is there: its own names are the best hint.
        return did_you_mean(name, (known for known in vars(sys.modules[module]) if not known.startswith("_")))
    return ""
