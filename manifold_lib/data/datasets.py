"""Data sets as tensors: torchvision's (:mod:`manifold_lib.data.archives`), chest X-rays, digits and half-moons."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import files
from ..core.files import DataNotFound
from . import archives, folders

_XRAY = "chest_xray_64.npz"


class Dataset(NamedTuple):
    """Images in [0, 1] (N, C, H, W) or points (N, D), labels (N,), the sha256 of both, and a remark."""

    inputs: Tensor
    labels: Tensor
    checksum: str
    note: str = ""


def load(name: str, *, train: bool = True) -> Dataset:
    """One split of a data set.

    Parameters
    ----------
    name : str
        ``mnist``, ``fashion``, ``emnist`` (letters), ``cifar10``, ``xray``, ``digits`` or ``moons``.
        A trailing ``32`` (``mnist32``, ``fashion32``, ``emnist32``) resizes to 32×32.
    train : bool
        The training split, else the test split.

    Raises
    ------
    DataNotFound
        When the files are neither found nor to be downloaded.
    files.CorruptFile
        When a file does not match its published checksum.
    """
    base = name.removesuffix("32")
    if base not in LOADERS or (base != name and base not in archives.FOLDERS):
        names = sorted(LOADERS) + [f"{known}32" for known in archives.FOLDERS]
        raise ValueError(f"name: got {name!r}, wants one of {', '.join(names)}")
    inputs, labels, note = LOADERS[base](train)
    if base != name:
        inputs = F.interpolate(inputs, size=(32, 32), mode="bilinear", align_corners=False)
    return Dataset(inputs, labels, tensor_hash(inputs, labels), note)


def tensor_hash(*tensors: Tensor) -> str:
    """sha256 over the bytes of tensors, for provenance."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Shuffle and cut in two: the second part holds ``fraction`` of the rows."""
    order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(seed))
    cut = len(order) - round(fraction * len(order))
    parts = []
    for rows in (order[:cut], order[cut:]):
        inputs, labels = dataset.inputs[rows], dataset.labels[rows]
        parts.append(Dataset(inputs, labels, tensor_hash(inputs, labels), dataset.note))
    return parts[0], parts[1]


def _xray(train: bool) -> tuple[Tensor, Tensor, str]:
    """Chest X-rays (Kermany et al.) at 64 px: 0 normal, 1 pneumonia."""
    relative = f"chest_xray_pneumonia/{_XRAY}"
    path = folders.find(relative, bare=True)
    if path is None:
        raise folders.missing(
            "xray", [relative], other_way="make the file as data/README.md describes and put it into data/cache"
        )
    part = "train" if train else "test"
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} does not match its CRC")
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive[f"{part}_images"], archive[f"{part}_labels"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise files.CorruptFile(
            f"{path}: not an archive with {part}_images (N, 64, 64) uint8 and {part}_labels (N, 1): {error}"
        ) from error
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).flatten().long(), ""


def _digits(train: bool) -> tuple[Tensor, Tensor, str]:
    """scikit-learn's 8×8 digits; every fifth image is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = np.arange(len(bunch.target)) % 5 == 0
    rows = ~test if train else test
    inputs = torch.from_numpy(bunch.images[rows]).float()[:, None] / 16
    return inputs, torch.from_numpy(bunch.target[rows]).long(), ""


def _moons(train: bool, n_samples: int = 1000, noise: float = 0.1) -> tuple[Tensor, Tensor, str]:
    """Half-moons in the plane; train and test are two draws."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(n_samples, noise=noise, random_state=0 if train else 1)
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long(), ""


LOADERS: dict[str, Callable[[bool], tuple[Tensor, Tensor, str]]] = {
    "mnist": archives.mnist,
    "fashion": archives.fashion,
    "emnist": archives.emnist,
    "cifar10": archives.cifar10,
    "xray": _xray,
    "digits": _digits,
    "moons": _moons,
}


def main() -> None:
    """Fetch and verify every set (``make data``): a line each, and exit 1 if one is missing or corrupt."""
    failed = False
    for name in LOADERS:
        try:
            parts = [load(name, train=train) for train in (True, False)]
        except (DataNotFound, files.CorruptFile) as error:
            failed = True
            print(f"{name:8} MISSING  {error}")
        else:
            sizes = " + ".join(f"{len(part.labels):,}" for part in parts)
            print(f"{name:8} ok  {sizes} of shape {tuple(parts[0].inputs.shape[1:])} {parts[0].note}")
    raise SystemExit(int(failed))
