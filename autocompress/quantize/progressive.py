"""Progressive quantization: training in stages of fewer and fewer bits until the score falls too far."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState, ScoreFloor
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.quantize.conversion import convert_named
from autocompress.quantize.folding import fold_batch_norm
from autocompress.quantize.lsq import LSQConfig, LSQRounding
from autocompress.quantize.post_training import BITS, BitSettings
from autocompress.quantize.qat import QATConfig, QATRounding
from autocompress.quantize.quantization_aware import QuantizationAwareSettings, QuantizerFactory, train_with_rounding
from autocompress.quantize.serialization import restore_quantization

BIT_STAGES = (8, 6, 4, 3, 2)
TRAINING_METHODS: dict[str, tuple[QuantizerFactory, type[QuantizationAwareSettings]]] = {
    "qat": (QATRounding(), QATConfig),
    "lsq": (LSQRounding(), LSQConfig),
}
# The end of the name of a parametrized weight in a `state_dict` (torch.nn.utils.parametrize).
_ORIGINAL = ".parametrizations.weight.original"

TuneFunction: TypeAlias = Callable[[nn.Module, int, float, Callable[[], None] | None], None]


@dataclass(frozen=True)
class ProgressiveConfig(BitSettings):
    """Settings of progressive quantization: the bits of the last stage and the allowed loss.

    Example:
        >>> ProgressiveConfig(weight_bits=4, activation_bits=6).bit_stages()
        [(8, 8), (6, 6), (4, 6)]
    """

    label: ClassVar[str] = "quantize.progressive"

    weight_bits: int = knob(3, BITS, "bits of a weight in the last stage; the stages have 8, 6, 4, 3, 2 bits")
    activation_bits: int = knob(4, BITS, "bits of a layer's input in the last stage")
    epochs: int = knob(3, IntRange(1, 1000), "passes over the training split in each stage")
    learning_rate: float = knob(5e-3, FloatRange(1e-6, 1.0, log=True), "peak learning rate of each stage")
    floor: float = knob(
        0.02, FloatRange(0.0, 1.0), "largest loss of the task's first metric; a stage that loses more is discarded"
    )
    training: str = knob(
        "lsq", Choice(tuple(TRAINING_METHODS)), "training method of a stage: moving ranges (qat) or learned steps (lsq)"
    )

    def estimate_epochs(self) -> float:
        """Return the number of epochs of all stages."""
        return float(self.epochs * len(self.bit_stages()))

    def bit_stages(self) -> list[tuple[int, int]]:
        """Return the bits of weights and activations of each stage."""
        if self.weight_bits == 32 and self.activation_bits == 32:
            return []
        lowest = min(self.weight_bits, self.activation_bits)
        widths = [bits for bits in BIT_STAGES if bits > lowest] + [lowest]
        pairs = [(max(bits, self.weight_bits), max(bits, self.activation_bits)) for bits in widths]
        # Equal pairs follow each other where both bit-widths have reached their end.
        return list(dict.fromkeys(pairs))


class Progressive:
    """Trains with 8 bits, then 6, 4, 3 and 2, and measures the score on ``search_val`` after each stage.

    Each stage starts from the floating-point weights of the stage before (Zhuang et al. 2018, arXiv:1711.00205,
    section 3.2). A stage in which a head's score falls by more than ``floor`` ends the method and is discarded. The
    report contains ``path``, one row per stage with its bits, its scores and whether it was kept, and the report of
    ``qat`` or ``lsq`` for the last kept stage.
    """

    name: ClassVar[str] = "progressive"
    config = ProgressiveConfig

    def is_identity(self, config: ProgressiveConfig) -> bool:
        """Return whether both weights and activations keep 32 bits."""
        return not config.bit_stages()

    def apply(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a folded, trained and quantized copy from the last kept stage; ``model`` does not change.

        Raises:
            CompressionError: The first stage already loses too much, the context cannot measure or train, or the
                model cannot be quantized.
        """
        factory, settings = TRAINING_METHODS[config.training]
        stages = config.bit_stages()
        if not stages:
            identity = settings.of({"weight_bits": 32, "activation_bits": 32})
            return train_with_rounding(model, identity, context, factory)
        if context.score is None or context.fine_tune is None:
            raise CompressionError("progressive quantization trains and measures in each stage; the context does not")
        # The score of the model in floating point: `floor` limits the loss relative to it.
        scores = context.measure_heads(copy.deepcopy(model).eval())
        limit = ScoreFloor(scores, config.floor)
        path: list[dict[str, object]] = [
            {"weight_bits": 32, "activation_bits": 32, **limit.to_row(scores), "kept": True}
        ]
        best: tuple[nn.Module, MethodState] | None = None
        source, folded = model, list[Sequence[str]]()
        for weight_bits, activation_bits in stages:
            trained: dict[str, Tensor] = {}
            bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
            stage = settings.of({**bits, "epochs": config.epochs, "learning_rate": config.learning_rate})
            recording = replace(context, fine_tune=_record_training(context.fine_tune, trained))
            quantized, state = train_with_rounding(source, stage, recording, factory)
            # A later stage starts from a folded model, so only the first one reports the folded pairs.
            folded = folded or list(state.history["folded"])
            scores = context.measure_heads(quantized)
            is_kept = limit.accepts(scores)
            path.append({**bits, **limit.to_row(scores), "kept": is_kept})
            if not is_kept:
                break
            best = quantized, replace(state, history={**state.history, "folded": folded})
            # The next stage starts from the weights before rounding, which the quantized model no longer has.
            source = convert_named(fold_batch_norm(model, context.example), state.history["converted"])
            source.load_state_dict({**source.state_dict(), **{k: trained[k] for k in source.state_dict()}})
        if best is None:
            raise CompressionError(
                f"the first stage, {stages[0][0]}/{stages[0][1]} bits, lowers the score {limit.describe(scores)}"
            )
        quantized, state = best
        return quantized, replace(state, report={**state.report, "path": path})

    def restore(self, model: nn.Module, config: ProgressiveConfig, state: MethodState) -> nn.Module:
        """Fold and quantize a fresh model as ``apply`` did; the other tensors come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_quantization(model, state)


def _record_training(tune: TuneFunction, trained: dict[str, Tensor]) -> TuneFunction:
    """Return a function that trains as ``tune`` does and then stores the floating-point tensors in ``trained``."""

    def tune_and_record(
        model: nn.Module, epochs: int, learning_rate: float, after_step: Callable[[], None] | None
    ) -> None:
        tune(model, epochs, learning_rate, after_step)
        for name, tensor in model.state_dict().items():
            trained[name.replace(_ORIGINAL, ".weight")] = tensor.detach().clone()

    return tune_and_record


QUANTIZE.add(Progressive.name, Progressive())
