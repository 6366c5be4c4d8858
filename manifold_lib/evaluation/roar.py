"""ROAR (Hooker et al. 2019): remove what a map calls important, retrain, and see what accuracy is left."""

import functools
from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_batch, check_count, require
from ..core.modules import fickle_layers
from ..core.progress import progress_bar
from ..paths.path import column


def remove_top(inputs: Tensor, ranking: Tensor, fraction: float, fill: float | Tensor = 0.0) -> Tensor:
    """Replace the ``fraction`` of entries of each image that rank highest: (B, *shape).

    Exactly round(fraction · D) entries are removed, of tied ones the first. (The published code removes those above a
    quantile, fewer than asked for where a map has ties at zero.)

    Parameters
    ----------
    inputs, ranking, fraction
        (B, *shape), (B, *shape) in any unit, and a number in [0, 1].
    fill : float or Tensor
        Value put in their place, in input units: a number, or a tensor that broadcasts over ``inputs``.

    Raises
    ------
    ValueError
        For inputs that are no batch, a ranking of another shape, or a fraction outside [0, 1].

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.remove_top(torch.tensor([[5.0, 6.0, 7.0, 8.0]]), torch.tensor([[1.0, 9.0, 2.0, 3.0]]), 0.5)
    tensor([[5., 0., 7., 0.]])
    """
    check_batch(inputs)
    if not isinstance(ranking, Tensor) or ranking.shape != inputs.shape:
        got = tuple(ranking.shape) if isinstance(ranking, Tensor) else type(ranking).__name__
        raise ValueError(f"ranking: got shape {got}, wants {tuple(inputs.shape)} like inputs")
    if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
        raise ValueError(f"fraction: got {fraction!r}, wants a number in [0, 1]")
    removed = (ranks_of(ranking.flatten(1)) < round(fraction * ranking[0].numel())).view_as(inputs)
    fill, shape = torch.as_tensor(fill, dtype=inputs.dtype, device=inputs.device), tuple(inputs.shape)
    sizes = zip(fill.shape[::-1], shape[::-1], strict=False)
    fits = fill.ndim <= len(shape) and all(size in (1, wanted) for size, wanted in sizes)
    require(fits, "fill", f"shape {tuple(fill.shape)}", f"one that broadcasts over inputs {shape}")
    return torch.where(removed, fill, inputs)


def ranks_of(relevance: Tensor) -> Tensor:
    """Place of each unit in the order of falling relevance, ties in the order of the units: (B, units) int64."""
    order = relevance.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def replaced(x: Tensor, ranks: Tensor, counts: Tensor, fill: Tensor | None, kind: str) -> Tensor:
    """Some images, ``counts`` units of each replaced (None: by the mean of the others); rank 0 is the most relevant."""
    gone = ranks < counts[:, None] if kind == "deletion" else ranks >= ranks.shape[1] - counts[:, None]
    gone = gone.view_as(x) if gone.shape[1] == x[0].numel() else gone.view(-1, 1, *x.shape[2:])
    if fill is None:
        left = (~gone).expand_as(x)
        n_left = left.flatten(1).sum(1)
        # half precision overflows in a sum over an image
        exact = x if x.dtype == torch.float64 else x.float()
        mean = (exact * left).flatten(1).sum(1) / n_left
        fill = column(torch.where(n_left > 0, mean, exact.flatten(1).mean(1)), x)
    return torch.where(gone, fill, x)


def retrain(
    build: Callable[[], nn.Module],
    train_inputs: Tensor,
    train_labels: Tensor,
    test_inputs: Tensor,
    test_labels: Tensor,
    *,
    epochs: int = 12,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Train M fresh networks at once, each on its own version of the images, and test them: (M, N_test) bool, right.

    The networks share the first weights, the batches and the labels, so they differ by their data alone.

    Parameters
    ----------
    build : callable
        Makes one network without dropout or batch norm, logits (B, C).
    train_inputs, train_labels, test_inputs, test_labels : Tensor
        (M, N, *shape), (N,), (M, N_test, *shape) and (N_test,).
    epochs, batch_size, learning_rate
        Of Adam with a one-cycle schedule.
    seed, progress
        The seed of the first weights and of the batches, and whether to show a bar over the epochs.

    Raises
    ------
    ValueError
        For images that are no M batches, test images of another shape, or a number of epochs below 1.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    >>> ml.retrain(lambda: torch.nn.Linear(1, 2), x[None], y, x[None], y, epochs=100, learning_rate=0.1)
    tensor([[True, True]])
    """
    check_count(epochs, "epochs")
    check_batch(train_inputs, "train_inputs", min_dim=3)
    n_models, n_images = train_inputs.shape[:2]
    if test_inputs.shape[0] != n_models or test_inputs.shape[2:] != train_inputs.shape[2:]:
        raise ValueError(f"test_inputs: got shape {tuple(test_inputs.shape)}, wants ({n_models}, N_test, *shape)")
    device = train_inputs.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().to(device)
    kinds, _ = fickle_layers([network.train()])
    require(not kinds, "build", f"a network with {kinds}", "one without dropout or batch norm")
    stacked = {
        name: value.detach().expand(n_models, *value.shape).clone().requires_grad_()
        for name, value in network.named_parameters()
    }
    forward = torch.vmap(functools.partial(torch.func.functional_call, network))
    optimizer = torch.optim.Adam(stacked.values(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    total = epochs * -(-n_images // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=total)
    for _ in progress_bar(range(epochs), show=progress, desc=f"{n_models} retrainings"):
        for rows in torch.randperm(n_images, generator=generator).to(device).split(batch_size):
            scores = forward(stacked, train_inputs[:, rows])
            logits = isinstance(scores, Tensor) and scores.ndim == 3
            require(logits, "build", "a network with other outputs", "logits (B, C)")
            # summed over the networks: each gets just its own gradient
            labels = train_labels[rows].expand(n_models, -1)
            loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum") / len(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    parts = zip(test_inputs.split(500, 1), test_labels.split(500), strict=True)
    with torch.no_grad():
        return torch.cat([forward(stacked, chunk).argmax(2) == labels for chunk, labels in parts], 1)
