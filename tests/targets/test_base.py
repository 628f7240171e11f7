from pathlib import Path

import pytest

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.core.run_info import TargetInfo
from autocompress.errors import PluginError, UnknownNameError, UsageError
from autocompress.targets import Model, Target, approve_programs, make_target, open_stored_target
from autocompress.targets.base import RUN_PROGRAMS
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("command", {"run": "touch \x1b[2J {model}"}),
        ("onnxruntime-web", {"node": "/tmp/not-node"}),
        ("onnxruntime-web", {"folder": "/tmp/packages"}),
    ],
)
def test_a_program_that_a_run_folder_names_is_run_only_if_a_search_has_run_it(
    name: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    stored = TargetInfo(name, options)
    with pytest.raises(UsageError, match="no search of yours has run") as refusal:
        open_stored_target(stored)
    assert str(refusal.value).isprintable()
    monkeypatch.setenv(RUN_PROGRAMS, "1")
    assert open_stored_target(stored).name == name
    monkeypatch.delenv(RUN_PROGRAMS)
    approve_programs(make_target(name, options))
    assert open_stored_target(stored).name == name
    # Another program is another question.
    with pytest.raises(UsageError, match="no search of yours has run"):
        open_stored_target(TargetInfo("command", {"run": "rm -rf {model}"}))


def test_a_target_without_programs_of_its_own_needs_no_approval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    approve_programs(make_target("onnxruntime", {}))
    assert open_stored_target(TargetInfo("onnxruntime", {})).name == "onnxruntime"
    assert list(tmp_path.iterdir()) == []
