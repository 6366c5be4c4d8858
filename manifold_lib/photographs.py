"""The photographs of papers 4 (Pascal VOC) and 5 (Oxford Pets, Flowers 102), and pretrained networks, heads our own."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
import torchvision.datasets as tvd
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import Normalize
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from . import archives, runtime, storage, training
from .archives import DataNotFound
from .checks import check_choice, check_count

SETS = ("pets", "flowers", "voc")
# torchvision's name of each network, and of its last part
NETWORKS = {"resnet18": "fc", "vgg16": "classifier", "googlenet": "fc", "convnext_base": "classifier.2"}
MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_PETS, _FLOWERS, _VOC = "oxford-iiit-pet/images", "flowers-102", "VOCdevkit/VOC2012"
_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Photos(NamedTuple):
    """Photographs on disk, read when they are needed: their files, labels, and the names of the classes.

    Labels are (N,), or of 0 and 1, (N, classes), where a photograph can show several.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def find_photos(name: str, *, train: bool = False) -> Photos:
    """Pets: a random twentieth of all files (370) to evaluate, the rest to train; Flowers and VOC: val and train.

    All as in the released codes. That of paper 5 draws the pets with seed 42 and without the official split, from
    files in an order it does not fix; ours are sorted. That of paper 4 explains the first 100 of VOC 2012's val split
    in the order of a loader shuffled with seed 2: so they come here.

    Raises
    ------
    DataNotFound
        When the files are neither found nor to be downloaded.
    """
    return {"pets": _pets, "flowers": _flowers, "voc": _voc}[check_choice(name, "name", SETS)](train)


def _pets(train: bool) -> Photos:
    with archives.download("pets", [_PETS]):
        root = _root(_PETS, lambda: tvd.OxfordIIITPet(runtime.CACHE, download=True))
    files = sorted((root / _PETS).glob("*.jpg"))
    parts = train_test_split(files, test_size=0.05, random_state=42)
    return _labelled(parts[0 if train else 1], sorted({_breed(file) for file in files}), _breed)


def _flowers(train: bool) -> Photos:
    import scipy.io

    needed = f"{_FLOWERS}/setid.mat"
    with archives.download("flowers", [f"{_FLOWERS}/jpg", f"{_FLOWERS}/imagelabels.mat", needed]):
        root = _root(needed, lambda: tvd.Flowers102(runtime.CACHE, download=True)) / _FLOWERS
    labels = scipy.io.loadmat(root / "imagelabels.mat", squeeze_me=True)["labels"]
    numbers = scipy.io.loadmat(root / "setid.mat", squeeze_me=True)["trnid" if train else "valid"]
    kinds = {root / f"jpg/image_{number:05d}.jpg": f"{labels[number - 1]:03d}" for number in numbers}
    return _labelled(list(kinds), sorted({f"{label:03d}" for label in labels}), kinds.__getitem__)


def _voc(train: bool) -> Photos:
    with archives.download("voc", [f"{_VOC}/JPEGImages", f"{_VOC}/Annotations", f"{_VOC}/ImageSets/Main"]):
        root = _root(_VOC, lambda: tvd.VOCDetection(runtime.CACHE, download=True))
        found = tvd.VOCDetection(root, image_set="train" if train else "val")
    order = list(range(len(found)))
    if not train:
        order = list(DataLoader(order, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(2)))
    labels = torch.zeros(len(found), len(_VOC_CLASSES))
    for row, index in enumerate(order):
        for name in ElementTree.parse(found.annotations[index]).iterfind("object/name"):
            labels[row, _VOC_CLASSES.index(str(name.text))] = 1
    return Photos(tuple(Path(found.images[index]) for index in order), labels, _VOC_CLASSES)


def _breed(file: Path) -> str:
    return file.stem.rsplit("_", 1)[0]


def _labelled(files: list[Path], classes: list[str], kind: Callable[[Path], str]) -> Photos:
    return Photos(tuple(files), torch.tensor([classes.index(kind(file)) for file in files]), tuple(classes))


def _root(needed: str, fetch: Callable[[], Any]) -> Path:
    """The folder that holds what is needed, after a download if there is none."""
    folders = [folder for folder in (runtime.data_folder(), runtime.CACHE) if folder is not None]
    for folder in folders:
        if (folder / needed).exists():
            return folder
    fetch()
    return runtime.CACHE


def read_photos(photos: Photos, rows: range, *, size: int = 256, crop: bool = False) -> Tensor:
    """Some photographs in [0, 1], (n, 3, size, size), squeezed into a square as in paper 5.

    With ``crop`` the square in their middle, the shorter side at ``size``, which is what paper 4 explains.
    """
    images = []
    for row in rows:
        try:
            with Image.open(photos.files[row]) as image:
                image = image.convert("RGB")
                square = center_crop(resize(image, size), size) if crop else resize(image, [size, size])
                images.append(pil_to_tensor(square))
        except OSError as error:
            raise storage.CorruptFile(f"{photos.files[row]}: not an image that can be read: {error}") from error
    return torch.stack(images).float() / 255


def photo_network(name: str, n_classes: int, *, pretrained: bool = True) -> nn.Sequential:
    """One of the paper's networks behind the normalisation of ImageNet, for images in [0, 1], its head still random.

    The heads are the released codes': one linear layer, and for VGG-16 two around batch norm, ReLU and dropout.

    Raises
    ------
    DataNotFound
        When torchvision cannot download the pretrained weights.
    """
    check_choice(name, "name", tuple(NETWORKS))
    check_count(n_classes, "n_classes")
    if pretrained:
        try:
            network = torchvision.models.get_model(name, weights="DEFAULT")
        except OSError as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise DataNotFound(
                f"{name}: torchvision could not download its pretrained weights. Provide them in one of two ways: put "
                f"torchvision's file into {folder}, or run where there is a network."
            ) from error
    else:
        more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **more)
    if name == "vgg16":
        inner = nn.Linear(512 * 7 * 7, 150)
        network.classifier = nn.Sequential(
            inner, nn.BatchNorm1d(150), nn.ReLU(), nn.Dropout(0.5), nn.Linear(150, n_classes)
        )
    else:
        last = network.get_submodule(NETWORKS[name])
        network.set_submodule(NETWORKS[name], nn.Linear(last.in_features, n_classes))
    return nn.Sequential(Normalize(MEAN, _STD), network).eval()


def fit_head(
    model: nn.Sequential,
    part: str,
    photos: Photos,
    *,
    size: int = 256,
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Train the last ``part`` of a :func:`photo_network` in place, on features of its frozen rest that are taken once.

    Paper 5's recipe is not known and paper 4's stops early on the photographs it evaluates with; this is ours:
    cross-entropy, or that of each class by itself where a photograph can show several, and Adam at 1e-3.
    """
    network = model[1]
    head, device = network.get_submodule(part), next(network.parameters()).device
    network.set_submodule(part, nn.Identity())
    try:
        blocks = runtime.progress_bar(
            range(0, len(photos.files), batch_size), show=progress, desc="features of the photographs"
        )
        every = (range(start, min(start + batch_size, len(photos.files))) for start in blocks)
        with torch.no_grad():
            features = torch.cat([model(read_photos(photos, rows, size=size).to(device)).cpu() for rows in every])
    finally:
        network.set_submodule(part, head)
    while batch_size > 2 and len(features) % batch_size == 1:
        batch_size -= 1  # batch norm has no statistics of one photograph
    options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": 1e-3, "seed": seed}
    loss = training.multilabel_loss if photos.labels.ndim == 2 else training.classification_loss
    training.fit(head, loss, (features, photos.labels), **options)
    head.eval()


def photo_classifier(
    set_name: str, name: str, *, device: torch.device | str = "cpu", progress: bool = False
) -> nn.Module:
    """A pretrained network with a head for one of the sets, in eval mode and frozen; the head is kept in the cache."""
    photos = find_photos(set_name, train=True)
    model = photo_network(name, len(photos.classes)).to(device)
    file = runtime.CACHE / "heads" / f"{set_name}-{name}.safetensors"
    head = model[1].get_submodule(NETWORKS[name])
    with storage.locked(file.with_suffix("")):
        if file.exists() and file.with_suffix(".json").exists():
            storage.load_weights(file, head, json.loads(file.with_suffix(".json").read_text())["sha256"])
        else:
            size = 224 if set_name == "voc" else 256  # as released
            fit_head(model, NETWORKS[name], photos, size=size, progress=progress)
            storage.write_json(file.with_suffix(".json"), {"sha256": storage.save_weights(file, head)})
    return model.eval().requires_grad_(False)
