"""Every public function, in the contexts a user may call it from: grad modes, tensors with a graph, other devices."""

import re

import pytest
import torch
from test_bad_input import FUNCTIONS, SHAPE, B, C, call, model, normal

import manifold_lib as ml

# these pass a graph on, by contract
DIFFERENTIABLE = ("project", "tangent_fraction", "tangent_share", "straight_path", "curve_energy", "curve_length")
DIFFERENTIABLE += ("total_variation", "resample", "render_shapes", *(n for n in FUNCTIONS if n.startswith("baselines")))
TENSORS = ("inputs", "path", "latents", "points", "start", "end", "velocities")


def tensors(result):
    """All tensors of a result, one after the other."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in tensors(part)]
    return []


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_the_grad_mode_does_not_matter(name, mode):
    torch.manual_seed(0)
    usual = tensors(call(name))
    torch.manual_seed(0)
    with mode():
        found = tensors(call(name))
    for a, b in zip(usual, found, strict=True):
        torch.testing.assert_close(b.clone(), a, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n, (_, makers) in FUNCTIONS.items() if n not in DIFFERENTIABLE for a in makers if a in TENSORS],
)
def test_inputs_with_a_graph_give_results_without(name, argument):
    given = FUNCTIONS[name][1][argument]().requires_grad_()
    for tensor in tensors(call(name, **{argument: given})):
        assert not tensor.requires_grad
    assert given.grad is None


PATHS = [name for name in FUNCTIONS if name.endswith(("_path", "_paths"))]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_path_may_be_built_in_one_mode_and_used_in_another(name, mode):
    usual = call(name).sample(4)
    with mode():
        inside = call(name)
        torch.testing.assert_close(inside.sample(4), usual)
    outside = call(name)
    for path in (inside, outside):
        torch.testing.assert_close(path.sample(4), usual)
        assert not path.sample(4).requires_grad
    whole = ml.integrate(model, outside, 1)
    torch.testing.assert_close(ml.integrate(model, inside, 1), whole)
    with mode():
        torch.testing.assert_close(ml.integrate(model, call(name), 1).clone(), whole)


class Frozen(torch.nn.Module):
    """A model whose parameters are elsewhere, or want no gradient."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.layer = torch.nn.Linear(9, C, device=device).requires_grad_(False)

    def forward(self, x):
        return self.layer(x.flatten(1)).tanh()


WITH_MODEL = [name for name, (_, makers) in FUNCTIONS.items() if "model" in makers]


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_model_on_another_device_is_refused_with_both(name):
    with pytest.raises(ValueError) as caught:
        call(name, model=Frozen("meta"))
    assert re.search(r"cpu.*meta|meta.*cpu", str(caught.value))


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_frozen_model_will_do_and_stays_frozen(name):
    model = Frozen()
    call(name, model=model)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(9), torch.nn.Linear(9, C)

    def forward(self, x):
        return self.layer(self.norm(x.flatten(1))).tanh()


@pytest.mark.parametrize("name", [name for name in WITH_MODEL if name != "integrate"])
def test_a_model_in_train_mode_is_warned_of_once_and_left_as_found(name):
    torch.manual_seed(0)
    model = Normed().train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    with pytest.warns(RuntimeWarning, match="train mode") as caught:
        call(name, model=model)
    assert sum("train mode" in str(warning.message) for warning in caught) == 1
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize("name", [name for name in WITH_MODEL if "inputs" in FUNCTIONS[name][1]])
@pytest.mark.parametrize(
    "target", [torch.ones(B, dtype=torch.int32), torch.ones(B, dtype=torch.uint8), torch.tensor(1)]
)
def test_a_target_of_any_integer_type_is_the_same(name, target):
    for a, b in zip(tensors(call(name)), tensors(call(name, target=target)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in WITH_MODEL if "inputs" in FUNCTIONS[name][1]])
def test_the_strides_of_the_inputs_do_not_matter(name):
    usual = tensors(call(name))
    strided = normal(B, *SHAPE).repeat_interleave(2, 3)[..., ::2]
    assert not strided.is_contiguous()
    for a, b in zip(usual, tensors(call(name, inputs=strided)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
