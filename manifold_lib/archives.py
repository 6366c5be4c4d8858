"""The data sets of torchvision: found under ``MANIFOLD_DATA`` or in ``data/cache``, else downloaded there.

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
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision.datasets as tvd
from torch import Tensor

from . import runtime, storage


class DataNotFound(FileNotFoundError):
    """Says what was looked for, where, and the two ways to provide it."""


FOLDERS = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw", "emnist": "EMNIST/raw"}
_CIFAR = "cifar-10-batches-py"


def find(relative: str, *, bare: bool = False) -> Path | None:
    """A file under ``MANIFOLD_DATA``, or in the cache; ``bare`` also takes it without its folder.

    MNIST and Fashion-MNIST share their file names, so theirs need the folder.
    """
    names = [relative, Path(relative).name] if bare else [relative]
    folders = [folder for folder in (runtime.data_folder(), runtime.CACHE) if folder is not None]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def missing(what: str, relatives: list[str], *, other_way: str = "") -> DataNotFound:
    """The error to raise for a set that is not there."""
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
def download(what: str, relatives: list[str]) -> Iterator[None]:
    """Run a torchvision download, its chatter swallowed; a failure becomes :class:`DataNotFound`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (OSError, RuntimeError) as error:
        raise missing(what, relatives) from error


def _idx(name: str, dataset: type[tvd.MNIST], train: bool) -> tuple[Tensor, Tensor, str]:
    """MNIST and Fashion-MNIST: archives are verified and unpacked into the cache, each in one step."""
    folder = FOLDERS[name]
    archives = [f"{folder}/{file}" for file, _ in dataset.resources]
    with storage.locked(runtime.CACHE / folder):
        for archive, (_, md5) in zip(archives, dataset.resources, strict=True):
            unpacked = (runtime.CACHE / archive).with_suffix("")
            found = find(archive)
            if found is not None and not unpacked.is_file():
                _check_md5(found, md5)
                storage.write_bytes(unpacked, gzip.decompress(found.read_bytes()))
        if not all((runtime.CACHE / archive).with_suffix("").is_file() for archive in archives):
            with download(name, archives):
                dataset(runtime.CACHE, train=train, download=True)
        try:
            split_ = dataset(runtime.CACHE, train=train)
        except (RuntimeError, ValueError, AssertionError) as error:
            files = ", ".join(Path(archive).stem for archive in archives)
            raise storage.CorruptFile(f"{runtime.CACHE / folder}: one of {files} is incomplete; delete them") from error
    return split_.data[:, None].float() / 255, split_.targets.long(), ""


def mnist(train: bool) -> tuple[Tensor, Tensor, str]:
    """MNIST."""
    return _idx("mnist", tvd.MNIST, train)


def fashion(train: bool) -> tuple[Tensor, Tensor, str]:
    """Fashion-MNIST."""
    return _idx("fashion", tvd.FashionMNIST, train)


def emnist(train: bool) -> tuple[Tensor, Tensor, str]:
    """EMNIST letters, labels 0 to 25, images turned upright (the files hold them transposed)."""
    archive = f"{FOLDERS['emnist']}/gzip.zip"
    with storage.locked(runtime.CACHE / FOLDERS["emnist"]):
        target = runtime.CACHE / archive
        found = find(archive, bare=True)
        if found is not None and not target.exists():
            _check_md5(found, tvd.EMNIST.md5)
            storage.write_bytes(target, found.read_bytes())
        with download("emnist", [archive]):
            split_ = tvd.EMNIST(runtime.CACHE, split="letters", train=train, download=True)
    return split_.data.transpose(1, 2)[:, None].float() / 255, split_.targets.long() - 1, ""


def cifar10(train: bool) -> tuple[Tensor, Tensor, str]:
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
    found = {file: find(f"{_CIFAR}/{file}") for file in known}
    return {file: path for file, path in found.items() if path is not None}


def _fetch_cifar(train: bool, known: dict[str, str]) -> None:
    """Unpack the archive, or download it, into the cache."""
    archive = find(tvd.CIFAR10.filename, bare=True)
    if archive is None:
        with download("cifar10", [f"{_CIFAR}/{file}" for file in known]):
            tvd.CIFAR10(runtime.CACHE, train=train, download=True)
        return
    _check_md5(archive, tvd.CIFAR10.tgz_md5)
    with tempfile.TemporaryDirectory(dir=runtime.CACHE) as aside:
        shutil.unpack_archive(archive, aside, filter="data")
        (Path(aside) / _CIFAR).replace(runtime.CACHE / _CIFAR)
