import gzip
import hashlib
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision.datasets as tvd

from manifold_lib.core import files
from manifold_lib.data import datasets
from manifold_lib.data import folders as places

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


@pytest.fixture
def mnist(given_folder, monkeypatch):
    """A tiny MNIST and Fashion-MNIST under MANIFOLD_DATA, with torchvision's checksums to match."""
    for dataset, name in ((tvd.MNIST, "MNIST"), (tvd.FashionMNIST, "FashionMNIST")):
        raw, resources = given_folder / name / "raw", []
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            for kind, array in zip(("images-idx3", "labels-idx1"), images_and_labels(part), strict=True):
                file = raw / f"{part}-{kind}-ubyte.gz"
                file.write_bytes(idx(255 - array if name == "FashionMNIST" and array.ndim == 3 else array))
                resources.append((file.name, md5(file)))
        monkeypatch.setattr(dataset, "resources", resources)
    return given_folder


@pytest.fixture
def cifar(given_folder, monkeypatch):
    """A tiny CIFAR-10 under MANIFOLD_DATA: five training files of two images, and a test file."""
    folder = given_folder / "cifar-10-batches-py"
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


# --- MNIST, Fashion-MNIST -------------------------------------------------------------------------


def test_mnist_from_a_folder_that_is_only_read(mnist):
    before = snapshot(mnist)
    for path in sorted(mnist.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    train, test = datasets.load("mnist"), datasets.load("mnist", train=False)
    images, labels = images_and_labels("train")
    assert train.inputs.shape == (6, 1, 28, 28) and train.inputs.dtype == torch.float32
    assert torch.equal(train.inputs[:, 0], torch.from_numpy(images).float() / 255)
    assert train.labels.tolist() == labels.tolist() and train.labels.dtype == torch.int64
    assert test.inputs.shape == (4, 1, 28, 28) and train.note == ""
    assert not torch.equal(datasets.load("fashion").inputs, train.inputs)
    assert snapshot(mnist) == before, "MANIFOLD_DATA is byte-identical, its times too"


def test_mnist_again_from_the_cache(mnist, monkeypatch):
    first = datasets.load("mnist32")
    monkeypatch.delenv("MANIFOLD_DATA")
    second = datasets.load("mnist32")
    assert second.checksum == first.checksum
    assert second.inputs.shape == (6, 1, 32, 32) and second.inputs.min() >= 0 and second.inputs.max() <= 1


def test_checksums_tell_sets_apart(mnist):
    assert len({datasets.load(name).checksum for name in ("mnist", "mnist32", "fashion", "fashion32")}) == 4


def test_a_corrupt_archive_is_named(mnist):
    archive = mnist / "MNIST/raw/train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-5])
    with pytest.raises(files.CorruptFile, match=r"MNIST/raw/train-images-idx3-ubyte\.gz: does not match"):
        datasets.load("mnist")
    assert not list(places.CACHE.rglob("*-ubyte"))


def test_a_half_unpacked_file_is_not_used(mnist, monkeypatch):
    raw = places.CACHE / "MNIST/raw"
    datasets.load("mnist")
    whole = datasets.load("mnist").checksum
    unpacked = raw / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:-100])
    try:
        assert datasets.load("mnist").checksum == whole
    except files.CorruptFile as error:
        assert "train-images-idx3-ubyte" in str(error)


def test_a_folder_of_one_set_is_not_taken_for_another(mnist, monkeypatch):
    """The files of MNIST are named like Fashion-MNIST's, so their folder must be there to tell them apart."""
    monkeypatch.setenv("MANIFOLD_DATA", str(mnist / "MNIST/raw"))
    with pytest.raises(datasets.DataNotFound):
        datasets.load("fashion")


@pytest.mark.parametrize("set_", [True, False])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("fashion32", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("emnist", "EMNIST/raw/gzip.zip"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("xray", "chest_xray_pneumonia/chest_xray_64.npz"),
    ],
)
def test_missing_data_says_what_where_and_two_ways(folders, tmp_path, monkeypatch, name, file, set_):
    if set_:
        monkeypatch.setenv("MANIFOLD_DATA", str(tmp_path / "given"))
    with pytest.raises(datasets.DataNotFound) as error:
        datasets.load(name)
    message = str(error.value)
    assert file in message and "data/cache" in message
    assert (str(tmp_path / "given") if set_ else "MANIFOLD_DATA (not set)") in message
    assert "set MANIFOLD_DATA to a folder that holds" in message
    if name != "xray":
        assert "make data" in message


def test_the_missing_xray_set_is_not_said_to_be_downloaded(folders):
    with pytest.raises(datasets.DataNotFound) as error:
        datasets.load("xray")
    assert "downloads it" not in str(error.value)


# --- EMNIST ---------------------------------------------------------------------------------------


def test_emnist_letters_upright(given_folder, monkeypatch):
    archive = given_folder / "EMNIST/raw/gzip.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        for part in ("train", "test"):
            for kind, array in zip(("images-idx3", "labels-idx1"), images_and_labels(part, 1), strict=True):
                file.writestr(f"gzip/emnist-letters-{part}-{kind}-ubyte.gz", idx(array))
    monkeypatch.setattr(tvd.EMNIST, "md5", md5(archive))
    before = snapshot(given_folder)
    letters = datasets.load("emnist")
    images, _ = images_and_labels("train", 1)
    assert torch.equal(letters.inputs[:, 0], torch.from_numpy(images).transpose(1, 2).float() / 255)
    assert letters.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert datasets.load("emnist32", train=False).inputs.shape == (4, 1, 32, 32)
    assert snapshot(given_folder) == before
    monkeypatch.setattr(tvd.EMNIST, "md5", "0" * 32)
    monkeypatch.setattr(places, "CACHE", places.CACHE / "another")
    with pytest.raises(files.CorruptFile, match=r"gzip\.zip"):
        datasets.load("emnist")


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_cifar(cifar):
    before = snapshot(cifar.parent)
    train, test = datasets.load("cifar10"), datasets.load("cifar10", train=False)
    assert train.inputs.shape == (10, 3, 32, 32) and test.inputs.shape == (2, 3, 32, 32)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and train.note == test.note == ""
    assert train.inputs[0, 0, 0, 0] == 1 and train.inputs[4, 1, 3, 3] == pytest.approx(2 / 255)
    assert snapshot(cifar.parent) == before


def test_a_part_of_cifar_says_so(cifar):
    for number in (1, 3, 4):
        (cifar / f"data_batch_{number}").unlink()
    part = datasets.load("cifar10")
    assert part.labels.tolist() == [1, 9, 4, 9]
    assert part.note == "2 of 5 training files: data_batch_2, data_batch_5"
    assert datasets.load("cifar10", train=False).note == ""


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_opened_before_its_checksum(cifar, tmp_path):
    (cifar / "data_batch_2").write_bytes(pickle.dumps(Malicious(tmp_path / "touched")))
    with pytest.raises(files.CorruptFile, match="data_batch_2: does not match its published MD5"):
        datasets.load("cifar10")
    assert not (tmp_path / "touched").exists()


def test_cifar_from_its_archive(cifar, monkeypatch):
    archive = cifar.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(cifar, arcname="cifar-10-batches-py")
    for path in cifar.iterdir():
        path.unlink()
    cifar.rmdir()
    with pytest.raises(files.CorruptFile, match=r"cifar-10-python\.tar\.gz"):
        datasets.load("cifar10")
    monkeypatch.setattr(tvd.CIFAR10, "tgz_md5", md5(archive))
    before = snapshot(archive.parent)
    assert len(datasets.load("cifar10").labels) == 10
    assert snapshot(archive.parent) == before
    assert (places.CACHE / "cifar-10-batches-py/data_batch_1").is_file()


# --- X-ray ----------------------------------------------------------------------------------------


def write_xray(folder, **more):
    arrays = {"train_images": np.full((3, 64, 64), 51, np.uint8), "train_labels": np.array([[0], [1], [1]])}
    arrays |= {"test_images": np.zeros((1, 64, 64), np.uint8), "test_labels": np.array([[1]]), **more}
    path = folder / "chest_xray_pneumonia/chest_xray_64.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_xray(given_folder):
    write_xray(given_folder)
    train = datasets.load("xray")
    assert train.inputs.shape == (3, 1, 64, 64) and train.inputs.unique().tolist() == [pytest.approx(0.2)]
    assert train.labels.tolist() == [0, 1, 1]
    assert datasets.load("xray", train=False).labels.tolist() == [1]


def test_a_corrupt_xray_archive_is_named(given_folder):
    path = write_xray(given_folder)
    content = path.read_bytes()
    for broken in (content[:-200], b"", b"not an archive", content[:100] + b"????" + content[104:]):
        path.write_bytes(broken)
        with pytest.raises(files.CorruptFile, match=r"chest_xray_64\.npz: not an archive"):
            datasets.load("xray")


def test_an_xray_archive_without_its_keys_or_with_pickles_is_named(given_folder, tmp_path):
    for broken in (None, np.array([Malicious(tmp_path / "touched")], dtype=object)):
        write_xray(given_folder, train_labels=broken)
        with pytest.raises(files.CorruptFile, match="train_labels"):
            datasets.load("xray")
    assert not (tmp_path / "touched").exists()


# --- embedded sets, names, splits -----------------------------------------------------------------


def test_embedded_sets(folders):
    digits = [datasets.load("digits", train=train) for train in (True, False)]
    assert [tuple(part.inputs.shape) for part in digits] == [(1437, 1, 8, 8), (360, 1, 8, 8)]
    assert digits[0].inputs.min() == 0 and digits[0].inputs.max() == 1
    moons = [datasets.load("moons", train=train) for train in (True, False)]
    assert [tuple(part.inputs.shape) for part in moons] == [(1000, 2), (1000, 2)]
    assert not torch.equal(moons[0].inputs, moons[1].inputs)
    assert datasets.load("moons").checksum == moons[0].checksum
    assert not places.CACHE.exists()


@pytest.mark.parametrize("name", ["imagenet", "cifar1032", "digits32", "mnist3232", ""])
def test_unknown_names_are_refused(folders, name):
    with pytest.raises(ValueError, match=r"name: got .* wants one of .*mnist32"):
        datasets.load(name)


def test_split(folders):
    digits = datasets.load("digits")
    first, second = datasets.split(digits, 0.2, seed=1)
    assert len(first.labels) == 1150 and len(second.labels) == 287
    rows = torch.cat([first.inputs, second.inputs]).flatten(1)
    assert torch.equal(rows.sum(0), digits.inputs.flatten(1).sum(0)), "every row is in one part"
    assert datasets.split(digits, 0.2, seed=1)[1].checksum == second.checksum
    assert datasets.split(digits, 0.2, seed=2)[1].checksum != second.checksum


def test_tensor_hash():
    tensor = torch.arange(6).reshape(2, 3)
    assert datasets.tensor_hash(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert datasets.tensor_hash(tensor.T) != datasets.tensor_hash(tensor)


def test_main_says_what_is_there(mnist, cifar, capsys):
    (cifar / "data_batch_1").unlink()
    with pytest.raises(SystemExit) as error:
        datasets.main()
    assert error.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["mnist", "ok"],
        ["fashion", "ok"],
        ["emnist", "MISSING"],
        ["cifar10", "ok"],
        ["xray", "MISSING"],
        ["digits", "ok"],
        ["moons", "ok"],
    ]
    assert "4 of 5 training files" in lines[3]


# --- the real sets, where they are ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "sizes"),
    [
        ("mnist", "MNIST/raw", (60_000, 10_000)),
        ("fashion", "FashionMNIST/raw", (60_000, 10_000)),
        ("cifar10", "cifar-10-batches-py", (50_000, 10_000)),
        ("xray", "chest_xray_pneumonia/chest_xray_64.npz", (5_216, 624)),
    ],
)
def test_real_sets(real_data, name, folder, sizes):
    given = real_data(folder)
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    for train, size in zip((True, False), sizes, strict=True):
        part = datasets.load(name, train=train)
        assert len(part.labels) == len(part.inputs) and (len(part.labels) == size or part.note)
        assert part.inputs.min() >= 0 and part.inputs.max() == 1
        assert part.labels.unique().tolist() == list(range(2 if name == "xray" else 10))
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*")} == before
