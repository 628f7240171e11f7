"""Every example in a docstring runs, and every public name has one or is a plain exception or protocol."""

import doctest
import importlib
import pkgutil

import pytest

import autocompress

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(autocompress.__path__, "autocompress.")
    if not found.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
