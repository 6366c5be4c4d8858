"""What is known of the user's modules: where they are, their mode, and their buffers put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import draw
from torch import Tensor, nn

from manifold_lib.core import modules


class Plain:
    """No module, but made of some."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def encode(self, x: Tensor) -> Tensor:
        return x

    decode = encode


def test_a_module_is_found_behind_its_methods_and_nothing_behind_a_function() -> None:
    layer = nn.Linear(2, 2)
    assert modules.module_of(layer) is layer
    assert modules.module_of(layer.forward) is layer
    assert modules.module_of(Plain(layer).encode) is None
    assert modules.module_of(lambda x: x) is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        lambda layer: Plain(layer),
        lambda layer: Plain([layer]),
        lambda layer: Plain({"net": (layer,)}),
        lambda layer: Plain(Plain(layer)),
        lambda layer: Plain(layer.forward),
        lambda layer: Plain(functools.partial(torch.add, layer)),
        lambda layer: Plain(functools.partial(torch.add, other=layer)),
    ],
    ids=["module", "attribute", "list", "dict of tuples", "wrappers", "method", "partial", "keyword of a partial"],
)
def test_modules_are_found_wherever_a_plain_object_holds_them(wrap: Callable[[nn.Module], Any]) -> None:
    layer = nn.Linear(2, 2)
    assert any(part is layer for part in modules.modules_of(wrap(layer)))


def test_the_search_ends_in_circles_and_does_not_enter_libraries() -> None:
    ring = Plain()
    ring.parts = (ring, torch, draw(2))
    assert modules.modules_of(ring) == []


def test_only_layers_that_depend_on_chance_or_on_the_batch_count_as_train_mode() -> None:
    fickle = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2), nn.Dropout2d(), nn.Dropout())
    assert modules.fickle_layers([fickle]) == ("BatchNorm1d, Dropout, Dropout2d", True)
    assert modules.fickle_layers([fickle.eval()]) == ("", False)
    assert modules.fickle_layers([nn.Sequential(nn.ReLU(), nn.InstanceNorm1d(2), nn.LayerNorm(2))]) == ("", False)
    assert modules.fickle_layers([nn.InstanceNorm1d(2, track_running_stats=True)]) == ("InstanceNorm1d", True)
    fickle[1].train()  # frozen batch norm, dropout on
    assert modules.fickle_layers([fickle]) == ("Dropout", True)
    with pytest.raises(ValueError, match=r"vae: got train mode \(Dropout\), wants vae.eval\(\)"):
        modules.check_mode(fickle.forward, "vae")
    modules.check_mode(lambda z: z)


class Counter(nn.Module):
    """Counts in a buffer that it changes in place and in one that it makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("here", torch.zeros(()))
        self.register_buffer("anew", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.here += 1
        self.anew = self.anew + 1
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_put_back_even_after_an_error(fails: bool) -> None:
    model = nn.Sequential(Counter(), nn.BatchNorm1d(2)).train()
    buffers = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        with modules.buffers_as_found([model, model[0]]):
            model(draw(4, 2, dtype=torch.float32))
            assert model[0].here == 1 and not torch.equal(model[1].running_mean, values["1.running_mean"])
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(torch.equal(buffer, values[name]) for name, buffer in model.named_buffers())


def test_a_kept_graph_survives_since_buffers_that_did_not_change_are_left_alone() -> None:
    model, x = nn.BatchNorm1d(2).eval(), draw(4, 2, dtype=torch.float32).requires_grad_()
    with modules.buffers_as_found([model]):
        y = model(x)
    y.sum().backward()
    assert x.grad is not None


def test_a_model_made_in_inference_mode_is_left_alone() -> None:
    with torch.inference_mode():
        model = nn.BatchNorm1d(2).eval()
    with modules.buffers_as_found([model]):
        pass
    assert model.running_mean is not None and model.running_mean.is_inference()
