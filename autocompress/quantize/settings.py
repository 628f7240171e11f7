"""Hyperparameters that quantization methods share."""

from dataclasses import dataclass

from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.registry import OBSERVERS
from autocompress.quantize.activation_recorder import Observer, ObserverConfig
from autocompress.quantize.observers import OBSERVER_CHOICE
from autocompress.quantize.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from autocompress.quantize.weight_coding import GRANULARITIES, WEIGHT_OBSERVERS, WeightCoding

BITS = Choice((2, 3, 4, 5, 6, 7, 8, 32))


@dataclass(frozen=True)
class InputSettings(Settings):
    """Settings of the quantization of layer inputs."""

    activation_scheme: str = knob(
        "asymmetric", Choice(tuple(ACTIVATION_QUANTIZERS)), "where an input's codes lie around zero"
    )
    observer: str = knob("minmax", OBSERVER_CHOICE, "how an input's range is found")
    percentile: float = knob(99.9, FloatRange(90.0, 100.0), "upper end of the range for the observer 'percentile'")

    def build_observer(self, bits: int) -> Observer:
        """Return a new observer for the inputs of one layer."""
        return OBSERVERS[self.observer](ObserverConfig(bits, self.activation_scheme, self.percentile))


@dataclass(frozen=True)
class WeightSettings(Settings):
    """Settings of the quantization of weights: granularity and range."""

    weight_scheme: str = knob("symmetric", Choice(tuple(WEIGHT_QUANTIZERS)), "where a weight's codes lie around zero")
    granularity: str = knob("per_channel", Choice(GRANULARITIES), "what shares one weight scale")
    group_size: int = knob(32, IntRange(2, 1024, log=True), "weights of a channel in a group, for 'per_group'")
    weight_observer: str = knob("minmax", Choice(WEIGHT_OBSERVERS), "how a weight's range is found")

    def weight_coding(self, bits: int) -> WeightCoding:
        """Return the coding of a weight on a linear grid."""
        return WeightCoding(bits, "linear", self.weight_scheme, self.granularity, self.group_size, self.weight_observer)


@dataclass(frozen=True)
class BitSettings(Settings):
    """Bit-widths of all layers; 32 leaves weights or activations in floating point."""

    weight_bits: int = knob(8, BITS, "bits of a weight")
    activation_bits: int = knob(8, BITS, "bits of a layer's input")
