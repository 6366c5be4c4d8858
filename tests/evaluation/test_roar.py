"""Remove and retrain: exactly what is asked for is removed, and stacked networks train as if alone."""

import pytest
import torch

import manifold_lib as ml


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_exactly_the_asked_share_is_removed_even_with_ties(fraction):
    inputs = torch.rand(3, 1, 8, 8) + 1
    removed = ml.remove_top(inputs, torch.zeros_like(inputs), fraction) == 0
    assert removed.flatten(1).sum(1).tolist() == [round(fraction * 64)] * 3


def test_the_highest_ranked_go_and_the_rest_stays():
    inputs = torch.arange(1.0, 9.0).view(1, 1, 2, 4)
    assert ml.remove_top(inputs, inputs, 0.25, fill=-1.0).flatten().tolist() == [1, 2, 3, 4, 5, 6, -1, -1]
    assert inputs.min() == 1


@pytest.mark.parametrize("ranking, fraction", [(torch.rand(2, 3), 0.5), (None, 0.5), ("same", 1.5), ("same", "half")])
def test_bad_input_is_named(ranking, fraction):
    inputs = torch.rand(2, 4)
    with pytest.raises(ValueError, match=r"ranking: got|fraction: got"):
        ml.remove_top(inputs, inputs if ranking == "same" else ranking, fraction)


def patch_net():
    return ml.PatchNet(n_classes=2, size=16, width=4)


def test_a_stack_of_networks_trains_as_each_would_alone():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 96, 1, 16, 16, generator=generator)
    labels = (inputs[0, :, 0, :8].mean((1, 2)) > inputs[0, :, 0, 8:].mean((1, 2))).long()
    options = {"epochs": 2, "batch_size": 16}
    together = ml.retrain(patch_net, inputs, labels, inputs, labels, **options)
    alone = [ml.retrain(patch_net, part[None], labels, part[None], labels, **options)[0] for part in inputs]
    assert (together == torch.stack(alone)).float().mean() > 0.97  # bits differ, predictions hardly


def test_it_learns_and_repeats():
    inputs = torch.rand(1, 256, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(256) % 2
    inputs[0, labels == 1, 0, 4:8, 4:8] += 2
    runs = [ml.retrain(patch_net, inputs, labels, inputs, labels, epochs=6, seed=3) for _ in range(2)]
    assert runs[0].float().mean() > 0.95 and torch.equal(*runs)


def test_the_patch_net_is_two_strided_convolutions():
    network, inputs = ml.PatchNet(size=32, width=16), torch.rand(2, 1, 32, 32)
    weight = network.first.weight.view(16, 1, 4, 4)
    hidden = torch.relu(torch.nn.functional.conv2d(inputs, weight, network.first.bias, stride=4))
    weight = network.second.weight.view(32, 16, 2, 2)
    hidden = torch.relu(torch.nn.functional.conv2d(hidden, weight, network.second.bias, stride=2))
    expected = network.head(hidden.permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(network(inputs), expected)
    assert sum(parameter.numel() for parameter in network.parameters()) < 30_000
