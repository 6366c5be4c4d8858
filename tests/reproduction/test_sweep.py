"""Sweeps, by make, on a small copy of the repository whose notebook imports no torch; and their plans."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from manifold_lib.reproduction import execute
from manifold_lib.reproduction.sweeps import sweep

ROOT = Path(__file__).resolve().parents[2]
SLUG = "01_first"
PARAMETERS = 'profile = "smoke"\ndevice = "auto"\nsets = ["a", "b"]\nseeds = [0, 1]'
WORK = f"""
import json, os, time
from pathlib import Path

with open("../ran.txt", "a") as file:
    file.write(f"{{sets[0]}}-{{seeds[0]}} {{os.environ['OMP_NUM_THREADS']}}\\n")
deadline = time.time() + 100
while not os.path.exists("../go") and time.time() < deadline:
    time.sleep(0.1)
if sets == ["bad"]:
    raise ValueError("set: there is no bad")
target = Path("../figures/sweep", profile, "{SLUG}", os.environ["MANIFOLD_UNIT"])
target.mkdir(parents=True, exist_ok=True)
(target / "scores.parquet").write_text(f"{{sets}} {{seeds}}")
(target / "results.json").write_text(json.dumps({{"time": time.time()}}))
"""


def write_notebook(folder: Path, slug: str, parameters: str = PARAMETERS) -> None:
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(WORK.strip())]
    cells.append(new_code_cell(f'"{slug}"'))
    path = folder / "notebooks" / f"{slug}.ipynb"
    (folder / "notebooks" / "params").mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": execute.KERNEL}), path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one notebook, and a report that only says that it was written."""
    folder = tmp_path_factory.mktemp("a folder") / "copy"
    shutil.copytree(ROOT / "manifold_lib", folder / "manifold_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "manifold_lib" / "__init__.py").write_text("")
    for name in "sweeps/pooled", "report":
        (folder / "manifold_lib" / "reproduction" / f"{name}.py").write_text("print('pooled')")
    for name in "Makefile", "requirements.lock":
        shutil.copy(ROOT / name, folder / name)
    write_notebook(folder, SLUG)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    unwanted = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "DEVICE", "PYTHON", "MANIFOLD_DATA", "MANIFOLD_UNIT"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    command = ["make", "sweep", "PROFILE=smoke", *arguments, f"PYTHON={sys.executable}"]
    streams: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=folder, env=environment, **streams)


def ran(folder: Path) -> list[str]:
    path = folder / "ran.txt"
    return path.read_text().splitlines() if path.exists() else []


def kill_worker_of(folder: Path, unit: str) -> None:
    """Kill the Dask worker that runs a unit, and wait until the unit's processes have seen it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.environ().get("MANIFOLD_UNIT") == unit and process.cwd().startswith(str(folder.resolve()))
            if here and "run" in process.cmdline():
                family = [process, *process.children(recursive=True)]
                process.parent().kill()
                assert not psutil.wait_procs(family, 60)[1]
                return
    raise LookupError(unit)


def test_a_sweep_outlives_a_worker_and_a_failing_unit_and_is_not_run_twice(copy: Path) -> None:
    first = start(copy, "NOTEBOOKS=01", "SETS=a b bad", "SEEDS=3", "SWEEP_WORKERS=2", "THREADS=3")
    deadline = time.time() + 120
    while not ran(copy) and time.time() < deadline:
        time.sleep(0.1)
    killed = ran(copy)[0].split()[0]
    kill_worker_of(copy, killed)
    (copy / "go").touch()
    said = first.communicate()[0]
    lines, names = ran(copy), {"a-3", "b-3", "bad-3"}
    assert {*lines} == {f"{name} 3" for name in names} and lines.count(f"{killed} 3") == 2, said
    folder, build = (copy / name / "sweep" / "smoke" for name in ("figures", ".build"))
    for name in "a", "b":
        assert (folder / SLUG / f"{name}-3" / "scores.parquet").read_text() == f"['{name}'] [3]"
        assert (build / f"{name}-3" / f"{SLUG}.done").exists()
    assert not (folder / SLUG / "bad-3").exists() and not (copy / "figures" / "smoke").exists()
    assert json.loads((folder / "units.json").read_text()) == sorted(f"{SLUG}/{name}" for name in names)
    assert first.returncode and "3/3" in said and "pooled" in said and "2 of 3 units are there" in said
    assert f"{SLUG} bad-3 failed: ValueError: set: there is no bad" in said
    assert f"log: .build/sweep/smoke/bad-3/{SLUG}.log" in said

    (folder / "README.md").write_text("pooled")
    second = start(copy, "SETS=a,b", "SEEDS=3-3")
    said = second.communicate()[0]
    assert second.returncode == 0 and "2 units, 2 of them up to date" in said and "pooled" not in said
    assert ran(copy) == lines


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://127.0.0.1:none"])
def test_a_scheduler_that_is_not_there_is_an_error_at_once(copy: Path, address: str) -> None:
    started = time.time()
    run = start(copy, f"SCHEDULER={address}")
    said = run.communicate()[0]
    assert run.returncode and f"SCHEDULER={address}: nothing answers there" in said and "Traceback" not in said
    assert time.time() - started < 15


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a notebook that can be part of a sweep, and one that cannot."""
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path, SLUG)
    write_notebook(tmp_path, "02_second", 'profile = "smoke"\ndevice = "auto"\nsets = ["a"]')
    return tmp_path


def test_units_are_the_notebooks_own_or_as_asked(notebooks: Path) -> None:
    (notebooks / "notebooks" / "params" / f"{SLUG}.small.yml").write_text("sets: [c]")
    assert sweep.plan([], [], "", "smoke") == [sweep.Unit(SLUG, name, seed) for seed in (0, 1) for name in "ab"]
    assert sweep.plan(["01"], [], "2-3,5", "small") == [sweep.Unit(SLUG, "c", seed) for seed in (2, 3, 5)]
    assert [unit.name for unit in sweep.plan([SLUG], ["x-y", "x-y"], "7", "small")] == ["x-y-7"]
    assert execute.places(SLUG, "small", "x-y-7")[2] == {"sets": ["x-y"], "seeds": [7]}


@pytest.mark.parametrize(
    ("names", "sets", "seeds", "message"),
    [
        (["02"], [], "", "02_second: cannot be part of a sweep, as its parameters cell has no seeds"),
        (["03"], [], "", "there is no 03; there are 01_first, 02_second"),
        (["01"], [], "0-", "SEEDS=0-: wants numbers such as 0-4"),
        (["01"], [], "3-1,5", "SEEDS=3-1,5: wants ranges that ascend"),
        (["01"], ["a/b"], "", "01_first: SETS=a/b: wants names"),
    ],
)
def test_what_cannot_be_swept_is_named(notebooks: Path, names: list, sets: list, seeds: str, message: str) -> None:
    with pytest.raises(execute.Failed, match=message):
        sweep.plan(names, sets, seeds, "smoke")


def test_parameters_that_are_no_lists_are_named(notebooks: Path) -> None:
    for text, said in (("sets: mnist", "sets at small: got 'mnist'"), ("seeds: 3", "seeds at small: got 3")):
        (notebooks / "notebooks" / "params" / f"{SLUG}.small.yml").write_text(text)
        with pytest.raises(execute.Failed, match=said):
            sweep.plan([SLUG], [], "", "small")


def test_other_weights_of_a_replica_make_a_unit_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MANIFOLD_DATA", raising=False)
    stamp, card = Path("stamp"), Path("data/cache/models/net.1.json")
    stamp.write_text(json.dumps({"content": "x", "device": "auto", "files": []}))
    Path("results.json").write_text(json.dumps({"provenance": {"models": {"net.1": "abc"}}}))
    card.parent.mkdir(parents=True)
    for sha256 in "abc", "abd":
        card.write_text(json.dumps({"sha256": sha256}))
        assert execute.up_to_date(stamp, Path("results.json"), "x", "auto") == (sha256 == "abc")
