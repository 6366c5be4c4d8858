"""Paper 5's own setting: Oxford Pets and Flowers 102 at 256 px, torchvision's pretrained networks, heads of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
import torchvision.datasets as tvd
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision.transforms import Normalize
from torchvision.transforms.functional import pil_to_tensor

from . import archives, runtime, storage, training
from .archives import DataNotFound
from .checks import check_choice, check_count

SETS = ("pets", "flowers")
# torchvision's name of each network, and of its last part
NETWORKS = {"resnet18": "fc", "vgg16": "classifier", "googlenet": "fc"}
_PETS, _FLOWERS = "oxford-iiit-pet/images", "flowers-102"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(NamedTuple):
    """Photographs on disk, read when they are needed: their files, labels (N,), and the names of the classes."""

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def find_photos(name: str, *, train: bool = False) -> Photos:
    """Pets: a random twentieth of all files (370) to evaluate, the rest to train; Flowers: its val and train splits.

    Both as in the released code, which draws the pets with seed 42 and without the official split, from files in an
    order it does not fix; ours are sorted.

    Raises
    ------
    DataNotFound
        When the files are neither found nor to be downloaded.
    """
    return {"pets": _pets, "flowers": _flowers}[check_choice(name, "name", SETS)](train)


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


def read_photos(photos: Photos, rows: range, *, size: int = 256) -> Tensor:
    """Some photographs in [0, 1], resized without keeping their aspect, not cropped: (n, 3, size, size)."""
    images = []
    for row in rows:
        try:
            with Image.open(photos.files[row]) as image:
                images.append(pil_to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
        except OSError as error:
            raise storage.CorruptFile(f"{photos.files[row]}: not an image that can be read: {error}") from error
    return torch.stack(images).float() / 255


def photo_network(name: str, n_classes: int, *, pretrained: bool = True) -> nn.Sequential:
    """One of the paper's networks behind the normalisation of ImageNet, for images in [0, 1], its head still random.

    The heads are the released code's: one linear layer, and for VGG-16 two around batch norm, ReLU and dropout.

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
        network.fc = nn.Linear(network.fc.in_features, n_classes)
    return nn.Sequential(Normalize(_MEAN, _STD), network).eval()


def fit_head(
    model: nn.Sequential,
    photos: Photos,
    *,
    size: int = 256,
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Train the head of a :func:`photo_network` in place on the features of its frozen rest, each photo passed once.

    The paper's recipe is not known; this is ours: cross-entropy, Adam at 1e-3.
    """
    network = model[1]
    name = next(name for name in ("classifier", "fc") if hasattr(network, name))
    head, device = getattr(network, name), next(network.parameters()).device
    setattr(network, name, nn.Identity())
    try:
        blocks = runtime.progress_bar(
            range(0, len(photos.files), batch_size), show=progress, desc="features of the photographs"
        )
        rows = (range(start, min(start + batch_size, len(photos.files))) for start in blocks)
        with torch.no_grad():
            features = torch.cat([model(read_photos(photos, part, size=size).to(device)).cpu() for part in rows])
    finally:
        setattr(network, name, head)
    while batch_size > 2 and len(features) % batch_size == 1:
        batch_size -= 1  # batch norm has no statistics of one photograph
    options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": 1e-3, "seed": seed}
    training.fit(head, training.classification_loss, (features, photos.labels), **options)
    head.eval()


def photo_classifier(
    set_name: str, name: str, *, device: torch.device | str = "cpu", progress: bool = False
) -> nn.Module:
    """A pretrained network with a head for one of the sets, in eval mode and frozen; the head is kept in the cache."""
    photos = find_photos(set_name, train=True)
    model = photo_network(name, len(photos.classes)).to(device)
    file = runtime.CACHE / "heads" / f"{set_name}-{name}.safetensors"
    head = getattr(model[1], NETWORKS[name])
    with storage.locked(file.with_suffix("")):
        if file.exists() and file.with_suffix(".json").exists():
            storage.load_weights(file, head, json.loads(file.with_suffix(".json").read_text())["sha256"])
        else:
            fit_head(model, photos, progress=progress)
            storage.write_json(file.with_suffix(".json"), {"sha256": storage.save_weights(file, head)})
    return model.eval().requires_grad_(False)
