"""CONTRIBUTING.md, word for word: a package with one file for each kind of part, and searches that use every part."""

import importlib
import os
import re
import tomllib
from pathlib import Path

import pytest
import torch

from autocompress import load, load_artifact
from autocompress.core import registry
from autocompress.core.registry import Registry
from tests.examples import run_in_a_process

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```\w+\n# ([\w./]+)\n(.*?)```", TEXT, re.DOTALL)
FILES = dict(BLOCKS)
REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
POINTS = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]


def rows() -> list[dict[str, str]]:
    """Return the rows of the table of parts by column."""
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip((cell.strip() for cell in header), row, strict=True)) for row in body]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as an installer would leave it."""
    folder = tmp_path_factory.mktemp("site")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (folder / "my_parts" / "__init__.py").touch()
    metadata = folder / "my_parts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_parts\nVersion: 1.0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in POINTS.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    return folder


def test_the_table_names_every_registry_with_its_group_and_a_place_that_exists() -> None:
    named = {row["registry"].strip("`"): row for row in rows()}
    assert named.keys() == REGISTRIES.keys()
    for name, row in named.items():
        assert row["entry point group"].strip("`") == REGISTRIES[name].group
        place = re.search(r"`([\w./]+)`", row["file in autocompress"])
        assert place is not None
        assert (ROOT / "autocompress" / place[1]).exists()


def test_the_table_says_what_a_part_must_have() -> None:
    """A class without any member is refused, and the message names every method of the table."""
    for row in rows():
        kind = REGISTRIES[row["registry"].strip("`")]
        essential = re.findall(r"`(\w+)\(", row["it must have"])
        part = type("Nothing", (), {})
        with pytest.raises(registry.PluginError) as refusal:
            kind.add("nothing", part if "a class, derived" in row["the part is"] else part())
        assert all(f"{name}(" in str(refusal.value) for name in essential), refusal.value


def test_there_is_an_example_of_every_kind_that_is_a_file_of_its_own() -> None:
    own = {row["entry point group"].strip("`") for row in rows() if "a new file" in row["file in autocompress"]}
    # A quantization method has the interface of a pruning method.
    assert own - {"autocompress.quantization_method"} == POINTS.keys()
    assert all(f"{module.replace('.', '/')}.py" in FILES for points in POINTS.values() for module in points.values())


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the package, as if nothing had been looked up yet."""
    monkeypatch.syspath_prepend(package)
    importlib.invalidate_caches()
    for found in REGISTRIES.values():
        found.import_builtins()
        monkeypatch.setattr(found, "_objects", dict(found._objects))
        monkeypatch.setattr(found, "_has_entry_points", False)


@pytest.mark.slow
def test_a_package_with_one_file_for_each_part_is_searched_and_exported(package: Path, installed: None) -> None:
    runs = ("--runs", str(package / "runs"))
    search = ("search", "blobs.yaml", *runs, "--name")
    commands = [[*search, "local"], [*search, "inline", "--set", "search.backend=inline"], ["export", "local", *runs]]
    paths = os.pathsep.join([str(package), str(ROOT)])
    printed = run_in_a_process(commands, package, PYTHONPATH=paths, AUTOCOMPRESS_CACHE=str(package / "cache"))
    assert "verified" in printed
    fronts = [load(package / "runs" / name).to_pandas() for name in ("local", "inline")]
    assert len(fronts[0]) > 0
    # Worker processes and this process measure the same candidates.
    for column in ("id", "accuracy", "largest_layer"):
        assert fronts[0][column].tolist() == fronts[1][column].tolist()
    (artifact,) = (package / "runs" / "local" / "picks").iterdir()
    assert load_artifact(artifact)(torch.zeros(1, 8)).shape == (1, 3)


def test_a_part_of_the_package_is_found_by_its_entry_point(installed: None) -> None:
    fresh: Registry[object] = Registry("distillation term")
    assert registry.DISTILL.get("matching").config.knobs()["weight"].default == 0.1
    assert fresh.group == registry.DISTILL.group
