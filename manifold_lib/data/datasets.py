"""Data sets as tensors: torchvision's (:mod:`manifold_lib.data.archives`), chest X-rays, digits and half-moons."""

import functools
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
from .archives import Split


class Dataset(NamedTuple):
    """Images in [0, 1] (N, C, H, W) or points (N, D), labels (N,), the sha256 of both, and a remark."""

    inputs: Tensor
    labels: Tensor
    checksum: str
    note: str = ""


def load(name: str, *, train: bool = True) -> Dataset:
    """The training or the test split of a data set.

    ``name`` is ``mnist``, ``fashion``, ``emnist`` (letters), ``cifar10``, ``xray``, ``digits`` or ``moons``, or
    ``mnist32``, ``fashion32``, ``emnist32``, resized to 32×32. Raises ``DataNotFound`` when the files are neither found
    nor can be downloaded, and ``CorruptFile`` when one does not match its published checksum.

    >>> load("digits", train=False).inputs.shape
    torch.Size([360, 1, 8, 8])
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
    """sha256 over the bytes of tensors, for provenance.

    >>> tensor_hash(torch.arange(3))[:8]
    'ab25350e'
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Shuffle and cut in two: the second part holds ``fraction`` of the rows.

    >>> [len(part.labels) for part in split(load("moons"), 0.2, seed=0)]
    [800, 200]
    """
    order = torch.randperm(len(dataset.labels), generator=torch.Generator().manual_seed(seed))
    parts = []
    for rows in order.tensor_split([len(order) - round(fraction * len(order))]):
        inputs, labels = dataset.inputs[rows], dataset.labels[rows]
        parts.append(Dataset(inputs, labels, tensor_hash(inputs, labels), dataset.note))
    return parts[0], parts[1]


def _xray(train: bool) -> Split:
    """Chest X-rays (Kermany et al.) at 64 px: 0 normal, 1 pneumonia."""
    relative = "chest_xray_pneumonia/chest_xray_64.npz"
    if (path := folders.find(relative, bare=True)) is None:
        other_way = "make the file as data/README.md describes and put it into data/cache"
        raise folders.missing("xray", [relative], other_way=other_way)
    part = "train" if train else "test"
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} does not match its CRC")
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        wants = f"{part}_images (N, 64, 64) uint8 and {part}_labels (N, 1)"
        raise files.CorruptFile(f"{path}: not an archive with {wants}: {error}") from error
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).flatten().long(), ""


def _digits(train: bool) -> Split:
    """scikit-learn's 8×8 digits; every fifth image is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = (np.arange(len(bunch.target)) % 5 == 0) != train
    return torch.from_numpy(bunch.images[rows]).float()[:, None] / 16, torch.from_numpy(bunch.target[rows]).long(), ""


def _moons(train: bool) -> Split:
    """A thousand points of the half-moons in the plane; train and test are two draws."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(1000, noise=0.1, random_state=0 if train else 1)
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long(), ""


LOADERS: dict[str, Callable[[bool], Split]] = {
    "mnist": archives.mnist,
    "fashion": functools.partial(archives.mnist, name="fashion"),
    "emnist": archives.emnist,
    "cifar10": archives.cifar10,
    "xray": _xray,
    "digits": _digits,
    "moons": _moons,
}


def main() -> None:
    """Fetch and verify every set (``make data``): say which, then what came of it; exit 1 if one is not whole."""
    failed = False
    for name in LOADERS:
        print(f"{name:8} ...", flush=True)
        try:
            parts = [load(name, train=train) for train in (True, False)]
        except (DataNotFound, files.CorruptFile) as error:
            failed = True
            print(f"{name:8} MISSING  {error}")
        else:
            sizes = " + ".join(f"{len(part.labels):,}" for part in parts)
            print(f"{name:8} ok  {sizes} of shape {tuple(parts[0].inputs.shape[1:])} {parts[0].note}")
    raise SystemExit(int(failed))
