import ast
import contextlib
import errno
import fcntl
import hashlib
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from manifold_lib.core import files


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_file_hash(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert files.file_hash(path) == hashlib.sha256(b"abc").hexdigest()
    assert files.file_hash(path, "md5") == hashlib.md5(b"abc").hexdigest()


def test_writes_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "file.json"
    files.write_json(path, {"b": "β", "a": [1]})
    before = path.read_bytes()
    assert before.decode() == '{\n  "b": "β",\n  "a": [\n    1\n  ]\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"b": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"], "no temporary file is left"


def test_a_folder_takes_the_place_of_another_or_nothing_changes(tmp_path):
    target = tmp_path / "folder"
    for content in "old", "new":
        staging = tmp_path / "folder.abc.staging"
        staging.mkdir()
        (staging / content).touch()
        files.replace_folder(staging, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]
    with pytest.raises(FileNotFoundError):
        files.replace_folder(tmp_path / "none.staging", target)
    assert (target / "new").exists()


def test_a_folder_that_cannot_be_renamed_is_copied_first(tmp_path, monkeypatch):
    """As one in an image layer of a container. At any moment the earlier folder is whole, under one of its names."""
    target, old, staging = (tmp_path / name for name in ("folder", "folder.abc.old", "folder.abc.staging"))
    for folder in target, staging:
        folder.mkdir()
        (folder / "file").write_text(folder.name, encoding="utf-8")
    replace = os.replace

    def refuse(source, place):
        if Path(source) == target:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if Path(source) == staging:
            assert (old / "file").read_text(encoding="utf-8") == "folder"
        replace(source, place)

    monkeypatch.setattr(os, "replace", refuse)
    files.replace_folder(staging, target)
    assert (target / "file").read_text(encoding="utf-8") == "folder.abc.staging"
    assert list(tmp_path.iterdir()) == [target]


def test_json_refuses_nan_and_keeps_the_file(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError):
        files.write_json(path, float("nan"))
    assert path.read_text() == "1\n"


def write_and_die(path):
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # all is written, but not renamed
    files.write_bytes(path, b"new" * 10_000)


def test_a_killed_writer_leaves_the_old_file(tmp_path, processes):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = processes.Process(target=write_and_die, args=(path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert all(entry.suffix == ".part" for entry in tmp_path.iterdir() if entry != path)


def test_weights_survive_the_round_trip(tmp_path):
    path = tmp_path / "model.safetensors"
    first = model()
    first[1].num_batches_tracked.fill_(70_000)  # more than float16 holds
    sha256 = files.save_weights(path, first)
    assert sha256 == files.file_hash(path)
    assert files.save_weights(tmp_path / "again.safetensors", first) == sha256, "the same weights, the same bytes"
    second = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    files.load_weights(path, second, sha256)
    for name, value in first.state_dict().items():
        found = second.state_dict()[name]
        assert found.dtype == value.dtype
        assert torch.equal(found, value.half().float() if value.is_floating_point() else value)


def test_corrupt_weights_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    sha256 = files.save_weights(path, model())
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    for content in (path.read_bytes()[:-4], b"", path.read_bytes()[:-1] + b"?"):
        path.write_bytes(content)
        with pytest.raises(files.CorruptFile, match=r"model\.safetensors: sha256 is"):
            files.load_weights(path, target, sha256)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_checkpoints(tmp_path):
    path = tmp_path / "run.ckpt"
    state = {"model": model().state_dict(), "epoch": 3, "settings": {"seed": 1}}
    files.save_checkpoint(path, state)
    found = files.load_checkpoint(path)
    assert found["epoch"] == 3 and torch.equal(found["model"]["0.weight"], state["model"]["0.weight"])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b[:50] + b"?" + b[51:]]
)
def test_corrupt_checkpoints_are_named(tmp_path, damage):
    path = tmp_path / "run.ckpt"
    files.save_checkpoint(path, {"epoch": 3})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(files.CorruptFile, match=r"run\.ckpt: the checkpoint does not match"):
        files.load_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    path = tmp_path / "run.ckpt"
    files.save_checkpoint(path, {"epoch": Malicious()})
    with pytest.raises(pickle.UnpicklingError):
        files.load_checkpoint(path)
    assert not (tmp_path / "touched").exists()


def read_when_free(path, pipe):
    pipe.send("ready")
    with files.locked(path):
        pipe.send(path.read_text())


def test_two_processes_meet_at_the_lock(tmp_path, processes):
    path = tmp_path / "made once"
    ours, theirs = processes.Pipe()
    other = processes.Process(target=read_when_free, args=(path, theirs))
    with files.locked(path):
        other.start()
        assert ours.recv() == "ready"
        assert not ours.poll(0.2), "it waits"
        path.write_text("whole")
    assert ours.poll(60) and ours.recv() == "whole"
    other.join(60)
    assert other.exitcode == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_a_file_is_one(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "weights"
    path.with_name("weights.lock").touch()  # of a machine that has locks
    with files.locked(path):
        assert path.with_name("weights.softlock").exists()
    assert not path.with_name("weights.softlock").exists()


def test_it_says_what_it_waits_for(tmp_path, monkeypatch):
    path = tmp_path / "made once"
    release = contextlib.ExitStack()
    release.enter_context(files.locked(path))
    monkeypatch.setattr(files.warnings, "warn", lambda text, **_: (said.append(text), release.close()))
    said: list[str] = []
    with files.locked(path):
        assert "made once.lock. If no process works there, delete that file" in said[0]


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    package = Path(files.__file__).resolve().parents[1]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = {keyword.arg for keyword in node.keywords}
            binary = any(isinstance(value, ast.Constant) and "b" in str(value.value) for value in node.args[1:2])
            opens = name in ("read_text", "write_text") or (name == "open" and isinstance(node.func, ast.Name))
            # execute.write_text has a path as its first argument and names the encoding itself
            of = node.func.value if isinstance(node.func, ast.Attribute) else node.func
            own = name == "write_text" and getattr(of, "id", "") in ("write_text", "execute")
            assert not opens or own or binary or "encoding" in given, f"{path.name}:{node.lineno}"
            assert not given & {"text", "universal_newlines"} or "encoding" in given, f"{path.name}:{node.lineno}"
