"""The adaptive line integral: segments of a path that are halved until the integral is complete."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import check_positive
from ..core.scorer import Scorer
from .path import Path
from .quadrature import empty_sum
from .refine import FIRST, MOST, Node, chosen, halves, refine, trapezoid, until_complete


def adaptive(
    scorer: Scorer,
    path: Path,
    tolerance: float,
    *,
    most: int | None = None,
    average: bool = False,
    name: str = "integrate",
) -> tuple[Tensor, Tensor, Tensor]:
    """Trapezoid sums over segments that are halved until the integral is complete to ``tolerance``.

    The score comes with its gradient, so the error f(p_{i+1}) − f(p_i) − ½ (∇f_i + ∇f_{i+1})·(p_{i+1} − p_i)
    of each segment is known.

    Parameters
    ----------
    most : int or None
        Most segments of an image, 1,024 by default.
    average : bool
        Sum ∇f dt instead, the path-averaged gradient.

    Returns
    -------
    (Tensor, Tensor, Tensor)
        (B, *shape), gradients taken (B,), and whether the tolerance was reached (B,).
    """
    end = path.end
    assert end is not None
    most = MOST if most is None else most
    n_first = path.n_edges * math.ceil(min(FIRST, most) / path.n_edges)
    total, n_rows = torch.zeros_like(end, requires_grad=False), len(end)
    counts = torch.full((n_rows,), n_first + 1, device=end.device)
    converged, finite = torch.zeros(2, n_rows, dtype=torch.bool, device=end.device)
    # points and gradients of a block are kept, so it has only as many images as make one pass at the start
    for block in torch.arange(n_rows, device=end.device).split(max(scorer.size // (n_first + 1), 1)):
        part = scorer.of(block)
        gradients = None if path.gradients is None else _of_block(path.gradients, block)
        evaluate = evaluator(part, Path(_of_block(path.at, block), gradients, end=end[block]))
        rows = torch.arange(len(block), device=end.device)
        t = torch.linspace(0, 1, n_first + 1, dtype=torch.float64, device=end.device)
        nodes = evaluate(t.repeat(len(block)), rows.repeat_interleave(n_first + 1))
        along = nodes.score.view(len(block), -1)
        spread = _spread(part, end[block])
        spread = torch.where(torch.isfinite(spread), spread, along.amax(1) - along.amin(1))
        bound = tolerance * torch.maximum((along[:, -1] - along[:, 0]).abs(), 0.05 * spread)
        first = (torch.arange(len(nodes.score), device=end.device).view(along.shape)[:, :-1]).flatten()
        first, second = chosen(nodes, first), chosen(nodes, first + 1)
        owner = rows.repeat_interleave(n_first)
        pieces = trapezoid(owner, torch.zeros_like(owner), first, second, average=average)
        spent, reached, sums = counts[block], converged[block], empty_sum(end[block])
        policy = until_complete(bound, n_first, most, spent, reached)
        refine(sums, pieces, halves(evaluate, scorer.size, average=average), policy)
        total[block], counts[block], converged[block] = sums.to(end.dtype), spent, reached
        finite[block] = torch.isfinite(sums).flatten(1).all(1)
    late = int((~converged & finite).sum())  # NaN is counted elsewhere
    if late:
        message = f"{name}: {late} of {n_rows} images not converged to tolerance {tolerance:g} within {most} segments"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return total, counts, converged


def evaluator(scorer: Scorer, path: Path) -> Callable[[Tensor, Tensor], Node]:
    """Points, scores and gradients at some times of some images, some at a time."""
    assert path.end is not None
    dtype = path.end.dtype

    def evaluate(t: Tensor, rows: Tensor) -> Node:
        n_rows = len(rows)
        if n_rows == 1 < scorer.size:  # batch norm in train mode refuses one row
            rows, t = rows.expand(2), t.expand(2)
        # even parts, so that none is left with one
        n_parts, parts = math.ceil(len(rows) / scorer.size), []
        for own, times in zip(rows.tensor_split(n_parts), t.tensor_split(n_parts), strict=True):
            with torch.no_grad():
                x = path.at(own, times.to(dtype))
            if path.gradients is None:
                value, gradient = scorer.score_and_gradient(x, own)
            else:
                value, gradient = scorer.score(x, own), path.gradients(own, times.to(dtype))
            parts.append((times, x.detach(), gradient, value.to(dtype)))
        return Node(*(torch.cat(part)[:n_rows] for part in zip(*parts, strict=True)))

    return evaluate


def _of_block(function: Callable, block: Tensor) -> Callable:
    return lambda rows, t: function(block[rows], t)


def _spread(scorer: Scorer, end: Tensor) -> Tensor:
    """Range of the class scores at each end; NaN where there is one score only, or one that is not finite."""
    with torch.no_grad():
        rows = torch.arange(len(end), device=end.device).split(scorer.size)
        scores = torch.cat([scorer.scores(end[some], some) for some in rows]).view(len(end), -1)
    return scores.amax(1) - scores.amin(1) if scores.shape[1] > 1 else torch.full_like(scores[:, 0], torch.nan)


def check_adaptive(tolerance: float, method: str, create_graph: bool = False) -> None:
    """Refuse what the adaptive rule, a trapezoid, cannot do."""
    check_positive(tolerance, "tolerance")
    if method not in ("trapezoid", "gausslegendre"):
        raise ValueError(f"method: got {method!r} with a tolerance, which goes by the trapezoid")
    if create_graph:
        raise ValueError("create_graph: cannot be combined with tolerance, whose choice of points has no gradient")
