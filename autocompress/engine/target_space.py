"""Narrows a search space to the bit-widths that its target stores and computes with."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from autocompress.core.knobs import Choice, Domain, Leaf
from autocompress.core.precisions import Precisions, describe_widths
from autocompress.core.run_info import TargetInfo
from autocompress.engine.space import Space
from autocompress.engine.spec import Source

BITS = ("weight_bits", "activation_bits")
#: Costs that fewer bits of a stored weight lower, whatever it is computed with.
SIZES = ("bytes", "sparse_bytes")


def narrow_to_target(source: Source, space: Space, target: TargetInfo) -> tuple[Space, tuple[str, ...]]:
    """Return the space without bit-widths that the target has no kernel for, and a notice for each changed method.

    Weights of fewer bits than their kernel computes with lower the size of the file and nothing else: without an
    objective or limit on the size, they are left out where wider weights are listed.

    Args:
        source: The spec with its lines.
        space: The space of the spec.
        target: The target.

    Raises:
        SpecError: No quantization method is left, and the spec lists no search without quantization.
    """
    precisions = target.precisions
    if not precisions.restricts:
        return space, ()
    counts_size = any(name in SIZES for name in (*source.spec.objectives, *source.spec.limits))
    running = [
        pair
        for settings in space.sections["quantize"].values()
        if all(knob in settings for knob in BITS)
        for pair in _list_running(settings, precisions)
    ]
    methods: dict[str, Mapping[str, Leaf | Domain]] = {}
    pairs: dict[str, list[tuple[int, int]]] = {}
    notices = []
    for name, settings in space.sections["quantize"].items():
        if not all(knob in settings for knob in BITS):
            methods[name] = settings
            continue
        listed = [_list_values(settings[knob]) for knob in BITS]
        # Pairs of the method alone, while domination is judged over all methods.
        own = _list_running(settings, precisions)
        allowed = [pair for pair in own if counts_size or not _is_dominated(pair, running, precisions)]
        if allowed:
            widths = [[value for value in values if value in _column(allowed, i)] for i, values in enumerate(listed)]
            domains = {knob: _to_domain(values) for knob, values in zip(BITS, widths, strict=True)}
            methods[name], pairs[name] = {**settings, **domains}, allowed
        # A pair can be left out although both of its widths stay, so the notice names widths only.
        left_out = _describe_removed(listed, allowed)
        if left_out:
            notices.append(
                f"quantize.{name}: {left_out} left out, without a kernel or a gain on the target {target.name} "
                f"({describe_widths(precisions)})"
            )
    if not methods:
        raise source.make_error(
            ("quantize",),
            f"no method has bit-widths with a kernel on the target {target.name}: {describe_widths(precisions)}; list "
            "such widths, or set `target: none`",
        )
    # The pairs go along, because two domains alone would allow every combination.
    narrowed = replace(space, sections={**space.sections, "quantize": methods}, bit_pairs=pairs)
    return narrowed, tuple(notices)


def _list_values(domain: Leaf | Domain) -> list[Leaf]:
    return list(domain.options) if isinstance(domain, Choice) else [domain]  # type: ignore[list-item]


def _to_domain(values: list[Leaf]) -> Leaf | Domain:
    return values[0] if len(values) == 1 else Choice(tuple(values))


def _list_running(settings: Mapping[str, Leaf | Domain], precisions: Precisions) -> list[tuple[int, int]]:
    """Return the listed pairs of bits that run on the target."""
    weights, activations = (_list_values(settings[knob]) for knob in BITS)
    return [
        (weight, activation)
        for weight in weights
        for activation in activations
        if isinstance(weight, int) and isinstance(activation, int) and precisions.runs(weight, activation)
    ]


def _is_dominated(pair: tuple[int, int], running: Iterable[tuple[int, int]], precisions: Precisions) -> bool:
    """Return whether the same kernel computes wider weights of another listed pair at the same cost."""
    computed = precisions.computed_bits(*pair)
    return any(
        weight > pair[0] and activation == pair[1] and precisions.computed_bits(weight, activation) == computed
        for weight, activation in running
    )


def _column(pairs: Iterable[tuple[int, int]], index: int) -> set[Leaf]:
    return {pair[index] for pair in pairs}


def _describe_removed(listed: list[list[Leaf]], allowed: list[tuple[int, int]]) -> str:
    """Return the listed widths that no allowed pair has, such as ``weight bits 6, 5; activation bits 6``."""
    if not allowed:
        return "all listed bits are"
    removed = [[value for value in values if value not in _column(allowed, i)] for i, values in enumerate(listed)]
    texts = [
        f"{knob.replace('_', ' ')} {', '.join(map(str, values))}"
        for knob, values in zip(BITS, removed, strict=True)
        if values
    ]
    return f"{' and '.join(texts)} are" if texts else ""
