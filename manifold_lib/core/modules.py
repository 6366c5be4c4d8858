"""The user's modules: how to find them, which mode they are in, and how they are left as found."""

import contextlib
import dis
import functools
import itertools
import re
import types
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


def modules_behind(function: Any) -> list[nn.Module]:
    """The modules that a callable is, is a method of, or wraps as a closure, a partial or by a global name."""
    return _found([function], lambda part: [getattr(part, "__wrapped__", None), *_globals_of(part)])


def _globals_of(function: Any) -> list[Any]:
    """The modules and functions that a function of the user's calls by their global names, as in a notebook."""
    if not isinstance(function, types.FunctionType) or "site-packages" in function.__code__.co_filename:
        return []
    values = [function.__globals__.get(name) for name in _global_names(function.__code__)]
    return [value for value in values if isinstance(value, (nn.Module, types.FunctionType, functools.partial))]


@functools.lru_cache(1024)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """The global names that some code reads; disassembling takes longer than a small model."""
    return frozenset(op.argval for op in dis.get_instructions(code) if op.opname == "LOAD_GLOBAL")


def modules_of(vae: Any) -> list[nn.Module]:
    """The modules that a VAE is, that its ``encode`` and ``decode`` belong to, or that it holds a few objects deep."""
    roots = [vae, getattr(vae, "encode", None), getattr(vae, "decode", None)]
    return _found(roots, lambda part: list(getattr(part, "__dict__", {}).values()))


def _found(level: list[Any], held: Callable[[Any], list[Any]]) -> list[nn.Module]:
    """The modules among some objects, and in what these hold."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    for _ in range(6):  # wrappers around wrappers; deeper ones have not been met
        inside: list[Any] = []
        for part in level:
            if id(part) in seen or isinstance(part, (types.ModuleType, Tensor, type(None))):
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
                cells = getattr(part, "__closure__", None) or ()
                inside += [cell.cell_contents for cell in cells if cell != types.CellType()]
                inside += [getattr(part, "__self__", None), *held(part)]
        level = inside
    return found


def fickle_layers(modules: Iterable[nn.Module]) -> tuple[str, bool]:
    """Names of the layers whose output depends on the batch or on chance, and whether train mode is why."""
    parts = [part for module in modules for part in module.modules()]
    training = {_kind(part) for part in parts if getattr(part, "training", False) and _trains_otherwise(part)}
    # these do so in eval mode too
    fractional = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    always = {_kind(part) for part in parts if isinstance(part, fractional) and part._random_samples is None}
    norm = nn.modules.batchnorm._BatchNorm
    norms = [part for part in parts if isinstance(part, norm) or _scripted(part, "BatchNorm")]
    always |= {_kind(part) for part in norms if getattr(part, "running_mean", None) is None}
    return ", ".join(sorted(training | always)), bool(training)


def _kind(part: nn.Module) -> str:
    """The name of a layer's class, of a scripted one too."""
    return getattr(part, "original_name", type(part).__name__)


def _scripted(part: nn.Module, kind: str) -> bool:
    """Whether a layer is a traced or scripted one of torch's of this kind, such as BatchNorm1d."""
    return isinstance(part, torch.jit.ScriptModule) and re.fullmatch(rf"{kind}(\dd)?", _kind(part)) is not None


def _trains_otherwise(part: Any) -> bool:
    """Whether a layer computes something else in train mode."""
    if isinstance(part, nn.modules.instancenorm._InstanceNorm) or _scripted(part, "InstanceNorm"):
        return getattr(part, "running_mean", None) is not None  # without statistics it is the same in both modes
    if isinstance(part, nn.RNNBase) or _scripted(part, "RNN|LSTM|GRU"):
        return getattr(part, "dropout", 0) > 0 and part.num_layers > 1
    if any(word in _kind(part) for word in ("BatchNorm", "Dropout", "DropPath", "StochasticDepth", "RReLU")):
        return True
    # attention, and blocks of vision transformers, hold a rate and call the function
    rates = [getattr(part, name, None) for name in {*vars(part), "dropout"} if "drop" in name]
    return any(isinstance(rate, float) and 0 < rate <= 1 for rate in rates)


def check_mode(function: object, name: str = "decoder") -> None:
    """Refuse a decoder or encoder with layers whose rows depend on each other or on chance."""
    kinds, training = fickle_layers(modules_behind(function))
    if kinds:
        what = "train mode" if training else "layers that mix the rows of a batch or draw at random in eval mode too"
        wants = f"{name}.eval()" if training else "batch norm with its statistics, and no chance"
        raise ValueError(f"{name}: got {what} ({kinds}), wants {wants}")


@contextlib.contextmanager
def buffers_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let these modules change copies of their buffers, and put the buffers themselves back at the end.

    They are not restored by value, which would spoil a graph that is kept; only those of scripts are.
    """
    found = [
        (part, name, buffer)
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if not buffer.is_inference()
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in found}
    kept = [entry for entry in found if not isinstance(entry[0], torch.jit.ScriptModule)]
    for part, name, buffer in kept:
        part._buffers[name] = copies[id(buffer)]
    try:
        yield
    finally:
        for part, name, buffer in kept:
            part._buffers[name] = buffer
        with torch.inference_mode(False), torch.no_grad():
            for part, _, buffer in found:
                if isinstance(part, torch.jit.ScriptModule) and not torch.equal(buffer, copies[id(buffer)]):
                    buffer.copy_(copies[id(buffer)])
