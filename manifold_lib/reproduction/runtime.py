"""Folders, device, seed and provenance."""

import importlib.metadata
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.progress import progress_bar as progress_bar
from ..data import folders

ROOT = Path(__file__).resolve().parents[2]
MODELS = folders.DATA / "models"
FIGURES = ROOT / "figures"
BUILD = ROOT / ".build"
PROFILES = ("smoke", "small", "paper")


def resolve_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the GPU where there is one, else the CPU; any torch device name is kept."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but torch sees no GPU; use 'cpu' or 'auto'")
    return resolved


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
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
