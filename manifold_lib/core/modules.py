"""The user's modules: how to find them, which mode they are in, and how they are left as found."""

import contextlib
import functools
import itertools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def module_of(function: object) -> nn.Module | None:
    """The module that a callable is, or is a method of."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def tensors_of(function: object) -> Iterator[Tensor]:
    """The parameters, then the buffers, of the module that a callable is or is a method of."""
    module = module_of(function)
    return iter(()) if module is None else itertools.chain(module.parameters(), module.buffers())


def modules_of(vae: Any) -> list[nn.Module]:
    """The modules that a VAE is, that its ``encode`` and ``decode`` belong to, or that it holds a few objects deep."""
    found: list[nn.Module] = []
    level, seen = [vae, getattr(vae, "encode", None), getattr(vae, "decode", None)], set()
    for _ in range(6):  # wrappers around wrappers; deeper ones have not been met
        inside: list[Any] = []
        for part in level:
            if id(part) in seen or isinstance(part, (types.ModuleType, Tensor)):
                continue
            seen.add(id(part))
            if isinstance(part, nn.Module):
                found.append(part)
            elif isinstance(part, dict):
                inside += part.values()
            elif isinstance(part, (list, tuple)):
                inside += part
            elif isinstance(part, functools.partial):
                inside += [part.func, *part.args, *part.keywords.values()]
            else:
                inside += [getattr(part, "__self__", None), *getattr(part, "__dict__", {}).values()]
        level = inside
    return found


def train_mode_layers(module: nn.Module) -> str:
    """Names of the layers whose output depends on the batch or on chance, in the mode they are in."""
    instance_norm = nn.modules.instancenorm._InstanceNorm
    fickle = (nn.modules.batchnorm._BatchNorm, instance_norm, nn.modules.dropout._DropoutNd)
    parts = [part for part in module.modules() if part.training and isinstance(part, fickle)]
    # instance norm that keeps no statistics is the same in both modes
    kinds = {type(part).__name__ for part in parts if not isinstance(part, instance_norm) or part.track_running_stats}
    return ", ".join(sorted(kinds))


def check_mode(decoder: object, name: str = "decoder") -> None:
    """Refuse a decoder whose rows depend on each other or on chance: it has no Jacobian per latent."""
    module = module_of(decoder)
    if module is not None and (kinds := train_mode_layers(module)):
        raise ValueError(f"{name}: got train mode ({kinds}), wants {name}.eval()")


@contextlib.contextmanager
def buffers_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the buffers of these modules at the end."""
    kept = [
        (part, name, buffer, buffer._version, buffer.clone())
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if not buffer.is_inference()
    ]
    try:
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for part, name, buffer, version, value in kept:
                part._buffers[name] = buffer
                # batch norm changes them without a new version; others are left, since a kept graph may hold them
                if part.training or buffer._version != version:
                    buffer.copy_(value)


def jvp(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Value and directional derivative, without the deprecation notice of torch's own first use of forward mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        result: Any = torch.func.jvp(function, (point,), (direction,))
    return result
