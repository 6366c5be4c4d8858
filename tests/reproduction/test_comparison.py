"""The table of methods: each gives maps and a path, and what it is given it leaves alone."""

import pytest
import torch
from helpers import draw

import manifold_lib as ml
from manifold_lib.reproduction.comparison import METHODS, Case, Counted

SHAPE = (1, 6, 6)
MIXING = draw(5, 36, seed=3) / 5
WEIGHTS = draw(36, 4, seed=4) / 6


class Coder:
    encode = staticmethod(lambda x: x.flatten(1) @ MIXING.T)
    decode = staticmethod(lambda z: torch.sigmoid(z @ MIXING).view(-1, *SHAPE))


def model(x):
    return torch.tanh(x.flatten(1) @ WEIGHTS)


def case(n=3, **more):
    inputs = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nodes = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = {"n_steps": 12, "max_iter": 8} | more
    target = torch.tensor([0, 1, 3, 2, 1])[:n]
    return Case(model, inputs, target, torch.zeros_like(inputs), Coder, Coder, nodes, **given)


PATHS = [name for name, method in METHODS.items() if method.path is not None]


@pytest.mark.filterwarnings("ignore:geodesic", "ignore:energy_path")
@pytest.mark.parametrize("name", METHODS)
def test_maps_do_not_depend_on_the_batch_and_come_twice_alike(name):
    whole = METHODS[name].maps(case())
    assert whole.shape == case().inputs.shape and whole.isfinite().all() and not whole.requires_grad
    assert torch.equal(METHODS[name].maps(case()), whole)
    given = case()
    for row in range(3):
        part = slice(row, row + 1)
        one = given._replace(inputs=given.inputs[part], target=given.target[part], baselines=given.baselines[part])
        torch.testing.assert_close(METHODS[name].maps(one), whole[part], atol=1e-7, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:geodesic", "ignore:energy_path")
@pytest.mark.parametrize("name", PATHS)
def test_a_path_ends_where_it_should(name):
    given = case()
    points = METHODS[name].path(given).sample(7)
    start, end = given.baselines, given.inputs
    if METHODS[name].baselines is not None:
        start = METHODS[name].baselines(given)
    if name in ("EIG", "MIG", "MA-GIG"):
        start, end = (Coder.decode(Coder.encode(x)) for x in (start, end))
    torch.testing.assert_close(points[:, 0], start, atol=1e-6, rtol=0)
    torch.testing.assert_close(points[:, -1], end, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:geodesic", "ignore:energy_path")
@pytest.mark.parametrize("name", PATHS)
def test_the_maps_of_a_path_are_the_integral_along_it(name):
    """Of pixel paths; those of latents are joined to the raw ends besides."""
    if name in ("EIG", "MIG", "MA-GIG"):
        pytest.skip("bridges are not part of the path")
    given = case()
    along = ml.integrate(model, METHODS[name].path(given).sample(240), given.target, n_steps=240)
    torch.testing.assert_close(along, METHODS[name].maps(given), atol=5e-3, rtol=0.05)


@pytest.mark.parametrize(("name", "n"), [("gradient", 3), ("IG", 3 * 12), ("random", 0), ("SmoothGrad", 3 * 12)])
def test_images_through_the_model_are_counted(name, n):
    counted = Counted(model)
    found = METHODS[name].maps(case()._replace(model=counted))
    assert torch.equal(found, METHODS[name].maps(case()))
    assert n <= counted.backward <= n + 10  # some for trials of the chunk's size
    assert counted.forward >= counted.backward


def test_second_derivatives_are_counted_too():
    counted = Counted(model)
    points = draw(2, *SHAPE).requires_grad_()
    (slope,) = torch.autograd.grad(counted(points.clone()).sum(), points, create_graph=True)
    assert counted.backward == 2
    torch.autograd.grad(slope.square().sum(), points)
    assert counted.backward == 4
