"""Two ways to raise the tangent fraction of ``IG(x, a) = v ⊙ h``; both are endless sequences of steps.

Here v = x − a, and h is the gradient averaged from a to x.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.scorer import Scorer
from ..paths.path import straight_path
from ..paths.quadrature import mean_gradient, rule

# (baselines, tangent fractions (B,), violations of the constraint (B,)) of each iteration
Steps = Iterator[tuple[Tensor, Tensor, Tensor]]


class Search(NamedTuple):
    """What all images share; ``decode`` maps the variables to baselines where it is given."""

    scorer: Scorer
    decode: Callable[[Tensor], Tensor] | None
    constraint: str
    c: float
    clamp: tuple[float, float]
    n_steps: int
    learning_rate: float
    stop_gradient: bool


def projection_steps(search: Search, inputs: Tensor, starts: Tensor, basis: Tensor, rows: Tensor) -> Steps:
    """Fixed point of ``v ← v + h ⊘ (h² + λ²) ⊙ (P(h ⊙ v) − h ⊙ v)`` with λ = 0.3 · rms(h), per image.

    This damped Newton step, for the current h, needs no derivative of h, which jumps at the kinks of a ReLU network.
    """
    scorer, baselines = search.scorer.of(rows), starts
    while True:
        average = _average(scorer, search.n_steps, inputs, baselines, graph=False)
        values = average * (inputs - baselines)
        inside = torch.einsum("bdk,bk->bd", basis, torch.einsum("bdk,bd->bk", basis, values.flatten(1)))
        yield baselines, _share(values, inside.norm(dim=1)), inputs.new_zeros(len(inputs))
        power = average.flatten(1).square().mean(1).view(-1, *(1,) * (inputs.ndim - 1))
        damping = (0.3**2 * power).clamp_min(torch.finfo(inputs.dtype).tiny)
        step = average / (average**2 + damping) * (inside.view_as(values) - values)
        baselines = baselines - torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        if search.constraint == "box":
            baselines = baselines.clamp(*search.clamp)


def gradient_steps(search: Search, inputs: Tensor, starts: Tensor, basis: Tensor, rows: Tensor) -> Steps:
    """Adam (Kingma and Ba 2015) on the fraction, each image on its own, with a penalty for ``constraint="change"``."""
    scorer = search.scorer.of(rows)
    needed = scale = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
    if search.constraint == "change":
        end = scorer.score(inputs)
        change = end - scorer.score(torch.zeros_like(inputs))
        needed, scale = end - search.c * change, change.abs().clamp_min(0.05)
    variable = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=search.learning_rate, maximize=True)
    while True:
        with torch.enable_grad():
            baselines = variable if search.decode is None else search.decode(variable)
            average = _average(scorer, search.n_steps, inputs, baselines, graph=not search.stop_gradient)
            values = average * (inputs - baselines)
            inside = torch.einsum("bdk,bd->bk", basis, values.flatten(1)).norm(dim=1)
            fraction = objective = _share(values, inside)
            violation = torch.zeros_like(fraction)
            if search.constraint == "change":
                found, slope = scorer.score_and_gradient(baselines)
                violation = (found - needed).clamp_min(0) / scale
                # the score enters by its gradient, which is at hand
                linear = (slope * baselines).flatten(1).sum(1) / scale
                objective = fraction - 2 * linear.where(violation > 0, 0)
            (gradient,) = torch.autograd.grad(objective.sum(), variable)
        yield baselines.detach().clone(), fraction.detach(), violation.detach()  # the optimiser works in place
        variable.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        optimizer.step()
        if search.constraint == "box":
            with torch.no_grad():
                variable.clamp_(*search.clamp)


def is_piecewise_linear(scorer: Scorer, inputs: Tensor, clamp: tuple[float, float]) -> bool:
    """Whether the gradient has no derivative, as on ReLU networks: then h is locally constant.

    Tried at noise, the same whatever the inputs: an image may sit where the derivative happens to be zero.
    """
    low, high = clamp
    # two rows where there may be, since batch norm in train mode refuses one
    shape = (min(2, scorer.size), *inputs.shape[1:])
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    points = (low + (high - low) * noise).to(inputs.device).requires_grad_()
    with torch.enable_grad():
        rows = torch.zeros(len(points), dtype=torch.int64, device=inputs.device)
        slope = scorer.gradient(points, rows, create_graph=True)
        if not slope.requires_grad:
            return True
        (second,) = torch.autograd.grad(slope.square().sum(), points, allow_unused=True)
    return second is None or not second.any()


def _average(scorer: Scorer, n_steps: int, inputs: Tensor, baselines: Tensor, *, graph: bool) -> Tensor:
    """h, by midpoint nodes; with a graph only where it is to be differentiated."""
    path = straight_path(inputs, baselines if graph else baselines.detach())
    return mean_gradient(scorer, path, *rule("midpoint", n_steps, inputs), create_graph=graph)


def _share(values: Tensor, inside: Tensor) -> Tensor:
    """inside / ‖values‖, and 0 where there is nothing: at a = x, say."""
    length = values.flatten(1).norm(dim=1)
    return torch.where(length > 0, inside / length.where(length > 0, 1), 0)
