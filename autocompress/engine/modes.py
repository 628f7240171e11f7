"""Modes: the search as it is meant, and the simpler ones that it is compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from autocompress.core.knobs import Choice, IntRange
from autocompress.engine.space import Methods, Space
from autocompress.trial.supernet import narrowed

# Shares of channels that the sub-networks of a supernet do without: each lies in the one before.
NARROWER = (0.25, 0.5, 0.65, 0.8)
INT8 = MappingProxyType({"weight_bits": 8, "activation_bits": 8})


def _as_it_is(space: Space) -> Space:
    return space


def _without_distillation(space: Space) -> Space:
    return _with(space, distill={"none": {}})


def _int8_alone(space: Space) -> Space:
    return _with(
        space, prune={"none": {}}, quantize={"post_training": space.declared("quantize", "post_training", INT8)}
    )


def _supernet(space: Space) -> Space:
    """Train the widest students, their narrower sub-networks along with them, and cut those out."""
    cut = narrowed(NARROWER[-1])
    narrower = {**space.declared("prune", cut.name, cut.values), "pruning_ratio": Choice(NARROWER)}
    students = {
        name: {knob: value.high if isinstance(value, IntRange) else value for knob, value in knobs.items()}
        for name, knobs in space.sections["student"].items()
    }
    fits = {name: {**knobs, "sandwich": NARROWER[-1]} for name, knobs in space.sections["fit"].items()}
    return _with(space, student=students, fit=fits, prune={"none": {}, cut.name: narrower})


def _with(space: Space, **sections: Methods) -> Space:
    return replace(space, sections={**space.sections, **sections})


@dataclass(frozen=True)
class Mode:
    """How a search goes about.

    Attributes:
        meaning: In one line.
        amortized: One training feeds every cut; otherwise each trial is one candidate, all of it sampled.
        stages: Architecture first, then pruning, then quantization, each on the choice of the one before.
        sampler: Takes the place of the spec's; empty leaves it.
        promotion: Takes the place of the spec's; empty leaves it.
        narrow: What it leaves of the space.
    """

    meaning: str
    amortized: bool = True
    stages: bool = False
    sampler: str = ""
    promotion: str = ""
    narrow: Callable[[Space], Space] = _as_it_is


MODES: Mapping[str, Mode] = {
    "amortized": Mode("each training feeds many candidates, and the best trainings go on"),
    "sampled": Mode("one candidate a training, all of it sampled", amortized=False, promotion="always"),
    "supernet": Mode("the widest students and their sub-networks, trained at once", narrow=_supernet),
    "random": Mode("as amortized, drawn at random and none stopped", sampler="random", promotion="always"),
    "sequential": Mode("architecture, pruning, quantization, one after the other", stages=True, promotion="always"),
    "uniform_int8": Mode("architecture and distillation alone; every student in 8 bits", narrow=_int8_alone),
    "no_distillation": Mode("as amortized, without a teacher's help", narrow=_without_distillation),
}
