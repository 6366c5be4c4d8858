import os
import pickle
import tarfile
import zipfile

import pytest
import torch
import torchvision.datasets as tvd
from files_of_sets import idx, images_and_labels, md5, snapshot

from manifold_lib.core import files
from manifold_lib.data import datasets, folders as places

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
