"""Photographs and pretrained networks, on small files that the tests make and on random weights."""

import functools

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
import torchvision.datasets as tvd
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models.convnext import CNBlockConfig

import manifold_lib as ml
from manifold_lib.core import files
from manifold_lib.data import photographs
from manifold_lib.core.files import DataNotFound
from manifold_lib.reproduction import training

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


ANNOTATION = "<annotation><folder>VOC2012</folder>{}</annotation>"
THING = "<object><name>{}</name><part><name>head</name></part></object>"  # a part is no class
PLACES = {"aeroplane": 0, "dog": 11, "tvmonitor": 19}


@pytest.fixture
def voc(given_folder):
    """Forty photographs of half an aeroplane, a dog or a screen; those of even number show a dog too."""
    folder = given_folder / "VOCdevkit/VOC2012"
    for i in range(40):
        shown = {list(PLACES)[i % 3], "dog"} if i % 2 == 0 else {list(PLACES)[i % 3]}
        paint(folder / "JPEGImages" / f"{i:04d}.jpg", list(COLOURS.values())[i % 3], i)
        things = "".join(THING.format(name) for name in sorted(shown))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{i:04d}.xml").write_text(ANNOTATION.format(things))
    (folder / "ImageSets/Main").mkdir(parents=True)
    for split, numbers in (("train", range(24)), ("val", range(24, 40))):
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{i:04d}\n" for i in numbers))
    return given_folder


def test_voc_comes_in_the_order_of_the_released_loader_with_every_class_shown(voc):
    held, rest = photographs.find_photos("voc"), photographs.find_photos("voc", train=True)
    loader = DataLoader(
        tvd.VOCDetection(voc, image_set="val", transform=lambda image: 0),
        batch_size=1,
        shuffle=True,
        generator=torch.Generator().manual_seed(2),
        collate_fn=lambda batch: batch[0][1]["annotation"]["object"],
    )
    assert held.labels.shape == (16, 20) and len(held.classes) == 20
    for labels, things in zip(held.labels, loader, strict=True):
        assert {held.classes[i] for i in labels.nonzero()[:, 0]} == {thing["name"] for thing in things}
    assert sorted(file.stem for file in held.files) == [f"{i:04d}" for i in range(24, 40)]
    for file, labels in zip([*rest.files, *held.files], [*rest.labels, *held.labels], strict=True):
        number = int(file.stem)
        expected = {list(PLACES.values())[number % 3]} | ({11} if number % 2 == 0 else set())
        assert set(labels.nonzero()[:, 0].tolist()) == expected
    assert [file.stem for file in rest.files] == [f"{i:04d}" for i in range(24)]


def test_the_middle_of_a_photo_keeps_its_aspect(voc):
    file = voc / "VOCdevkit/VOC2012/JPEGImages/0024.jpg"
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(file, quality=100, subsampling=0)
    found = photographs.find_photos("voc")
    row = found.files.index(file)
    middle = photographs.read_photos(found, range(row, row + 1), size=20, crop=True)
    squeezed = photographs.read_photos(found, range(row, row + 1), size=20)
    assert middle.shape == squeezed.shape == (1, 3, 20, 20)
    assert middle.mean() > 0.95 and squeezed.mean() < 0.4


def test_the_head_of_a_convnext_is_its_last_layer_fitted_to_every_class_by_itself(voc, monkeypatch):
    def network(name, n_classes):
        torch.manual_seed(0)
        blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
        tiny = torchvision.models.ConvNeXt(blocks, num_classes=5)
        monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: tiny)
        return build(name, n_classes)

    build, original = photographs.photo_network, photographs.fit_head

    def quickly(model, part, found, size, **options):
        assert part == "classifier.2" and size == 224
        before = {key: value.clone() for key, value in model.state_dict().items()}
        original(model, part, found, size=32, epochs=300, batch_size=8, **options)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == {"1.classifier.2.weight", "1.classifier.2.bias"}

    monkeypatch.setattr(photographs, "photo_network", network)
    monkeypatch.setattr(photographs, "fit_head", quickly)
    model = photographs.photo_classifier("voc", "convnext_base")
    found = photographs.find_photos("voc", train=True)
    images = photographs.read_photos(found, range(24), size=32)
    with torch.no_grad():
        scores = model(images)
    assert scores.shape == (24, 20) and not model.training
    common = scores.sigmoid()[:, 11][found.labels[:, 11] == 1].mean() - scores.sigmoid()[:, 1].mean()
    assert common > 0.2  # dogs are shown, bicycles are not
    with pytest.warns(RuntimeWarning, match="converged"):
        maps = ml.energy_ig(torch.nn.Sequential(model, torch.nn.Sigmoid()), images[:2], 11, n_steps=4, max_iter=2)
    assert maps.isfinite().all()


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
    with pytest.raises(files.CorruptFile, match=found.files[1].name):
        photographs.read_photos(found, range(3))


@pytest.mark.parametrize(
    ("name", "dataset", "place"),
    [
        ("pets", "OxfordIIITPet", "oxford-iiit-pet"),
        ("flowers", "Flowers102", "jpg"),
        ("voc", "VOCDetection", "VOCdevkit/VOC2012"),
    ],
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
    kinds = [type(part).__name__ for part in model[1].get_submodule(photographs.NETWORKS[name]).modules()]
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

    def quickly(model, part, found, size, **options):
        fitted.append((len(found.files), size))
        original(model, part, found, size=32, epochs=25, **options)

    monkeypatch.setattr(photographs, "fit_head", quickly)
    first = photographs.photo_classifier("pets", "resnet18")
    again = photographs.photo_classifier("pets", "resnet18")
    assert fitted == [(57, 256)]
    found = photographs.find_photos("pets", train=True)
    images = photographs.read_photos(found, range(57), size=32)
    assert training.accuracy(first, images, found.labels) > 0.8
    torch.testing.assert_close(again(images[:4]), first(images[:4]), atol=2e-2, rtol=1e-2)
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
