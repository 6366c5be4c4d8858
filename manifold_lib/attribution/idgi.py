"""IDGI (Yang et al. 2023): along a path, each step's change of the score is shared out by the squared gradient."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_like
from ..core.scorer import Model, Scorer, Target, scoring
from ..paths.integral import integrate, path_method, unsaid, with_delta
from ..paths.path import Path, column, path_starts, straight_path
from ..paths.quadrature import empty_sum, pairs


@path_method
def idgi(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    path: Path | None = None,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Important Direction Gradient Integration (Yang et al. 2023): Σ_j ∇f(γ_j)² / ‖∇f(γ_j)‖² · (f(γ_{j+1}) − f(γ_j)).

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.integrated_gradients`.
    path : Path, optional
        From baselines to inputs, as of :func:`manifold_lib.guided_path`; by default straight from ``baselines``.
    n_steps : int
        Equal steps of the path.
    return_convergence_delta : bool
        Also return Σ A − (f(end) − f(start)): zero, but for steps whose gradient is zero.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        For bad input, and a path whose ends are not like ``inputs``.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.idgi(lambda x: x[:, :1] + 2 * x[:, 1:], torch.tensor([[1.0, 1.0]]), 0).round(decimals=4)
    tensor([[0.6000, 2.4000]])
    """
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    path = straight_path(inputs.detach(), 0.0 if baselines is None else baselines) if path is None else path
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size) as scorer:
        path = dataclasses.replace(path, end=check_like(inputs if path.end is None else path.end, inputs, "path"))
        own = dataclasses.replace(path, integral=lambda other, method, graph: _shared_out(other, path, n_steps))
        attributions = integrate(scorer, own, name="idgi")
        starts, name = path_starts(path, scorer.size), unsaid(own, "idgi")
        return with_delta(scorer, attributions, inputs, starts, return_convergence_delta, name)


def _shared_out(scorer: Scorer, path: Path, n_steps: int) -> Tensor:
    total, last = empty_sum(path.end), None
    for rows, index in pairs(len(path.end), n_steps + 1, scorer.size, path.end.device):
        with torch.no_grad():
            points = path.at(rows, index.to(path.end.dtype) / n_steps)
        here = (*scorer.score_and_gradient(points, rows), rows)
        score, slope, row = here if last is None else (torch.cat(pair) for pair in zip(last, here, strict=True))
        last = (score[-1:], slope[-1:], row[-1:])
        squares = slope[:-1].to(total.dtype).square()
        length = squares.flatten(1).sum(1)
        share = torch.where((length > 0) & (row[1:] == row[:-1]), (score[1:] - score[:-1]) / length, 0.0)
        total.index_add_(0, row[:-1], squares * column(share, squares))
    return total.to(path.end.dtype)
