"""The adaptive line integral: segments are halved where their error, which is known, is large."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.scorer import Model, score, score_and_gradient
from .path import Path

_SEGMENTS = 12  # at the start: more leave less to choose, fewer stop sooner, at a map that is less exact
_MOST_SEGMENTS = 1024
_SHARE = 0.25  # of the squared change of the gradient, halved in each round
_SHORTEST = 2.0**-20


class Info(NamedTuple):
    """How an integral went, per image.

    delta : (B,), Σ A − (f(end) − f(start)).
    n_gradients : (B,), gradient evaluations.
    converged : (B,) bool, whether the tolerance was reached; None where none was given.
    """

    delta: Tensor
    n_gradients: Tensor
    converged: Tensor | None


def adaptive_integral(
    model: Model,
    path: Path,
    target: Tensor | None,
    *,
    tolerance: float,
    n_edges: int,
    most: int | None,
    size: int,
    average: bool = False,
) -> tuple[Tensor, Info]:
    """Trapezoid sums over segments that are halved until the integral is complete to ``tolerance``.

    The score comes with its gradient, so the error f(p_{i+1}) − f(p_i) − ½ (∇f_i + ∇f_{i+1})·(p_{i+1} − p_i)
    of each segment is known. An image is done when the errors of its stretches (two first segments each), added up
    without their signs, are at most tolerance · max(|Δf|, 0.05 · spread of its scores): a sum with signs would
    stop by luck. Until then the segments are halved over which the gradient changes most, wherever they are: that
    is what the map's own error comes from, of which completeness sees one number.

    Parameters
    ----------
    most : int or None
        Most segments of an image, 1,024 by default.
    average : bool
        Sum ∇f dt instead, the path-averaged gradient.

    Returns
    -------
    (Tensor, Info)
        (B, *shape), and how it went.
    """
    end = path.end
    assert end is not None
    most = _MOST_SEGMENTS if most is None else most
    n_first = n_edges * math.ceil(min(_SEGMENTS, most) / n_edges)
    total = torch.zeros_like(end)
    delta = end.new_zeros(len(end))
    counts = torch.zeros(len(end), dtype=torch.int64, device=end.device)
    converged = torch.zeros(len(end), dtype=torch.bool, device=end.device)
    spread = _spread(model, end, size)
    # points and gradients of a block are kept, so it has only as many images as make one pass at the start
    for block in torch.arange(len(end), device=end.device).split(max(size // (n_first + 1), 1)):
        own = None if target is None else target[block]
        part = Path(
            lambda rows, t, block=block: path.at(block[rows], t),
            None if path.gradients is None else lambda rows, t, block=block: path.gradients(block[rows], t),
            end=end[block],
        )
        results = _integrate_block(model, part, own, spread[block], tolerance, n_first, most, size, average)
        for whole, piece in zip((total, delta, counts, converged), results, strict=True):
            whole[block] = piece
    late = int((~converged & torch.isfinite(delta)).sum())  # NaN is counted elsewhere
    if late:
        warnings.warn(
            f"integrate: {late} of {len(end)} images not converged to tolerance {tolerance:g} within {most} segments",
            RuntimeWarning,
            stacklevel=3,
        )
    return total, Info(delta, counts, converged)


def _integrate_block(
    model: Model,
    path: Path,
    target: Tensor | None,
    spread: Tensor,
    tolerance: float,
    n_first: int,
    most: int,
    size: int,
    average: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The integral of a few images whose points and gradients are kept in memory until each is done."""
    end = path.end
    assert end is not None
    n_rows, n_stretches = len(end), math.ceil(n_first / 2)
    total, delta = torch.zeros_like(end), end.new_zeros(n_rows)
    converged = torch.zeros(n_rows, dtype=torch.bool, device=end.device)
    active = torch.ones(n_rows, dtype=torch.bool, device=end.device)
    rows = torch.arange(n_rows, device=end.device).repeat_interleave(n_first + 1)
    t = torch.linspace(0, 1, n_first + 1, dtype=torch.float64, device=end.device).repeat(n_rows)
    x, f, g = _evaluate(model, path, target, rows, t, size)
    counts = torch.full((n_rows,), n_first + 1, device=end.device)
    along = f.view(n_rows, -1)
    spread = torch.where(torch.isfinite(spread), spread, along.amax(1) - along.amin(1))
    bound = tolerance * torch.maximum((along[:, -1] - along[:, 0]).abs(), 0.05 * spread)

    while True:
        # node i and node i + 1 bound a segment where they belong to one image
        left = (rows[1:] == rows[:-1]).nonzero().squeeze(1)
        owner, length, chord = rows[left], t[left + 1] - t[left], x[left + 1] - x[left]
        mean = (g[left] + g[left + 1]) / 2
        products = mean * chord
        error = f[left + 1] - f[left] - products.flatten(1).sum(1)
        stretch = owner * n_stretches + ((t[left] + length / 2) * n_first / 2).long()
        by_stretch = f.new_zeros(n_rows * n_stretches).index_add(0, stretch, error).abs()
        summed = by_stretch.view(n_rows, -1).sum(1)
        reached = summed <= bound
        # NaN never gets better; halving stops at the most segments
        room = most + 1 - counts
        done = active & (reached | ~torch.isfinite(summed) | (room <= 0))
        change = ((g[left + 1] - g[left]) * chord).flatten(1).norm(dim=1).double().square() + error.double().square()
        halved = _largest(change.where((length > _SHORTEST) & ~done[owner], 0), owner, room)
        done |= active & (torch.bincount(owner[halved], minlength=n_rows) == 0)

        final = done[owner]
        values = mean[final] * length[final].to(x).view(-1, *(1,) * (x.ndim - 1)) if average else products[final]
        total.index_add_(0, owner[final], values)
        delta.index_add_(0, owner[final], -error[final])
        converged |= done & reached
        active &= ~done
        if not active.any():
            return total, delta, counts, converged

        halved = halved[active[owner[halved]]]
        more_rows, more_t = owner[halved], t[left[halved]] + length[halved] / 2
        counts += torch.bincount(more_rows, minlength=n_rows)
        more = _evaluate(model, path, target, more_rows, more_t, size)
        kept = active[rows]
        rows, t = torch.cat([rows[kept], more_rows]), torch.cat([t[kept], more_t])
        order = (rows * 2 + t).argsort()
        rows, t = rows[order], t[order]
        x, f, g = (torch.cat([old[kept], new])[order] for old, new in zip((x, f, g), more, strict=True))


def _evaluate(
    model: Model, path: Path, target: Tensor | None, rows: Tensor, t: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, scores and gradients at some times of some images, ``size`` at a time."""
    assert path.end is not None
    n_rows = len(rows)
    if n_rows == 1 < size:  # batch norm in train mode refuses one row
        rows, t = rows.expand(2), t.expand(2)
    # even parts, so that none is left with one
    n_parts = math.ceil(len(rows) / size)
    parts = []
    for chunk, times in zip(rows.tensor_split(n_parts), t.to(path.end.dtype).tensor_split(n_parts), strict=True):
        own = None if target is None else target[chunk]
        with torch.no_grad():
            x = path.at(chunk, times)
        if path.gradients is None:
            parts.append((x, *score_and_gradient(model, x, own)))
        else:
            parts.append((x, score(model, x, own, size), path.gradients(chunk, times)))
    x, f, g = (torch.cat(part)[:n_rows] for part in zip(*parts, strict=True))
    return x, f.to(x.dtype), g


def _spread(model: Model, end: Tensor, size: int) -> Tensor:
    """Range of the class scores at each end; NaN where there is one score only, or one that is not finite."""
    with torch.no_grad():
        scores = torch.cat([model(chunk.clone()) for chunk in end.split(size)]).view(len(end), -1)
    return scores.amax(1) - scores.amin(1) if scores.shape[1] > 1 else torch.full_like(scores[:, 0], torch.nan)


def _largest(values: Tensor, rows: Tensor, most: Tensor) -> Tensor:
    """Indices of the largest values of each row that hold ``_SHARE`` of its sum, at least one where any is above 0.

    No more of a row than its ``most``. A row is added up on its own, so that no other one's size rounds it away.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    owner, length = rows[order], torch.bincount(rows, minlength=len(most))
    place = torch.arange(len(rows), device=rows.device) - (length.cumsum(0) - length)[owner]
    ranked = values.new_zeros(len(most), int(length.max()))
    ranked[owner, place] = values[order]
    sums = ranked.cumsum(1)
    behind = sums - ranked
    kept = (ranked > 0) & (behind < _SHARE * sums[:, -1:])
    return order[kept[owner, place] & (place < most[owner])]
