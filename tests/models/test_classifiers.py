"""The classifiers: shapes, sizes as their docstrings say, and that they learn."""

import pytest
import torch
from helpers import seeded

import manifold_lib as ml

FAMILIES = {"vgg": ml.small_vgg, "resnet": ml.small_resnet, "inception": ml.small_inception}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_any_size_and_rows_that_do_not_mix(name, channels, size):
    model = seeded(FAMILIES[name](7, channels, 8)).eval()
    inputs = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    logits = model(inputs)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(torch.cat([model(one) for one in inputs.split(1)]), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("vgg", 0.2), ("resnet", 0.2), ("inception", 0.1)])
def test_sizes_are_as_stated(name, millions):
    count = sum(parameter.numel() for parameter in FAMILIES[name](10, 1, 16).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", FAMILIES)
def test_they_learn_where_the_bright_half_is(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    inputs = 0.3 * torch.rand(32, 1, 32, 32, generator=generator)
    inputs[labels == 1, :, :16] += 0.6
    inputs[labels == 0, :, 16:] += 0.6
    model = seeded(FAMILIES[name](2, 1, 8)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4


def test_the_smooth_network_has_a_second_derivative_and_is_as_small_as_stated():
    model = seeded(ml.soft_cnn())
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e3 == pytest.approx(33, abs=1)
    inputs = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    (turn,) = torch.autograd.grad(slope.square().sum(), inputs)
    assert turn.count_nonzero() == turn.numel()
    assert ml.soft_cnn(7, 3, 8, 64)(torch.rand(2, 3, 64, 64)).shape == (2, 7)
