"""Progress bars, and a model applied to many inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .modules import module_of


def progress_bar(iterable: Iterable, *, show: bool, **options: Any) -> Iterable:
    """A plain-text tqdm bar, or the iterable itself where ``show`` is false.

    ``tqdm.auto`` would put widgets into notebooks. On a machine without tqdm the bar is left out.
    """
    if not show:
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, dynamic_ncols=True, mininterval=1.0, **options)


def predict(model: Callable[[Tensor], Tensor], inputs: Tensor, *, batch_size: int = 256) -> Tensor:
    """Apply a model to many inputs without a graph, in chunks, on its own device; result on the CPU."""
    module = module_of(model)
    tensor = None if module is None else next(iter([*module.parameters(), *module.buffers()]), None)
    device = inputs.device if tensor is None else tensor.device
    with torch.no_grad():
        return torch.cat([model(chunk.to(device)).cpu() for chunk in inputs.split(batch_size)])
