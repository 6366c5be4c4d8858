"""Progress bars, and a model applied to many inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .derivatives import called, check_images
from .modules import tensors_of


def progress_bar(iterable: Iterable, *, show: bool, **options: Any) -> Iterable:
    """A tqdm bar in plain text, not a notebook widget; the iterable itself without ``show`` or without tqdm."""
    if not show:
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, dynamic_ncols=True, mininterval=1.0, **options)


def predict(model: Callable[[Tensor], Tensor], inputs: Tensor, *, batch_size: int = 256, name: str = "model") -> Tensor:
    """Apply a model to many inputs without a graph, in chunks, on its own device; result on the CPU."""
    device = next(tensors_of(model), inputs).device
    with torch.no_grad():
        parts = [called(model, chunk.to(device), name=name) for chunk in inputs.split(batch_size)]
        return torch.cat([check_images(part, part, name).cpu() for part in parts])
