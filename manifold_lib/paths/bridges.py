"""Straight bridges that join a decoded path to the raw baseline and the raw input."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.scorer import LEAST_CHANGE, Model, score
from .path import Path, path_starts, straight_path
from .quadrature import line_integral

_NODES, _MOST_NODES = 16, 256
_ALLOWED = 1e-3  # of f(x) − f(x')


def bridges(
    model: Model,
    inputs: Tensor,
    baselines: Tensor,
    curve: Path,
    target: Tensor | None,
    size: int,
    create_graph: bool = False,
) -> Tensor:
    """Integrals along the straight lines from the baselines to the curve's starts and from its ends to the inputs."""
    assert curve.end is not None
    starts = path_starts(curve, size)
    if create_graph:
        rows = torch.arange(len(inputs), device=inputs.device)
        starts = curve.at(rows, inputs.new_zeros(len(inputs)))
    legs = ((baselines, starts), (curve.end, inputs))
    if create_graph:
        first, second = (_leg(model, *leg, target, _NODES, size, create_graph) for leg in legs)
    else:
        scores = [[score(model, end, target, size) for end in leg] for leg in legs]
        allowed = _ALLOWED * (scores[1][1] - scores[0][0]).abs().clamp_min(LEAST_CHANGE)
        first, second = (
            _bridge(model, *leg, target, ends[1] - ends[0], allowed, size)
            for leg, ends in zip(legs, scores, strict=True)
        )
    return first + second


def _bridge(
    model: Model, start: Tensor, end: Tensor, target: Tensor | None, change: Tensor, allowed: Tensor, size: int
) -> Tensor:
    """The integral along a straight line, by four times as many nodes as long as they miss its change of the score."""
    sound = (torch.isfinite(start) & torch.isfinite(end)).flatten(1).all(1)
    found = torch.full_like(end, torch.nan)
    rows, n_nodes = sound.nonzero()[:, 0], _NODES
    while len(rows) and n_nodes <= _MOST_NODES:
        own = None if target is None else target[rows]
        found[rows] = _leg(model, start[rows], end[rows], own, n_nodes, size, False)
        missed = (found[rows].flatten(1).sum(1) - change[rows]).abs() > allowed[rows]
        rows, n_nodes = rows[missed], 4 * n_nodes
    return found


def _leg(
    model: Model, start: Tensor, end: Tensor, target: Tensor | None, n_nodes: int, size: int, create_graph: bool
) -> Tensor:
    rule = {"method": "gausslegendre", "n_steps": n_nodes, "size": size, "create_graph": create_graph}
    return line_integral(model, straight_path(end, start), target, **rule)
