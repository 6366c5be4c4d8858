"""The half-moons of paper 4 and their stacked training."""

import numpy as np
import torch
from sklearn.datasets import make_moons

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
