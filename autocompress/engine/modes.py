"""Search modes: the default, and the simpler ones that it is compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from autocompress.core.knobs import Choice, IntRange
from autocompress.engine.space import Methods, Space
from autocompress.trial.supernet import subnetwork_pruning

# Shares of channels that the sub-networks of a supernet lack; each sub-network is part of the one before.
SUBNETWORK_RATIOS = (0.25, 0.5, 0.65, 0.8)
INT8 = MappingProxyType({"weight_bits": 8, "activation_bits": 8})


def _keep_space(space: Space) -> Space:
    return space


def _remove_distillation(space: Space) -> Space:
    return _replace_sections(space, distill={"none": {}})


def _fix_int8(space: Space) -> Space:
    return _replace_sections(
        space, prune={"none": {}}, quantize={"post_training": space.default_settings("quantize", "post_training", INT8)}
    )


def _use_supernet(space: Space) -> Space:
    """Train the widest students together with their narrower sub-networks, which pruning extracts afterwards."""
    part = subnetwork_pruning(SUBNETWORK_RATIOS[-1])
    settings = space.default_settings("prune", part.name, part.values)
    pruning = {part.name: {**settings, "pruning_ratio": Choice(SUBNETWORK_RATIOS)}}
    students = {
        name: {knob: value.high if isinstance(value, IntRange) else value for knob, value in knobs.items()}
        for name, knobs in space.sections["student"].items()
    }
    fits = {name: {**knobs, "sandwich": SUBNETWORK_RATIOS[-1]} for name, knobs in space.sections["fit"].items()}
    return _replace_sections(space, student=students, fit=fits, prune={"none": {}, **pruning})


def _replace_sections(space: Space, **sections: Methods) -> Space:
    return replace(space, sections={**space.sections, **sections})


@dataclass(frozen=True)
class Mode:
    """A search strategy.

    Attributes:
        summary: Description in one line.
        amortized: Whether one trial yields many candidates; otherwise each trial is one candidate, all of it sampled.
        stages: Whether architecture, pruning and quantization are chosen one after the other.
        sampler: Sampler in place of the spec's; empty for the spec's own.
        promotion: Promotion rule in place of the spec's; empty for the spec's own.
        restrict_space: Function from the spec's search space to that of the mode.
    """

    summary: str
    amortized: bool = True
    stages: bool = False
    sampler: str = ""
    promotion: str = ""
    restrict_space: Callable[[Space], Space] = _keep_space


MODES: Mapping[str, Mode] = {
    "amortized": Mode("each trial yields many candidates, and the best trials are promoted"),
    "sampled": Mode("one candidate per trial, all of it sampled", amortized=False, promotion="always"),
    "supernet": Mode("the widest students and their sub-networks, trained together", restrict_space=_use_supernet),
    "random": Mode("as amortized, with random configs and no early stopping", sampler="random", promotion="always"),
    "sequential": Mode("architecture, pruning and quantization, one after the other", stages=True, promotion="always"),
    "uniform_int8": Mode("architecture and distillation only; every student has 8 bits", restrict_space=_fix_int8),
    "no_distillation": Mode("as amortized, without distillation", restrict_space=_remove_distillation),
}
