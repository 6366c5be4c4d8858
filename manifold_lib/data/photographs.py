"""The photographs of papers 4 (Pascal VOC) and 5 (Oxford Pets, Flowers 102)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.files import CorruptFile
from . import folders

_PETS, _FLOWERS, _VOC = "oxford-iiit-pet/images", "flowers-102", "VOCdevkit/VOC2012"
_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Photos(NamedTuple):
    """Photographs on disk, with labels (N,), or of 0 and 1, (N, classes), where a photograph can show several."""

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def find_photos(name: str, *, train: bool = False) -> Photos:
    """Pets: a random twentieth of all files (370) to evaluate, the rest to train; Flowers and VOC: val and train.

    All as in the released codes. That of paper 5 draws the pets with seed 42 and without the official split, from
    files in an order it does not fix; ours are sorted. That of paper 4 explains the first 100 of VOC 2012's val split
    in the order of a loader shuffled with seed 2; so are ours. Raises ``DataNotFound`` when the files are neither found
    nor can be downloaded.

    >>> dogs_and_cats = find_photos("pets")  # doctest: +SKIP
    """
    finders = {"pets": _pets, "flowers": _flowers, "voc": _voc}
    return finders[check_choice(name, "name", tuple(finders))](train)


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
