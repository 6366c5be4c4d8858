import json
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from manifold_lib import data
from manifold_lib.reproduction import runtime


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.resolve_device() == runtime.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: got 'cuda'"):
        runtime.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.resolve_device() == torch.device("cuda")


@pytest.mark.parametrize(
    ("kind", "cpu", "found"), [("cpu", "AVX512", True), ("cpu", "AVX2", False), ("cuda", "", True)]
)
def test_bfloat16_where_the_device_computes_in_it(monkeypatch, kind, cpu, found):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    assert runtime.has_bfloat16(torch.device(kind)) == found


def test_seeds_repeat_every_draw():
    def draws():
        generator = runtime.seed_everything(2**32 + 3)
        own = torch.rand(3, generator=generator).tolist()
        return random.random(), np.random.rand(), torch.rand(3).tolist(), own

    assert draws() == draws()


def test_provenance_names_no_place():
    found = runtime.provenance(seed=3, params={"n": 1}, device=torch.device("cpu"))
    assert list(found) == ["git", "dirty", "seed", "params", "versions", "device"]
    assert found["seed"] == 3 and found["params"] == {"n": 1}
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"]
    assert str(runtime.ROOT) not in str(found)


def test_provenance_outside_a_repository(folders):
    found = runtime.provenance(seed=0, params={}, device=torch.device("cpu"))
    assert found["git"] is None and found["dirty"] is None


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_repository_around_a_copy_is_not_its_own(folders, monkeypatch):
    git(folders.parent, "init")
    git(folders.parent, "commit", "--allow-empty", "-m", "another's")
    assert runtime.provenance(seed=0, params={}, device=torch.device("cpu"))["git"] is None
    monkeypatch.setenv("GIT_DIR", str(folders.parent / ".git"))
    assert runtime.provenance(seed=0, params={}, device=torch.device("cpu"))["git"] is None
    monkeypatch.delenv("GIT_DIR")
    git(folders, "init")
    git(folders, "commit", "--allow-empty", "-m", "its own")
    monkeypatch.setenv("GIT_DIR", str(folders.parent / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(folders))
    found = runtime.provenance(seed=0, params={}, device=torch.device("cpu"))
    assert found["git"] == (folders / ".git/refs/heads" / _branch(folders)).read_text(encoding="utf-8").strip()
    assert found["dirty"] is False


def _branch(folder):
    return (folder / ".git" / "HEAD").read_text(encoding="utf-8").strip().rpartition("/")[2]


def test_a_notebook_of_another_copy_is_refused(tmp_path, monkeypatch):
    runtime.check_copy()
    (tmp_path / "manifold_lib").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(ValueError, match=rf"imported from {Path.cwd().anchor}.* belongs to {tmp_path}: .*pip install"):
        runtime.check_copy()
    (tmp_path / "notebooks").rmdir()
    monkeypatch.chdir(tmp_path)
    runtime.check_copy()


def test_parameters_are_those_of_the_parameters_cell(folders):
    params = {"n": 1, "hf_token": "secret", "where": "cpu"}
    assert runtime.own_parameters("01_x", params) == params, "no notebook, no cell"
    cells = [
        {"metadata": {"tags": ["parameters"]}, "source": ["seed = 0\n", "n = 1  # how many"]},
        {"metadata": {}, "source": "where = 3"},
    ]
    (folders / "notebooks").mkdir()
    (folders / "notebooks" / "01_x.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert runtime.own_parameters("01_x", params) == {"n": 1}


def test_a_run_that_lacks_its_data_fails_at_its_start(folders):
    runtime.check_data({"sets": ["mnist32"], "xray_images": 3, "note": "no cifar10s"})
    for params in ({"reconstructive": ["cifar10"]}, {"pairs": ["mnist32 lenet", "xray xray-vgg"]}):
        with pytest.raises(data.DataNotFound):
            runtime.check_data(params)
