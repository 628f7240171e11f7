"""Hyperparameters that quantization methods share: ranges, errors, and the observer and coding they build."""

from dataclasses import dataclass

import pytest
import torch

from autocompress.errors import KnobError
from autocompress.quantize.activation_recorder import MinMaxObserver
from autocompress.quantize.observers import PercentileObserver
from autocompress.quantize.settings import BITS, BitSettings, InputSettings, WeightSettings
from autocompress.quantize.weight_coding import WeightCoding


@dataclass(frozen=True)
class Combined(BitSettings, WeightSettings, InputSettings):
    """Settings of a method that combines all of them, as every method does."""


def test_the_names_of_the_stored_fields_stay() -> None:
    # They are YAML keys and enter the fingerprints of stored configs.
    assert set(Combined().to_dict()) == {
        "weight_bits",
        "activation_bits",
        "weight_scheme",
        "granularity",
        "group_size",
        "weight_observer",
        "activation_scheme",
        "observer",
        "percentile",
    }


def test_settings_read_back_equal() -> None:
    settings = Combined(weight_bits=3, granularity="per_group", group_size=16, observer="percentile", percentile=95.0)
    assert Combined.of(settings.to_dict()) == settings
    assert Combined.of({}) == Combined()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_bit_widths_that_have_a_grid_are_accepted(bits: int) -> None:
    assert BITS.accepts(bits)
    assert BitSettings(weight_bits=bits, activation_bits=bits).weight_bits == bits


@pytest.mark.parametrize(
    "values",
    [
        {"weight_bits": 1},
        {"activation_bits": 16},
        {"granularity": "per_row"},
        {"group_size": 1},
        {"weight_scheme": "skewed"},
        {"activation_scheme": "skewed"},
        {"weight_observer": "entropy"},
        {"percentile": 89.0},
        {"percentile": 100.5},
    ],
)
def test_values_outside_their_range_are_refused_by_name(values: dict[str, int | float | str]) -> None:
    with pytest.raises(KnobError, match=rf"{next(iter(values))} = .* is outside"):
        Combined.of(values)


def test_the_percentile_reaches_the_observer() -> None:
    values = torch.arange(101.0)
    observer = InputSettings(observer="percentile", percentile=90.0).build_observer(8)
    assert isinstance(observer, PercentileObserver)
    observer.observe(values)
    assert observer.range() == (10.0, 90.0)


def test_each_layer_has_an_observer_of_its_own() -> None:
    settings = InputSettings()
    first, second = settings.build_observer(8), settings.build_observer(8)
    assert isinstance(first, MinMaxObserver)
    assert first is not second


def test_the_coding_of_a_weight_has_every_setting() -> None:
    settings = WeightSettings(weight_scheme="asymmetric", granularity="per_group", group_size=16, weight_observer="mse")
    assert settings.weight_coding(4) == WeightCoding(
        bits=4, quantizer="linear", scheme="asymmetric", granularity="per_group", group_size=16, observer="mse"
    )
