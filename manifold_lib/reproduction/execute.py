"""Run notebooks, each result whole or absent. ``__main__.py`` is its command line, without the package and torch."""

import base64
import contextlib
import difflib
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD, FIGURES, NOTEBOOKS = Path(".build"), Path("figures"), Path("notebooks")
PROFILES = ("smoke", "small", "paper")  # those of runtime.py, which would import torch
MAX_BYTES = 1_000_000
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_ABSOLUTE = r"(?<![\w.:/+~>-])/(?:home|Users|root|tmp|private|var|opt|usr|mnt|media|srv)/[^\s\"'\\<>]*"


class Failed(RuntimeError):
    """A notebook that does not run to its end, or whose result cannot be kept; the message is for the user."""


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a text, which other machines do not have."""
    return re.findall(_ABSOLUTE, text)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def settings(slug: str, profile: str) -> dict[str, Any]:
    """The parameters of a profile, each of which the notebook must know."""
    import papermill
    import yaml

    source, file = NOTEBOOKS / f"{slug}.ipynb", NOTEBOOKS / "params" / f"{slug}.{profile}.yml"
    known = papermill.inspect_notebook(source)
    try:
        found = {} if profile == "smoke" and not file.exists() else yaml.safe_load(file.read_text(encoding="utf-8"))
        found = {**(found or {}), "profile": profile}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise Failed(f"{file}: wants lines such as `seed: 0`: {error}") from error
    for name in found.keys() - known.keys():
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0) or ["none"]
        raise Failed(f"{file}: the parameters cell of {source} has no {name!r}; the nearest is {nearest[0]}")
    return found


def fingerprint(slug: str, profile: str) -> str:
    """A hash of all that a result depends on, by content: neither times nor stored outputs count."""
    source, params = NOTEBOOKS / f"{slug}.ipynb", NOTEBOOKS / "params" / f"{slug}.{profile}.yml"
    claims = NOTEBOOKS / "claims" / f"{slug}.yml"
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        kept = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags")) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Failed(f"{source}: not a notebook that can be read: {error}") from error
    if not any(f'"{slug}"' in text for _, text, _ in kept):
        raise Failed(f"{source}: its results have another name, as those of a copied notebook")
    found = hashlib.sha256(json.dumps(kept).encode())
    library, weights = Path("manifold_lib").rglob("*.py"), Path("data/models").glob("*.safetensors")
    for path in filter(Path.is_file, [params, claims, Path("requirements.lock"), *sorted(library), *sorted(weights)]):
        content = path.read_bytes()
        found.update(f"\n{path} {len(content)}\n".encode() + content)
    return found.hexdigest()


def places(slug: str, profile: str, unit: str) -> tuple[Path, Path, dict[str, Any]]:
    """Where log and results of a run go, and parameters of its own, which a unit of a sweep has: SET-SEED, or empty."""
    if not unit:
        return BUILD / profile, FIGURES / profile / slug, {}
    name, _, seed = unit.rpartition("-")
    own = {"sets": [name], "seeds": [int(seed)]}
    return BUILD / "sweep" / profile / unit, FIGURES / "sweep" / profile / slug / unit, own


def up_to_date(stamp: Path, results: Path, content: str, device: str) -> bool:
    """Whether a stamp is of this content, device and weights, with its files there, and the data they lacked not."""
    try:
        made, text = json.loads(stamp.read_text(encoding="utf-8")), results.read_text(encoding="utf-8")
        models = json.loads(text).get("provenance", {}).get("models", {})
    except (OSError, ValueError, AttributeError):
        return False
    ran_on = "cpu" if '"device": "CPU' in text else "cuda"
    lacked = ", ".join(re.findall("looked for (.+?) in ", text)).split(", ")
    folders = [os.environ.get("MANIFOLD_DATA") or "data/cache", "data/cache"]
    found = any(Path(folder, name).exists() for folder in folders for name in filter(None, lacked))
    for name, sha256 in models.items():  # weights that are not committed are no part of the content
        cards = filter(Path.exists, [Path(folder, f"models/{name}.json") for folder in ("data", *folders)])
        if any(sha256 not in card.read_text(encoding="utf-8") for card in [*cards][:1]):
            return False
    same = made["content"] == content and device in (made["device"], ran_on)
    return same and not found and all(Path(name).exists() for name in made["files"])


def portable(value: Any) -> Any:
    """An output with short names in the place of this machine's folders. Encoded images stay as they are."""
    if isinstance(value, list):
        return [portable(entry) for entry in value]
    if isinstance(value, dict):
        return {key: entry if key.startswith("image/") else portable(entry) for key, entry in value.items()}
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?:/[\w.~-]+)*/ipykernel_\d+/\d+\.py", "cell", value)
    names = {os.path.expanduser("~"): "~/", sys.base_prefix: "python/", sys.prefix: "python/", str(ROOT): ""}
    names |= {os.environ.get("MANIFOLD_DATA", ""): "$MANIFOLD_DATA/"}
    for folder in sorted(names, key=len, reverse=True):
        # A home of `/` names no place. A path never follows a letter, a digit, + or /, as it does in encoded images.
        if len(Path(folder).parts) > 1:
            value = re.sub(rf"(?<![\w+/]){re.escape(folder)}(?:/|(?![\w-]))", names[folder], value)
    return re.sub(_ABSOLUTE, lambda found: "…/" + found[0].rstrip("/").rpartition("/")[2], value)


def opaque(picture: str) -> str:
    """The same PNG (base64) without an alpha channel that hides nothing, as figures have: a tenth smaller."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if image.mode != "RGBA" or image.getchannel("A").getextrema() != (255, 255):
            return picture
        image.convert("RGB").save(found := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(found.getvalue()).decode()


def tidy(notebook: Any) -> str:
    """The text of an executed notebook, without timings, versions, widgets and, in its outputs, this machine."""
    import nbformat

    language = {"name": "python", **notebook.metadata.get("language_info", {})}
    language.pop("version", None)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": language}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if "injected-parameters" in (tags or []):
            cell.id = "injected-parameters"  # papermill draws a new one each time
        if cell.cell_type == "code":
            cell.outputs = portable(cell.outputs)
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/png" in data:
                    data["image/png"] = opaque(data["image/png"])
    text = nbformat.writes(nbformat.from_dict(notebook)).rstrip() + "\n"
    if (size := len(text.encode())) > MAX_BYTES:
        limit = f"{MAX_BYTES / 1e6:.0f} MB: show fewer or smaller figures in it"
        raise Failed(f"the executed notebook has {size / 1e6:.1f} MB, more than {limit}")
    return text


@contextlib.contextmanager
def alone(slug: str, build: Path) -> Iterator[int]:
    """Hold the lock of a notebook, which runs once at a time."""
    # Not SLUG.lock, which the notebook itself takes when it puts its results in place.
    with open(build / f"{slug}.run.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{slug}: waits for another run of it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            print(f"{slug}: {build} has no locks ({error.strerror}): start no other run of it", flush=True)
        try:
            yield lock.fileno()
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


def recover(figures: Path) -> None:
    """Remove what killed runs have left; the earlier result comes back where one was killed while it replaced it."""
    target = figures.resolve()
    for old in target.parent.glob(f".staging/{figures.name}.*.old"):
        if old.with_suffix(".staging").exists():
            shutil.rmtree(target, ignore_errors=True)
            old.rename(target)
    for leftover in target.parent.glob(f".staging/{figures.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def execute(slug: str, build: Path, lock: int, parameters: dict[str, Any]) -> Any:
    """Execute a notebook in a new kernel and return it; what is printed meanwhile goes to the log."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill import execute_notebook

    log = logging.FileHandler(build / f"{slug}.log", "w", encoding="utf-8")
    logging.basicConfig(handlers=[log], level=logging.INFO, format="%(asctime)s %(message)s", force=True)

    class Kernel(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())  # of this Python, whatever else is installed as python3

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # The kernel inherits the lock: should it outlive this process, the next run waits for its end.
            await super().start_kernel(pass_fds=(lock,), stdout=log.stream, stderr=log.stream, **options)

    # Bars of notebooks that run side by side would overwrite each other.
    watched = sys.stderr.isatty() and "jobserver" not in os.environ.get("MAKEFLAGS", "")
    options = {"kernel_name": "python3", "kernel_manager_class": Kernel, "cwd": NOTEBOOKS, "start_timeout": 300}
    options |= {"log_output": True, "progress_bar": watched}
    running, failed = build / f"{slug}.running.ipynb", build / f"{slug}.failed.ipynb"
    failed.unlink(missing_ok=True)
    try:
        return execute_notebook(NOTEBOOKS / f"{slug}.ipynb", running, parameters, **options)
    except Exception as error:
        logging.exception(slug)
        running.replace(failed)
        text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
        raise Failed(f"{text}\n{slug}: log: {build}/{slug}.log, notebook: {failed}") from error


def run(slug: str, profile: str, device: str, quiet: bool = False) -> None:
    """Make ``figures/PROFILE/SLUG`` and, when all of it is there, its stamp; do nothing where the stamp holds."""
    unit = os.environ.get("MANIFOLD_UNIT", "")  # runtime.results_folder reads it too
    build, figures, own = places(slug, profile, unit)
    label = " ".join(filter(None, [slug, unit, f"({profile})"]))
    stamp, running, results = build / f"{slug}.done", build / f"{slug}.running.ipynb", figures / "results.json"
    for folder in build, figures.resolve().parent:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise Failed(f"nothing can be written in {folder}")
    with alone(slug, build) as lock:
        content = fingerprint(slug, profile)  # before the run: what is edited meanwhile makes it run again
        if up_to_date(stamp, results, content, device):
            if not quiet:
                print(f"{label}: up to date", flush=True)
            return
        recover(figures)
        for file in stamp, BUILD / "report.done":
            file.unlink(missing_ok=True)
        # Times are compared with each other: a file server has a clock of its own.
        started, before = time.time(), results.stat().st_mtime_ns if results.exists() else None
        parameters = settings(slug, profile) | own | {"device": device}
        # The defaults of a notebook are those of smoke.
        notebook = execute(slug, build, lock, {} if (profile, device, own) == ("smoke", "auto", {}) else parameters)
        if not results.exists() or results.stat().st_mtime_ns == before:
            raise Failed(f"it ran to its end but wrote no {results}; what it shows: {running}")
        write_text(figures / f"{slug}.ipynb", tidy(notebook))
        running.unlink()
        files = sorted(str(path) for path in figures.iterdir() if path.suffix != ".pdf")
        write_text(stamp, json.dumps({"content": content, "device": device, "files": files}, indent=1))
    print(f"{label}: {len(files)} files in {figures}, {time.time() - started:.0f} s", flush=True)


def refresh(slug: str) -> None:
    """Run a notebook at smoke, whose settings are its defaults, and keep the outputs in its source."""
    run(slug, "smoke", "auto")
    source = NOTEBOOKS / f"{slug}.ipynb"
    write_text(source, (FIGURES / "smoke" / slug / f"{slug}.ipynb").read_text(encoding="utf-8"))
    print(f"{source}: outputs refreshed", flush=True)
