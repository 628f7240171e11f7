import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from autocompress.errors import UsageError
from autocompress.tasks.module import Module
from autocompress.tasks.module_forms import prepare_module

X, Y = torch.randn(60, 10, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


class Remembering(nn.Module):
    """Keeps its last output, which belongs to the autograd graph, and holds a lambda."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.activation = build(), lambda x: x.relu()

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.activation(self.last)


def compile_part() -> nn.Module:
    model = build()
    model[0] = torch.compile(model[0], backend="eager")
    return model


def freeze_part() -> nn.Module:
    model = build()
    model[0].requires_grad_(False)
    return model


def apply_to_first(change: Callable[[nn.Module], object]) -> nn.Module:
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model[0])
    return model


def build_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return build()


def build_remembering() -> nn.Module:
    model = Remembering()
    model(X)
    return model


@pytest.mark.parametrize(
    ("make", "notice"),
    [
        pytest.param(lambda: torch.compile(build(), backend="eager"), "", marks=pytest.mark.slow),
        pytest.param(compile_part, "", marks=pytest.mark.slow),
        (lambda: nn.DataParallel(build()), ""),
        (build_in_inference_mode, ""),
        (build_remembering, ""),
        (lambda: build().double(), "the weights of Sequential are float64"),
        (lambda: build().bfloat16(), "the weights of Sequential are bfloat16"),
        (lambda: build().requires_grad_(False), "all parameters of Sequential are frozen"),
        (freeze_part, "2 of 4 parameters of Sequential are frozen (0.weight, 0.bias)"),
        (lambda: apply_to_first(weight_norm), "weight_norm of 1 layers (0) is folded"),
        (lambda: apply_to_first(spectral_norm), "spectral_norm of 1 layers (0) is folded"),
        (lambda: apply_to_first(parametrizations.weight_norm), "the parametrization of '0.weight' is folded"),
        (lambda: apply_to_first(parametrizations.spectral_norm), "the parametrization of '0.weight' is folded"),
        (lambda: apply_to_first(parametrizations.orthogonal), "the parametrization of '0.weight' is folded"),
        (lambda: apply_to_first(lambda x: prune.l1_unstructured(x, "weight", 0.5)), "the pruning mask of 1 layers (0)"),
    ],
)
def test_a_form_becomes_a_module_that_can_be_trained(make: Callable[[], nn.Module], notice: str) -> None:
    model = make().eval()
    task = Module(model, (X, Y))
    assert bool(task.notices) == bool(notice)
    assert notice in " ".join(task.notices)
    student = task.build(task.teacher()[0])
    outputs = student(X)
    # The same function, within the precision of the original weights; a compiled module would be compiled now.
    is_compiled = any("_orig_mod" in name for name, _ in model.named_modules())
    with torch.no_grad():
        reference = build() if is_compiled else model
        expected = reference(X.to(next(model.parameters()).dtype)).float()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=2e-2)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not any("_orig_mod" in name for name in student.state_dict())


def make_locked() -> nn.Module:
    model = build()
    model[0].lock = threading.Lock()
    return model


def quantize_dynamically() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(build(), {nn.Linear})


def script(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: script(build()), "TorchScript"),
        (lambda: nn.Sequential(nn.Linear(10, 8), script(nn.Linear(8, 3))), "its part '1'"),
        (quantize_dynamically, "its part '0' is a quantized Linear"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' of the teacher is lazy"),
        (lambda: nn.Linear(10, 3, device="meta"), "'weight' of the teacher is on the device 'meta'"),
        (lambda: nn.Linear(10, 3, dtype=torch.complex64), "is complex"),
        (make_locked, "'0.lock' of the teacher"),
    ],
)
def test_a_form_without_weights_to_train_is_an_error(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare_module(make())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear, "the function that builds the teacher failed: TypeError"),
        (lambda: 3, "the teacher is int"),
        ("model.pt", "the teacher is str"),
    ],
)
def test_what_is_no_module_is_an_error(model: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Module(model, (X, Y))  # type: ignore[arg-type]


def test_the_weights_of_a_lazy_module_may_be_given() -> None:
    filled = nn.Sequential(nn.Linear(10, 3))
    task = Module(lambda: nn.Sequential(nn.LazyLinear(3)), (X, Y), weights=filled.state_dict())
    assert torch.equal(task.build(task.teacher()[0])(X), filled(X))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_may_have_the_prefix_of_a_wrapper(prefix: str) -> None:
    weights = {f"{prefix}{name}": tensor + 1 for name, tensor in build().state_dict().items()}
    task = Module(build(), (X, Y), weights=weights)
    assert torch.equal(task.model.state_dict()["0.bias"], build()[0].bias + 1)


def test_batch_normalization_without_momentum_updates_its_statistics_in_students() -> None:
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4, momentum=0.0), nn.BatchNorm1d(4, momentum=None))
    prepared = prepare_module(model)
    assert prepared.notices == (
        "1 batch normalizations of Sequential (1) have momentum 0; students use torch's default of 0.1",
    )
    prepared.module.train()(X)
    means = [part.running_mean for part in prepared.module if isinstance(part, nn.BatchNorm1d)]
    assert all(bool(mean.any()) for mean in means if mean is not None)
    assert model[1].momentum == 0
