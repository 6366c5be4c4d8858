"""Folders, device, seed and provenance."""

import importlib.metadata
import json
import os
import platform
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.progress import progress_bar as progress_bar
from ..data import datasets, folders

ROOT = Path(__file__).resolve().parents[2]
MODELS = folders.DATA / "models"
FIGURES = ROOT / "figures"
BUILD = ROOT / ".build"
PROFILES = ("smoke", "small", "paper")
_OF_ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")


def check_copy() -> None:
    """Refuse to work in one copy of the repository with the library of another, whose folders would be written."""
    ours, here = Path(__file__).resolve().parents[2], Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "manifold_lib").is_dir() and (folder / "notebooks").is_dir():
            if folder.resolve() != ours:
                way_out = f"start it by `make lab` in {folder}, or install that copy: pip install -e {folder}"
                raise ValueError(
                    f"manifold_lib is imported from {ours}, but this notebook belongs to {folder}: {way_out}"
                )
            return


def check_data(params: dict[str, Any]) -> None:
    """Load the published sets that the parameters name: a run that lacks one fails before it computes for an hour."""
    for name in sorted({"cifar10", "xray"} & set(re.findall(r"\w+", json.dumps(params)))):
        datasets.load(name)


def own_parameters(slug: str, params: dict[str, Any]) -> dict[str, Any]:
    """Those of ``params`` that the notebook's parameters cell sets; others come from a user's startup files."""
    source = ROOT / "notebooks" / f"{slug}.ipynb"
    if not source.exists():
        return params
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {name: value for name, value in params.items() if re.search(rf"^{name} *=", "\n".join(texts), re.M)}


def claims_file(slug: str) -> Path:
    """Where the claims of a notebook are registered."""
    return ROOT / "notebooks" / "claims" / f"{slug}.yml"


def results_folder(slug: str, profile: str) -> Path:
    """Where a run puts its results; a unit of a sweep has a folder of its own."""
    unit = os.environ.get("MANIFOLD_UNIT", "")
    return FIGURES / "sweep" / profile / slug / unit if unit else FIGURES / profile / slug


def portable(text: str) -> str:
    """A note, such as why data were not found, without the folder of this machine."""
    folder = folders.data_folder()
    return text if folder is None else text.replace(str(folder), "$MANIFOLD_DATA")


def resolve_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the GPU where there is one, else the CPU; any torch device name is kept."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but torch sees no GPU; use 'cpu' or 'auto'")
    return resolved


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, which a CPU without wide vectors emulates, nine times slower."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch, which dropout and scikit-learn draw from; return a CPU generator so seeded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def interactive() -> bool:
    """True on a terminal. Notebooks and logs get no progress bars."""
    return sys.stderr.isatty()


def _git(*arguments: str) -> str | None:
    """What git says of this copy's own repository, whichever other one the copy lies in or the environment names."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}
    options: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "timeout": 10, "check": True}
    try:
        top, found = (
            subprocess.run(["git", "-C", str(ROOT), *command], env=environment, **options).stdout.strip()
            for command in (("rev-parse", "--show-toplevel"), arguments)
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found if Path(top).resolve() == ROOT.resolve() else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a number depends on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "captum"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def device_name(device: torch.device) -> str:
    """The processor that the numbers come from, without the name of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def provenance(*, seed: int, params: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Where a result comes from: commit, dirty flag, seed, parameters, versions, device."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", "manifold_lib", "notebooks", "data")
    return {
        "git": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "seed": seed,
        "params": params,
        "versions": versions(),
        "device": device_name(device),
    }
