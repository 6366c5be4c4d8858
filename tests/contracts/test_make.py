"""The Makefile and the executor, on a small copy of the repository whose notebooks import no torch."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from manifold_lib.reproduction import execute

ROOT = Path(__file__).resolve().parents[2]
SLUGS = ("01_first", "02_second")
PARAMETERS = 'profile = "smoke"  # profile\ndevice = "auto"  # device\nn = 1  # how many'
WORK = """
import json, os, shutil, sys, tempfile, time
from filelock import FileLock
from pathlib import Path

root = Path.cwd().parent
time.sleep(0.5)
if n < 0:
    raise ValueError(f"n: got {n}, wants at least 0")
print(root / "data", file=sys.stderr)
"""
FINISH = """
target = root / "figures" / profile / slug
build = root / ".build" / profile
staged = target.parent / ".staging"
staged.mkdir(parents=True, exist_ok=True)
stage = Path(tempfile.mkdtemp(prefix=f"{slug}.", suffix=".staging", dir=staged))
time.sleep(0.5)
for name in "figure.png", "figure.pdf", "table.csv":
    (stage / name).write_text(str(n))
(stage / "results.json").write_text(json.dumps({"slug": slug, "value": n * 7, "seconds": time.time()}))
with FileLock(build / f"{slug}.lock"):
    shutil.rmtree(target, ignore_errors=True)
    os.replace(stage, target)
"""
# Results.finish takes the same lock: it must not be the one that the executor holds meanwhile.
REPORT = """
from pathlib import Path

path = Path("figures/README.md")
path.write_text("\\n".join(map(str, sorted(Path("figures").glob("*/*/results.json")))))
print("report written")
"""


def _write_notebook(folder: Path, slug: str) -> None:
    cells = [
        new_markdown_cell(f"# {slug}"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(WORK.strip()),
        new_code_cell(f'slug = "{slug}"\n{FINISH.strip()}'),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "notebooks" / f"{slug}.ipynb")
    (folder / "notebooks" / "params" / f"{slug}.small.yml").write_text("n: 3\n")


def _skeleton(folder: Path, *slugs: str) -> Path:
    shutil.copytree(ROOT / "manifold_lib", folder / "manifold_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "Makefile", "requirements.lock", "pyproject.toml":
        shutil.copy(ROOT / name, folder / name)
    (folder / "manifold_lib" / "__init__.py").write_text("")
    (folder / "manifold_lib" / "reproduction" / "report.py").write_text(REPORT)
    (folder / "data" / "models").mkdir(parents=True)
    (folder / "data" / "models" / "toy.safetensors").write_text("weights")
    (folder / "notebooks" / "params").mkdir(parents=True)
    for slug in slugs:
        _write_notebook(folder, slug)
    return folder


def _command(*arguments: str) -> list[str]:
    return ["make", *arguments, f"PYTHON={sys.executable}"]


def _environment() -> dict[str, str]:
    """Without what a surrounding make hands down."""
    unwanted = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "DEVICE", "PYTHON", "MANIFOLD_DATA"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def make(folder: Path, *arguments: str, fails: bool = False, **environment: str) -> str:
    more = {"cwd": folder, "env": _environment() | environment, "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run(_command(*arguments), **more)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output
    return output


def due(folder: Path, profile: str = "small", device: str = "auto") -> set[str]:
    """The notebooks that make would run, and "report"."""
    with contextlib.chdir(folder):
        build, found = Path(".build"), set()
        for slug in [slug for slug in SLUGS if Path("notebooks", f"{slug}.ipynb").exists()]:
            stamp, results = build / profile / f"{slug}.done", Path("figures", profile, slug, "results.json")
            if not execute.up_to_date(stamp, results, execute.fingerprint(slug, profile), device):
                found.add(slug)
        return found | (set() if (build / "report.done").exists() else {"report"})


def _leftovers(folder: Path) -> list[Path]:
    patterns = ".build/*/*.running.ipynb", ".build/*/*.failed.ipynb", "**/*.part", "figures/*/.staging/*"
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _value(folder: Path, slug: str) -> dict:
    results = json.loads((folder / "figures" / "small" / slug / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in results.items() if key != "seconds"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy in which ``make -j2 all`` ran once, and what it printed."""
    folder = _skeleton(tmp_path_factory.mktemp("built in a folder"), *SLUGS)
    return folder, make(folder, "-j2", "all")


@pytest.fixture
def folder(built: tuple[Path, str]) -> Path:
    """The built copy, in which nothing is left to do."""
    assert due(built[0]) == set()
    return built[0]


def test_help_is_the_default_and_lists_every_target(folder: Path) -> None:
    shown = make(folder)
    named = re.search(r"^\.PHONY:(.*)$", (folder / "Makefile").read_text(encoding="utf-8"), re.M)
    assert named is not None
    for target in {*named[1].replace("FORCE", "").split()[:-2], *SLUGS, "01", "02"}:
        assert re.search(rf"^  (\S+ +)?{target} ", shown, re.M), target
    assert all(len(line) <= 110 for line in shown.splitlines())


def test_profile_must_be_known(folder: Path) -> None:
    message = make(folder, "all", "PROFILE=large", fails=True)
    assert "large" in message and all(name in message for name in ("smoke", "small", "paper"))


def test_first_run_makes_everything(built: tuple[Path, str]) -> None:
    folder, output = built
    for slug in SLUGS:
        made = {path.name for path in (folder / "figures" / "small" / slug).iterdir()}
        assert made == {"figure.png", "figure.pdf", "table.csv", "results.json", f"{slug}.ipynb"}
        stamp = json.loads((folder / ".build" / "small" / f"{slug}.done").read_text(encoding="utf-8"))
        assert stamp["files"] == [f"figures/small/{slug}/{name}" for name in sorted(made - {"figure.pdf"})]
        assert _value(folder, slug) == {"slug": slug, "value": 21}
        assert re.search(rf"^{slug} \(small\): 4 files in figures/small/{slug}, \d+ s$", output, re.M)
    assert "report written" in output and not _leftovers(folder)


def test_executed_notebook_is_clean(built: tuple[Path, str]) -> None:
    text = (built[0] / "figures" / "small" / SLUGS[0] / f"{SLUGS[0]}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert str(built[0]) not in text and '"papermill"' not in text and "iopub" not in text
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["parameters", "injected-parameters"]
    assert notebook.cells[3].outputs[0].text == "data\n"


def test_a_second_run_runs_nothing_and_says_so(folder: Path) -> None:
    assert make(folder, "all") == "profile small: 2 notebooks and the report are up to date\n"
    assert make(folder, "02") == f"{SLUGS[1]} (small): up to date\n"


@contextlib.contextmanager
def changed(path: Path) -> Iterator[None]:
    """The file with a line more; afterwards as it was, its time too."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before + b"\n# more\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))  # older than the stamp
    yield
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_changed_parameters_run_one_notebook(folder: Path) -> None:
    with changed(folder / "notebooks" / "params" / f"{SLUGS[1]}.small.yml"):
        assert due(folder) == {SLUGS[1]}


ROOMS = sorted(path.parent.name for path in ROOT.glob("manifold_lib/*/__init__.py"))
# one file of each room, never its __init__
OF_A_ROOM = [
    sorted(path for path in ROOT.glob(f"manifold_lib/{room}/*.py") if path.stem != "__init__")[0].relative_to(ROOT)
    for room in ROOMS
]


def test_there_are_eight_rooms() -> None:
    assert ROOMS == ["attribution", "core", "data", "evaluation", "geometry", "models", "paths", "reproduction"]


@pytest.mark.parametrize(
    "name",
    [*map(str, OF_A_ROOM), "manifold_lib/__init__.py", "data/models/toy.safetensors", "requirements.lock"],
)
def test_changed_library_weights_or_lock_run_all_and_a_new_time_nothing(folder: Path, name: str) -> None:
    (folder / name).touch()
    assert due(folder) == set()
    with changed(folder / name):
        assert due(folder) == set(SLUGS)


def test_a_new_module_of_a_new_room_counts_and_other_files_do_not(folder: Path) -> None:
    (folder / "manifold_lib" / "core" / "notes.txt").touch()
    assert due(folder) == set()
    module = folder / "manifold_lib" / "core" / "inner" / "module.py"
    module.parent.mkdir()
    module.touch()
    assert due(folder) == set(SLUGS)
    shutil.rmtree(module.parent)


@pytest.mark.parametrize(("device", "runs"), [("cpu", False), ("auto", False), ("cuda", True), ("cuda:1", True)])
def test_another_device_counts(folder: Path, device: str, runs: bool) -> None:
    path = folder / "figures" / "small" / SLUGS[0] / "results.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(before) | {"device": "CPU, 2 threads"}), encoding="utf-8")
    assert (SLUGS[0] in due(folder, device=device)) == runs
    path.write_text(before, encoding="utf-8")


def test_data_that_a_result_lacked_count_when_they_are_there(folder: Path) -> None:
    path = folder / "figures" / "small" / SLUGS[0] / "results.json"
    before = path.read_text(encoding="utf-8")
    note = "pets: looked for pets/images, pets/list in $MANIFOLD_DATA and in data/cache. Provide it"
    path.write_text(json.dumps(json.loads(before) | {"note": note}), encoding="utf-8")
    assert due(folder) == set()
    (folder / "data" / "cache" / "pets" / "list").mkdir(parents=True)
    assert due(folder) == {SLUGS[0]}
    shutil.rmtree(folder / "data" / "cache")
    path.write_text(before, encoding="utf-8")


def test_outputs_of_a_source_do_not_count_and_code_does(folder: Path) -> None:
    path = folder / "notebooks" / f"{SLUGS[0]}.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="other")]
    notebook.cells[2].execution_count = 7
    notebook.cells[2].metadata["execution"] = {"iopub.execute_input": "now"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
    nbformat.write(notebook, path)
    assert due(folder) == set()
    notebook.cells[2].source += "\nmore = 1"
    nbformat.write(notebook, path)
    assert due(folder) == {SLUGS[0]}
    path.write_text(before, encoding="utf-8")
    assert due(folder) == set()


@pytest.mark.parametrize("name", ["figure.png", "table.csv", "results.json", f"{SLUGS[0]}.ipynb"])
def test_a_missing_product_is_made_again(folder: Path, name: str) -> None:
    path = folder / "figures" / "small" / SLUGS[0] / name
    aside = path.rename(folder / name)
    assert due(folder) == {SLUGS[0]}
    aside.rename(path)


def test_report_runs_by_name_or_when_missing(folder: Path) -> None:
    assert "report written" in make(folder, "report")
    (folder / "figures" / "README.md").unlink()
    assert "report written" in make(folder, "all")


def test_profiles_do_not_mix(folder: Path) -> None:
    assert due(folder, "smoke") == set(SLUGS)


def test_clean_leaves_results_and_weights(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path)
    for name in ".build/small/01.done", "figures/small/a.png", "data/cache/checkpoints/a", "notebooks/__pycache__/a":
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "tests").mkdir()
    (folder / ".venv").mkdir()
    make(folder, "clean")
    assert not (folder / ".build").exists() and not (folder / "notebooks" / "__pycache__").exists()
    assert (folder / ".venv").exists()
    assert "figures" in make(folder, "distclean") and not (folder / ".venv").exists()
    for name in "figures/small/a.png", "data/cache/checkpoints/a", "data/models/toy.safetensors":
        assert (folder / name).exists()


def test_nothing_fails_before_the_first_notebook(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path)
    (folder / "figures").mkdir()
    assert "no notebook" in make(folder, "nbval")
    assert "0 notebooks and the report" in make(folder, "all")


def test_a_failing_notebook_says_why_and_is_tried_again(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, *SLUGS)
    bad = folder / "notebooks" / "params" / f"{SLUGS[0]}.small.yml"
    bad.write_text("n: -3\n")
    output = make(folder, "-k", "-j2", "all", fails=True)
    assert "ValueError: n: got -3, wants at least 0" in output and "\x1b" not in output
    assert 'at "In [3]"' in output and ".build/small/01_first.log" in output
    build = folder / ".build" / "small"
    assert (build / f"{SLUGS[1]}.done").exists() and (build / f"{SLUGS[0]}.failed.ipynb").exists()
    assert not (build / f"{SLUGS[0]}.done").exists() and not (folder / "figures" / "small" / SLUGS[0]).exists()
    assert due(folder) == {SLUGS[0], "report"}
    bad.write_text("n: 3\n")
    make(folder, "all")
    assert _value(folder, SLUGS[0])["value"] == 21 and not _leftovers(folder)


def test_a_result_set_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    make(folder, "all")
    figures = folder / "figures" / "small" / SLUGS[0]
    staged = figures.parent / ".staging"
    (staged / f"{SLUGS[0]}.abc.staging").mkdir(parents=True)
    shutil.copytree(figures, staged / f"{SLUGS[0]}.abc.old")
    (figures / "results.json").unlink()  # killed while it removed the earlier one
    (folder / "notebooks" / "params" / f"{SLUGS[0]}.small.yml").write_text("n: -3\n")
    make(folder, "01", fails=True)
    assert _value(folder, SLUGS[0])["value"] == 21 and not list(staged.iterdir())


def test_refresh_keeps_outputs_in_the_source(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    path = folder / "notebooks" / f"{SLUGS[0]}.ipynb"
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert "outputs refreshed" in make(folder, "refresh")
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == ids
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert notebook.cells[2].outputs and "execution" not in notebook.cells[2].metadata
    assert "version" not in notebook.metadata.language_info
    assert (
        json.loads((folder / "figures" / "smoke" / SLUGS[0] / "results.json").read_text(encoding="utf-8"))["value"] == 7
    )


def test_nothing_of_the_user_reaches_a_kernel(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path / "copy", SLUGS[0])
    path = folder / "notebooks" / f"{SLUGS[0]}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source += '\nassert "hf_token" not in globals()\nprint("grün")'
    nbformat.write(notebook, path)
    startup, kernel = (
        tmp_path / name for name in (".ipython/profile_default/startup/a.py", "kernels/python3/kernel.json")
    )
    for file in startup, kernel:
        file.parent.mkdir(parents=True)
    startup.write_text("hf_token = 1", encoding="utf-8")
    kernel.write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}), encoding="utf-8")
    places = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / ".ipython"), "JUPYTER_PATH": str(tmp_path)}
    make(folder, "01", **places, PYTHONSTARTUP=str(startup), LC_ALL="C", PYTHONUTF8="0")
    executed = (folder / "figures" / "small" / SLUGS[0] / path.name).read_text(encoding="utf-8")
    assert "grün" in executed


def test_a_copy_of_a_notebook_is_left_out(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    for name in f"{SLUGS[0]}-Copy1.ipynb", "02_mine too.ipynb", "03_x (1).ipynb":
        shutil.copy(folder / "notebooks" / f"{SLUGS[0]}.ipynb", folder / "notebooks" / name)
    assert set(re.findall(r"reproduction run (.+) --profile", make(folder, "-n", "all"))) == {SLUGS[0]}


def test_what_the_environment_sets_is_said(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path)
    said = "PROFILE=paper, as the environment says\n"
    assert make(folder, "-n", "all", PROFILE="paper").startswith(said)
    assert "environment" not in make(folder, "-n", "all", "PROFILE=paper")


@pytest.mark.parametrize("profile", ["large", "small paper", "", "%"])
def test_an_unknown_profile_is_refused(tmp_path: Path, profile: str) -> None:
    assert "use one of smoke small paper" in make(_skeleton(tmp_path), "all", f"PROFILE={profile}", fails=True)


@pytest.mark.parametrize("python", ["a folder/python", f"env X=1 {sys.executable}"], ids=["space", "arguments"])
def test_python_is_a_program_or_a_command(tmp_path: Path, python: str) -> None:
    program = tmp_path / "a folder" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    folder = _skeleton(tmp_path / "copy", SLUGS[0])
    python = python.replace("a folder/python", str(program))
    command = ["make", "01", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_an_old_python_is_told_which_to_name(tmp_path: Path) -> None:
    folder, old = _skeleton(tmp_path), tmp_path / "python3"
    old.write_text('#!/bin/sh\nexec "$REAL" -c "import sys; sys.version_info = (3, 10, 1); $2"\n', encoding="utf-8")
    old.chmod(0o755)
    command = ["make", "env"]
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REAL": sys.executable}
    done = subprocess.run(command, cwd=folder, env=_environment() | place, capture_output=True, encoding="utf-8")
    assert done.returncode and "python3 is Python 3.10: 3.11 to 3.13 is needed" in done.stderr
    assert "make env PYTHON=python3.12" in done.stderr


def test_without_cuda_the_lock_is_followed_without_its_wheels(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path)
    (folder / ".venv").mkdir()
    for backend, wanted in ("", True), ("cpu", False):
        (recipe,) = re.findall(r"^awk .*\n.*$", make(folder, "-n", "env", f"TORCH_BACKEND={backend}"), re.M)
        subprocess.run(["sh", "-c", recipe], cwd=folder, check=True)
        pinned = (folder / ".venv" / "requirements.lock").read_text(encoding="utf-8")
        assert (pinned == (ROOT / "requirements.lock").read_text(encoding="utf-8")) == wanted
        assert bool(re.search(r"^(torch|torchvision|triton|nvidia-\S*|cuda-\S*)==", pinned, re.M)) == wanted
        assert re.search(r"^numpy==.*\\\n +--hash", pinned, re.M)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="mounts a folder, as root alone can")
def test_a_checkout_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path / "copy", SLUGS[0])
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, str(folder), *_command("01")]
    done = subprocess.run(command, env=_environment(), capture_output=True, encoding="utf-8")
    if "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode and done.stderr.splitlines()[0] == f"{SLUGS[0]}: nothing can be written in .build/small"


def _executors(folder: Path) -> list[int]:
    """Processes, kernels included, that work in this copy."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.joinpath("cwd").resolve().is_relative_to(folder):
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("group", [True, False], ids=["group", "make-alone"])
def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path: Path, group: bool) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    stamp = folder / ".build" / "small" / f"{SLUGS[0]}.done"
    seconds = 0.0
    for _ in range(2):
        started = time.time()
        process = subprocess.Popen(
            _command("all"),
            cwd=folder,
            env=_environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds or random.uniform(2, 6))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        if stamp.exists():
            break
        seconds = random.uniform(0, 2) + time.time() - started
        assert SLUGS[0] in due(folder)
    make(folder, "all")
    assert _value(folder, SLUGS[0]) == {"slug": SLUGS[0], "value": 21}
    assert not _leftovers(folder) and SLUGS[0] not in due(folder)
    deadline = time.time() + 10
    while _executors(folder) and time.time() < deadline:
        time.sleep(0.2)
    assert not _executors(folder)


def test_two_runs_of_one_notebook_meet(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    runs = [
        subprocess.Popen(_command("01"), cwd=folder, env=_environment(), stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(2)
    ]
    printed = "".join(run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert "waits for another run" in printed and "up to date" in printed and not _leftovers(folder)


def _started(folder: Path) -> None:
    """Wait until a notebook runs."""
    deadline = time.time() + 60
    while not list((folder / ".build").glob("small/*.running.ipynb")) and time.time() < deadline:
        time.sleep(0.1)


def test_what_is_edited_during_a_run_runs_again(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    run = subprocess.Popen(_command("01"), cwd=folder, env=_environment(), stdout=subprocess.PIPE, encoding="utf-8")
    _started(folder)
    (folder / OF_A_ROOM[0]).write_text("more = 1\n")
    run.communicate()
    assert run.returncode == 0 and SLUGS[0] in due(folder)


def test_interrupt_is_one_line(tmp_path: Path) -> None:
    folder = _skeleton(tmp_path, SLUGS[0])
    process = subprocess.Popen(
        _command("all"),
        cwd=folder,
        env=_environment(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # a shell has its background jobs ignore it, and what they start inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    _started(folder)
    os.killpg(process.pid, signal.SIGINT)
    shown = process.communicate()[1]
    assert process.returncode and "run interrupted" in shown and "Traceback" not in shown
    assert SLUGS[0] in due(folder)
