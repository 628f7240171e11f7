import inspect

import pytest

import autocompress

PUBLIC = [
    "AdaptedArtifact",
    "AutocompressError",
    "Choice",
    "CompressionConfig",
    "FloatRange",
    "Front",
    "Images",
    "IntRange",
    "Part",
    "Pick",
    "Settings",
    "Tabular",
    "Tensors",
    "__version__",
    "adapt",
    "bring_model",
    "expand_artifact",
    "from_pretrained",
    "join_artifacts",
    "knob",
    "load",
    "load_artifact",
    "load_plugin",
    "load_switchable",
    "search",
]


def test_the_public_names_are_these_and_sorted() -> None:
    assert autocompress.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(autocompress) == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("_")])
def test_every_public_name_is_there_and_explains_itself(name: str) -> None:
    found = getattr(autocompress, name)
    assert inspect.getdoc(found)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        autocompress.serch  # noqa: B018
