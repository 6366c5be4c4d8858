"""Long work of a notebook in blocks, each computed once: what was interrupted goes on where it was.

The units of a sweep and a run of the whole notebook share their blocks.
"""

import dis
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ...core import files
from ...data import folders

_ROOMS = ("core", "paths", "geometry", "attribution", "evaluation", "models", "data")  # those that compute
_NOT_CODE = ("__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__")  # of a class
_PLAIN = (int, float, complex, str, bytes, bool, type(None), range, slice, PurePath, torch.device, torch.dtype)


def _code_of_library() -> str:
    """A hash of the library's code and of the version of torch."""
    found, library = hashlib.sha256(torch.__version__.encode()), Path(__file__).resolve().parents[2]
    for room in _ROOMS:
        for path in sorted(library.joinpath(room).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


_LIBRARY = _code_of_library()  # as imported: files that are edited later do not count


def kept(sources: Callable[..., list[str]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Keep what a function of a notebook returns, in ``data/cache/blocks``; the same work is not done twice.

    The same is: its arguments, plain JSON values; what ``sources`` gives for them, such as checksums of data and
    weights; its code and that of the notebook's functions and classes that it calls; the parameters, tensors and
    networks that these name; the rooms of the library that compute; and the version of torch. Pictures and text may
    change. The result is of dicts, lists, numbers, text and tensors, which come back on the CPU.

    Two processes that want a block meet at a lock: one computes it, the other reads it. Raises ``ValueError`` for code
    that names what cannot be compared, and ``CorruptFile`` that names a block which does not match its checksum.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def block(*given: Any) -> Any:
            found = hashlib.sha256(f"{_LIBRARY} {json.dumps([given, sources(*given)])}".encode())
            for part in _parts(function, function.__name__, function.__globals__, {}):
                found.update(part.encode())
            file = folders.CACHE / "blocks" / f"{function.__name__}-{found.hexdigest()[:32]}.pt"
            with files.locked(file.with_suffix("")):
                if not file.exists():
                    files.save_checkpoint(file, {"result": function(*given)})
                return files.load_checkpoint(file)["result"]

        return block

    return decorate


def _parts(value: Any, name: str, notebook: dict[str, Any], seen: dict[int, Any]) -> Iterator[str]:
    """What tells a value that a notebook's code names from another, in pieces of text."""
    if isinstance(value, _PLAIN):
        yield f"{value!r}\n"
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept alive, so that no other value gets its id
    if callable(value) and not isinstance(value, nn.Module | type):
        value = inspect.unwrap(value)
    inner: list[Any] = []
    if isinstance(value, types.FunctionType) and value.__globals__ is notebook:
        yield from _code(value.__code__, value.__doc__, notebook, seen)
        inner = [[cell.cell_contents for cell in value.__closure__ or ()], value.__defaults__, value.__kwdefaults__]
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, staticmethod | classmethod):
        inner = [value.__func__]
    elif isinstance(value, type) and value.__module__ == notebook.get("__name__"):
        own = {key: entry for key, entry in vars(value).items() if key not in _NOT_CODE}
        inner = [value.__bases__, own]
    elif isinstance(value, dict):
        inner = [*value.items()]
    elif isinstance(value, list | tuple):
        inner = [*value]
    elif isinstance(value, set | frozenset):
        yield f"{sorted(map(repr, value))}\n"
    elif isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}\n"
    elif isinstance(value, nn.Module):
        yield f"{value}\n"
        inner = [type(value), dict(value.state_dict())]
    elif isinstance(value, types.ModuleType | type) or callable(value):  # of a library, whose version is in the lock
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}\n"
    else:
        raise ValueError(
            f"{name}: got {type(value).__name__}, wants code that names plain values, tensors and networks"
        )
    for entry in inner:
        yield from _parts(entry, name, notebook, seen)


def _code(code: types.CodeType, doc: str | None, notebook: dict[str, Any], seen: dict[int, Any]) -> Iterator[str]:
    """The bytecode of a function and all that it names; neither its lines nor what its docstring says."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}\n"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant, None, notebook, seen)
        elif constant is None or constant != doc:
            yield f"{sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)}\n"
    called = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for name in sorted(called & notebook.keys()):
        yield f"{name} "
        yield from _parts(notebook[name], name, notebook, seen)
