"""The published data sets in small, in the folder of ``MANIFOLD_DATA``."""

from __future__ import annotations

from pathlib import Path

import files_of_sets
import pytest


@pytest.fixture
def pets(given_folder: Path) -> Path:
    files_of_sets.write_pets(given_folder)
    return given_folder


@pytest.fixture
def flowers(given_folder: Path) -> Path:
    files_of_sets.write_flowers(given_folder)
    return given_folder


@pytest.fixture
def voc(given_folder: Path) -> Path:
    files_of_sets.write_voc(given_folder)
    return given_folder


@pytest.fixture
def mnist(given_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files_of_sets.write_mnist(given_folder, monkeypatch)
    return given_folder


@pytest.fixture
def cifar(given_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return files_of_sets.write_cifar(given_folder, monkeypatch)


@pytest.fixture
def archives(given_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return files_of_sets.write_archives(given_folder, monkeypatch)
