import pytest

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import PluginError, UnknownNameError, UsageError
from autocompress.targets import Model, Target, make_target
from autocompress.targets.none import NoTarget


def test_every_target_describes_itself_and_an_unknown_one_is_named() -> None:
    for name in TARGETS:
        if name in ("none", "onnxruntime"):
            assert make_target(name, {}).describe().name == name
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        make_target("onnxruntim", {})
    with pytest.raises(UsageError, match="'none' does not take these options"):
        make_target("none", {"speed": 3})


def test_a_target_that_is_not_installed_names_its_extra() -> None:
    class Missing(NoTarget):
        name = "missing"
        library = "a-package-that-does-not-exist"
        extra = "missing"

    with pytest.raises(UsageError, match=r"pip install 'autocompress\[missing\]'"):
        Missing().describe()
    assert Missing.describe_installation() == "pip install 'autocompress[missing]'"
    assert NoTarget.describe_installation() == "always"


def test_a_class_that_is_no_target_is_refused() -> None:
    class Half:
        name = "half"

        def precisions(self) -> Precisions:
            return Precisions()

    with pytest.raises(PluginError, match="load"):
        TARGETS.add("half", Half)


def test_a_new_target_needs_its_widths_and_how_it_loads() -> None:
    class Tiny(Target):
        name = "tiny"

        def precisions(self) -> Precisions:
            return Precisions(((32, 32),), (32,))

        def load(self, model: bytes, threads: int = 1) -> Model:
            return list

    info = Tiny().describe()
    assert (info.name, info.version, info.precisions.kernels) == ("tiny", "", ((32, 32),))
    assert Tiny().measure(b"", 1.0) is None
    assert Tiny().convert(b"graph") == {"model.onnx": b"graph"}
