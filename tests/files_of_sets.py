"""Small files in the form of the published data sets, written where the tests look for them."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tvd
from PIL import Image

from manifold_lib.core import files
from manifold_lib.data import photographs

# --- photographs ----------------------------------------------------------------------------------

COLOURS = {"Beagle": (200, 30, 30), "great_dane": (30, 200, 30), "Sphynx": (30, 30, 200)}


def paint(file, colour, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 40, (30, 44, 3)) + np.array(colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


ANNOTATION = "<annotation><folder>VOC2012</folder>{}</annotation>"
THING = "<object><name>{}</name><part><name>head</name></part></object>"  # a part is no class
PLACES = {"aeroplane": 0, "dog": 11, "tvmonitor": 19}


def write_pets(folder: Path) -> None:
    """Sixty photographs of three breeds, each of a colour of its own."""
    for i in range(60):
        breed = list(COLOURS)[i % 3]
        paint(folder / "oxford-iiit-pet/images" / f"{breed}_{i}.jpg", COLOURS[breed], i)


def write_flowers(folder: Path) -> None:
    """Six flowers of three kinds, with the three splits."""
    folder = folder / "flowers-102"
    for number in range(1, 7):
        paint(folder / "jpg" / f"image_{number:05d}.jpg", (40 * number, 0, 0), number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 1, 3, 2, 1, 3]])})
    splits = {"trnid": np.array([[1, 3]]), "valid": np.array([[5, 2, 6]]), "tstid": np.array([[4]])}
    scipy.io.savemat(folder / "setid.mat", splits)


def write_voc(folder: Path) -> None:
    """Forty photographs of half an aeroplane, a dog or a screen; those of even number show a dog too."""
    folder = folder / "VOCdevkit/VOC2012"
    for i in range(40):
        shown = {list(PLACES)[i % 3], "dog"} if i % 2 == 0 else {list(PLACES)[i % 3]}
        paint(folder / "JPEGImages" / f"{i:04d}.jpg", list(COLOURS.values())[i % 3], i)
        things = "".join(THING.format(name) for name in sorted(shown))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{i:04d}.xml").write_text(ANNOTATION.format(things))
    (folder / "ImageSets/Main").mkdir(parents=True)
    for split, numbers in (("train", range(24)), ("val", range(24, 40))):
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{i:04d}\n" for i in numbers))


# --- archives of torchvision -----------------------------------------------------------------------

SIZES = {"train": 6, "t10k": 4, "test": 4}


def md5(path):
    return files.file_hash(path, "md5")


def idx(array):
    """A gzipped idx file, bytes that repeat."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def images_and_labels(part, first_label=0):
    generator = np.random.default_rng(len(part))
    images = generator.integers(0, 256, (SIZES[part], 28, 28), dtype=np.uint8)
    return images, (np.arange(SIZES[part]) + first_label).astype(np.uint8)


def snapshot(folder):
    """Everything that tells whether a folder was touched."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in sorted(folder.rglob("*"))}


def write_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny MNIST and Fashion-MNIST with torchvision's checksums to match."""
    for dataset, name in ((tvd.MNIST, "MNIST"), (tvd.FashionMNIST, "FashionMNIST")):
        raw, resources = folder / name / "raw", []
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            for kind, array in zip(("images-idx3", "labels-idx1"), images_and_labels(part), strict=True):
                file = raw / f"{part}-{kind}-ubyte.gz"
                file.write_bytes(idx(255 - array if name == "FashionMNIST" and array.ndim == 3 else array))
                resources.append((file.name, md5(file)))
        monkeypatch.setattr(dataset, "resources", resources)


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny CIFAR-10 in its folder: five training files of two images, and a test file."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    known = {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = np.full((2, 3072), number, dtype=np.uint8)
        rows[:, 0] = 255
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [number, 9]}))
        known[name] = [name, md5(folder / name)]
    monkeypatch.setattr(tvd.CIFAR10, "train_list", [known[f"data_batch_{i}"] for i in range(1, 6)])
    monkeypatch.setattr(tvd.CIFAR10, "test_list", [known["test_batch"]])
    return folder


def write_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives of photographs: a hundred and four classes of ImageNet, and three flowers, one with one photograph."""
    known = {}
    with tempfile.TemporaryDirectory() as aside:
        for number in range(104):
            paint(Path(aside, "imagenet") / f"{number:04d}_n{number + 1000:08d}.jpg", (number, 90, 90), number)
        for kind, count in (("001", 1), ("002", 20), ("004", 20)):
            for number in range(count):
                paint(Path(aside, "flowers", kind) / f"image_{kind}{number:02d}.jpg", (10 * number, 0, 0), number)
        for part, name in (("imagenet", "imagenet_sample_224"), ("flowers", "flowers102_subset_128")):
            archive = folder / {"imagenet": "imagenet-sample", "flowers": "flowers-102"}[part] / f"{name}.zip"
            archive.parent.mkdir(parents=True, exist_ok=True)
            shutil.make_archive(str(archive.with_suffix("")), "zip", Path(aside, part))
            known[str(archive.relative_to(folder))] = files.file_hash(archive)
    monkeypatch.setattr(photographs, "_ARCHIVES", known)
    return folder
