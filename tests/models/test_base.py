import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.task import InputSpec
from autocompress.errors import KnobError, UnknownNameError
from autocompress.models.base import build_family_model


def test_a_part_names_family_and_knobs() -> None:
    model = build_family_model(Part.of("cnn1d", width=4, stages=1), (InputSpec((2, 16)),), {"a": 3, "b": 5})
    assert {head: tuple(z.shape) for head, z in model(torch.zeros(2, 2, 16)).items()} == {"a": (2, 3), "b": (2, 5)}


def test_an_unknown_family_or_knob_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cnn"):
        build_family_model(Part.of("cnm"), (InputSpec((1, 8, 8)),), {"label": 2})
    with pytest.raises(KnobError, match="no hyperparameter 'widht'"):
        build_family_model(Part.of("cnn", widht=4), (InputSpec((1, 8, 8)),), {"label": 2})
