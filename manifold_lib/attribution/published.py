"""Sums and paths as released, for the record: what ``published=True`` gives. None of them is a line integral."""

import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.scorer import Scorer
from ..paths.greedy import Evaluate, greedy_groups
from ..paths.path import Path, column
from ..paths.quadrature import empty_sum, mean_gradient, rule
from ..paths.refine import Node

# As in the released code of paper 5: nearer than this a latent has arrived; more parallel than this, slerp is lerp.
_ARRIVED, _PARALLEL = 1e-9, 0.9995


def chord_times_mean(path: Path, n_steps: int) -> Path:
    """Paper 3's sum: (p_last − p_first) ⊙ mean ∇f(p_i), over the points at i / n_steps for i < n_steps.

    It stops before the input and has no bridges. On a curved path more steps do not bring it closer to Δf.
    """

    def integral(scorer: Scorer, method: str, create_graph: bool) -> Tensor:
        assert path.end is not None
        nodes, weights = rule("left", n_steps, path.end)
        average = mean_gradient(scorer, path, nodes, weights, create_graph=create_graph)
        rows = torch.arange(len(path.end), device=path.end.device).split(scorer.size)
        with torch.set_grad_enabled(create_graph):
            ends = [torch.cat([path.at(some, t.expand(len(some))) for some in rows]) for t in nodes[[0, -1]]]
        return (ends[1] - ends[0]) * average

    return dataclasses.replace(path, integral=integral)


def length_weighted(points: Tensor, displacement: Tensor, scorer: Scorer) -> Tensor:
    """Paper 4's sum of its SVI route: (x − x') ⊙ Σ_s ‖γ_{s+1} − γ_s‖ ∇f(γ_s), the last step counted twice.

    For a linear score it gives the length of the path times the right answer. (B, T, *shape) -> (B, *shape).
    """
    steps = points.diff(dim=1).flatten(2).norm(dim=2)
    steps = torch.cat([steps, steps[:, -1:]], 1).flatten()
    flat, total = points.flatten(0, 1), torch.zeros_like(points[:, 0])
    rows = torch.arange(len(flat), device=flat.device) // points.shape[1]
    for chunk in torch.arange(len(flat), device=flat.device).split(scorer.size):
        slopes = scorer.gradient(flat[chunk], rows[chunk])
        total.index_add_(0, rows[chunk], slopes * column(steps[chunk], slopes))
    return displacement * total


def released_nodes(evaluate: Evaluate, starts: Tensor, ends: Tensor, n_steps: int, fraction: float) -> Iterator[Node]:
    """The n_steps decoded points of paper 5's path; the way left after step k is 1 − (k + 1) / (n_steps + 1)."""
    goal = ends.flatten(1).to(empty_sum(ends[:1]).dtype)
    current, rows = starts.flatten(1).to(goal.dtype), torch.arange(len(ends), device=ends.device)
    whole_way = (goal - current).abs().sum(1, keepdim=True)
    for step in range(n_steps):
        node, guide = evaluate(current.view_as(starts).to(starts.dtype), rows, step < n_steps - 1)
        yield node
        if guide is not None:
            left = whole_way * (1 - (step + 1) / (n_steps + 1))
            current = _released_step(current, goal, guide.flatten(1), left, fraction)


def anchored(nodes: Iterator[Node], scorer: Scorer, baselines: Tensor, inputs: Tensor) -> Iterator[Node]:
    """The nodes between the raw baseline, which takes the place of the first, and the raw input."""
    yield Node(baselines, baselines, scorer.gradient(baselines))
    yield from itertools.islice(nodes, 1, None)
    yield Node(inputs, inputs)


def _released_step(current: Tensor, goal: Tensor, gradient: Tensor, left: Tensor, fraction: float) -> Tensor:
    """One step of the released rule on latents (B, K), after which the L1 way ``left`` (B, 1) should remain.

    γ may be negative: after a slerp has overshot the schedule, the latents move back.
    """
    way = (goal - current).abs()
    movable = way >= _ARRIVED
    need = way.sum(1, keepdim=True) - left
    whole, part, gamma = greedy_groups(gradient, movable, way.where(movable, 0), need, fraction)
    part = part & movable
    turned = _slerp(current.where(part, 0), goal.where(part, 0), gamma)
    return torch.where(whole & movable, goal, turned.where(part, current))


def _slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Along the great circle between two vectors of each row (B, K), t (B, 1); straight where there is none."""
    norms = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    cosine = (start * end).sum(1, keepdim=True) / (norms[0] * norms[1])
    angle = cosine.clamp(-1, 1).arccos()
    turned = (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
    straight = (torch.minimum(*norms) < _ARRIVED) | (cosine.abs() > _PARALLEL)
    return torch.where(straight, start + t * (end - start), turned)
