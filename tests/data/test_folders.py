import os
import socket

import pytest
import torchvision.datasets as tvd

from manifold_lib.core import files
from manifold_lib.data import datasets, folders as places


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
        (tmp_path / "given").mkdir()
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


def test_the_folder_that_is_given(monkeypatch, tmp_path):
    monkeypatch.delenv("MANIFOLD_DATA", raising=False)
    assert places.data_folder() is None
    monkeypatch.setenv("MANIFOLD_DATA", "  ")
    assert places.data_folder() is None
    monkeypatch.setenv("MANIFOLD_DATA", str(tmp_path / "a" / ".."))
    assert places.data_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MANIFOLD_DATA", "~/sets")
    assert places.data_folder() == tmp_path / "sets"


def test_a_folder_that_is_not_there_or_cannot_be_read_is_named(folders, tmp_path, monkeypatch):
    given = tmp_path / "given"
    monkeypatch.setenv("MANIFOLD_DATA", str(given))
    for reason in "No such file or directory", "Not a directory", "Permission denied":
        with pytest.raises(datasets.DataNotFound, match=f"{given} cannot be read: {reason}. Correct MANIFOLD_DATA"):
            datasets.load("xray")
        given.touch()
        if reason == "Not a directory":

            def scandir(path):
                raise PermissionError(13, "Permission denied", str(path))

            monkeypatch.setattr(os, "scandir", scandir)


def test_a_silent_server_and_a_closed_door_are_told_apart(folders, monkeypatch):
    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(tvd.MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        with pytest.raises(datasets.DataNotFound, match=r"The download failed: .*timed out.* Provide it"):
            datasets.load("mnist")
    with pytest.raises(datasets.DataNotFound, match=r"The download failed: .*[Rr]efused.* Provide it"):
        datasets.load("mnist")
    assert socket.getdefaulttimeout() is None
