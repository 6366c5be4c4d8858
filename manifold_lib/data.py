"""Data sets as tensors: downloaded through torchvision, or found under ``MANIFOLD_DATA``.

``MANIFOLD_DATA`` is only ever read. What torchvision would unpack beside the archives is unpacked
into ``data/cache``. Checksums are compared before a file is trusted, and before any pickle is opened.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import pickle
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.datasets as tvd
from torch import Tensor

from . import runtime, storage


class Dataset(NamedTuple):
    """Images in [0, 1] (N, C, H, W) or points (N, D), labels (N,), the sha256 of both, and a remark."""

    inputs: Tensor
    labels: Tensor
    checksum: str
    note: str = ""


class DataNotFound(FileNotFoundError):
    """Says what was looked for, where, and the two ways to provide it."""


_FOLDERS = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw", "emnist": "EMNIST/raw"}
_CIFAR = "cifar-10-batches-py"
_XRAY = "chest_xray_64.npz"


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
    storage.CorruptFile
        When a file does not match its published checksum.
    """
    base = name.removesuffix("32")
    if base not in LOADERS or (base != name and base not in _FOLDERS):
        names = sorted(LOADERS) + [f"{known}32" for known in _FOLDERS]
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


# --- torchvision's sets -----------------------------------------------------------------------


def _find(relative: str, *, bare: bool = False) -> Path | None:
    """A file under ``MANIFOLD_DATA``, or in the cache; ``bare`` also takes it without its folder.

    MNIST and Fashion-MNIST share their file names, so theirs need the folder.
    """
    names = [relative, Path(relative).name] if bare else [relative]
    folders = [folder for folder in (runtime.data_folder(), runtime.CACHE) if folder is not None]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def _missing(what: str, relatives: list[str], *, other_way: str = "") -> DataNotFound:
    folder = runtime.data_folder()
    places = [str(folder)] if folder else ["MANIFOLD_DATA (not set)"]
    other_way = other_way or "run `make data` on a machine with a network, which downloads it into data/cache"
    return DataNotFound(
        f"{what}: looked for {', '.join(relatives)} in {' and in '.join([*places, 'data/cache'])}. "
        f"Provide it in one of two ways: set MANIFOLD_DATA to a folder that holds {relatives[0]}, or {other_way}."
    )


def _check_md5(path: Path, md5: str, content: bytes | None = None) -> None:
    """Compare a file, or its content just read, with its published checksum."""
    found = storage.file_hash(path, "md5") if content is None else hashlib.md5(content).hexdigest()
    if found != md5:
        raise storage.CorruptFile(
            f"{path}: does not match its published MD5 {md5}. It is incomplete or was changed; replace it."
        )


@contextlib.contextmanager
def _download(what: str, relatives: list[str]) -> Iterator[None]:
    """Run a torchvision download, its chatter swallowed; a failure becomes :class:`DataNotFound`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (OSError, RuntimeError) as error:
        raise _missing(what, relatives) from error


def _idx(name: str, dataset: type[tvd.MNIST], train: bool) -> tuple[Tensor, Tensor, str]:
    """MNIST and Fashion-MNIST: archives are verified and unpacked into the cache, each in one step."""
    folder = _FOLDERS[name]
    archives = [f"{folder}/{file}" for file, _ in dataset.resources]
    with storage.locked(runtime.CACHE / folder):
        for archive, (_, md5) in zip(archives, dataset.resources, strict=True):
            unpacked = (runtime.CACHE / archive).with_suffix("")
            found = _find(archive)
            if found is not None and not unpacked.is_file():
                _check_md5(found, md5)
                storage.write_bytes(unpacked, gzip.decompress(found.read_bytes()))
        if not all((runtime.CACHE / archive).with_suffix("").is_file() for archive in archives):
            with _download(name, archives):
                dataset(runtime.CACHE, train=train, download=True)
        try:
            split_ = dataset(runtime.CACHE, train=train)
        except (RuntimeError, ValueError, AssertionError) as error:
            files = ", ".join(Path(archive).stem for archive in archives)
            raise storage.CorruptFile(f"{runtime.CACHE / folder}: one of {files} is incomplete; delete them") from error
    return split_.data[:, None].float() / 255, split_.targets.long(), ""


def _mnist(train: bool) -> tuple[Tensor, Tensor, str]:
    return _idx("mnist", tvd.MNIST, train)


def _fashion(train: bool) -> tuple[Tensor, Tensor, str]:
    return _idx("fashion", tvd.FashionMNIST, train)


def _emnist(train: bool) -> tuple[Tensor, Tensor, str]:
    """EMNIST letters, labels 0 to 25, images turned upright (the files hold them transposed)."""
    archive = f"{_FOLDERS['emnist']}/gzip.zip"
    with storage.locked(runtime.CACHE / _FOLDERS["emnist"]):
        target = runtime.CACHE / archive
        found = _find(archive, bare=True)
        if found is not None and not target.exists():
            _check_md5(found, tvd.EMNIST.md5)
            storage.write_bytes(target, found.read_bytes())
        with _download("emnist", [archive]):
            split_ = tvd.EMNIST(runtime.CACHE, split="letters", train=train, download=True)
    return split_.data.transpose(1, 2)[:, None].float() / 255, split_.targets.long() - 1, ""


def _cifar10(train: bool) -> tuple[Tensor, Tensor, str]:
    """CIFAR-10 from its official batches, whichever of the five training files are there."""
    known = dict(tvd.CIFAR10.train_list if train else tvd.CIFAR10.test_list)
    with storage.locked(runtime.CACHE / _CIFAR):
        present = _cifar_files(known)
        if not present:
            _fetch_cifar(train, known)
            present = _cifar_files(known)
    images, labels = [], []
    for file, path in present.items():
        content = path.read_bytes()
        _check_md5(path, known[file], content)
        batch = pickle.loads(content, encoding="latin1")
        images.append(torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32))
        labels.append(torch.tensor(batch["labels"]))
    note = "" if len(present) == len(known) else f"{len(present)} of {len(known)} training files: {', '.join(present)}"
    return torch.cat(images).float() / 255, torch.cat(labels), note


def _cifar_files(known: dict[str, str]) -> dict[str, Path]:
    found = {file: _find(f"{_CIFAR}/{file}") for file in known}
    return {file: path for file, path in found.items() if path is not None}


def _fetch_cifar(train: bool, known: dict[str, str]) -> None:
    """Unpack the archive, or download it, into the cache."""
    archive = _find(tvd.CIFAR10.filename, bare=True)
    if archive is None:
        with _download("cifar10", [f"{_CIFAR}/{file}" for file in known]):
            tvd.CIFAR10(runtime.CACHE, train=train, download=True)
        return
    _check_md5(archive, tvd.CIFAR10.tgz_md5)
    with tempfile.TemporaryDirectory(dir=runtime.CACHE) as aside:
        shutil.unpack_archive(archive, aside, filter="data")
        (Path(aside) / _CIFAR).replace(runtime.CACHE / _CIFAR)


# --- the others ---------------------------------------------------------------------------------


def _xray(train: bool) -> tuple[Tensor, Tensor, str]:
    """Chest X-rays (Kermany et al.) at 64 px: 0 normal, 1 pneumonia."""
    relative = f"chest_xray_pneumonia/{_XRAY}"
    path = _find(relative, bare=True)
    if path is None:
        raise _missing(
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
        raise storage.CorruptFile(
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
    "mnist": _mnist,
    "fashion": _fashion,
    "emnist": _emnist,
    "cifar10": _cifar10,
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
        except (DataNotFound, storage.CorruptFile) as error:
            failed = True
            print(f"{name:8} MISSING  {error}")
        else:
            sizes = " + ".join(f"{len(part.labels):,}" for part in parts)
            print(f"{name:8} ok  {sizes} of shape {tuple(parts[0].inputs.shape[1:])} {parts[0].note}")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
