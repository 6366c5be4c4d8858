"""Pretrained networks for the photographs of papers 4 and 5, with heads of our own."""

import copy
import hashlib
import inspect
import itertools
import json
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..core import files
from ..core.checks import check_count
from ..core.progress import progress_bar
from ..data import folders
from ..data.photographs import Photos, find_photos, read_photos
from ..models.imagenet import MEAN as MEAN, NETWORKS, imagenet_network
from . import training


def photo_network(name: str, n_classes: int, *, pretrained: bool = True) -> nn.Sequential:
    """A network of :func:`manifold_lib.imagenet_network` with a random head for ``n_classes`` classes.

    The heads are the released codes': one linear layer, and for VGG-16 two around batch norm, ReLU and dropout.
    """
    check_count(n_classes, "n_classes")
    model = imagenet_network(name, pretrained=pretrained)
    network: nn.Module = model[1]
    part = NETWORKS[name].head
    if name == "vgg16":
        first, last = nn.Linear(512 * 7 * 7, 150), nn.Linear(150, n_classes)
        head: nn.Module = nn.Sequential(first, nn.BatchNorm1d(150), nn.ReLU(), nn.Dropout(0.5), last)
    else:
        replaced: Any = network.get_submodule(part)
        head = nn.Linear(replaced.in_features, n_classes)
    network.set_submodule(part, head.eval())
    return model


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
    """Train the last ``part`` of a :func:`photo_network` in place, on features that its frozen rest computes once.

    Paper 5's recipe is not known and paper 4's stops early on the photographs it evaluates with; this is ours:
    cross-entropy, or that of each class by itself where a photograph can show several, and Adam at 1e-3.
    """
    network = model[1]
    head, device = network.get_submodule(part), next(network.parameters()).device
    network.set_submodule(part, nn.Identity())
    try:
        n_photos = len(photos.files)
        blocks = progress_bar(range(0, n_photos, batch_size), show=progress, desc="features of the photographs")
        every = (range(start, min(start + batch_size, n_photos)) for start in blocks)
        with torch.no_grad():
            features = torch.cat([model(read_photos(photos, rows, size=size).to(device)).cpu() for rows in every])
    finally:
        network.set_submodule(part, head)
    while batch_size > 2 and len(features) % batch_size == 1:
        batch_size -= 1  # batch norm has no statistics of one photograph
    loss = training.multilabel_loss if photos.labels.ndim == 2 else training.classification_loss
    data = (features, photos.labels)
    training.fit(head, loss, data, epochs=epochs, batch_size=batch_size, learning_rate=1e-3, seed=seed)
    head.eval()


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode whose batch norms are folded into the convolutions before them.

    Its scores are the same but for rounding. EfficientNet-Lite0 takes a quarter less time for a gradient on a CPU.
    """
    network = copy.deepcopy(network)
    for part in [*network.modules()]:
        for (convolution, first), (norm, second) in itertools.pairwise(part.named_children()):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(part, convolution, fuse_conv_bn_eval(first, second))
                setattr(part, norm, nn.Identity())
    return network.requires_grad_(False)


def photo_classifier(
    set_name: str, name: str, *, size: int | None = None, device: torch.device | str = "cpu", progress: bool = False
) -> nn.Module:
    """A pretrained network with a head for one of the sets, in eval mode and frozen; the head is kept in the cache.

    The head is fitted to photographs of ``size`` pixels, without one to those of the released codes: 224 for ``voc``,
    256 for the others.
    """
    photos = find_photos(set_name, train=True)
    model = photo_network(name, len(photos.classes)).to(device)
    size = check_count(size or (224 if set_name == "voc" else 256), "size")
    recipe = hashlib.sha256(inspect.getsource(fit_head).encode()).hexdigest()[:8]
    file = folders.CACHE / "heads" / f"{set_name}-{name}-{size}-{recipe}.safetensors"
    head, card = model[1].get_submodule(NETWORKS[name].head), file.with_suffix(".json")
    with files.locked(file.with_suffix("")):
        if not (file.exists() and card.exists()):
            fit_head(model, NETWORKS[name].head, photos, size=size, progress=progress)
            files.write_json(card, {"sha256": files.save_weights(file, head)})
        # also the first time, since the file holds half precision
        files.load_weights(file, head, json.loads(card.read_text(encoding="utf-8"))["sha256"])
    return model.eval().requires_grad_(False)
