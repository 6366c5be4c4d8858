"""The data sets of torchvision: found under ``MANIFOLD_DATA`` or in ``data/cache``, else downloaded there.

``MANIFOLD_DATA`` is only ever read: archives are unpacked into ``data/cache``. Checksums are compared before a file is
trusted, and before any pickle is opened.
"""

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
Split = tuple[Tensor, Tensor, str]  # images in [0, 1] (N, C, H, W), labels (N,), and a remark


def _verified(path: Path, md5: str) -> bytes:
    """The content of a file, which matches its published checksum."""
    content = path.read_bytes()
    if hashlib.md5(content).hexdigest() != md5:
        cause = "It is incomplete or was changed; replace it."
        raise files.CorruptFile(f"{path}: does not match its published MD5 {md5}. {cause}")
    return content


def mnist(train: bool, name: str = "mnist") -> Split:
    """MNIST, or ``fashion``, Fashion-MNIST; each archive is unpacked in one step."""
    import torchvision.datasets as tvd

    dataset, folder = {"mnist": tvd.MNIST, "fashion": tvd.FashionMNIST}[name], folders.CACHE / FOLDERS[name]
    unpacked = [folder / Path(file).stem for file, _ in dataset.resources]
    with files.locked(folder):
        for (file, md5), target in zip(dataset.resources, unpacked, strict=True):
            found = find(f"{FOLDERS[name]}/{file}")
            if found is not None and not target.is_file():
                files.write_bytes(target, gzip.decompress(_verified(found, md5)))
        if not all(target.is_file() for target in unpacked):
            with download(name, [f"{FOLDERS[name]}/{file}" for file, _ in dataset.resources]):
                dataset(folders.CACHE, train=train, download=True)
        try:
            part = dataset(folders.CACHE, train=train)
        except (RuntimeError, ValueError, AssertionError) as error:
            names = ", ".join(target.name for target in unpacked)
            raise files.CorruptFile(f"{folder}: one of {names} is incomplete; delete them") from error
    return part.data[:, None].float() / 255, part.targets.long(), ""


def emnist(train: bool) -> Split:
    """EMNIST letters, labels 0 to 25, images turned upright (the files hold them transposed)."""
    import torchvision.datasets as tvd

    archive = f"{FOLDERS['emnist']}/gzip.zip"
    with files.locked(folders.CACHE / FOLDERS["emnist"]):
        found, target = find(archive, bare=True), folders.CACHE / archive
        if found is not None and not target.exists():
            files.write_bytes(target, _verified(found, tvd.EMNIST.md5))
        with download("emnist", [archive]):
            part = tvd.EMNIST(folders.CACHE, split="letters", train=train, download=True)
    return part.data.transpose(1, 2)[:, None].float() / 255, part.targets.long() - 1, ""


def cifar10(train: bool) -> Split:
    """CIFAR-10 from its official batches, whichever of the five training files are there."""
    import torchvision.datasets as tvd

    known = dict(tvd.CIFAR10.train_list if train else tvd.CIFAR10.test_list)
    with files.locked(folders.CACHE / _CIFAR):
        if not any(find(f"{_CIFAR}/{file}") for file in known):
            _fetch_cifar(train, [f"{_CIFAR}/{file}" for file in known])
        present = {file: path for file in known if (path := find(f"{_CIFAR}/{file}")) is not None}
    batches = [pickle.loads(_verified(path, known[file]), encoding="latin1") for file, path in present.items()]
    images = torch.cat([torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32) for batch in batches])
    labels = torch.tensor([label for batch in batches for label in batch["labels"]])
    note = "" if len(present) == len(known) else f"{len(present)} of {len(known)} training files: {', '.join(present)}"
    return images.float() / 255, labels, note


def _fetch_cifar(train: bool, needed: list[str]) -> None:
    """Unpack the archive, or download it, into the cache."""
    import torchvision.datasets as tvd

    archive = find(tvd.CIFAR10.filename, bare=True)
    if archive is None:
        with download("cifar10", needed):
            tvd.CIFAR10(folders.CACHE, train=train, download=True)
        return
    _verified(archive, tvd.CIFAR10.tgz_md5)
    with tempfile.TemporaryDirectory(dir=folders.CACHE) as aside:
        shutil.unpack_archive(archive, aside, filter="data")
        (Path(aside) / _CIFAR).replace(folders.CACHE / _CIFAR)
