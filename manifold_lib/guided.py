"""Guided paths: the coordinates with the smallest gradients move first.

One greedy rule for any coordinates. On pixels it is Guided IG (Kapishnikov et al. 2021); on the latents of a
decoder it is MA-GIG.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import runtime
from .checks import check_batch, check_choice, check_count, check_like, check_share, warn_non_finite
from .passes import plan_passes
from .paths import Path, column, polyline
from .quadrature import empty_sum
from .scores import Model, left_as_found, resolve_target, score_change, score_gradient

# weights of the gradients at the two ends of a segment
_RULES = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0)}


def guided_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    anchors: int = 0,
    method: str = "trapezoid",
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Guided Integrated Gradients (Kapishnikov et al. 2021), the images of a batch in lock-step.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros.
    n_steps : int
        Segments of the path, each with a gradient of its own.
    fraction : float
        In (0, 1], share of the coordinates that move together, those with the smallest |∂f/∂x| first.
    max_dist : float
        In [0, 1], how far the progress of a coordinate may be from that of the straight line: 0 gives
        Integrated Gradients, 1 leaves the path free.
    anchors : int
        Points of the straight line that the path must pass, the other way to bound it: the free rule
        (``max_dist`` is then not used) on each of the anchors + 1 pieces, which share ``n_steps``, rounded up.
    method : {"trapezoid", "left", "right"}
        The left rule is the released algorithm; the trapezoid takes one gradient more and is of second order.
    internal_batch_size : int, optional
        Images (times pieces) per pass through the model.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,).
    """
    before, after = _RULES[check_choice(method, "method", tuple(_RULES))]
    baselines = _check(inputs, baselines, n_steps, fraction, max_dist, anchors)
    n_pieces = anchors + 1
    n_steps = math.ceil(n_steps / n_pieces)
    inputs, delta = inputs.detach(), None
    with left_as_found(model, inputs):
        sums = empty_sum(inputs)
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        rows = torch.arange(len(inputs) * n_pieces, device=inputs.device).split(size)
        bar = iter(runtime.progress_bar(range(len(rows) * n_steps), show=progress, desc="guided_ig"))
        for chunk in rows:
            images = chunk // n_pieces
            own = None if classes is None else classes[images]
            starts, ends = _piece(inputs[images], baselines[images], chunk % n_pieces, n_pieces)
            total, x, gradient = empty_sum(ends), starts, None
            free = 1.0 if anchors else max_dist
            for point, slope in greedy_points(model, starts, ends, own, n_steps, fraction, free, last=after > 0):
                if gradient is not None:
                    mixed = before * gradient if slope is None else before * gradient + after * slope
                    total += mixed * (point.to(total.dtype) - x)
                    next(bar, None)
                x, gradient = point, slope
            sums.index_add_(0, images, total)
        next(bar, None)
        attributions = sums.to(inputs.dtype)
        if return_convergence_delta:
            delta = attributions.flatten(1).sum(1) - score_change(model, inputs, baselines, classes, size)
    warn_non_finite(attributions, "guided_ig")
    return attributions if delta is None else (attributions, delta)


def guided_path(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    internal_batch_size: int | None = None,
) -> Path:
    """The path of :func:`guided_ig`, its points and gradients kept: (n_steps + 1) · B images in memory, twice.

    To look at, or to integrate by other rules; at the path's own nodes the gradients are there already.
    """
    baselines = _check(inputs, baselines, n_steps, fraction, max_dist, 0)
    parts: list[tuple[Tensor, Tensor]] = []
    inputs, explained = inputs.detach(), model
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        for images in torch.arange(len(inputs), device=inputs.device).split(size):
            own = None if classes is None else classes[images]
            nodes = greedy_points(model, baselines[images], inputs[images], own, n_steps, fraction, max_dist, last=True)
            points, gradients = zip(*nodes, strict=True)
            parts.append((torch.stack(points, 1), torch.stack(gradients, 1)))
    points, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
    line = polyline(points)

    def known(rows: Tensor, t: Tensor) -> Tensor:
        node = (t * n_steps).round().long()
        found = gradients[rows, node]
        between = ((t * n_steps - node).abs() > 1e-3).nonzero().squeeze(1)
        if len(between):
            own = None if classes is None else classes[rows[between]]
            found[between] = score_gradient(model, line.at(rows[between], t[between]), own)
        return found

    return Path(line.at, gradients=known, end=line.end, target=classes, model=explained)


def greedy_points(
    model: Model,
    starts: Tensor,
    ends: Tensor,
    target: Tensor | None,
    n_steps: int,
    fraction: float,
    max_dist: float,
    *,
    last: bool,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The n_steps + 1 points of the greedy path with their gradients; that of the end only if ``last``."""
    displacement = ends - starts
    # in half precision a step would be lost beside the way so far
    distances = displacement.flatten(1).abs().to(empty_sum(displacement[:1]).dtype)
    progress = torch.zeros_like(distances)
    for step in range(n_steps):
        points = (starts + progress.view_as(starts) * displacement).to(ends.dtype)
        gradient = score_gradient(model, points, target)
        yield points, gradient
        progress = greedy_step(
            progress, distances, gradient.flatten(1), (step + 1) / n_steps, fraction=fraction, max_dist=max_dist
        )
    yield ends, score_gradient(model, ends, target) if last else None


def greedy_step(
    progress: Tensor, distances: Tensor, gradient: Tensor, time: float, *, fraction: float, max_dist: float = 1.0
) -> Tensor:
    """Move coordinates, smallest |gradient| first, until the share ``time`` of the L1 way is behind them.

    The released loop moves one group after the other, each the ``fraction`` of all coordinates that has the
    smallest gradients among those not yet moved, with all that tie with its last; the last group moves in part.
    Here the groups are read off one sort and one cumulative sum.

    Parameters
    ----------
    progress : Tensor
        (B, D) in [0, 1], how far each coordinate has come.
    distances : Tensor
        (B, D), the whole way |x_j − x'_j| of each.
    gradient : Tensor
        (B, D), ∂f by coordinate.
    time : float
        In (0, 1], the share of the L1 distance to have covered; all progress stays within
        ``time`` ± ``max_dist``.

    Returns
    -------
    Tensor
        The new progress (B, D).
    """
    low, high = max(time - max_dist, 0.0), min(time + max_dist, 1.0)
    progress = progress.clamp_min(low)
    need = (distances * (1 - progress)).sum(1, keepdim=True) - (1 - time) * distances.sum(1, keepdim=True)
    movable = (progress < high) & (distances > 0)
    room = (distances * (high - progress)).where(movable, 0)
    # a NaN spoils the attribution of its image, but must not stop its path
    size = torch.nan_to_num(gradient.abs(), nan=0.0)
    level, before, gamma = _last_group(size.where(movable, math.inf), room, need, fraction)
    whole = size <= before
    part = (size <= level) & ~whole
    moved = torch.where(whole, high, progress + gamma * (high - progress))
    return moved.where(movable & (whole | part), progress)


def _last_group(keys: Tensor, room: Tensor, need: Tensor, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients up to which coordinates move in part and in whole, and the part: each (B, 1)."""
    n = keys.shape[1]
    others = math.floor(fraction * (n - 1))
    keys, order = keys.sort(1)
    reach = room.gather(1, order).cumsum(1)
    first = torch.zeros_like(need, dtype=torch.int64)
    whole, behind = torch.full_like(need, -1.0), torch.zeros_like(need)
    for _ in range(math.ceil(n / (others + 1))):
        level = keys.gather(1, (first + others).clamp_max(n - 1))
        stop = torch.searchsorted(keys, level, right=True)
        ahead = reach.gather(1, stop - 1)
        short = (ahead < need) & (stop < n)
        if not short.any():
            break
        first = torch.where(short, stop, first)
        whole, behind = torch.where(short, level, whole), torch.where(short, ahead, behind)
    gamma = torch.nan_to_num((need - behind) / (ahead - behind), nan=0.0).clamp(0, 1)
    return level, whole, gamma


def _piece(inputs: Tensor, baselines: Tensor, index: Tensor, n_pieces: int) -> tuple[Tensor, Tensor]:
    """Ends of some pieces of the straight lines."""
    if n_pieces == 1:
        return baselines, inputs
    displacement = inputs - baselines
    starts = baselines + column(index / n_pieces, inputs) * displacement
    ends = baselines + column((index + 1) / n_pieces, inputs) * displacement
    return starts, torch.where(column(index, inputs) == n_pieces - 1, inputs, ends)


def _check(
    inputs: Tensor, baselines: Tensor | float | None, n_steps: int, fraction: float, max_dist: float, anchors: int
) -> Tensor:
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    check_share(fraction, "fraction")
    check_share(max_dist, "max_dist", zero=True)
    check_count(anchors, "anchors", least=0)
    return check_like(0.0 if baselines is None else baselines, inputs, "baselines").detach()
