"""Long work of a notebook in blocks, each computed once: what was interrupted goes on where it was.

The units of a sweep and a run of the whole notebook share their blocks.
"""

import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import files
from ...data import folders

_LIBRARY = Path(__file__).resolve().parents[2]
_ROOMS = ("core", "paths", "geometry", "attribution", "evaluation", "models", "data")  # those that compute


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of a notebook returns, in ``data/cache/blocks``; the same work is not done twice.

    The same is: its arguments, plain JSON values; its code and that of the notebook's functions that it calls; the
    parameters, tensors and networks that they name; the rooms of the library that compute; and the version of torch.
    Pictures and text may change. The result is of dicts, lists, numbers, text and tensors, which come back on the CPU.

    Two processes that want a block meet at a lock: one computes it, the other reads it. Raises ``CorruptFile`` that
    names a block whose content does not match its checksum.
    """

    @functools.wraps(function)
    def block(*given: Any) -> Any:
        found = hashlib.sha256(f"{_library()} {json.dumps(given)}".encode())
        for part in _parts(function, function.__globals__, set()):
            found.update(part.encode())
        file = folders.CACHE / "blocks" / f"{function.__name__}-{found.hexdigest()[:32]}.pt"
        with files.locked(file.with_suffix("")):
            if not file.exists():
                files.save_checkpoint(file, {"result": function(*given)})
            return files.load_checkpoint(file)["result"]

    return block


@functools.cache
def _library() -> str:
    """A hash of the library's code and of the version of torch."""
    found = hashlib.sha256(torch.__version__.encode())
    for room in _ROOMS:
        for path in sorted(_LIBRARY.joinpath(room).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _parts(value: Any, notebook: dict[str, Any], seen: set[int]) -> Iterator[str]:
    """What tells a value that a notebook's code names from another, in pieces of text."""
    if isinstance(value, int | float | str | bool | torch.device | torch.dtype | None):
        yield f"{value!r}\n"
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if callable(value) and not isinstance(value, nn.Module | type):
        value = inspect.unwrap(value)
    if isinstance(value, types.FunctionType) and value.__globals__ is notebook:
        yield from _code(value.__code__, value.__doc__, notebook, seen)
        inner = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _parts([inner, value.__defaults__, value.__kwdefaults__], notebook, seen)
    elif isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], notebook, seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _parts(value.__func__, notebook, seen)
    elif isinstance(value, type) and value.__module__ == notebook.get("__name__"):
        yield from _parts({name: entry for name, entry in vars(value).items() if name[:2] != "__"}, notebook, seen)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _parts([key, entry], notebook, seen)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry, notebook, seen)
    elif isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}\n"
    elif isinstance(value, nn.Module):
        yield f"{type(value)}\n"
        yield from _parts(dict(value.state_dict()), notebook, seen)
    else:  # of a library, whose versions are in the lock
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}\n"


def _code(code: types.CodeType, doc: str | None, notebook: dict[str, Any], seen: set[int]) -> Iterator[str]:
    """The bytecode of a function and all that it names; neither its lines nor what its docstring says."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}\n"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant, None, notebook, seen)
        elif constant is None or constant != doc:
            yield f"{sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)}\n"
    for name in code.co_names:
        if name in notebook:
            yield f"{name} "
            yield from _parts(notebook[name], notebook, seen)
