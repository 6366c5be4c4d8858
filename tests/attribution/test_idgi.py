"""IDGI: a closed form, exact sums, any path, one image at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import close, draw, smooth_model, untouched

import manifold_lib as ml


def test_a_linear_score_is_shared_out_by_its_squared_weights() -> None:
    weights, inputs = draw(16, seed=1), draw(3, 1, 4, 4)
    found = ml.idgi(lambda x: (x.flatten(1) @ weights)[:, None], inputs, 0, n_steps=7).flatten(1)
    close(found, weights**2 / weights.square().sum() * (inputs.flatten(1) @ weights)[:, None], 1e-12)


@pytest.mark.parametrize("build", [None, ml.guided_path, "blur"])
def test_the_sum_is_the_change_of_the_score_whatever_the_steps(build: object) -> None:
    model, inputs, target = smooth_model(), draw(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    path = ml.blur_path(inputs, sigma=1.0) if build == "blur" else None
    path = ml.guided_path(model, inputs, target, n_steps=9) if build is ml.guided_path else path
    for n_steps in (1, 9, 30):
        delta = ml.idgi(model, inputs, target, path=path, n_steps=n_steps, return_convergence_delta=True)[1]
        assert delta.abs().max() < 1e-12


def test_it_is_the_published_sum_on_the_straight_line() -> None:
    model, inputs = smooth_model(), draw(1, 1, 4, 4)
    points = [(inputs * i / 5).requires_grad_() for i in range(6)]
    expected = torch.zeros_like(inputs)
    for here, there in itertools.pairwise(points):
        (slope,) = torch.autograd.grad(model(here)[:, 1].sum(), here)
        expected += slope**2 / slope.square().sum() * (model(there) - model(here))[0, 1].detach()
    close(ml.idgi(model, inputs, 1, n_steps=5), expected, 1e-12)


def test_chunks_and_other_images_change_nothing_and_a_flat_score_gets_zeros() -> None:
    model, inputs = smooth_model(), draw(5, 1, 4, 4)
    with untouched(model, inputs):
        whole = ml.idgi(model, inputs, 1)
    for size in (1, 3, 7):
        close(ml.idgi(model, inputs, 1, internal_batch_size=size), whole, 1e-12)
    close(torch.cat([ml.idgi(model, one, 1) for one in inputs.split(1)]), whole, 1e-12)
    assert not ml.idgi(lambda x: 0 * x.flatten(1).sum(1, keepdim=True), inputs, 0).any()
