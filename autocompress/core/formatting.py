"""Numbers in plain words, spelled the same on the command line and on the page.

Needs nothing but the standard library, so it costs no start-up time.
"""

import math
import re
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from autocompress.core.run_info import ObjectiveSpec

DASH = "\u2013"

# Names whose label is more than the name with blanks for underscores; label_column derives the others.
_LABELS = {
    "effective_flops": "effective FLOPs",
    "flops": "FLOPs",
    "macs": "MACs",
    "bops": "BOPs",
    "sparse_bytes": "bytes without zeros",
    "f1_macro": "macro F1",
    "f1_weighted": "weighted F1",
    "mean_iou": "mean IoU",
    "mean_ap": "mAP",
    "mean_ap_50": "mAP at 0.5",
    "kl": "KL to the teacher",
    "agreement": "agreement with the teacher",
    "auc": "AUC",
    "rmse": "RMSE",
    "ndcg_at_10": "NDCG at 10",
    "latency_ms": "latency",
    "fgsm_accuracy": "accuracy under FGSM",
    "pgd_accuracy": "accuracy under PGD",
    "hotflip_accuracy": "accuracy under HotFlip",
}
# A unit that is a symbol stands right behind its prefix (KB, MFLOPs); a word stands apart (12.3 K parameters).
COST_UNITS = {
    "effective_flops": "FLOPs",
    "flops": "FLOPs",
    "macs": "MACs",
    "bops": "BOPs",
    "bytes": "B",
    "sparse_bytes": "B",
}
# Largest first: the first prefix that fits is used.
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
FACTORS = {"": 1.0, **{prefix: size for size, prefix in _PREFIXES}, "k": 1e3}
FACTORS |= {"Ki": 1024.0, "Mi": 1024.0**2, "Gi": 1024.0**3}
# The text of a quantity, for other patterns to include. Only a count has a prefix.
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
UNIT = r"(?:%|ms|(?:[KMG]i|[kKMGTP])?\s?(?:FLOPs|MACs|BOPs|B)|(?:[KMG]i|[kKMGTP]))"
_QUANTITY = re.compile(rf"(?P<number>[-+]?{NUMBER})\s*(?P<suffix>{UNIT}?)")
_SUFFIX = re.compile(r"(?P<prefix>(?:[KMG]i|[kKMGTP])?)\s?(?P<unit>%|ms|FLOPs|MACs|BOPs|B|)")
# Costs that are numbers of things, of which a cheaper model has fewer, not less.
_COUNTED = (*COST_UNITS, "parameters", "nonzero_parameters")


def label_column(name: str) -> str:
    """Return a column's name as it is read aloud.

    Example:
        >>> label_column("effective_flops"), label_column("latency_ms")
        ('effective FLOPs', 'latency')
        >>> label_column("f1_macro@language"), label_column("f1_macro_worst")
        ('macro F1 (language)', 'macro F1 (worst head)')
    """
    base, at, head = name.partition("@")
    if at:
        return f"{label_column(base)} ({head})"
    if name.endswith("_worst"):
        return f"{label_column(name.removesuffix('_worst'))} (worst head)"
    return _LABELS.get(name, name.replace("_", " "))


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a finite number; booleans are none, nor are integers that no float can hold."""
    # bool is a subclass of int.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def format_count(value: float | None, unit: str = "") -> str:
    """Return a count with three significant digits and a decimal prefix; a missing one is a dash.

    Example:
        >>> format_count(1_234_567, "FLOPs"), format_count(14_300, "B"), format_count(312)
        ('1.23 MFLOPs', '14.3 KB', '312')
    """
    if value is None or not is_finite(value):
        return DASH
    for size, prefix in _PREFIXES:
        # 999,999 rounds to 1 M, never to 1000 K.
        if abs(value) >= size * 0.9995:
            return f"{_round_digits(value / size)} {prefix}{unit}"
    return f"{_round_digits(value)} {unit}".rstrip()


def parse_bytes(text: str | int) -> int:
    """Return a size such as ``4 GiB`` or ``800 MB`` in bytes; a plain number is bytes.

    Raises:
        ValueError: The text is not a size.

    Example:
        >>> parse_bytes("4 GiB"), parse_bytes("1.5 MB"), parse_bytes(4096)
        (4294967296, 1500000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError("write a size such as 4 GiB or 800 MB")
    number, prefix, binary = match.groups()
    # The position of the prefix in the text is the exponent; a blank stands for no prefix.
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index((prefix or " ").upper()))


def is_share(record: "ObjectiveSpec") -> bool:
    """Return whether an objective is a fraction that reads best in percent (accuracy, F1, agreement)."""
    return record.kind == "score" and record.is_maximized and not record.unit


def is_counted(name: str) -> bool:
    """Return whether a cost is a number of things, of which one has fewer, not less."""
    return name in _COUNTED


def parse_quantity(text: str, column: str = "") -> float:
    """Return the number that a text such as ``97%``, ``30 KB``, ``1.5 MFLOPs`` or ``2 ms`` stands for.

    The prefixes are those of :func:`format_count`: K is 1,000. Ki, Mi and Gi are powers of 1,024.

    Args:
        text: A number, with a percent sign, a prefix or a unit behind it.
        column: Name of the column that the number limits; its unit is the only one allowed.

    Raises:
        ValueError: The text is no such number, or has the unit of another column.

    Example:
        >>> parse_quantity("97%"), parse_quantity("30 KB", "bytes"), parse_quantity("2KiB"), parse_quantity("2e6")
        (0.97, 30000.0, 2048.0, 2000000.0)
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no number such as 2e6, 97% or 30KB")
    number, suffix = float(match["number"]), _SUFFIX.fullmatch(match["suffix"])
    prefix, unit = suffix.groups() if suffix else ("", "")
    if unit == "%":
        return number / 100.0
    own = COST_UNITS.get(column) or ("ms" if column.endswith("_ms") else "")
    if unit and column and unit != own:
        raise ValueError(f"'{text}' is in {unit}, and {column} " + (f"in {own}" if own else "has no unit"))
    return number * FACTORS[prefix]


def format_epochs(done: float, total: int) -> str:
    """Return how far a training is.

    Example:
        >>> format_epochs(2.0, 30), format_epochs(2.25, 30)
        ('epoch 2 of 30', 'epoch 3 of 30, 25%')
    """
    epoch = int(done)
    return f"epoch {epoch} of {total}" if done == epoch else f"epoch {epoch + 1} of {total}, {done - epoch:.0%}"


def format_value(value: object, record: "ObjectiveSpec") -> str:
    """Return an objective's value as a person reads it.

    Example:
        >>> from autocompress.core.run_info import ObjectiveSpec
        >>> format_value(0.9741, ObjectiveSpec("accuracy", "maximize"))
        '97.4%'
        >>> format_value(2e6, ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost"))
        '2 MFLOPs'
    """
    if not is_finite(value):
        return DASH
    if is_share(record):
        return f"{value * 100:.1f}%"
    if is_counted(record.name):
        return format_count(value, COST_UNITS.get(record.name, ""))
    return f"{_round_digits(value)} {record.unit}".rstrip()


def format_difference(change: float, record: "ObjectiveSpec", limit: float | None = None) -> str:
    """Return the size of a difference, without its sign: ``0.8 points`` for a share.

    Args:
        change: The difference.
        record: The objective that differs.
        limit: A limit that the difference exceeds; a share gets a second or third decimal where it reads like it.

    Example:
        >>> from autocompress.core.run_info import ObjectiveSpec
        >>> accuracy = ObjectiveSpec("accuracy", "maximize")
        >>> format_difference(-0.008, accuracy), format_difference(0.0203, accuracy, limit=0.02)
        ('0.8 points', '2.03 points')
    """
    if not is_share(record):
        return format_value(abs(change), record)
    texts = (f"{abs(change) * 100:.{decimals}f}" for decimals in (1, 2, 3))
    points = next((text for text in texts if limit is None or float(text) != round(abs(limit) * 100, 6)), "")
    points = points or f"{abs(change) * 100:.1f}"
    return f"{points} point" if points == "1.0" else f"{points} points"


def is_measurable(change: float, value: float, record: "ObjectiveSpec") -> bool:
    """Return whether a difference is more than rounding: half of a tenth of a point of a share, else 0.1% of a value.

    Args:
        change: The difference.
        value: The score that it is a difference to.
        record: The score.

    Example:
        >>> from autocompress.core.run_info import ObjectiveSpec
        >>> is_measurable(0.0004, 0.97, ObjectiveSpec("accuracy", "maximize"))
        False
        >>> error = ObjectiveSpec("rmse", "minimize")
        >>> is_measurable(0.0004, 0.69, error), is_measurable(0.01, 0.69, error)
        (False, True)
    """
    return abs(change) >= (0.0005 if is_share(record) else 0.001 * abs(value)) and change != 0


def format_factor(ratio: float) -> str:
    """Return a factor with three significant digits at most: ``99.1x``.

    Example:
        >>> format_factor(99.13), format_factor(312.4), format_factor(2.0), format_factor(0.5)
        ('99.1x', '312x', '2x', '0.5x')
    """
    return f"{_round_digits(ratio)}x" if math.isfinite(ratio) else "infinitely"


def compare_costs(ours: float, theirs: float, name: str) -> str:
    """Return how one cost stands to another: ``99.1x fewer effective FLOPs``.

    Example:
        >>> compare_costs(1e6, 9.91e7, "effective_flops"), compare_costs(3.0, 2.0, "latency_ms")
        ('99.1x fewer effective FLOPs', '1.5x more latency')
        >>> compare_costs(5, 5, "bytes")
        'as many bytes'
    """
    counted = is_counted(name)
    what = label_column(name)
    # A ratio has no meaning for negative or missing costs.
    if not (is_finite(ours) and is_finite(theirs)) or min(ours, theirs) < 0:
        return f"{what} that cannot be compared"
    ratio = _divide(max(ours, theirs), min(ours, theirs))
    # Such a ratio would read as "1x fewer".
    if _round_digits(ratio) == "1":
        return f"as {'many' if counted else 'much'} {what}"
    less = "fewer" if counted else "less"
    return f"{format_factor(ratio)} {less if ours < theirs else 'more'} {what}"


def describe_decision(threshold: float, head: str, labels: "Mapping[str, Sequence[str]]") -> str:
    """Return a threshold of a head in words.

    Args:
        threshold: Probability above which the second class is predicted.
        head: Name of the head.
        labels: Names of the classes of each head.

    Example:
        >>> describe_decision(0.31, "mail", {"mail": ["other", "spam"]})
        "threshold 0.31 for 'spam' of mail"
    """
    names = labels.get(head, ())
    return f"threshold {threshold:.3g} for {repr(names[1]) if len(names) > 1 else 'the second class'} of {head}"


def format_duration(seconds: float | None) -> str:
    """Return a span of time in its two largest units.

    Example:
        >>> format_duration(250), format_duration(4.2), format_duration(7500)
        ('4 min 10 s', '4.2 s', '2 h 5 min')
    """
    if seconds is None or not is_finite(seconds):
        return DASH
    # From 59.95 s on, one decimal would round up to 60.0 s.
    if seconds < 59.95:
        return f"{_round_digits(round(seconds, 1))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def format_plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    Example:
        >>> format_plural(1, "candidate"), format_plural(3000, "candidate"), format_plural(2, "branch", "branches")
        ('1 candidate', '3,000 candidates', '2 branches')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def _divide(large: float, small: float) -> float:
    if small == 0:
        # Two costs of zero are equal; a single one makes the ratio infinite.
        return math.inf if large else 1.0
    return large / small


def _round_digits(value: float) -> str:
    digits = f"{value:.3g}"
    # The g format turns 1234 into 1.23e+03; up to 999,999 the whole number is clearer.
    if "e" in digits:
        whole = f"{value:,.0f}"
        return whole if abs(value) >= 1 and len(whole) < 8 else digits
    return digits
