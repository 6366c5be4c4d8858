"""The adaptive line integral: segments of a path that are halved until the integral is complete."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import check_positive, warn_of
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
    """Trapezoid sums over at most ``most`` segments, which are halved until the integral is complete to ``tolerance``.

    The score comes with its gradient, so the error f(p_{i+1}) − f(p_i) − ½ (∇f_i + ∇f_{i+1})·(p_{i+1} − p_i) of each
    segment is known. Returns integrals (B, *shape), or with ``average`` ∫ ∇f dt; gradients taken (B,); whether the
    tolerance was reached (B,).
    """
    end, most = path.end, MOST if most is None else most
    n_first = path.n_edges * math.ceil(min(FIRST, most) / path.n_edges)
    total, n_rows = torch.zeros_like(end, requires_grad=False), len(end)
    counts = torch.full((n_rows,), n_first + 1, device=end.device)
    converged, finite = torch.zeros(2, n_rows, dtype=torch.bool, device=end.device)
    # points and gradients of a block are kept, so it has only as many images as make one pass at the start
    for block in torch.arange(n_rows, device=end.device).split(max(scorer.size // (n_first + 1), 1)):
        part = scorer.of(block)
        evaluate = _evaluator(part, path, block)
        rows = torch.arange(len(block), device=end.device)
        t = torch.linspace(0, 1, n_first + 1, dtype=torch.float64, device=end.device)
        nodes = evaluate(t.repeat(len(block)), rows.repeat_interleave(n_first + 1))
        along = nodes.score.view(len(block), -1)
        with torch.no_grad():
            classes = part.scores(end[block]).view(len(block), -1)
        spread, covered = (values.amax(1) - values.amin(1) for values in (classes, along))
        # a single score has no spread, and a masked class none that is finite
        spread = torch.where(torch.isfinite(spread) & (classes.shape[1] > 1), spread, covered)
        bound = tolerance * torch.maximum((along[:, -1] - along[:, 0]).abs(), 0.05 * spread)
        first = torch.arange(len(nodes.score), device=end.device).view(along.shape)[:, :-1].flatten()
        owner = rows.repeat_interleave(n_first)
        ends = chosen(nodes, first), chosen(nodes, first + 1)
        pieces = trapezoid(owner, torch.zeros_like(owner), *ends, average=average)
        spent, reached, sums = counts[block], converged[block], empty_sum(end[block])
        policy = until_complete(bound, n_first, most, spent, reached)
        refine(sums, pieces, halves(evaluate, scorer.size, average=average), policy)
        total[block], counts[block], converged[block] = sums.to(end.dtype), spent, reached
        finite[block] = torch.isfinite(sums).flatten(1).all(1)
    # NaN is counted elsewhere
    warn_of(name, ~converged & finite, f"images not converged to tolerance {tolerance:g} within {most} segments", 4)
    return total, counts, converged


def _evaluator(scorer: Scorer, path: Path, block: Tensor) -> Callable[[Tensor, Tensor], Node]:
    """Points, scores and gradients at some times of some images of a block, some at a time."""
    dtype = path.end.dtype

    def evaluate(t: Tensor, rows: Tensor) -> Node:
        parts = []
        for own, times in zip(rows.split(scorer.size), t.split(scorer.size), strict=True):
            with torch.no_grad():
                x = path.at(block[own], times.to(dtype))
            if path.gradients is None:
                value, gradient = scorer.score_and_gradient(x, own)
            else:
                value, gradient = scorer.score(x, own), path.gradients(block[own], times.to(dtype))
            parts.append((times, x.detach(), gradient, value.to(dtype)))
        return Node(*(torch.cat(part) for part in zip(*parts, strict=True)))

    return evaluate


def check_adaptive(tolerance: float, method: str, create_graph: bool = False) -> None:
    """Refuse what the adaptive rule, a trapezoid, cannot do."""
    check_positive(tolerance, "tolerance")
    if method not in ("trapezoid", "gausslegendre"):
        raise ValueError(f"method: got {method!r} with a tolerance, which goes by the trapezoid")
    if create_graph:
        raise ValueError("create_graph: cannot be combined with tolerance, whose choice of points has no gradient")
