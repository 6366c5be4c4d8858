"""Classifiers: logits (B, n_classes) from images (B, channels, s, s), small enough to train on two cores."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lenet(n_classes: int = 10, channels: int = 1, width: int = 32) -> nn.Sequential:
    """The "LeNet" of paper 1 for 32×32 images: two 3×3 convolutions and two dense layers, 1.6 M parameters.

    At width 8, a quarter of the paper's in every layer, it has 0.1 M.

    >>> lenet()(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
        *(nn.Linear(2 * width * 14 * 14, 4 * width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4 * width, n_classes)),
    )


def _block(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def labeller(n_classes: int = 10, channels: int = 1) -> nn.Sequential:
    """The CNN that labels generated 32×32 images, 0.4 M parameters. (The authors' is a SimpleNet of 13 layers.)

    >>> labeller()(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        *(*_block(channels, 32, 2), *_block(32, 64), *_block(64, 96, 2), *_block(96, 128), *_block(128, 160, 2)),
        *(nn.Flatten(), nn.Linear(160 * 4 * 4, n_classes)),
    )


def small_vgg(n_classes: int, channels: int = 3, width: int = 32) -> nn.Sequential:
    """VGG-style network with batch norm and global pooling, 0.7 M parameters at width 32.

    >>> small_vgg(10)(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        *(*_block(channels, width), *_block(width, width)),
        *(nn.MaxPool2d(2), *_block(width, 2 * width), *_block(2 * width, 2 * width)),
        *(nn.MaxPool2d(2), *_block(2 * width, 4 * width), *_block(4 * width, 4 * width)),
        *(nn.MaxPool2d(2), *_block(4 * width, 8 * width)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * width, n_classes)),
    )


def small_resnet(n_classes: int, channels: int = 3, width: int = 16) -> nn.Sequential:
    """ResNet-style network: three stages of two residual blocks, 0.2 M parameters at width 16.

    >>> small_resnet(10)(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        *(*_block(channels, width), _Residual(width, width), _Residual(width, width)),
        *(_Residual(width, 2 * width, 2), _Residual(2 * width, 2 * width)),
        *(_Residual(2 * width, 4 * width, 2), _Residual(4 * width, 4 * width)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, n_classes)),
    )


def small_inception(n_classes: int, channels: int = 3, width: int = 16) -> nn.Sequential:
    """Inception-style network: parallel 1×1, 3×3, 5×5 and pooled branches, 0.1 M parameters at width 16.

    >>> small_inception(10)(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        *(*_block(channels, 2 * width), nn.MaxPool2d(2)),
        *(_Inception(2 * width, width), _Inception(4 * width, width), nn.MaxPool2d(2)),
        *(_Inception(4 * width, 2 * width), _Inception(8 * width, 2 * width)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * width, n_classes)),
    )


class _Residual(nn.Module):
    """Two 3×3 convolutions with batch norm beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*_block(inputs, outputs, stride), *_block(outputs, outputs)[:2])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.relu(self.body(inputs) + self.shortcut(inputs))


class _Inception(nn.Module):
    """Four branches of ``width`` channels each: 1×1, 3×3, 5×5 as two 3×3, and max pooling with 1×1."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        parts = [_block(inputs, width, kernel=1), _block(inputs, width, kernel=1) + _block(width, width)]
        parts.append(_block(inputs, width, kernel=1) + _block(width, width) + _block(width, width))
        parts.append((nn.MaxPool2d(3, 1, 1), *_block(inputs, width, kernel=1)))
        self.branches = nn.ModuleList([nn.Sequential(*part) for part in parts])

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([branch(inputs) for branch in self.branches], 1)


def _strided(widths: tuple[int, ...], activation: Callable[[], nn.Module], n_classes: int, size: int) -> nn.Sequential:
    """Three strided convolutions and a linear head, for images of one size."""
    pairs = itertools.pairwise(widths)
    layers = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, 2, 1), activation())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (size // 8) ** 2, n_classes))


def tiny_cnn(n_classes: int = 10, channels: int = 1, size: int = 32) -> nn.Sequential:
    """Three strided convolutions and a linear head, 19 k parameters at 32×32: trains in seconds.

    The layer for Grad-CAM, its last convolution, is ``[4]``, with a map of size / 8.

    >>> tiny_cnn()(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _strided((channels, 16, 32, 32), nn.ReLU, n_classes, size)


def soft_cnn(n_classes: int = 10, channels: int = 1, width: int = 16, size: int = 32) -> nn.Sequential:
    """Three strided convolutions with softplus and a linear head, 33 k parameters at 32×32: smooth in its inputs.

    :func:`manifold_lib.energy_ig` needs second derivatives, and those of a ReLU network are zero.

    >>> soft_cnn()(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _strided((channels, width, 2 * width, 4 * width), lambda: nn.Softplus(beta=5), n_classes, size)


class PatchNet(nn.Module):
    """Two non-overlapping convolutions (4×4, then 2×2) and a linear head, 8 k parameters at 32×32.

    The convolutions are dense layers on patches: many such networks under ``vmap`` are then one batched matrix product,
    and :func:`manifold_lib.retrain` trains them together.

    >>> PatchNet()(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, n_classes: int = 10, channels: int = 1, size: int = 32, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(channels * 16, width)
        self.second = nn.Linear(width * 4, 2 * width)
        self.head = nn.Linear(2 * width * (size // 8) ** 2, n_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(F.pixel_unshuffle(inputs, 4).movedim(1, 3))).movedim(3, 1)
        hidden = torch.relu(self.second(F.pixel_unshuffle(hidden, 2).movedim(1, 3)))
        return self.head(hidden.flatten(1))
