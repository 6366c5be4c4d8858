import hashlib
import os

import numpy as np
import pytest
import torch

from manifold_lib.core import files
from manifold_lib.data import datasets, folders as places


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


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
    assert lines[::2] == [f"{name:8} ..." for name in datasets.LOADERS], "what is at work is seen"
    lines = lines[1::2]
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
