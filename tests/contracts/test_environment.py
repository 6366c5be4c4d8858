"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

from __future__ import annotations

import ast
import re
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = [
    text
    for extra in PROJECT["optional-dependencies"].values()
    for text in extra
    if not text.startswith(PROJECT["name"])
]
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


def test_the_workflow_tries_the_lock_the_lowest_versions_and_every_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs) == {"lock", "versions"}
    assert [step["run"] for step in jobs["lock"]["steps"] if "run" in step] == ["make env", ".ci/run"]
    tried = [(each["python"], each["resolution"]) for each in jobs["versions"]["strategy"]["matrix"]["include"]]
    pythons = [f"3.{minor}" for minor in range(30) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")]
    assert tried == [(pythons[0], "lowest-direct"), *((python, "highest") for python in pythons[1:])]
    (install,) = [step["run"] for step in jobs["versions"]["steps"] if "pip install" in step.get("run", "")]
    assert "--resolution ${{ matrix.resolution }}" in install and ".[dev,bench]" in install


def test_lock_names_no_host_and_hashes_every_pin() -> None:
    assert "://" not in LOCK and not re.search(r"^--", LOCK, re.M)
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.M)[1:]
    assert len(blocks) == len(PINS)
    for block in blocks:
        assert "--hash=sha256:" in block, block.splitlines()[0]


OWN = [name for group in PROJECT["optional-dependencies"].values() for name in group]


@pytest.mark.parametrize(
    "requirement", [*PROJECT["dependencies"], *(r for r in OWN if not r.startswith("manifold-lib["))]
)
def test_lock_pins_what_the_project_needs(requirement: str) -> None:
    wanted = Requirement(requirement)
    versions = [version for name, version in PINS if canonicalize_name(name) == canonicalize_name(wanted.name)]
    assert versions, f"{wanted.name} is not in requirements.lock: make lock"
    assert all(wanted.specifier.contains(version, prereleases=True) for version in versions)


def imported(files: list[Path]) -> set[str]:
    """The distributions that files import, wherever in them the import stands."""
    found = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    known = packages_distributions()
    own = {"manifold_lib", *(path.stem for path in files), *(path.parent.name for path in files)}
    return {canonicalize_name(known[name][0]) for name in found - sys.stdlib_module_names - own}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_a_bare_install_brings_what_the_library_imports_and_nothing_else() -> None:
    modules, extras = list((ROOT / "manifold_lib").rglob("*.py")), PROJECT["optional-dependencies"]
    library = imported([path for path in modules if "reproduction" not in path.parts])
    assert library - names(extras["photographs"]) == names(PROJECT["dependencies"])
    assert imported(modules) - library <= names(extras["reproduction"])


def test_packages_hold_the_library_alone_and_building_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip(PYPROJECT["build-system"]["build-backend"])
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "manifold_lib").rglob("*") if path.is_file()}
    library = {name for name in library if "__pycache__" not in name}
    assert "manifold_lib/py.typed" in library
    before = set(ROOT.iterdir())
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path))).namelist()
    assert {name for name in wheel if ".dist-info/" not in name} == library
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames()}
    assert inside == library | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    assert set(ROOT.iterdir()) == before
