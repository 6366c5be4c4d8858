"""Half-moons and the networks of paper 4 (section 4.1), a whole grid of noise levels and seeds trained at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.checks import check_count
from ..core.progress import progress_bar

NOISES = tuple(round(0.05 * i, 2) for i in range(1, 14))
SEEDS = (12, 24, 36, 48, 60)


class Moons(NamedTuple):
    """Half-moons of one noise level and seed, split as published (7,500 and 2,500 of 10,000 points), and their network.

    Inputs (N, 2) and labels (N,) int64, 0 for the upper moon, to train with, then to test; the model gives
    log-probabilities (B, 2).
    """

    noise: float
    seed: int
    train_inputs: Tensor
    train_labels: Tensor
    inputs: Tensor
    labels: Tensor
    model: nn.Module


def half_moons(noise: float, seed: int, n_points: int = 10_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels to train with, then to test: scikit-learn's moons and its default split."""
    from sklearn.datasets import make_moons
    from sklearn.model_selection import train_test_split

    points, labels = make_moons(check_count(n_points, "n_points", least=4), noise=noise, random_state=seed)
    parts = train_test_split(points.astype("float32"), labels, random_state=seed)
    train_inputs, inputs, train_labels, labels = (torch.from_numpy(part) for part in parts)
    return train_inputs, train_labels.long(), inputs, labels.long()


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, generator: torch.Generator | None = None) -> nn.Sequential:
    """The paper's network, 2-10-10-2 with log-probabilities; its start, uniform in ±1/√fan, from the generator."""
    layers = (nn.Linear(2, 10), nn.Linear(10, 10), nn.Linear(10, 2))
    if generator is not None:
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
    return nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2], nn.LogSoftmax(1))


class Stack(nn.Module):
    """Networks of :func:`mlp` side by side, so that one call explains points of all of them.

    A point comes with the number of its network, which goes to an attribution as ``additional_forward_args``.

    Examples
    --------
    >>> networks = [mlp(), mlp()]
    >>> points, index = torch.rand(3, 2), torch.tensor([0, 1, 1])
    >>> torch.allclose(Stack(networks)(points, index)[1:], networks[1](points[1:]), atol=1e-6)
    True
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.activation = networks[0][1]
        layers: list[list[Any]] = [[network[place] for network in networks] for place in (0, 2, 4)]
        self.weights = nn.ParameterList(torch.stack([one.weight.detach().T for one in row]) for row in layers)
        self.biases = nn.ParameterList(torch.stack([one.bias.detach()[None] for one in row]) for row in layers)

    def together(self, points: Tensor, networks: Tensor | slice = slice(None)) -> Tensor:
        """Log-probabilities of as many points for each of some networks: (G, n, 2) -> (G, n, 2)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            points = torch.baddbmm(bias[networks], self.activation(points) if layer else points, weight[networks])
        return points.log_softmax(2)

    def forward(self, points: Tensor, index: Tensor) -> Tensor:
        """Log-probabilities (n, 2) of points (n, 2), each by the network whose number ``index`` (n,) has."""
        used, group, counts = torch.unique(index, return_inverse=True, return_counts=True)
        order, most = group.argsort(stable=True), int(counts.max())
        # the points of each network go to a row of their own, filled up with zeros
        first = (group * most - counts.cumsum(0)[group] + counts[group])[order]
        places = torch.empty_like(order).scatter_(0, order, first + torch.arange(len(order)).to(order))
        rows = points.new_zeros(len(used) * most, 2).index_copy(0, places, points)
        return self.together(rows.view(len(used), most, 2), used).flatten(0, 1)[places]


def train_moons(
    noises: Sequence[float] = NOISES,
    seeds: Sequence[int] = SEEDS,
    *,
    n_points: int = 10_000,
    n_epochs: int = 50,
    activation: Callable[[], nn.Module] = nn.ReLU,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> list[Moons]:
    """One network for each noise and seed, all trained side by side: Adam at 1e-3, batches of 32, 50 epochs.

    Stacked weights go through batched matrix products: 65 networks take little longer than one. Each draws its
    first weights and its batches from its own seed, so that none depends on the others. The paper's networks are of
    ReLU; ``activation`` puts another in its place.

    >>> [case.noise for case in train_moons([0.1, 0.2], [12], n_points=200, n_epochs=1)]
    [0.1, 0.2]
    """
    cases = [(noise, seed) for noise in noises for seed in seeds]
    sets = [half_moons(noise, seed, n_points) for noise, seed in cases]
    inputs, labels = (torch.stack([part[i] for part in sets]).to(device) for i in (0, 1))
    generators = [torch.Generator().manual_seed(seed) for _, seed in cases]
    networks = [mlp(activation, generator).to(device) for generator in generators]
    stack = Stack(networks)
    optimizer = torch.optim.Adam(stack.parameters(), lr=1e-3, fused=True)
    for _ in progress_bar(range(check_count(n_epochs, "n_epochs")), show=progress, desc="half-moons"):
        order = torch.stack([torch.randperm(inputs.shape[1], generator=g) for g in generators]).to(device)
        shuffled = inputs.gather(1, order[..., None].expand(-1, -1, 2)), labels.gather(1, order)
        for x, y in zip(*(part.split(32, 1) for part in shuffled), strict=True):
            # the sum of each network's own mean
            loss = nn.functional.nll_loss(stack.together(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = []
    for i, ((noise, seed), parts, network) in enumerate(zip(cases, sets, networks, strict=True)):
        for layer, weight, bias in zip(network[::2], stack.weights, stack.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[i].detach().T.clone(), bias[i, 0].detach().clone()
        x, y, test_x, test_y = (part.to(device) for part in parts)
        found.append(Moons(noise, seed, x, y, test_x, test_y, network.eval()))
    return found
