"""The lock file of the tests fits `pyproject.toml`; `scripts/update_constraints` renews it."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def list_requirements(extra: str, groups: dict[str, list[str]]) -> list[Requirement]:
    """Return the requirements of an extra, with those of the extras that it names."""
    requirements = []
    for requirement in map(Requirement, groups[extra]):
        if requirement.name == "autocompress":
            requirements += [other for name in requirement.extras for other in list_requirements(name, groups)]
        else:
            requirements.append(requirement)
    return requirements


def test_the_lock_file_has_a_fitting_version_of_each_package_that_the_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line)
        pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    stale = [
        str(requirement)
        for requirement in [*list_requirements("", groups), *list_requirements("test", groups)]
        if not (versions := pins.get(canonicalize_name(requirement.name)))
        or not all(requirement.specifier.contains(version) for version in versions)
    ]
    assert not stale, f"run scripts/update_constraints: {stale}"
