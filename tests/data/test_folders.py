import pytest

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
