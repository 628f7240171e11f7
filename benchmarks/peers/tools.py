"""The tools: each compresses the teacher as its documentation shows, and yields ONNX files.

A function yields its models while time remains. Packages are imported inside, so that a tool that is not installed is a
row with that reason.
"""

import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks.peers.problem import MadeModel, Problem, Split, export_onnx, fine_tune, make_predictor, score

Tool = Callable[[Problem], Iterator[MadeModel]]
EPOCHS = 20
RATIOS = (0.3, 0.5, 0.7, 0.85)
CALIBRATION = 256


def run_autocompress(problem: Problem) -> Iterator[MadeModel]:
    """This project: its default search, and every candidate exported that is on the front of one of the costs."""
    import autocompress

    with tempfile.TemporaryDirectory() as folder:
        spec = [f"search.minutes={problem.seconds / 60}", "search.trials=100_000"]
        spec += [f"search.seed={problem.seed}", f"split_seed={problem.seed}"]
        front = autocompress.search(problem.space, overrides=spec, runs=folder, name="run")
        table = front.candidates[front.candidates["complete"]]
        chosen: dict[str, None] = {}
        for cost in ("effective_flops", "bytes", "flops"):
            ordered = table.sort_values([cost, "accuracy"], ascending=[True, False])
            best = ordered["accuracy"].cummax().shift(fill_value=-1.0)
            chosen |= dict.fromkeys(ordered["id"][ordered["accuracy"] > best])
        for identity in chosen:
            # The fastest graph here, and the one with all quantized layers in integers.
            for integer in (False, True):
                file = front.export(identity, verify=False, integer=integer) / "model.onnx"
                yield MadeModel(f"{identity} integer" if integer else str(identity), file.read_bytes())


def run_torch_pruning(problem: Problem) -> Iterator[MadeModel]:
    """Torch-Pruning: group norms, one cut at a uniform ratio, fine-tuning with soft targets."""
    for ratio, model in _prune_and_tune(problem):
        yield MadeModel(f"ratio {ratio}", export_onnx(model, problem))


def run_onnxruntime(problem: Problem) -> Iterator[MadeModel]:
    """onnxruntime: static quantization of the teacher to 8 bits, by channel, with three calibrators."""
    yield from _quantize_static(export_onnx(problem.teacher, problem), problem, "teacher")


def run_torch_pruning_onnxruntime(problem: Problem) -> Iterator[MadeModel]:
    """Torch-Pruning, then onnxruntime's static quantization."""
    for ratio, model in _prune_and_tune(problem):
        yield from _quantize_static(export_onnx(model, problem), problem, f"ratio {ratio}")


def run_nncf(problem: Problem) -> Iterator[MadeModel]:
    """NNCF: post-training quantization of the ONNX file."""
    import nncf

    model = onnx.load_from_string(export_onnx(problem.teacher, problem))
    name = model.graph.input[0].name
    data = nncf.Dataset(list(problem.train.inputs[:CALIBRATION].split(1)), lambda inputs: {name: inputs.numpy()})
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        quantized = nncf.quantize(model, data, preset=preset, subset_size=CALIBRATION)
        yield MadeModel(str(preset.value), bytes(quantized.SerializeToString()))


def run_neural_compressor(problem: Problem) -> Iterator[MadeModel]:
    """Neural Compressor: static post-training quantization of the exported program to 8 bits."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare
    from torchao.quantization.pt2e import allow_exported_model_train_eval

    example = (problem.train.inputs[:2],)
    shapes = ({0: torch.export.Dim("batch")},)
    program = export(copy.deepcopy(problem.teacher), example, dynamic_shapes=shapes)
    prepared = prepare(program, get_default_static_config(), example_inputs=example)
    for part in problem.train.inputs[:CALIBRATION].split(64):
        prepared(part)
    model = convert(prepared)
    allow_exported_model_train_eval(model)
    yield MadeModel("static int8", _fold_constants(export_onnx(model, problem)))


class Examples(torch.utils.data.Dataset[tuple[dict[str, Tensor], int]]):
    """The examples of a split as Olive reads them: inputs by name, and the class."""

    def __init__(self, split: Split, name: str, limit: int | None = None) -> None:
        self.split, self.name, self.limit = split, name, limit

    def __len__(self) -> int:
        return len(self.split.inputs[: self.limit])

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], int]:
        return {self.name: self.split.inputs[row]}, int(self.split.classes[row])


def run_olive(problem: Problem) -> Iterator[MadeModel]:
    """Olive: its search over the settings of onnxruntime's static quantization, by accuracy and latency."""
    import olive
    from olive.data.registry import Registry

    content = export_onnx(problem.teacher, problem)
    name = onnx.load_from_string(content).graph.input[0].name
    classes = int(problem.train.classes.max()) + 1
    splits = {"train_data": Examples(problem.train, name, CALIBRATION), "val_data": Examples(problem.val, name)}
    for key, examples in splits.items():
        Registry.register_dataset(key)(lambda *_, examples=examples, **__: examples)
    Registry.register_post_process("top_class")(lambda outputs, **_: outputs.argmax(1))
    data = [
        {
            "name": key,
            "load_dataset_config": {"type": key},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "top_class"},
            "dataloader_config": {"batch_size": 1},
        }
        for key in splits
    ]
    task = {"task": "multiclass", "num_classes": classes}
    accuracy = {"name": "accuracy_score", "priority": 1, "higher_is_better": True, "metric_config": task}
    latency = {"name": "avg", "priority": 2}
    metrics = [
        {"name": "accuracy", "type": "accuracy", "data_config": "val_data", "sub_types": [accuracy]},
        {"name": "latency", "type": "latency", "data_config": "val_data", "sub_types": [latency]},
    ]
    searched = dict.fromkeys(
        ("per_channel", "calibrate_method", "reduce_range", "activation_type"), "SEARCHABLE_VALUES"
    )
    quantization = {"type": "OnnxStaticQuantization", "data_config": "train_data", "quant_format": "QDQ", **searched}
    device = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.onnx"
        source.write_bytes(content)
        config = {
            "input_model": {"type": "ONNXModel", "model_path": str(source)},
            "systems": {"local": {"type": "LocalSystem", "accelerators": [device]}},
            "data_configs": data,
            # Without its type, version 0.13 fails with an AttributeError.
            "evaluators": {"both": {"type": "OnnxEvaluator", "metrics": metrics}},
            "passes": {"quantization": quantization},
            "search_strategy": {
                "execution_order": "joint",
                "sampler": "tpe",
                "seed": problem.seed,
                "max_samples": 1000,
                "max_time": int(problem.seconds),
            },
            "host": "local",
            "target": "local",
            "evaluator": "both",
            "output_dir": f"{folder}/out",
            "cache_dir": f"{folder}/cache",
        }
        for number, model in enumerate(olive.run(config, tempdir=folder).get_output_models()):
            yield MadeModel(f"model {number}", Path(model.model_path).read_bytes())


def run_fastnas(problem: Problem) -> Iterator[MadeModel]:
    """FastNAS of NVIDIA Model Optimizer: a subnet of the teacher under a limit of FLOPs, then fine-tuning."""
    import modelopt.torch.prune as mtp

    # Multiples of 32 channels, the default, leave small networks nothing to choose from.
    space = mtp.fastnas.FastNASConfig().model_dump()
    for rules in space.values():
        for rule in rules.values():
            rule.update({name: 4 for name in rule if name.endswith("_divisor")})
    loader = [
        (problem.train.inputs[rows], problem.train.classes[rows])
        for rows in torch.arange(len(problem.train.inputs))[:1024].split(64)
    ]
    for share in ("60%", "40%", "25%"):
        if problem.is_over():
            return
        model, _ = mtp.prune(
            model=copy.deepcopy(problem.teacher),
            mode=[("fastnas", space)],
            constraints={"flops": share},
            dummy_input=problem.example,
            config={
                "data_loader": loader,
                "collect_func": lambda batch: batch[0],
                "score_func": lambda subnet: score(subnet, problem.val),
                "verbose": False,
            },
        )
        yield MadeModel(f"flops {share}", export_onnx(fine_tune(model, problem, EPOCHS), problem))


def run_torchao(problem: Problem) -> Iterator[MadeModel]:
    """torchao: weights of linear layers in 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(problem.teacher)
    quantize_(model, Int8WeightOnlyConfig())
    yield MadeModel("int8 weights", export_onnx(model, problem))


class SmallNetwork(nn.Module):
    """The student of the hand-written script: convolutions with batch norm, global mean, a linear layer.

    Before them, tokens are embedded.
    """

    def __init__(self, inputs: Tensor, width: int, depth: int, stride: int, classes: int) -> None:
        super().__init__()
        is_text = not inputs.is_floating_point()
        conv: Any = nn.Conv2d if inputs.dim() == 4 else nn.Conv1d
        norm: Any = nn.BatchNorm2d if inputs.dim() == 4 else nn.BatchNorm1d
        self.table = nn.Embedding(int(inputs.max()) + 1, width) if is_text else None
        channels = width if is_text else inputs.shape[1]
        layers: list[nn.Module] = []
        for at in range(depth):
            outputs = width * 2 ** (at // 2)
            step = stride if at == 0 else 1 + at % 2
            layers += [conv(channels, outputs, 3, step, 1, bias=False), norm(outputs), nn.ReLU()]
            channels = outputs
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, ``[N, C]``."""
        values = inputs if self.table is None else self.table(inputs).transpose(1, 2)
        return torch.as_tensor(self.head(self.body(values).flatten(2).mean(2)))


def run_optuna_script(problem: Problem) -> Iterator[MadeModel]:
    """A careful hand-written script: Optuna's multi-objective TPE over a student, its training and its bits."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=problem.seed, multivariate=True)
    )
    classes = int(problem.train.classes.max()) + 1
    files: dict[int, bytes] = {}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        torch.manual_seed(problem.seed + trial.number)
        student = SmallNetwork(
            problem.train.inputs,
            trial.suggest_int("width", 4, 48, log=True),
            trial.suggest_int("depth", 1, 5),
            trial.suggest_int("stride", 1, 2),
            classes,
        )
        rate = trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)
        model = fine_tune(student, problem, trial.suggest_int("epochs", 10, 40), rate)
        content = export_onnx(model, problem)
        if trial.suggest_categorical("bits", [8, 32]) == 8:
            content = next(_quantize_static(content, problem, "")).content
        files[trial.number] = content
        return score(make_predictor(content), problem.val), len(content)

    while not problem.is_over():
        study.optimize(objective, n_trials=1)
    for trial in study.best_trials:
        yield MadeModel(str(trial.params), files[trial.number])


def _prune_and_tune(problem: Problem) -> Iterator[tuple[float, nn.Module]]:
    import torch_pruning

    for ratio in RATIOS:
        if problem.is_over():
            return
        model = copy.deepcopy(problem.teacher)
        classes = int(problem.train.classes.max()) + 1
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model, problem.example, importance=importance, pruning_ratio=ratio, ignored_layers=heads
        )
        pruner.step()
        yield ratio, fine_tune(model, problem, EPOCHS)


def _quantize_static(content: bytes, problem: Problem, settings: str) -> Iterator[MadeModel]:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load_from_string(content).graph.input[0].name
    batches = problem.train.inputs[:CALIBRATION].split(1)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base class
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, out = (Path(folder) / f"{part}.onnx" for part in ("source", "prepared", "out"))
        source.write_bytes(content)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy):
            quantize_static(
                prepared,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
            )
            yield MadeModel(f"{settings} {method.name}".strip(), out.read_bytes())


def _fold_constants(content: bytes) -> bytes:
    """Return an ONNX file in which what depends on constants alone is computed, such as quantized weights."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return file.read_bytes()


def seed_everything(seed: int) -> None:
    """Seed the generators that tools use."""
    random.seed(seed)
    np.random.seed(seed)  # tools use the global generator
    torch.manual_seed(seed)


TOOLS: dict[str, Tool] = {
    "autocompress": run_autocompress,
    "Optuna script": run_optuna_script,
    "Torch-Pruning": run_torch_pruning,
    "Torch-Pruning, onnxruntime int8": run_torch_pruning_onnxruntime,
    "onnxruntime int8": run_onnxruntime,
    "NNCF": run_nncf,
    "Neural Compressor": run_neural_compressor,
    "Olive": run_olive,
    "FastNAS": run_fastnas,
    "torchao": run_torchao,
}
