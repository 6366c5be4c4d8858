"""Photographs: shipped with packages, of ImageNet, and those of papers 4 (Pascal VOC) and 5 (Pets, Flowers 102)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from ..core import files
from ..core.checks import check_choice
from ..core.files import CorruptFile, DataNotFound
from ..models.imagenet import imagenet_classes
from . import folders

_PETS, _FLOWERS, _VOC = "oxford-iiit-pet/images", "flowers-102", "VOCdevkit/VOC2012"
_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Photos(NamedTuple):
    """Photographs on disk, with labels (N,), −1 for none, or of 0 and 1, (N, classes), where one can show several."""

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def find_photos(name: str, *, train: bool = False) -> Photos:
    """The photographs of a set: those to evaluate with, or with ``train`` the others.

    - ``shipped``: nine that come with scikit-image and scikit-learn, with classes of ImageNet; none to train on.
    - ``imagenet``: one of each class, 224 × 224 pixels. A fixed hundred are to evaluate with; the zoo's autoencoder
      has seen the other 900.
    - ``flowers90``: 90 of the 102 flowers, 128 × 128 pixels; five of each are to evaluate with.
    - ``pets``, ``flowers``, ``voc``: as in the released codes. Paper 5 draws a twentieth of the pets (370) with seed 42
      and without the official split, from files in an order it does not fix; ours are sorted. Paper 4 explains the
      first 100 of VOC 2012's val split in the order of a loader shuffled with seed 2; so are ours.

    Raises ``DataNotFound`` when the files are neither found nor can be downloaded, and ``CorruptFile`` when an archive
    does not match its checksum.

    >>> len(find_photos("shipped").files)
    9
    """
    finders = {"shipped": _shipped, "imagenet": _imagenet, "flowers90": _flowers90}
    finders |= {"pets": _pets, "flowers": _flowers, "voc": _voc}
    return finders[check_choice(name, "name", tuple(finders))](train)


# Of scikit-image and of scikit-learn, with a class of ImageNet that they show: Egyptian cat, espresso, missile, moped,
# tripod; palace, daisy. ImageNet has no astronauts and no retinas.
_SKIMAGE = {"chelsea.png": 285, "coffee.png": 967, "rocket.jpg": 657, "motorcycle_left.png": 665, "camera.png": 872}
_SKIMAGE |= {"astronaut.png": -1, "retina.jpg": -1}
_SKLEARN = {"china.jpg": 698, "flower.jpg": 985}


def _shipped(train: bool) -> Photos:
    import skimage
    import sklearn

    roots = (Path(str(module.__file__)).parent for module in (skimage, sklearn))
    places = zip(roots, ("data", "datasets/images"), (_SKIMAGE, _SKLEARN), strict=True)
    labels = {Path(root, part, file): label for root, part, some in places for file, label in some.items()}
    if lost := [str(file) for file in labels if not file.is_file()]:
        raise DataNotFound(
            f"shipped: looked for {', '.join(lost)}. Install scikit-image and scikit-learn anew, as published."
        )
    return Photos(
        () if train else tuple(labels), torch.tensor([] if train else [*labels.values()]).long(), imagenet_classes()
    )


_ARCHIVES = {
    "imagenet-sample/imagenet_sample_224.zip": "6d76546be608c4367fd71a5fca18ba98b1a3cc652c73e57f20c33596be17cad8",
    "flowers-102/flowers102_subset_128.zip": "5b8577e7936a28fd06922674f8e18cdea695b22cca4f5cf639eb370dae8097a7",
}


def _unpacked(archive: str) -> Path:
    """The folder in the cache into which an archive of photographs is unpacked, whole or not at all."""
    target = folders.CACHE / archive.removesuffix(".zip")
    with files.locked(target):
        if not target.is_dir():
            if (found := folders.find(archive)) is None:
                raise folders.missing(archive, [archive], other_way="put the archive of data/README.md into data/cache")
            if files.file_hash(found) != _ARCHIVES[archive]:
                raise CorruptFile(f"{found}: does not match its SHA-256 {_ARCHIVES[archive][:16]}…. Replace it.")
            staged = files.staging_folder(target)
            shutil.unpack_archive(found, staged)
            files.replace_folder(staged, target)
    return target


_CLASSES_OF_IMAGENET = 1000


def _imagenet(train: bool) -> Photos:
    if (folder := folders.find("imagenet-sample-images")) is not None:
        found = sorted(folder.glob("n*.JPEG"))  # as published; the names of classes sort as their numbers do
        if len(found) != _CLASSES_OF_IMAGENET:
            raise CorruptFile(
                f"{folder}: holds {len(found)} photographs, wants {_CLASSES_OF_IMAGENET}, one of each class"
            )
    else:
        found = sorted(_unpacked("imagenet-sample/imagenet_sample_224.zip").rglob("*.jpg"))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(42)).tolist()
    rows = sorted(order[100:] if train else order[:100])
    numbers = [row if folder else int(found[row].name.split("_")[0]) for row in rows]
    return Photos(tuple(found[row] for row in rows), torch.tensor(numbers), imagenet_classes())


def _flowers90(train: bool) -> Photos:
    found = sorted(_unpacked("flowers-102/flowers102_subset_128.zip").rglob("*.jpg"))
    kinds = {file: file.parent.name for file in found}
    place = {file: row for kind in set(kinds.values()) for row, file in enumerate(f for f in found if kinds[f] == kind)}
    # class 1 has one photograph, which is to train on
    return _labelled({f: kind for f, kind in kinds.items() if (place[f] < 15) == train}, sorted(set(kinds.values())))


def _pets(train: bool) -> Photos:
    import torchvision.datasets as tvd
    from sklearn.model_selection import train_test_split

    with folders.download("pets", [_PETS]):
        root = _root(_PETS, lambda: tvd.OxfordIIITPet(folders.CACHE, download=True))
    kinds = {file: file.stem.rsplit("_", 1)[0] for file in sorted((root / _PETS).glob("*.jpg"))}
    parts = train_test_split(list(kinds), test_size=0.05, random_state=42)
    return _labelled({file: kinds[file] for file in parts[0 if train else 1]}, sorted(set(kinds.values())))


def _flowers(train: bool) -> Photos:
    import scipy.io
    import torchvision.datasets as tvd

    needed = f"{_FLOWERS}/setid.mat"
    with folders.download("flowers", [f"{_FLOWERS}/jpg", f"{_FLOWERS}/imagelabels.mat", needed]):
        root = _root(needed, lambda: tvd.Flowers102(folders.CACHE, download=True)) / _FLOWERS
    labels = [f"{label:03d}" for label in scipy.io.loadmat(root / "imagelabels.mat", squeeze_me=True)["labels"]]
    numbers = scipy.io.loadmat(root / "setid.mat", squeeze_me=True)["trnid" if train else "valid"]
    return _labelled({root / f"jpg/image_{n:05d}.jpg": labels[n - 1] for n in numbers}, sorted(set(labels)))


def _voc(train: bool) -> Photos:
    import torchvision.datasets as tvd
    from torch.utils.data import DataLoader

    with folders.download("voc", [f"{_VOC}/JPEGImages", f"{_VOC}/Annotations", f"{_VOC}/ImageSets/Main"]):
        root = _root(_VOC, lambda: tvd.VOCDetection(folders.CACHE, download=True))
        found = tvd.VOCDetection(root, image_set="train" if train else "val")
    order: Any = range(len(found))
    if not train:
        order = list(DataLoader(order, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(2)))
    labels = torch.zeros(len(order), len(_VOC_CLASSES))
    for row, index in enumerate(order):
        for name in ElementTree.parse(found.annotations[index]).iterfind("object/name"):
            labels[row, _VOC_CLASSES.index(str(name.text))] = 1
    return Photos(tuple(Path(found.images[index]) for index in order), labels, _VOC_CLASSES)


def _labelled(kinds: dict[Path, str], classes: list[str]) -> Photos:
    return Photos(tuple(kinds), torch.tensor([classes.index(kind) for kind in kinds.values()]), tuple(classes))


def _root(needed: str, fetch: Callable[[], Any]) -> Path:
    """The folder that holds what is needed, after a download if there is none."""
    if (found := folders.find(needed)) is None:
        fetch()
        return folders.CACHE
    return found.parents[len(Path(needed).parts) - 1]


def read_photos(photos: Photos, rows: range, *, size: int = 256, crop: bool = False) -> Tensor:
    """Some photographs in [0, 1], (n, 3, size, size), squeezed into a square as in paper 5.

    With ``crop`` the square in their middle, the shorter side at ``size``, which is what paper 4 explains.
    """
    from PIL import Image
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    images = []
    for row in rows:
        try:
            with Image.open(photos.files[row]) as image:
                image = image.convert("RGB")
                square = center_crop(resize(image, size), size) if crop else resize(image, [size, size])
                images.append(pil_to_tensor(square))
        except OSError as error:
            raise CorruptFile(f"{photos.files[row]}: not an image that can be read: {error}") from error
    return torch.stack(images).float() / 255


def photograph_squares(train: bool) -> tuple[Tensor, Tensor]:
    """What the zoo's autoencoder is trained on, at 160 pixels, or tested with, at 128: (N, 3, s, s) and 0 or 1, (N,).

    0 are photographs of ImageNet, 1 are flowers. Those to test with are also those that the notebooks explain.
    """
    sets, size = [find_photos(name, train=train) for name in ("imagenet", "flowers90")], 160 if train else 128
    squares = [read_photos(photos, range(len(photos.files)), size=size, crop=True) for photos in sets]
    return torch.cat(squares), torch.tensor([row for row, some in enumerate(squares) for _ in some])


def crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A square out of each image (N, C, H, W), anywhere in it, half of them mirrored: (N, C, size, size).

    >>> crops(torch.rand(2, 3, 16, 20), 8, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    places = [torch.randint(side - size + 1, (len(images),), generator=generator).tolist() for side in images.shape[2:]]
    squares = [x[:, i : i + size, j : j + size] for x, i, j in zip(images, *places, strict=True)]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], torch.stack(squares).flip(3), torch.stack(squares))
