"""Progressive quantization: fewer bits from rung to rung, each trained from the one before, down to a floor."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.quantize.folding import fold_batch_norm
from autocompress.quantize.lsq import LSQ, LSQConfig
from autocompress.quantize.qat import QAT, QATConfig
from autocompress.quantize.quantization_aware import QuantizationAwareSettings
from autocompress.quantize.serialization import restore_quantization
from autocompress.quantize.settings import BITS, BitSettings

RUNGS = (8, 6, 4, 3, 2)
TRAINING_METHODS: dict[str, tuple[Any, type[QuantizationAwareSettings]]] = {
    "qat": (QAT(), QATConfig),
    "lsq": (LSQ(), LSQConfig),
}
_ORIGINAL = ".parametrizations.weight.original"


@dataclass(frozen=True)
class ProgressiveConfig(BitSettings):
    """How few bits to reach, and where to stop.

    Example:
        >>> ProgressiveConfig(weight_bits=4, activation_bits=6).rungs()
        [(8, 8), (6, 6), (4, 6)]
    """

    label: ClassVar[str] = "quantize.progressive"

    weight_bits: int = knob(3, BITS, "bits of a weight on the last rung; the rungs are 8, 6, 4, 3, 2")
    activation_bits: int = knob(4, BITS, "bits of a layer's input, from where on they stay")
    epochs: int = knob(3, IntRange(1, 1000), "passes over the training split on each rung")
    learning_rate: float = knob(5e-3, FloatRange(1e-6, 1.0, log=True), "peak learning rate of each rung")
    floor: float = knob(0.02, FloatRange(0.0, 1.0), "what the task's first metric may lose before a rung is undone")
    training: str = knob(
        "lsq", Choice(tuple(TRAINING_METHODS)), "how a rung is trained: ranges that follow, or learned steps"
    )

    def effort(self) -> float:
        """Return the epochs of all rungs, if none is undone."""
        return float(self.epochs * len(self.rungs()))

    def rungs(self) -> list[tuple[int, int]]:
        """Return the bits of weights and activations from rung to rung."""
        if self.weight_bits == 32 and self.activation_bits == 32:
            return []
        lowest = min(self.weight_bits, self.activation_bits)
        bits = [rung for rung in RUNGS if rung > lowest] + [lowest]
        pairs = [(max(rung, self.weight_bits), max(rung, self.activation_bits)) for rung in bits]
        return list(dict.fromkeys(pairs))


class Progressive:
    """Trains with 8 bits, then 6, 4, 3, 2, measures on ``search_val`` after each, and stops above the floor.

    Each rung starts from the real-numbered weights that the one before trained (as in Zhuang et al. 2018,
    arXiv:1711.00205, section 3.2). The rung whose score falls below the floor is undone. The report holds ``path``
    (one row a rung: the bits, the score, whether it stayed) and what ``qat`` or ``lsq`` reports of the last rung.
    """

    name: ClassVar[str] = "progressive"
    config = ProgressiveConfig

    def is_identity(self, config: ProgressiveConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return not config.rungs()

    def apply(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, trained and quantized copy of the last rung that stayed; ``model`` stays as it was.

        Raises:
            CompressionError: The first rung already falls below the floor, the context cannot measure or train,
                or the model cannot be quantized.
        """
        method, settings = TRAINING_METHODS[config.training]
        rungs = config.rungs()
        if not rungs:
            identity: tuple[nn.Module, MethodState] = method.apply(
                model, settings.of({"weight_bits": 32, "activation_bits": 32}), context
            )
            return identity
        if context.score is None or context.tune is None:
            raise CompressionError("progressive quantization trains and measures on each rung; the context does not")
        start = context.score(copy.deepcopy(model).eval())
        path: list[dict[str, Any]] = [{"weight_bits": 32, "activation_bits": 32, "score": start, "kept": True}]
        kept: tuple[nn.Module, MethodState] | None = None
        source, folded = model, list[Any]()
        for weight_bits, activation_bits in rungs:
            trained: dict[str, Tensor] = {}
            rung = settings.of(
                {
                    "weight_bits": weight_bits,
                    "activation_bits": activation_bits,
                    "epochs": config.epochs,
                    "learning_rate": config.learning_rate,
                }
            )
            quantized, state = method.apply(source, rung, replace(context, tune=_noting(context.tune, trained)))
            # A later rung starts from a folded model, and sees nothing to fold.
            folded = folded or list(state.history["folded"])
            score = context.score(quantized)
            stays = score >= start - config.floor
            path.append({"weight_bits": weight_bits, "activation_bits": activation_bits, "score": score, "kept": stays})
            if not stays:
                break
            kept = quantized, replace(state, history={**state.history, "folded": folded})
            source = fold_batch_norm(model, context.example)
            source.load_state_dict({**source.state_dict(), **{k: trained[k] for k in source.state_dict()}})
        if kept is None:
            raise CompressionError(
                f"the first rung, {rungs[0][0]}/{rungs[0][1]} bits, takes the score from {start:.4f} to "
                f"{path[-1]['score']:.4f}, below the floor of {start - config.floor:.4f}"
            )
        quantized, state = kept
        return quantized, replace(state, report={**state.report, "path": path})

    def restore(self, model: nn.Module, config: ProgressiveConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


def _noting(tune: Callable[..., None], trained: dict[str, Tensor]) -> Callable[..., None]:
    """Return ``tune``, which afterwards leaves in ``trained`` what it trained, before anything is rounded."""

    def noting(model: nn.Module, *arguments: Any) -> None:
        tune(model, *arguments)
        for name, tensor in model.state_dict().items():
            trained[name.replace(_ORIGINAL, ".weight")] = tensor.detach().clone()

    return noting


QUANTIZE.add(Progressive.name, Progressive())
