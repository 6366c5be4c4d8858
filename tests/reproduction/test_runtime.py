import random

import numpy as np
import pytest
import torch

from manifold_lib.reproduction import runtime


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.resolve_device() == runtime.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: got 'cuda'"):
        runtime.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.resolve_device() == torch.device("cuda")


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
