"""Run notebooks so that a result is either whole or absent. The Makefile calls this file by its path.

Nothing here imports the package: torch would add seconds to every call.
"""

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
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(".build")
FIGURES = Path("figures")
NOTEBOOKS = Path("notebooks")
PROFILES = ("smoke", "small", "paper")  # those of runtime.py, which would import torch
MAX_BYTES = 1_000_000
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

_kernel_groups: list[int] = []


class Failed(RuntimeError):
    """A notebook that did not run to its end, or whose result cannot be kept; the message is for the user."""


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a text: they name somebody's machine and break on another."""
    return re.findall(r"(?<![\w.:/+~>-])/(?:home|Users|root|tmp|private|var|opt|usr|mnt|media|srv)/[^\s\"'\\]*", text)


def write_text(path: Path, text: str, modified: float | None = None) -> None:
    """Replace a file in one step; ``modified`` is the time to give it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(temporary, 0o644)
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

    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata["kernelspec"] = KERNEL
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
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
        raise Failed(
            f"the executed notebook has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB: "
            "show fewer or smaller figures in it"
        )
    return text


@contextlib.contextmanager
def alone(slug: str, folder: Path) -> Iterator[int]:
    """Hold the lock of a notebook, so that it runs once at a time."""
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
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def execute(slug: str, source: Path, folder: Path, lock: int, parameters: dict[str, Any]) -> Any:
    """Execute a notebook in a new kernel and return it; what is printed meanwhile goes to the log."""
    log, running = folder / f"{slug}.log", folder / f"{slug}.running.ipynb"
    with open(log, "w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)

    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner
    from papermill import PapermillExecutionError, execute_notebook

    class Kernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # The kernel inherits the lock: should it outlive this process, the next run waits for its end.
            await super().start_kernel(pass_fds=(lock,), **options)
            if isinstance(self.provisioner, LocalProvisioner) and self.provisioner.pid is not None:
                _kernel_groups.append(os.getpgid(self.provisioner.pid))

    # Bars of notebooks that run side by side would overwrite each other.
    watched = sys.stderr.isatty() and "jobserver" not in os.environ.get("MAKEFLAGS", "")
    try:
        return execute_notebook(
            source,
            running,
            parameters,
            kernel_name="python3",
            kernel_manager_class=Kernel,
            cwd=NOTEBOOKS,
            log_output=True,
            progress_bar=watched,
            autosave_cell_every=30 if watched else 0,
            start_timeout=300,
        )
    except PapermillExecutionError as error:
        code = "\n".join(f"    {line}" for line in error.source.splitlines()[:6])
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise Failed(f"cell [{error.exec_count}] failed, which begins\n\n{code}\n\n{trace}") from error
    except Exception as error:
        logging.exception(slug)
        raise Failed(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def explained(slug: str, folder: Path) -> Iterator[None]:
    """Keep a failed notebook for reading, and say where it and its log are."""
    try:
        yield
    except Failed as failure:
        kept = f"log: {folder}/{slug}.log"
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / f"{slug}.running.ipynb", folder / f"{slug}.failed.ipynb")
            kept += f", notebook: {folder}/{slug}.failed.ipynb"
        raise Failed(f"{slug}: {failure}\n{slug}: {kept}") from failure


def run(slug: str, profile: str, device: str) -> None:
    """Make ``figures/PROFILE/SLUG`` and, when all of it is there, the stamp that lists its files."""
    folder, figures = BUILD / profile, FIGURES / profile / slug
    stamp, results = folder / f"{slug}.done", figures / "results.json"
    source, settings = BUILD / "src" / f"{slug}.ipynb", NOTEBOOKS / "params" / f"{slug}.{profile}.yml"
    asked = time.time()
    with alone(slug, folder) as lock, explained(slug, folder):
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
        parameters |= {"profile": profile, "device": device}
        notebook = execute(slug, source, folder, lock, parameters)
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
    source, folder = NOTEBOOKS / f"{slug}.ipynb", BUILD / "smoke"
    started = time.time()
    with alone(slug, folder) as lock, explained(slug, folder):
        write_text(source, tidy(execute(slug, source, folder, lock, {})))
        (folder / f"{slug}.running.ipynb").unlink()
    print(f"{source}: outputs refreshed, {time.time() - started:.0f} s", flush=True)


def _stop_kernels() -> None:
    for group in _kernel_groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _end_with_parent() -> None:
    """When make is killed nobody waits for this run any more: end it and its kernel."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        _stop_kernels()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Strip, run or refresh notebooks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("strip", help=strip.__doc__)
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command = commands.add_parser("run", help=run.__doc__)
    command.add_argument("slug")
    command.add_argument("--profile", choices=PROFILES, required=True)
    command.add_argument("--device", default="auto")
    command = commands.add_parser("refresh", help=refresh.__doc__)
    command.add_argument("slugs", nargs="*", metavar="SLUG")
    arguments = parser.parse_args()
    if arguments.command == "strip":
        strip(arguments.source, arguments.target)
        return 0

    # tqdm warns that it has no widgets, which a run without a reader does not need
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    if data := os.environ.get("MANIFOLD_DATA", "").strip():
        os.environ["MANIFOLD_DATA"] = str(Path(data).expanduser().resolve())  # the kernel starts in another folder
    os.chdir(ROOT)
    # File descriptors 1 and 2, which the kernel inherits, will be the log; Python's streams stay the terminal.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    logging.basicConfig(
        stream=os.fdopen(2, "w", buffering=1, closefd=False), level=logging.INFO, format="%(asctime)s %(message)s"
    )
    logging.captureWarnings(True)
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, signal.default_int_handler)
    _end_with_parent()
    try:
        if arguments.command == "run":
            run(arguments.slug, arguments.profile, arguments.device)
        for slug in getattr(arguments, "slugs", ()):
            refresh(slug)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _stop_kernels()
        print(f"\n{arguments.command} interrupted: nothing half-made is kept", file=sys.stderr, flush=True)
        os._exit(130)  # threads of the kernel's client would delay a normal exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
