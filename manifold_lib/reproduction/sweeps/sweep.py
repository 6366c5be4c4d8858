"""``make sweep``: units (notebook × set × network seed) on Dask; ``pooled.py`` says what they found together.

A unit is a run like any other, with results of its own: ``__main__.py`` in a process that a Dask worker starts, and
that ends when the worker does. Imported by its path, without the package and torch.
"""

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

from . import clusters

try:
    from .. import execute
except ImportError:
    import execute  # type: ignore[no-redef]

SWEEPS = execute.FIGURES / "sweep"
TEND = 5  # seconds between two looks at the workers
# what the Makefile sets, and a worker elsewhere lacks; and what must not reach a notebook there
PASSED = (
    *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONWARNINGS", "IPYTHONDIR", "JUPYTER_PREFER_ENV_PATH"),
    *("CUBLAS_WORKSPACE_CONFIG", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "OMP_WAIT_POLICY"),
    "MANIFOLD_DATA",
)
UNWANTED = ("PYTHONSTARTUP", "JUPYTER_PATH", "MPLBACKEND")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Unit(NamedTuple):
    """A notebook on one set with one network seed; ``name`` is that of its folder."""

    slug: str
    set: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.seed}"


def numbers(text: str) -> list[int]:
    """Seeds: ``"0-4"`` are 0 to 4, and ``"0,2,5"`` are three."""
    parts = re.split(r"[,\s]+", text.strip())
    if not all(re.fullmatch(r"\d+(-\d+)?", part) for part in parts):
        raise execute.Failed(f"SEEDS={text}: wants numbers such as 0-4 or 0,2,5")
    ends = [[int(end) for end in part.split("-")] for part in parts]
    if any(end[-1] < end[0] for end in ends):
        raise execute.Failed(f"SEEDS={text}: wants ranges that ascend, such as 0-4")
    return sorted({seed for end in ends for seed in range(end[0], end[-1] + 1)})


def plan(names: list[str], sets: list[str], seeds: str, profile: str) -> list[Unit]:
    """The units of notebooks (numbers or slugs; none means all that can); sets and seeds are their own by default."""
    import papermill

    known = sorted(path.stem for path in execute.NOTEBOOKS.glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", path.stem))
    if unknown := [name for name in names if not any(name in (slug, slug[:2]) for slug in known)]:
        raise execute.Failed(f"NOTEBOOKS: there is no {unknown[0]}; there are {', '.join(known)}")
    units = []
    for slug in [slug for slug in known if not names or {slug, slug[:2]} & {*names}]:
        cell = papermill.inspect_notebook(execute.NOTEBOOKS / f"{slug}.ipynb")
        if lacking := [name for name in ("sets", "seeds") if name not in cell]:
            if names:
                what = " and no ".join(lacking)
                raise execute.Failed(f"{slug}: cannot be part of a sweep, as its parameters cell has no {what}")
            continue
        own = {name: ast.literal_eval(cell[name]["default"]) for name in ("sets", "seeds")}
        own |= execute.settings(slug, profile)
        for name, kind in (("sets", str), ("seeds", int)):
            if not isinstance(own[name], list) or not all(type(entry) is kind for entry in own[name]):
                raise execute.Failed(f"{slug}: {name} at {profile}: got {own[name]!r}, wants a list of {kind.__name__}")
        chosen, drawn = sets or own["sets"], numbers(seeds) if seeds else own["seeds"]
        if not chosen or not all(re.fullmatch(r"[\w-]+", name) for name in chosen):
            raise execute.Failed(f"{slug}: SETS={' '.join(chosen)}: wants names of sets, such as mnist32")
        units += [Unit(slug, name, seed) for seed in drawn for name in chosen]
    if not units:
        raise execute.Failed("there is nothing to sweep: no notebook has the parameters sets and seeds")
    return [*dict.fromkeys(units)]


def state(unit: Unit, profile: str, content: str, device: str) -> str:
    """Whether a unit is ``up to date``, ``failed``, ``out of date`` or ``missing``."""
    build, figures, _ = execute.places(unit.slug, profile, unit.name)
    if execute.up_to_date(build / f"{unit.slug}.done", figures / "results.json", content, device):
        return "up to date"
    if (build / f"{unit.slug}.failed.ipynb").exists():
        return "failed"
    return "out of date" if (figures / "results.json").exists() else "missing"


def asked(folder: Path) -> set[str]:
    """The units that sweeps of a profile have started, SLUG/SET-SEED."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        names = json.loads((folder / "units.json").read_text(encoding="utf-8"))
        return {name for name in names if isinstance(name, str)}
    return set()


def remember(units: list[Unit], folder: Path, build: Path) -> None:
    """Note units that are started, so that the page can say which are missing."""
    with execute.alone("units", build):
        names = asked(folder) | {f"{unit.slug}/{unit.name}" for unit in units}
        execute.write_text(folder / "units.json", json.dumps(sorted(names), indent=1) + "\n")


def run(client: Any, tend: Callable[[], None], units: list[Unit], options: list[str], threads: int) -> set[Unit]:
    """Run units, say what came of each, and return those that failed."""
    from distributed import wait
    from tqdm import tqdm

    variables = {name: os.environ[name] for name in PASSED if name in os.environ} | dict.fromkeys(THREADS, str(threads))
    root, unwanted = str(execute.ROOT), UNWANTED

    def work(slug: str, unit: str) -> tuple[bool, str]:
        # An inner function is sent by value: a worker that runs it imports nothing of the repository.
        command = [sys.executable, "manifold_lib/reproduction", "run", slug, *options]
        kept = {name: value for name, value in os.environ.items() if name not in unwanted}
        how: dict[str, Any] = {"cwd": root, "env": kept | variables | {"MANIFOLD_UNIT": unit}, "encoding": "utf-8"}
        how |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, errors="replace", **how)
        if done.returncode < 0 or done.returncode == 130:  # perhaps with its worker: once more, elsewhere
            raise ChildProcessError(f"it was ended from outside ({done.returncode})")
        return done.returncode == 0, done.stdout

    key = f"unit-{uuid.uuid4().hex}"  # of one group, whose tasks wait at the scheduler
    keys = [(key, number) for number in range(len(units))]
    futures = client.map(work, [unit.slug for unit in units], [unit.name for unit in units], key=keys, retries=2)
    left, known, failed = {*futures}, dict(zip(futures, units, strict=True)), set()
    with tqdm(total=len(units), unit="unit", disable=not sys.stderr.isatty()) as bar:
        while left:
            with contextlib.suppress(TimeoutError):
                finished, left = wait(left, timeout=TEND, return_when="FIRST_COMPLETED")
                for future in finished:
                    unit, done = known.pop(future), future.status == "finished"
                    good, text = future.result() if done else (False, f"{future.exception()}")
                    said = [line.strip() for line in text.splitlines() if line.strip()][-1 if good else -2 :]
                    bar.update()
                    if not good:
                        failed.add(unit)
                    if not good or bar.disable:
                        what = " ".join(said) if good else f"{unit.slug} {unit.name} failed: {' '.join(said)}"
                        bar.write(f"{len(units) - len(known)}/{len(units)} {what}")
            tend()
    return failed


def main(arguments: Any) -> None:
    """Run the units that are not up to date, then pool all that are there; exit 1 where one failed."""
    profile, device, failed = arguments.profile, arguments.device, set[Unit]()
    folder, build = SWEEPS / profile, execute.BUILD / "sweep" / profile
    try:
        said = {"SWEEP_WORKERS": arguments.workers, "THREADS": arguments.threads}
        if wrong := [f"{name}={text}" for name, text in said.items() if text and not re.fullmatch(r"[1-9]\d*", text)]:
            raise execute.Failed(f"{wrong[0]}: wants a whole number from 1")
        if "://" in arguments.scheduler:
            clusters.check(arguments.scheduler)
        units = plan(arguments.slugs, arguments.sets.replace(",", " ").split(), arguments.seeds, profile)
        content = {slug: execute.fingerprint(slug, profile) for slug in {unit.slug for unit in units}}
        due = [unit for unit in units if state(unit, profile, content[unit.slug], device) != "up to date"]
        print(f"sweep at {profile}: {len(units)} units, {len(units) - len(due)} of them up to date", flush=True)
        for path in folder, build:
            path.mkdir(parents=True, exist_ok=True)
        if due:
            # One thread, however many workers: more threads add in another order, and last digits would differ.
            threads = int(arguments.threads or 1)
            n_workers = min(int(arguments.workers or clusters.cores() // threads or 1), len(due))
            with clusters.workers(arguments.scheduler, n_workers, threads) as (client, tend):
                remember(due, folder, build)
                failed = run(client, tend, due, ["--profile", profile, "--device", device], threads)
    except CancelledError:
        print("sweep: the scheduler is gone. Sweep again for the units that are left", file=sys.stderr, flush=True)
        os._exit(1)
    except execute.Failed as failure:
        print(f"sweep: {failure}", file=sys.stderr, flush=True)
        os._exit(1)  # a client that was refused would delay a normal exit
    broken = 0
    if due or not (folder / "README.md").exists():
        broken = subprocess.run([sys.executable, "-m", "manifold_lib.reproduction.sweeps.pooled", profile]).returncode
    there = f"{len(units) - len(failed)} of {len(units)} units are there"
    print(f"sweep at {profile}: {there}; {folder}/README.md says what they found", flush=True)
    sys.exit(1 if failed or broken else 0)
