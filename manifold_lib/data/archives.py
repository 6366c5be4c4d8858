"""The data sets of torchvision: found under ``MANIFOLD_DATA`` or in ``data/cache``, else downloaded there.

``MANIFOLD_DATA`` is only ever read. What torchvision would unpack beside the archives is unpacked
into ``data/cache``. Checksums are compared before a file is trusted, and before any pickle is opened.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..core import files
from . import folders
from .folders import download, find

FOLDERS = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw", "emnist": "EMNIST/raw"}
_CIFAR = "cifar-10-batches-py"


def _check_md5(path: Path, md5: str, content: bytes | None = None) -> None:
    """Compare a file, or its content just read, with its published checksum."""
    found = files.file_hash(path, "md5") if content is None else hashlib.md5(content).hexdigest()
    if found != md5:
        raise files.CorruptFile(
            f"{path}: does not match its published MD5 {md5}. It is incomplete or was changed; replace it."
        )


def _idx(name: str, dataset: type, train: bool) -> tuple[Tensor, Tensor, str]:
    """MNIST and Fashion-MNIST: archives are verified and unpacked into the cache, each in one step."""
    folder = FOLDERS[name]
    archives = [f"{folder}/{file}" for file, _ in dataset.resources]
    with files.locked(folders.CACHE / folder):
        for archive, (_, md5) in zip(archives, dataset.resources, strict=True):
            unpacked = (folders.CACHE / archive).with_suffix("")
            found = find(archive)
            if found is not None and not unpacked.is_file():
                _check_md5(found, md5)
                files.write_bytes(unpacked, gzip.decompress(found.read_bytes()))
        if not all((folders.CACHE / archive).with_suffix("").is_file() for archive in archives):
            with download(name, archives):
                dataset(folders.CACHE, train=train, download=True)
        try:
            split_ = dataset(folders.CACHE, train=train)
        except (RuntimeError, ValueError, AssertionError) as error:
            names = ", ".join(Path(archive).stem for archive in archives)
            raise files.CorruptFile(f"{folders.CACHE / folder}: one of {names} is incomplete; delete them") from error
    return split_.data[:, None].float() / 255, split_.targets.long(), ""


def mnist(train: bool) -> tuple[Tensor, Tensor, str]:
    """MNIST."""
    import torchvision.datasets as tvd

    return _idx("mnist", tvd.MNIST, train)


def fashion(train: bool) -> tuple[Tensor, Tensor, str]:
    """Fashion-MNIST."""
    import torchvision.datasets as tvd

    return _idx("fashion", tvd.FashionMNIST, train)


def emnist(train: bool) -> tuple[Tensor, Tensor, str]:
    """EMNIST letters, labels 0 to 25, images turned upright (the files hold them transposed)."""
    import torchvision.datasets as tvd

    archive = f"{FOLDERS['emnist']}/gzip.zip"
    with files.locked(folders.CACHE / FOLDERS["emnist"]):
        target = folders.CACHE / archive
        found = find(archive, bare=True)
        if found is not None and not target.exists():
            _check_md5(found, tvd.EMNIST.md5)
            files.write_bytes(target, found.read_bytes())
        with download("emnist", [archive]):
            split_ = tvd.EMNIST(folders.CACHE, split="letters", train=train, download=True)
    return split_.data.transpose(1, 2)[:, None].float() / 255, split_.targets.long() - 1, ""


def cifar10(train: bool) -> tuple[Tensor, Tensor, str]:
    """CIFAR-10 from its official batches, whichever of the five training files are there."""
    import torchvision.datasets as tvd

    known = dict(tvd.CIFAR10.train_list if train else tvd.CIFAR10.test_list)
    with files.locked(folders.CACHE / _CIFAR):
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
    found = {file: find(f"{_CIFAR}/{file}") for file in known}
    return {file: path for file, path in found.items() if path is not None}


def _fetch_cifar(train: bool, known: dict[str, str]) -> None:
    """Unpack the archive, or download it, into the cache."""
    import torchvision.datasets as tvd

    archive = find(tvd.CIFAR10.filename, bare=True)
    if archive is None:
        with download("cifar10", [f"{_CIFAR}/{file}" for file in known]):
            tvd.CIFAR10(folders.CACHE, train=train, download=True)
        return
    _check_md5(archive, tvd.CIFAR10.tgz_md5)
    with tempfile.TemporaryDirectory(dir=folders.CACHE) as aside:
        shutil.unpack_archive(archive, aside, filter="data")
        (Path(aside) / _CIFAR).replace(folders.CACHE / _CIFAR)
