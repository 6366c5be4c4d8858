"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = (ROOT / "environment.yml").read_text()
PINS = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.M)


def test_conda_installs_the_lock() -> None:
    environment = yaml.safe_load(CONDA)
    assert environment["channels"] == ["conda-forge"]
    assert "pip" in environment["dependencies"]
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.lock"]}


def test_python_range_is_the_same() -> None:
    wanted = PROJECT["requires-python"]
    found = re.search(r"python=(\S+)  # any of (\S+)$", CONDA, re.M)
    assert found is not None and found[2] == wanted
    assert SpecifierSet(wanted).contains(found[1])
    (limits,) = re.findall(r"(\(3, \d+\) <= v < \(3, \d+\))", (ROOT / "Makefile").read_text())
    assert SpecifierSet(wanted) == SpecifierSet(
        re.sub(r"\((\d+), (\d+)\) <= v < \((\d+), (\d+)\)", r">=\1.\2,<\3.\4", limits)
    )
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    for version in workflow["jobs"]["check"]["strategy"]["matrix"]["python"]:
        assert SpecifierSet(wanted).contains(version)


def test_lock_names_no_host_and_hashes_every_pin() -> None:
    assert "://" not in LOCK and not re.search(r"^--", LOCK, re.M)
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.M)[1:]
    assert len(blocks) == len(PINS)
    for block in blocks:
        assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_lock_pins_what_the_project_needs(requirement: str) -> None:
    wanted = Requirement(requirement)
    versions = [version for name, version in PINS if canonicalize_name(name) == canonicalize_name(wanted.name)]
    assert versions, f"{wanted.name} is not in requirements.lock: make lock"
    assert all(wanted.specifier.contains(version, prereleases=True) for version in versions)
