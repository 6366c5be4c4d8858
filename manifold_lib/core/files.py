"""Files and folders that are whole or absent: atomic writes, checksums, locks, weights and checkpoints."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load as load_tensors, save as save_tensors


class DataNotFound(FileNotFoundError):
    """Says what was looked for, where, and the two ways to provide it."""


class CorruptFile(RuntimeError):
    """A file whose content does not match its checksum; the message names it and the way out."""


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write in a temporary folder beside the target, then rename: readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".part") as folder:
        temporary = Path(folder, "content")
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)


def replace_folder(folder: Path, target: Path) -> None:
    """Put a folder in the place of another by renaming; the other comes back if that fails."""
    old = folder.with_suffix(".old")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(folder, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Atomic, stable JSON: two-space indent, keys in the order given, a final newline."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to ``path``, so that two processes do not make it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the model's state as float16 safetensors, integer buffers as they are; return the file's sha256."""
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    content = save_tensors(state)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path, model: torch.nn.Module, sha256: str | None = None) -> None:
    """Load float16 weights into a float32 model, after checking the file's checksum."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        way_out = f"restore it (git checkout -- data/models/{path.name}) or train it again (make models)."
        message = f"{path}: sha256 is {found[:16]}…, expected {sha256[:16]}…. The file is incomplete or was changed; "
        raise CorruptFile(message + way_out)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_tensors(content).items()})


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state behind its own sha256, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_bytes(path, hashlib.sha256(content).digest() + content)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; the checksum is compared before anything is unpickled."""
    content = path.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise CorruptFile(f"{path}: the checkpoint does not match its checksum. Delete it to start this training anew.")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
