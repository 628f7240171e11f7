"""Bit-widths that a target stores and computes with, and what of a candidate has no kernel there.

A layer *runs* on a target if its weights have a stored form of their width and a kernel computes with its inputs at
theirs. Weights may be stored at fewer bits than they are computed with: four-bit codes are real bytes in a file, and an
8-bit kernel reads them exactly after they are unpacked. So bytes count the stored width, and operations (BOPs,
effective FLOPs) the width of the kernel. A layer that does not run is *simulated*: its scores are exact, its costs are
those of other hardware.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

FLOAT_BITS, HALF_BITS = 32, 16


@dataclass(frozen=True)
class Precisions:
    """Bit-widths of a target; the default restricts nothing.

    Attributes:
        kernels: (bits of a weight, bits of an input) of each kernel; empty for a target that is not restricted.
        stored: Bits of a weight that an exported file holds packed, 32 included.
        decodes_tables: Whether weights on other grids than an even one per tensor or channel (groups, codebooks, powers
            of two) are stored as codes and computed at 32 bits.
        reduce_range: Whether weights of an 8-bit kernel use 7 bits only, because sums of two products overflow 16 bits
            on this processor.
        weight_type: Type of the weights of an 8-bit kernel: ``int8`` with zero point 0, or ``uint8`` with 128.

    Example:
        >>> precisions = Precisions(((8, 8), (32, 32)), (4, 8, 32))
        >>> precisions.runs(4, 8), precisions.runs(4, 6), precisions.computed_bits(4, 6)
        (True, False, (8, 8))
    """

    kernels: tuple[tuple[int, int], ...] = ()
    stored: tuple[int, ...] = ()
    decodes_tables: bool = False
    reduce_range: bool = False
    weight_type: str = "uint8"

    def to_json(self) -> dict[str, JsonValue]:
        """Return the precisions as JSON values, which :meth:`from_json` reads."""
        return {
            "kernels": [list(pair) for pair in self.kernels],
            "stored": list(self.stored),
            "decodes_tables": self.decodes_tables,
            "reduce_range": self.reduce_range,
            "weight_type": self.weight_type,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Precisions":
        """Return the precisions that :meth:`to_json` described; no restriction for an empty mapping."""
        if not data:
            return cls()
        kernels = tuple((int(weight), int(activation)) for weight, activation in data["kernels"])
        stored = tuple(int(bits) for bits in data["stored"])
        return cls(kernels, stored, data["decodes_tables"], data["reduce_range"], data["weight_type"])

    @property
    def restricts(self) -> bool:
        """Whether some bit-width has no kernel."""
        return bool(self.kernels)

    def runs(self, weight_bits: int, activation_bits: int) -> bool:
        """Return whether a layer with these widths has a stored form and a kernel."""
        return not self.list_simulated(weight_bits, activation_bits)

    def list_simulated(self, weight_bits: int, activation_bits: int) -> list[str]:
        """Return what of a layer has no stored form or kernel, such as ``3-bit weights``; empty if it runs."""
        if not self.restricts:
            return []
        # The stored form first: without one, it does not matter which kernel would read the weight.
        parts = [] if weight_bits in self.stored else [f"{weight_bits}-bit weights"]
        if activation_bits not in {activation for _, activation in self.kernels}:
            parts.append(f"{activation_bits}-bit activations")
        elif not parts and not any(
            activation == activation_bits and weight >= weight_bits for weight, activation in self.kernels
        ):
            parts.append(f"{activation_bits}-bit activations of {weight_bits}-bit weights")
        return parts

    def computed_bits(self, weight_bits: int, activation_bits: int) -> tuple[int, int]:
        """Return the widths of the narrowest kernel that computes a layer; its own widths without a restriction."""
        # Wider kernels hold narrower codes exactly, so any of them would compute the same numbers.
        fitting = [pair for pair in self.kernels if pair[0] >= weight_bits and pair[1] >= activation_bits]
        return min(fitting, key=lambda pair: pair[0] * pair[1]) if fitting else (weight_bits, activation_bits)


#: No restriction.
UNRESTRICTED = Precisions()
#: Widths with kernels on common processors, by which runs without a target mark their candidates.
COMMON = Precisions(((8, 8), (32, 8), (32, 32)), (8, HALF_BITS, 32))


def describe_widths(precisions: Precisions) -> str:
    """Return the stored and computed widths in words.

    Example:
        >>> describe_widths(Precisions(((8, 8), (32, 32)), (4, 8, 32)))
        'it stores weights at 4 or 8 bits and computes at 8 x 8 bits and in floating point'
    """
    stored = _join((str(bits) for bits in precisions.stored if bits != FLOAT_BITS), "or")
    kernels = [
        "in floating point" if pair == (FLOAT_BITS, FLOAT_BITS) else f"at {pair[0]} x {pair[1]} bits"
        for pair in precisions.kernels
    ]
    weights = f"stores weights at {stored} bits" if stored else "stores weights in floating point"
    return f"it {weights} and computes {_join(kernels, 'and')}"


def _join(parts: Iterable[str], word: str) -> str:
    *most, last = [*parts] or [""]
    return f"{', '.join(most)} {word} {last}" if most else last
