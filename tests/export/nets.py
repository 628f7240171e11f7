"""Tasks and networks that the tests of this folder export; the tasks are registered, as loading needs them."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split
from autocompress.export import artifact
from autocompress.export.artifact import Deployable
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.tasks.base import Supervised

METHOD = PostTraining()


class Functional(nn.Module):
    """Convolutions with functional ReLU and pooling; the linear head works on the average."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class Residual(nn.Module):
    """A stem and two blocks beside their shortcuts."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = torch.relu(block(x) + x)
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    """Depthwise convolutions followed by pointwise ones."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Rows(nn.Module):
    """Reads an image as eight rows: a 1d convolution, linear layers on sequences, a layer used twice, two heads."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, width, 3, padding=1, padding_mode="circular")
        self.mix, self.shape = nn.Linear(8, 8, bias=False), nn.Linear(width, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv(x.squeeze(1)))
        x = torch.relu(self.mix(torch.relu(self.mix(x))) + x).mean(2)
        return {"label": self.head(x), "even": self.shape(x)}


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "residual": Residual,
    "separable": Separable,
    "rows": Rows,
}


class DigitsOf(Supervised):
    """The digits for one of the networks above."""

    name = "digits_of_the_export_tests"
    inputs = (InputSpec((1, 8, 8)),)
    metrics = ("accuracy",)

    def __init__(self, heads: dict[str, int] | None = None) -> None:
        self.heads = heads or {"label": 10}

    def build(self, student: Part) -> nn.Module:
        return NETS[student.name]()

    def splits(self, seed: int) -> Any:
        raise NotImplementedError

    def teacher(self) -> Any:
        raise NotImplementedError


TASKS.add("digits_of_the_export_tests", DigitsOf)


def splits() -> tuple[Split, Split]:
    """Return a training and a test split of the digits, with the head ``even`` beside ``label``."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32).div(16).unsqueeze(1)[order]
    labels = torch.tensor(data.target)[order]
    whole = Split((images,), {"label": labels, "even": labels % 2})
    return whole.take(slice(0, 1200)), whole.take(slice(1200, None))


def train(name: str, split: Split, epochs: int = 6) -> nn.Module:
    """Return a network fitted to the split, in evaluation mode."""
    torch.manual_seed(0)
    model = NETS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(epochs):
        for batch in split.take(torch.randperm(len(split))).batches(64):
            optimizer.zero_grad()
            output = model(*batch.inputs)
            logits = output if isinstance(output, dict) else {"label": output}
            sum(F.cross_entropy(value, batch.targets[head]) for head, value in logits.items()).backward()
            optimizer.step()
    return model.eval()


def context(split: Split) -> Context:
    inputs = split.take(slice(0, 64)).inputs
    return Context(tuple(tensor[:1] for tensor in inputs), (inputs,))


def heads_of(name: str) -> dict[str, int]:
    return {"label": 10, "even": 2} if name == "rows" else {"label": 10}


def deployable(name: str, model: nn.Module, split: Split, **settings: Any) -> Deployable:
    """Return a network quantized as ``settings`` say, or as it is without any."""
    quantized, state, part = model, None, None
    if settings:
        quantized, state = METHOD.apply(model, PostTrainingConfig.of(settings), context(split))
        part = Part.of(METHOD.name, **settings)
    heads = heads_of(name)
    return Deployable(
        config=CompressionConfig(Part.of(name), (), Part.of("adamw", epochs=6), None, part, 0),
        task_name="digits_of_the_export_tests",
        task_options={"heads": heads},
        labels={"label": [str(digit) for digit in range(10)]},
        heads=heads,
        inputs=tuple(InputSpec(tuple(tensor.shape[1:])) for tensor in split.inputs),
        example=tuple(tensor[:1] for tensor in split.inputs),
        float_model=model,
        model=quantized,
        prune_state=None,
        quantize_state=state,
    )


def skip_graphs(patch: pytest.MonkeyPatch) -> None:
    """Let artifacts hold a graph of one operator: exporting the model's own takes most of what writing one takes."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("input", "label"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["input"], ["label"])], "relu", [x], [y])
    content = onnx.helper.make_model(graph).SerializeToString()
    patch.setattr(artifact, "export_graph", lambda deployable: content)
    patch.setattr(artifact, "export_float_graph", lambda deployable: content)


def state_of(made: Deployable) -> MethodState:
    assert made.quantize_state is not None
    return made.quantize_state
