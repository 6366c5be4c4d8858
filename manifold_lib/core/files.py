"""Files and folders that are whole or absent: atomic writes, checksums, locks, weights and checkpoints."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from safetensors.torch import load as load_tensors, save as save_tensors

TIMEOUT = 20.0  # seconds that a server may stay silent


class DataNotFound(FileNotFoundError):
    """Says what was looked for, where, and the two ways to provide it."""


class CorruptFile(RuntimeError):
    """A file whose content does not match its checksum; the message names it and the way out."""


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Give up downloads, whose libraries wait for ever, when a server has been silent for ``TIMEOUT``."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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


def staging_folder(target: Path) -> Path:
    """A new folder on the file system of ``target``, for :func:`replace_folder` to put in its place."""
    staged = target.resolve().parent / ".staging"
    while True:
        staged.mkdir(parents=True, exist_ok=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".staging", dir=staged))
        except FileNotFoundError:  # another process has removed the place, which was empty
            continue
        folder.chmod(0o755)
        return folder


def replace_folder(folder: Path, target: Path) -> None:
    """Put ``NAME.staging`` in the place of another folder by renaming; the other comes back if that fails.

    In between the other is ``NAME.old``: where both are found later, this was not finished.
    """
    old, target = folder.with_suffix(".old"), target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        try:
            os.replace(target, old)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # A folder in an image layer of a container cannot be renamed. Its copy has its name when it is whole.
            shutil.copytree(target, old.with_suffix(".copy"))
            os.replace(old.with_suffix(".copy"), old)
            shutil.rmtree(target)
    try:
        os.replace(folder, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.parent.name == ".staging":
        with contextlib.suppress(OSError):  # another folder is in it
            folder.parent.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Atomic, stable JSON: two-space indent, keys in the order given, a final newline."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to ``path``, so that two processes do not make it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        cause = "If no process works there, delete that file."
        warnings.warn(f"{path}: waits for another process, which holds {lock.lock_file}. {cause}", stacklevel=3)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    """A lock of the file system; where it has none, a file that exists while the lock is held."""
    file = path.with_name(path.name + ".lock")
    with contextlib.suppress(ImportError):  # Windows has locks of another kind
        import fcntl

        with open(file, "ab") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError:
                return SoftFileLock(file.with_suffix(".softlock"))
    return FileLock(file)


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
