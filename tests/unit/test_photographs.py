"""Photographs and pretrained networks, on small files that the tests make and on random weights."""

import functools

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
import torchvision.datasets as tvd
from PIL import Image

import manifold_lib as ml
from manifold_lib import photographs, storage, training
from manifold_lib.archives import DataNotFound

COLOURS = {"Beagle": (200, 30, 30), "great_dane": (30, 200, 30), "Sphynx": (30, 30, 200)}


def paint(file, colour, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 40, (30, 44, 3)) + np.array(colour)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.fixture
def pets(given_folder):
    for i in range(60):
        breed = list(COLOURS)[i % 3]
        paint(given_folder / "oxford-iiit-pet/images" / f"{breed}_{i}.jpg", COLOURS[breed], i)
    return given_folder


@pytest.fixture
def flowers(given_folder):
    folder = given_folder / "flowers-102"
    for number in range(1, 7):
        paint(folder / "jpg" / f"image_{number:05d}.jpg", (40 * number, 0, 0), number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 1, 3, 2, 1, 3]])})
    splits = {"trnid": np.array([[1, 3]]), "valid": np.array([[5, 2, 6]]), "tstid": np.array([[4]])}
    scipy.io.savemat(folder / "setid.mat", splits)
    return given_folder


def test_a_twentieth_of_the_pets_is_held_out(pets):
    held, rest = photographs.find_photos("pets"), photographs.find_photos("pets", train=True)
    assert len(held.files) == 3 and len(rest.files) == 57 and not set(held.files) & set(rest.files)
    assert held.classes == rest.classes == ("Beagle", "Sphynx", "great_dane")
    for file, label in zip(rest.files, rest.labels, strict=True):
        assert file.stem.startswith(rest.classes[label])
    assert photographs.find_photos("pets").files == held.files


def test_flowers_come_in_the_order_of_their_split(flowers):
    held = photographs.find_photos("flowers")
    assert [file.name for file in held.files] == ["image_00005.jpg", "image_00002.jpg", "image_00006.jpg"]
    assert held.labels.tolist() == [0, 0, 2] and len(held.classes) == 3
    assert photographs.find_photos("flowers", train=True).labels.tolist() == [1, 2]


def test_photos_are_resized_without_their_aspect(pets):
    found = photographs.find_photos("pets", train=True)
    images = photographs.read_photos(found, range(4), size=24)
    assert images.shape == (4, 3, 24, 24) and images.min() >= 0 and images.max() <= 1
    for image, label in zip(images, found.labels, strict=False):
        expected = COLOURS[found.classes[label]]
        assert image.mean((1, 2)).argmax() == np.argmax(expected)


def test_a_damaged_photo_is_named(pets):
    found = photographs.find_photos("pets")
    found.files[1].write_bytes(found.files[1].read_bytes()[:40])
    with pytest.raises(storage.CorruptFile, match=found.files[1].name):
        photographs.read_photos(found, range(3))


@pytest.mark.parametrize(
    ("name", "dataset", "place"), [("pets", "OxfordIIITPet", "oxford-iiit-pet"), ("flowers", "Flowers102", "jpg")]
)
def test_missing_photos_say_what_where_and_two_ways(given_folder, monkeypatch, name, dataset, place):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(tvd, dataset, unreachable)
    with pytest.raises(DataNotFound) as caught:
        photographs.find_photos(name)
    message = str(caught.value)
    assert all(word in message for word in (name, place, "MANIFOLD_DATA", str(given_folder), "data/cache"))


def test_missing_weights_say_so(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(DataNotFound, match="resnet18: torchvision could not download"):
        photographs.photo_network("resnet18", 3)
    with pytest.raises(ValueError, match="name"):
        photographs.photo_network("resnet19", 3)
    with pytest.raises(ValueError, match="name"):
        photographs.find_photos("cats")


@pytest.mark.parametrize("name", photographs.NETWORKS)
def test_the_heads_are_the_released_ones(name):
    torch.manual_seed(0)
    model = photographs.photo_network(name, 7, pretrained=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        scores = model(images)
    assert scores.shape == (2, 7) and not model.training
    kinds = [type(part).__name__ for part in getattr(model[1], photographs.NETWORKS[name]).modules()]
    wanted = ["Sequential", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"] if name == "vgg16" else ["Linear"]
    assert kinds == wanted
    maps = ml.integrated_gradients(model, images, 3, n_steps=2)  # its first layer is in place
    assert maps.shape == images.shape


def test_a_head_is_fitted_once_and_then_read(pets, monkeypatch):
    built = functools.partial(photographs.photo_network, pretrained=False)

    def network(name, n_classes):
        torch.manual_seed(0)
        return built(name, n_classes)

    monkeypatch.setattr(photographs, "photo_network", network)
    original, fitted = photographs.fit_head, []

    def quickly(model, found, **options):
        fitted.append(len(found.files))
        original(model, found, size=32, epochs=25, **options)

    monkeypatch.setattr(photographs, "fit_head", quickly)
    first = photographs.photo_classifier("pets", "resnet18")
    again = photographs.photo_classifier("pets", "resnet18")
    assert fitted == [57]
    found = photographs.find_photos("pets", train=True)
    images = photographs.read_photos(found, range(57), size=32)
    assert training.accuracy(first, images, found.labels) > 0.8
    torch.testing.assert_close(again(images[:4]), first(images[:4]), atol=2e-2, rtol=1e-2)
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
