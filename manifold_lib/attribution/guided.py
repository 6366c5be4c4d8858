"""Guided IG (Kapishnikov et al. 2021): the greedy path on pixels, and its integral."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_like, check_share, warn_non_finite
from ..core.passes import plan_passes
from ..core.progress import progress_bar
from ..core.scorer import Model, left_as_found, resolve_target, score_and_gradient, score_change
from ..paths.greedy import Evaluate, Node, greedy_nodes, known_path, stacked, ticked
from ..paths.path import Path, column
from ..paths.quadrature import empty_sum
from ..paths.segments import chord_sum, refined_sum

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
        The left rule is the released algorithm; the trapezoid takes one gradient more and is of second order. It
        halves the few segments that are rough, whose error, known from the scores at their ends, is above
        20 / n_steps² of the change of the score: kinks, which more steps would hardly mend. That costs at most
        n_steps gradients more an image, and 32 · n_steps where halving makes the errors smaller; on average
        1 to 2.3 · n_steps on the zoo's LeNet and 0.2 to 8 · n_steps on its deep networks, the path left free.
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
        change = score_change(model, inputs, baselines, classes, size)
        rows = torch.arange(len(inputs) * n_pieces, device=inputs.device).split(size)
        bar = iter(progress_bar(range(len(rows) * (n_steps + 1)), show=progress, desc="guided_ig"))
        for chunk in rows:
            images = chunk // n_pieces
            own = None if classes is None else classes[images]
            starts, ends = _piece(inputs[images], baselines[images], chunk % n_pieces, n_pieces)
            free = 1.0 if anchors else max_dist
            evaluate = _evaluator(model, own)
            nodes = ticked(greedy_nodes(evaluate, starts, ends, n_steps, fraction, free, last=after > 0), bar)
            if method == "trapezoid":
                found = refined_sum(nodes, evaluate, change[images].abs(), n_steps * n_pieces, size)
            else:
                found = chord_sum(nodes, before, after)
            sums.index_add_(0, images, found)
        next(bar, None)
        attributions = sums.to(inputs.dtype)
        if return_convergence_delta:
            delta = attributions.flatten(1).sum(1) - change
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
            nodes = greedy_nodes(_evaluator(model, own), baselines[images], inputs[images], n_steps, fraction, max_dist)
            parts.append(stacked(nodes))
    points, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
    return known_path(points, gradients, classes, explained)


def _evaluator(model: Model, target: Tensor | None) -> Evaluate:
    """Pixels are their own coordinates, and the gradient is the guide."""

    def evaluate(points: Tensor, rows: Tensor, guide: bool) -> tuple[Node, Tensor | None]:
        value, gradient = score_and_gradient(model, points, None if target is None else target[rows])
        return Node(points, points, gradient, value), gradient if guide else None

    return evaluate


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
