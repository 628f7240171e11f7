"""Former names: each points at a name that exists, and errors of plugins say it."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from autocompress.core.registry import load_plugin
from autocompress.core.renamed import MEMBERS, MODULES, NAMES, explain_missing_name
from autocompress.errors import PluginError


@pytest.mark.parametrize("present", sorted({*MODULES.values()}))
def test_every_present_module_exists(present: str) -> None:
    assert find_spec(f"autocompress.{present}") is not None


@pytest.mark.parametrize("former", sorted(NAMES))
def test_every_present_name_exists(former: str) -> None:
    module = import_module(f"autocompress.{former.rpartition('.')[0]}")
    assert hasattr(module, NAMES[former])


def test_members_are_classes_with_attributes() -> None:
    assert all(former.count(".") == 1 and present.isidentifier() for former, present in MEMBERS.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("from autocompress.knobs import knob", r"autocompress.knobs is now autocompress.core.knobs"),
        ("import autocompress.prune.evidence", r"autocompress.prune.evidence is now autocompress.prune.calibration"),
        ("from autocompress.distill.losses import SoftTarget", r"is now autocompress.distill.kernels"),
        ("from autocompress.prune.masking import masked_state", r"masked_state is now apply_masks"),
        ("from autocompress.core.knobs import Chioce", r"did you mean 'Choice'"),
        (
            "from autocompress.core.method import MethodState\nMethodState().hold(None)",
            r"MethodState.hold is now apply_masks",
        ),
    ],
)
def test_a_plugin_file_of_an_earlier_version_gets_the_present_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "old.py"
    path.write_text(content + "\n")
    with pytest.raises(PluginError, match=message):
        load_plugin(path)


def test_other_errors_are_not_explained() -> None:
    assert explain_missing_name(ValueError("no")) == ""
    assert explain_missing_name(ModuleNotFoundError("No module named 'somewhere.else'")) == ""
