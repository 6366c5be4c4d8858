"""Photographs, on small files that the tests make."""

import numpy as np
import pytest
import torch
import torchvision.datasets as tvd
from files_of_sets import COLOURS, PLACES, paint
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


def test_nine_photographs_are_shipped_with_packages():
    found = photographs.find_photos("shipped")
    assert all(file.is_file() for file in found.files) and len(found.classes) == 1000
    shown = {
        file.stem: found.classes[label] for file, label in zip(found.files, found.labels, strict=True) if label >= 0
    }
    assert (shown["coffee"], shown["china"], shown["chelsea"]) == ("espresso", "palace", "Egyptian cat")
    assert not photographs.find_photos("shipped", train=True).files
    images = photographs.read_photos(found, range(len(found.files)), size=32, crop=True)
    assert images.shape == (9, 3, 32, 32)


def test_a_fixed_hundred_of_imagenet_is_held_out(archives):
    held, rest = photographs.find_photos("imagenet"), photographs.find_photos("imagenet", train=True)
    assert len(held.files) == 100 and len(rest.files) == 4 and not set(held.files) & set(rest.files)
    for part in held, rest:
        assert [int(file.name[:4]) for file in part.files] == part.labels.tolist() and len(part.classes) == 1000
    assert photographs.find_photos("imagenet").files == held.files


def test_the_published_sample_of_imagenet_is_taken_as_well(given_folder, monkeypatch):
    folder = given_folder / "imagenet-sample-images"
    monkeypatch.setattr(photographs, "_CLASSES_OF_IMAGENET", 3)
    for number in (9, 2, 5):
        paint(folder / f"n{number:08d}_thing.JPEG", (10 * number, 0, 0), number)
    held = photographs.find_photos("imagenet")
    assert [file.name[8] for file in held.files] == ["2", "5", "9"] and held.labels.tolist() == [0, 1, 2]
    next(folder.glob("*.JPEG")).unlink()
    with pytest.raises(files.CorruptFile, match="holds 2 photographs, wants 3"):
        photographs.find_photos("imagenet")


def test_five_of_each_flower_are_held_out(archives):
    held, rest = photographs.find_photos("flowers90"), photographs.find_photos("flowers90", train=True)
    assert held.classes == rest.classes == ("001", "002", "004")
    assert held.labels.bincount().tolist() == [0, 5, 5] and rest.labels.bincount().tolist() == [1, 15, 15]
    assert not set(held.files) & set(rest.files)


def test_an_archive_is_unpacked_once_and_whole(archives, monkeypatch):
    archive = archives / "flowers-102/flowers102_subset_128.zip"
    content = archive.read_bytes()
    archive.write_bytes(content[:-1])
    with pytest.raises(files.CorruptFile, match="flowers102_subset_128"):
        photographs.find_photos("flowers90")
    archive.write_bytes(content)
    found = photographs.find_photos("flowers90")
    archive.unlink()
    assert photographs.find_photos("flowers90").files == found.files
    with pytest.raises(DataNotFound, match=r"imagenet_sample_224.zip.*data/README.md"):
        (archives / "imagenet-sample/imagenet_sample_224.zip").unlink()
        photographs.find_photos("imagenet")


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


def test_crops_are_windows_of_their_images_and_half_are_mirrored():
    images = torch.arange(400 * 3 * 6 * 9.0).view(400, 3, 6, 9)
    found = photographs.crops(images, 4, torch.Generator().manual_seed(0))
    corners, mirrored = set(), 0
    for image, crop in zip(images, found, strict=True):
        turned = bool(crop[0, 0, 0] > crop[0, 0, 1])
        crop = crop.flip(2) if turned else crop
        i, j = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 9)
        assert torch.equal(crop, image[:, i : i + 4, j : j + 4])
        corners.add((i, j))
        mirrored += turned
    assert len(corners) == 3 * 6 and 150 < mirrored < 250
    whole = photographs.crops(images, 6, torch.Generator().manual_seed(0))
    assert whole.shape == (400, 3, 6, 6)


def test_the_squares_of_the_autoencoder_are_of_two_kinds(archives):
    (seen, kinds), (held, others) = photographs.photograph_squares(True), photographs.photograph_squares(False)
    assert seen.shape == (4 + 31, 3, 160, 160) and kinds.bincount().tolist() == [4, 31]
    assert held.shape == (100 + 10, 3, 128, 128) and others.bincount().tolist() == [100, 10]
