"""card.md: the exported model with its scores, its costs, its recipe, and code to load it."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from autocompress.core.config import Part
from autocompress.export.architecture import Architecture

FILES = {
    "model.onnx": "the model for any ONNX runtime; axis 0 is the batch",
    "model_float.onnx": "the same model before quantization, 32-bit floating point",
    "model.ncnn.param": "model.onnx as layers of ncnn, for one example",
    "model.ncnn.bin": "the weights of these layers",
    "model.pte": "model.onnx as a program of ExecuTorch, for one example",
    "model.tflite": "model.onnx as a model of LiteRT, for one example",
    "pipeline.py": "predictions for raw input; needs numpy, onnxruntime and, for images, pillow",
    "tokenizer.json": "the tokenizer, which pipeline.py reads with the package tokenizers",
    "preprocess.json": "how raw input becomes the inputs of the model, and what its outputs mean",
    "model.safetensors": "its tensors, weights as packed codes",
    "architecture.json": "how to rebuild the module from them",
    "config.yaml": "the point of the search it was made from",
    "manifest.json": "size and SHA-256 of each file; loading checks them",
}
SERVE = """```sh
python pipeline.py INPUT
```

INPUT is an image file, a text, a file of numbers, or JSON; the inputs are listed in preprocess.json. From Python:
`pipeline.load(".").predict(INPUT)`."""
# Keeps the card readable for a task with thousands of classes.
LABELS_SHOWN = 100
#: Title and summary, and the sections of a card by their headings.
Card: TypeAlias = Mapping[str, object]


def render_card(architecture: Architecture, card: Card, sizes: Mapping[str, int], weights_only: bool) -> str:
    """Return the card as Markdown.

    Args:
        architecture: Architecture of the artifact.
        card: ``title`` and ``summary`` stand on top; every other entry becomes a section: a mapping a table, a
            mapping of mappings a table with columns, a list bullets, anything else a paragraph.
        sizes: File name to bytes.
        weights_only: Whether only weights are quantized.
    """
    heads = ", ".join(f"{_escape_text(name)} ({head.describe()})" for name, head in architecture.heads.items())
    facts = {"Task": f"{architecture.task}: {heads}", "Quantized": _describe_bits(architecture)}
    parts = [
        f"# {_escape_text(card.get('title', f'{architecture.task} model'))}",
        _escape_text(card.get("summary", "")),
    ]
    parts.append("\n".join(f"- {name}: {_escape_text(value)}" for name, value in facts.items()))
    for name, content in card.items():
        if name not in ("title", "summary"):
            parts += [f"## {_escape_text(name).capitalize()}", _render_section(content)]
    parts += ["## How it was made", _recipe_lines(architecture), "## Files"]
    parts.append(
        _render_table([["file", "bytes", "what"], *([n, f"{sizes[n]:,}", w] for n, w in FILES.items() if n in sizes)])
    )
    if "pipeline.py" in sizes:
        parts += ["## Predict from raw input", SERVE]
    parts += ["## Load it with onnxruntime", _code_block(_onnx_lines(architecture, weights_only))]
    parts += ["## Load it as a torch module", _code_block(_torch_lines(architecture))]
    for head, labels in (architecture.labels or {}).items():
        shown = [f"{index}: {_escape_text(label)}" for index, label in enumerate(labels[:LABELS_SHOWN])]
        parts += [
            f"## Classes of {_escape_text(head)}",
            ", ".join(shown) + (", …" if len(labels) > LABELS_SHOWN else ""),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _describe_bits(architecture: Architecture) -> str:
    if architecture.quantize is None or not architecture.quantize.bits:
        return "no, 32-bit floating point"
    widths = sorted(set(architecture.quantize.bits.values()))
    shown = ", ".join(f"{weight}-bit weights with {activation}-bit inputs" for weight, activation in widths)
    return f"{shown} ({len(architecture.quantize.bits)} layers)"


def _recipe_lines(architecture: Architecture) -> str:
    config = architecture.compression
    parts: list[tuple[str, Part | None]] = [("student", config.student), ("fit", config.fit)]
    parts += [("distill", part) for part in config.distill]
    parts += [("prune", config.prune), ("quantize", config.quantize)]
    lines = [
        f"- {stage}: {_escape_text(part.name)}"
        + "".join(f", {_escape_text(name)} {_escape_text(value)}" for name, value in part.settings)
        for stage, part in parts
        if part is not None
    ]
    versions = ", ".join(
        f"{_escape_text(name)} {_escape_text(version)}" for name, version in architecture.versions.items()
    )
    return "\n".join([*lines, f"- seed: {config.seed}", f"- with: {versions}"])


def _onnx_lines(architecture: Architecture, weights_only: bool) -> list[str]:
    names = input_names(len(architecture.inputs))
    inputs = ", ".join(
        f'"{name}": np.zeros({_shape_text(entry.shape)}, dtype="{entry.dtype}")'
        for name, entry in zip(names, architecture.inputs, strict=True)
    )
    lines = [
        "import os",
        "",
        'os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import; onnxruntime would write a device id',
        "import numpy as np",
        "import onnxruntime as ort",
        "",
    ]
    options = ""
    if weights_only:
        # Without this option onnxruntime decodes the weights in every run.
        options = ", options"
        lines += [
            "options = ort.SessionOptions()",
            'options.add_session_config_entry("session.disable_quant_qdq", "1")',
        ]
    return [
        *lines,
        f'session = ort.InferenceSession("model.onnx"{options}, providers=["CPUExecutionProvider"])',
        f"outputs = session.run(None, {{{inputs}}})",
        "for head, logits in zip(session.get_outputs(), outputs):",
        "    print(head.name, logits.argmax(axis=-1))",
    ]


def _torch_lines(architecture: Architecture) -> list[str]:
    inputs = ", ".join(
        f"torch.zeros({_shape_text(entry.shape)}, dtype=torch.{entry.dtype})" for entry in architecture.inputs
    )
    return [
        "import torch",
        "from autocompress import load_artifact",
        "",
        'model = load_artifact(".")',
        "with torch.inference_mode():",
        f"    output = model({inputs})",
        "print(output)",
    ]


def input_names(count: int) -> list[str]:
    """Return the names of the inputs of an exported graph.

    Example:
        >>> input_names(1), input_names(2)
        (['input'], ['input_0', 'input_1'])
    """
    return ["input"] if count == 1 else [f"input_{index}" for index in range(count)]


def _render_section(content: object) -> str:
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Mapping) for value in content.values()):
            columns = list(dict.fromkeys(name for value in content.values() for name in value))
            rows = [[row, *(_format_number(value.get(name, "")) for name in columns)] for row, value in content.items()]
            return _render_table([["", *columns], *rows])
        return _render_table([["", "value"], *([name, _format_number(value)] for name, value in content.items())])
    if isinstance(content, list | tuple):
        return "\n".join(f"- {_escape_text(item)}" for item in content)
    return _escape_text(content)


def _render_table(rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(_escape_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _code_block(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _shape_text(shape: tuple[int, ...]) -> str:
    return repr(tuple(shape))


def _format_number(value: object) -> object:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _escape_text(value: object) -> str:
    """Return a value as one line of plain Markdown text: markup is escaped, control and bidi characters are removed."""
    # Control characters and direction marks could hide or reorder the text around them.
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+", " ", str(value))
    # Underscores stay plain: names are full of them, and inside a word they are no markup.
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line).replace("\\_", "_")
