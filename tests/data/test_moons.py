"""The half-moons of paper 4 and their stacked training."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

import manifold_lib as ml
from manifold_lib.data import moons


def test_the_split_is_the_published_one():
    train_inputs, train_labels, inputs, labels = moons.half_moons(0.15, 12)
    assert train_inputs.shape == (7500, 2) and inputs.shape == (2500, 2)
    points, classes = make_moons(10_000, noise=0.15, random_state=12)
    every = np.concatenate([train_inputs, inputs])
    assert np.array_equal(np.sort(every, 0), np.sort(points.astype(np.float32), 0))
    assert int(torch.cat([train_labels, labels]).sum()) == classes.sum() == 5000
    # scikit-learn's upper moon is class 0
    assert inputs[labels == 0][:, 1].mean() > inputs[labels == 1][:, 1].mean()


def test_a_network_trained_in_a_stack_is_the_one_trained_alone():
    stacked = moons.train_moons((0.1, 0.3), (12, 24), n_points=400, n_epochs=3)
    assert [(m.noise, m.seed) for m in stacked] == [(0.1, 12), (0.1, 24), (0.3, 12), (0.3, 24)]
    for case in stacked:
        (alone,) = moons.train_moons((case.noise,), (case.seed,), n_points=400, n_epochs=3)
        assert torch.equal(alone.inputs, case.inputs)
        for a, b in zip(alone.model.parameters(), case.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_it_is_plain_training_with_adam():
    (case,) = moons.train_moons((0.1,), (12,), n_points=400, n_epochs=2)
    generator = torch.Generator().manual_seed(12)
    model = moons.mlp(generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        order = torch.randperm(300, generator=generator)
        for rows in order.split(32):
            optimizer.zero_grad()
            torch.nn.functional.nll_loss(model(case.train_inputs[rows]), case.train_labels[rows]).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), case.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_networks_learn():
    cases = moons.train_moons((0.05, 0.3), (12,), n_points=4000, n_epochs=40)
    accuracy = [(case.model(case.inputs).argmax(1) == case.labels).float().mean().item() for case in cases]
    assert accuracy[0] > 0.97 and accuracy[1] > 0.85
    assert all(not case.model.training for case in cases)
    assert torch.allclose(cases[0].model(cases[0].inputs).exp().sum(1), torch.ones(1000))


def test_networks_of_softplus_are_smooth_and_learn():
    smooth = functools.partial(torch.nn.Softplus, beta=5)
    (case,) = moons.train_moons((0.1,), (12,), n_points=2000, n_epochs=30, activation=smooth)
    assert [type(layer) for layer in case.model[1:4:2]] == [torch.nn.Softplus] * 2 and case.model[1].beta == 5
    assert (case.model(case.inputs).argmax(1) == case.labels).float().mean() > 0.9


@pytest.fixture(scope="module")
def networks():
    return [moons.mlp(generator=torch.Generator().manual_seed(seed)) for seed in range(5)]


def test_a_stack_scores_each_point_by_its_own_network(networks):
    points, index = torch.randn(60, 2), torch.tensor([4, 0, 0, 2, 4, 1]).repeat(10)  # none for the network 3
    found = moons.Stack(networks)(points, index)
    for k in range(5):
        torch.testing.assert_close(found[index == k], networks[k](points[index == k]))
    every = moons.Stack(networks).together(points.view(5, 12, 2))
    torch.testing.assert_close(every[3], networks[3](points.view(5, 12, 2)[3]))


def test_a_stack_is_explained_as_its_networks_are(networks):
    points, index = torch.randn(40, 2), torch.arange(5).repeat_interleave(8)
    settings = {"baselines": torch.tensor([[-0.5, -0.5]]), "n_steps": 20}
    found = ml.integrated_gradients(moons.Stack(networks), points, 1, additional_forward_args=index, **settings)
    alone = [ml.integrated_gradients(net, points[index == k], 1, **settings) for k, net in enumerate(networks)]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-4)
