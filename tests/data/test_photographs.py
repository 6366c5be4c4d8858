"""Photographs, on small files that the tests make."""

import numpy as np
import pytest
import torch
import torchvision.datasets as tvd
from files_of_sets import COLOURS, PLACES
from PIL import Image
from torch.utils.data import DataLoader

from manifold_lib.core import files
from manifold_lib.core.files import DataNotFound
from manifold_lib.data import photographs


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


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="name"):
        photographs.find_photos("cats")
