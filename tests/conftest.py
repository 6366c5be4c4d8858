"""Fixtures of all tests: no network, folders of their own, and real data where there is some."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

from manifold_lib.data import folders as data_folders
from manifold_lib.reproduction import runtime

# the time of one example says nothing on a shared machine; a failure must repeat
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repository")

REAL_DATA = os.environ.get("MANIFOLD_DATA", "").strip()
LOCAL = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that leaves this machine is refused, at once."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse(self: socket.socket, address: tuple) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
            raise OSError("no network in tests")
        connect(self, address)

    def refuse_name(host: object, *arguments: object, **more: object) -> list:
        if host not in LOCAL:
            raise OSError("no network in tests")
        return look_up(host, *arguments, **more)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's folders moved into an empty one, which is returned; no ``MANIFOLD_DATA``."""
    root = tmp_path / "repository"
    root.mkdir()
    places = {"MODELS": "data/models", "FIGURES": "figures", "BUILD": ".build"}
    monkeypatch.setattr(runtime, "ROOT", root)
    monkeypatch.setattr(data_folders, "CACHE", root / "data/cache")
    for name, place in places.items():
        monkeypatch.setattr(runtime, name, root / place)
    monkeypatch.delenv("MANIFOLD_DATA", raising=False)
    return root


@pytest.fixture
def given_folder(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MANIFOLD_DATA."""
    folder = tmp_path / "given"
    folder.mkdir()
    monkeypatch.setenv("MANIFOLD_DATA", str(folder))
    return folder


@pytest.fixture
def real_data(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``real_data("MNIST/raw")``: the folder of ``MANIFOLD_DATA`` if it holds that, else the test is skipped."""

    def wanted(relative: str) -> Path:
        if not REAL_DATA:
            pytest.skip("MANIFOLD_DATA is not set")
        if not (Path(REAL_DATA) / relative).exists():
            pytest.skip(f"MANIFOLD_DATA has no {relative}")
        monkeypatch.setenv("MANIFOLD_DATA", REAL_DATA)
        return Path(REAL_DATA)

    return wanted


@pytest.fixture
def processes() -> multiprocessing.context.ForkServerContext:
    """Other processes, forked from one that has imported the library once and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manifold_lib.reproduction.zoo", "sklearn.datasets", "pytest"])
    return context
