"""Run notebooks, each result whole or absent. The Makefile calls this file by its path; torch would take seconds."""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD, FIGURES, NOTEBOOKS = Path(".build"), Path("figures"), Path("notebooks")
PROFILES = ("smoke", "small", "paper")  # those of runtime.py, which would import torch
MAX_BYTES = 1_000_000
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_kernel_groups: list[int] = []


class Failed(RuntimeError):
    """A notebook that did not run to its end, or whose result cannot be kept; the message is for the user."""


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a text, which other machines do not have."""
    return re.findall(r"(?<![\w.:/+~>-])/(?:home|Users|root|tmp|private|var|opt|usr|mnt|media|srv)/[^\s\"'\\]*", text)


def write_text(path: Path, text: str, modified: float | None = None) -> None:
    """Replace a file in one step; ``modified`` is the time to give it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    if modified is not None:
        os.utime(temporary, (modified, modified))
    os.replace(temporary, path)


def strip(source: Path, target: Path) -> None:
    """Copy a notebook without outputs, counts and timings; leave the target alone where nothing else changed."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        write_text(target, text)


def tidy(notebook: Any) -> str:
    """The text of an executed notebook, without timings, versions, widgets and the folders of this machine."""
    import nbformat

    for metadata in [notebook.metadata, *(cell.metadata for cell in notebook.cells)]:
        for key in "papermill", "widgets", "execution":
            metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata["kernelspec"] = KERNEL
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"  # papermill draws a new one each time
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    text = nbformat.writes(notebook).rstrip() + "\n"
    # no unbounded run before the slash: encoded images are long and full of slashes
    text = re.sub(r"(?:/[\w.~-]+)*/ipykernel_\d+/\d+\.py", "cell", text)
    folders = [(ROOT, ""), (Path(sys.prefix), "python/"), (Path.home(), "~/")]
    if data := os.environ.get("MANIFOLD_DATA", "").strip():
        folders.insert(0, (Path(data).expanduser().resolve(), "$MANIFOLD_DATA/"))
    for folder, name in folders:
        # A path never follows a letter, a digit, + or /. A slash inside an encoded image always does.
        text = re.sub(rf"(?<![\w+/]){re.escape(str(folder))}(?:/|(?![\w-]))", name, text)
    if left := absolute_paths(text):
        raise Failed(f"its outputs hold absolute paths, which no other machine has: {', '.join(sorted(set(left))[:5])}")
    if (size := len(text.encode())) > MAX_BYTES:
        limit = f"{MAX_BYTES / 1e6:.0f} MB: show fewer or smaller figures in it"
        raise Failed(f"the executed notebook has {size / 1e6:.1f} MB, more than {limit}")
    return text


@contextlib.contextmanager
def alone(slug: str, folder: Path) -> Iterator[int]:
    """Hold the lock of a notebook, which runs once at a time; keep a failed one, and say where it and its log are."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not SLUG.lock, which the notebook itself takes when it puts its results in place.
    with open(folder / f"{slug}.run.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{slug}: waits for another run of it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            # a run that was killed between its two renames has left the earlier result under another name
            figures = FIGURES / folder.name / slug
            for aside in folder.glob(f"{slug}.*.old"):
                if not figures.exists():
                    aside.rename(figures)
            for leftover in [*folder.glob(f"{slug}.*.staging"), *folder.glob(f"{slug}.*.old")]:
                shutil.rmtree(leftover, ignore_errors=True)
            for name in "running", "failed":
                (folder / f"{slug}.{name}.ipynb").unlink(missing_ok=True)
            yield lock.fileno()
        except Failed as failure:
            kept = f"log: {folder}/{slug}.log"
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder / f"{slug}.running.ipynb", folder / f"{slug}.failed.ipynb")
                kept += f", notebook: {folder}/{slug}.failed.ipynb"
            raise Failed(f"{slug}: {failure}\n{slug}: {kept}") from failure
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def execute(slug: str, source: Path, folder: Path, lock: int, parameters: dict[str, Any]) -> Any:
    """Execute a notebook in a new kernel and return it; what is printed meanwhile goes to the log."""
    with open(folder / f"{slug}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    from jupyter_client.manager import AsyncKernelManager
    from papermill import PapermillExecutionError, execute_notebook

    class Kernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # The kernel inherits the lock: should it outlive this process, the next run waits for its end.
            await super().start_kernel(pass_fds=(lock,), **options)
            if pid := getattr(self.provisioner, "pid", None):
                _kernel_groups.append(os.getpgid(pid))

    # Bars of notebooks that run side by side would overwrite each other.
    watched = sys.stderr.isatty() and "jobserver" not in os.environ.get("MAKEFLAGS", "")
    options = {"kernel_name": "python3", "kernel_manager_class": Kernel, "cwd": NOTEBOOKS, "start_timeout": 300}
    shown = {"log_output": True, "progress_bar": watched, "autosave_cell_every": 30 if watched else 0}
    try:
        return execute_notebook(source, folder / f"{slug}.running.ipynb", parameters, **options, **shown)
    except PapermillExecutionError as error:
        code = "\n".join(f"    {line}" for line in error.source.splitlines()[:6])
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise Failed(f"cell [{error.exec_count}] failed, which begins\n\n{code}\n\n{trace}") from error
    except Exception as error:
        logging.exception(slug)
        raise Failed(f"{type(error).__name__}: {error}") from error


def run(slug: str, profile: str, device: str) -> None:
    """Make ``figures/PROFILE/SLUG`` and, when all of it is there, the stamp that lists its files."""
    folder, figures, asked = BUILD / profile, FIGURES / profile / slug, time.time()
    stamp, results = folder / f"{slug}.done", figures / "results.json"
    source, settings = BUILD / "src" / f"{slug}.ipynb", NOTEBOOKS / "params" / f"{slug}.{profile}.yml"
    with alone(slug, folder) as lock:
        if stamp.exists() and stamp.stat().st_ctime >= asked:
            print(f"{slug} ({profile}): the other run made it", flush=True)
            return
        stamp.unlink(missing_ok=True)
        started = time.time()
        parameters: dict[str, Any] = {}
        if settings.exists():
            import yaml

            parameters = yaml.safe_load(settings.read_text(encoding="utf-8")) or {}
        elif profile != "smoke":
            raise Failed(f"{settings} is missing")
        notebook = execute(slug, source, folder, lock, parameters | {"profile": profile, "device": device})
        if not results.exists() or results.stat().st_mtime < started:
            raise Failed(f"it ran to its end but wrote no {results}")
        write_text(figures / f"{slug}.ipynb", tidy(notebook))
        (folder / f"{slug}.running.ipynb").unlink()
        made = sorted(str(path) for path in figures.iterdir() if path.suffix != ".pdf")
        inputs = [source, settings, *Path("manifold_lib").rglob("*.py"), *Path("data/models").glob("*.safetensors")]
        edited = any(path.stat().st_mtime > started for path in inputs if path.exists())
        # What was edited during the run must be newer than the stamp, so that the notebook runs again.
        write_text(stamp, "\n".join(made) + "\n", modified=started if edited else None)
    print(f"{slug} ({profile}): {len(made)} files in {figures}, {time.time() - started:.0f} s", flush=True)


def refresh(slug: str) -> None:
    """Execute a source with the defaults of its parameters cell and keep the outputs in it."""
    source, folder, started = NOTEBOOKS / f"{slug}.ipynb", BUILD / "smoke", time.time()
    with alone(slug, folder) as lock:
        write_text(source, tidy(execute(slug, source, folder, lock, {})))
        (folder / f"{slug}.running.ipynb").unlink()
    print(f"{source}: outputs refreshed, {time.time() - started:.0f} s", flush=True)


def _stop_kernels() -> None:
    for group in _kernel_groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """When make is killed nobody waits for this run any more: end it and its kernel."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _stop_kernels()
    os._exit(1)


def main() -> None:
    """Strip, run or refresh notebooks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_strip, of_run, of_refresh = (commands.add_parser(f.__name__, help=f.__doc__) for f in (strip, run, refresh))
    of_strip.add_argument("source", type=Path)
    of_strip.add_argument("target", type=Path)
    of_run.add_argument("slug")
    of_run.add_argument("--profile", choices=PROFILES, required=True)
    of_run.add_argument("--device", default="auto")
    of_refresh.add_argument("slugs", nargs="*", metavar="SLUG")
    arguments = parser.parse_args()
    if arguments.command == "strip":
        strip(arguments.source, arguments.target)
        return
    # tqdm would warn that it has no widgets
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    if data := os.environ.get("MANIFOLD_DATA", "").strip():
        os.environ["MANIFOLD_DATA"] = str(Path(data).expanduser().resolve())  # the kernel starts in another folder
    os.chdir(ROOT)
    # The kernel inherits file descriptors 1 and 2, which will be the log; Python's streams stay the terminal.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s")
    logging.captureWarnings(True)
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    try:
        if arguments.command == "run":
            run(arguments.slug, arguments.profile, arguments.device)
        for slug in getattr(arguments, "slugs", ()):
            refresh(slug)
    except Failed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        _stop_kernels()
        print(f"\n{arguments.command} interrupted: nothing half-made is kept", file=sys.stderr, flush=True)
        os._exit(130)  # threads of the kernel's client would delay a normal exit


if __name__ == "__main__":
    main()
