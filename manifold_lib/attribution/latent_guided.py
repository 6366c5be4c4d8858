"""MA-GIG (paper 5): the greedy path of Guided IG on the latents of a decoder, decoded, and its integral."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_like, check_share, warn_non_finite
from ..core.passes import plan_passes
from ..core.progress import progress_bar
from ..core.scorer import (
    Model,
    buffers_as_found,
    check_differentiable,
    left_as_found,
    resolve_target,
    score_and_gradient,
    score_change,
    score_gradient,
    select,
)
from ..paths.bridges import bridges
from ..paths.greedy import Evaluate, Node, greedy_groups, greedy_nodes, known_path, stacked, ticked
from ..paths.path import Path, straight_path
from ..paths.quadrature import empty_sum
from ..paths.segments import chord_sum, refined_sum
from .latent import decoded_path, decoder_of, encode, modules_of

# as in the released code: nearer than this a latent has arrived; more parallel than this, slerp is lerp
_ARRIVED, _PARALLEL = 1e-9, 0.9995
_DETACHED = "what decode gives does not depend on the latents differentiably"


def ma_gig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.05,
    bridge: bool = True,
    published: bool = False,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Manifold-Aligned Guided Integrated Gradients (Kim et al. 2026), the images of a batch in lock-step.

    From E(x') to E(x), the latents with the smallest |∂f(D(z))/∂z_j| move first (paper 5, section 3.5), each step the
    n_steps-th part of the L1 way between the two. One pass through decoder and model gives a step's point, the gradient
    there and the guidance.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`. The paper explains probabilities: wrap the model in a softmax for them.
    vae : object
        With ``encode`` and ``decode``; its latents may have any shape.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros: encoded like the inputs.
    n_steps : int
        Segments of the path, each with a decode and a gradient of its own. Rough ones are halved as by
        :func:`manifold_lib.guided_ig`, between their latents: 0.2 to 0.9 · n_steps gradients more on the zoo's
        networks, 4.6 · n_steps on the one of CIFAR-10.
    fraction : float
        In (0, 1], share of the latents that move together. With 1 the path is the straight latent line.
    bridge : bool
        Join the raw baseline and the raw input to the ends of the decoded path by straight lines, so that the sum is
        f(x) − f(x'): 16 Gauss–Legendre nodes each, and 64, then 256, where these miss the change of the score. Without,
        it is the change between their reconstructions.
    published : bool
        The released formula for the record: left rule; the raw baseline and input in the place of the first and the
        last decoded point, with no bridges; the last group moved along a great circle (slerp), which keeps neither
        the L1 schedule nor the box between the ends; and a schedule for N = n_steps + 1 points, of which step k
        (from 0) leaves 1 − (k + 1) / N of the way. ``bridge`` is then not used.
    internal_batch_size : int, optional
        Images per pass through decoder and model.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,).
    """
    baselines, delta = _check(inputs, baselines, n_steps, fraction), None
    inputs = inputs.detach()
    with left_as_found(model, inputs), buffers_as_found(modules_of(vae)):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        decode, starts, ends = _encode_ends(vae, inputs, baselines, size)
        if internal_batch_size is None:
            size = min(size, _points_per_pass(model, decode, starts, n_steps))
        change = score_change(model, inputs, baselines, classes, size)
        chunks, parts = torch.arange(len(inputs), device=inputs.device).split(size), []
        bar = iter(progress_bar(range(len(chunks) * (n_steps + 1)), show=progress, desc="ma_gig"))
        for rows in chunks:
            own = None if classes is None else classes[rows]
            evaluate, ends_of = _evaluator(model, decode, own), (starts[rows], ends[rows], n_steps, fraction)
            if published:
                nodes = _released_nodes(evaluate, *ends_of)
                nodes = _anchored(nodes, model, baselines[rows], inputs[rows], own, instead=True, last=False)
                parts.append(chord_sum(ticked(nodes, bar), 1.0, 0.0))
            else:
                nodes = ticked(greedy_nodes(evaluate, *ends_of), bar)
                parts.append(refined_sum(nodes, evaluate, change[rows].abs(), n_steps, size))
        next(bar, None)
        attributions = torch.cat(parts).to(inputs.dtype)
        if bridge and not published:
            with torch.no_grad():
                line = decoded_path(decode, straight_path(ends, starts), size)
            attributions = attributions + bridges(model, inputs, baselines, line, classes, size)
        if return_convergence_delta:
            delta = attributions.flatten(1).sum(1) - change
    warn_non_finite(attributions, "ma_gig")
    return attributions if delta is None else (attributions, delta)


def ma_gig_path(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.05,
    published: bool = False,
    internal_batch_size: int | None = None,
) -> Path:
    """The path of :func:`ma_gig` with the gradients at its nodes, kept: some n_steps · B images in memory, twice.

    A polyline from the raw baseline over the n_steps + 1 decoded points to the raw input, n_steps + 2 segments in all;
    with ``published`` n_steps, the raw baseline and input in the place of the first and the last decoded point.
    To look at, or to integrate by other rules; at the nodes the gradients are there already.
    """
    baselines = _check(inputs, baselines, n_steps, fraction)
    kept: list[tuple[Tensor, Tensor]] = []
    inputs, explained = inputs.detach(), model
    with left_as_found(model, inputs), buffers_as_found(modules_of(vae)):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        decode, starts, ends = _encode_ends(vae, inputs, baselines, size)
        if internal_batch_size is None:
            size = min(size, _points_per_pass(model, decode, starts, n_steps))
        for rows in torch.arange(len(inputs), device=inputs.device).split(size):
            own = None if classes is None else classes[rows]
            inner = _released_nodes if published else greedy_nodes
            nodes = inner(_evaluator(model, decode, own), starts[rows], ends[rows], n_steps, fraction)
            anchored = _anchored(nodes, model, baselines[rows], inputs[rows], own, instead=published)
            kept.append(stacked(anchored))
    points, gradients = (torch.cat(part) for part in zip(*kept, strict=True))
    return known_path(points, gradients, classes, explained)


def _encode_ends(
    vae: Any, inputs: Tensor, baselines: Tensor, size: int
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The decoder, and the latents of the baselines, encoded once if they share one, and of the inputs."""
    shared = baselines.stride(0) == 0
    with torch.no_grad():
        starts = encode(vae, baselines[:1] if shared else baselines, size)
        ends = encode(vae, inputs, size)
    return decoder_of(vae, inputs), starts.expand_as(ends), ends


def _points_per_pass(model: Model, decode: Callable[[Tensor], Tensor], starts: Tensor, n_steps: int) -> int:
    """How many latents at once suit the machine, now that decoder and model are kept together."""
    return plan_passes(lambda latents: model(decode(latents)), starts.contiguous(), n_steps)[1]


def _evaluator(model: Model, decode: Callable[[Tensor], Tensor], target: Tensor | None) -> Evaluate:
    """Point p = D(z), ∇f(p) and g = J_D(z)ᵀ ∇f(p), from one pass forward and one backward."""

    def evaluate(latents: Tensor, rows: Tensor, guide: bool) -> tuple[Node, Tensor | None]:
        own = None if target is None else target[rows]
        if not guide:
            with torch.no_grad():
                point = decode(latents.clone())
            value, gradient = score_and_gradient(model, point, own)
            return Node(latents, point, gradient, value), None
        with torch.enable_grad():
            coordinates = latents.detach().requires_grad_()
            point = decode(coordinates.clone())
            if not point.requires_grad:
                raise ValueError(f"vae: {_DETACHED}")
            values = select(model(point.clone()), own)
            check_differentiable(values)
            ones = torch.ones_like(values)
            gradient, guidance = torch.autograd.grad(values, (point, coordinates), ones, allow_unused=True)
            if gradient is None:
                raise ValueError("model: its scores do not depend on the inputs differentiably")
            if guidance is None:
                raise ValueError(f"vae: {_DETACHED}")
            # a path that was guided by nothing is no explanation, whatever its sum
            lost = guidance.flatten(1).isnan().any(1)
            gradient = torch.where(lost.view(-1, *(1,) * (point.ndim - 1)), torch.nan, gradient)
        return Node(latents, point.detach(), gradient, values.detach()), guidance

    return evaluate


def _released_nodes(evaluate: Evaluate, starts: Tensor, ends: Tensor, n_steps: int, fraction: float) -> Iterator[Node]:
    """The n_steps decoded points of the released path; the way left after step k is 1 − (k + 1) / (n_steps + 1)."""
    goal = ends.flatten(1).to(empty_sum(ends[:1]).dtype)
    current, rows = starts.flatten(1).to(goal.dtype), torch.arange(len(ends), device=ends.device)
    whole_way = (goal - current).abs().sum(1, keepdim=True)
    for step in range(n_steps):
        node, guide = evaluate(current.view_as(starts).to(starts.dtype), rows, step < n_steps - 1)
        yield node
        if guide is not None:
            left = whole_way * (1 - (step + 1) / (n_steps + 1))
            current = _released_step(current, goal, guide.flatten(1), left, fraction)


def _released_step(current: Tensor, goal: Tensor, gradient: Tensor, left: Tensor, fraction: float) -> Tensor:
    """One step of the released rule on latents (B, K), to where the L1 way ``left`` (B, 1) should be to go.

    Nothing holds γ at 0 or above: after a slerp has overshot the schedule, it moves back.
    """
    way = (goal - current).abs()
    movable = way >= _ARRIVED
    need = way.sum(1, keepdim=True) - left
    whole, part, gamma = greedy_groups(gradient, movable, way.where(movable, 0), need, fraction)
    part = part & movable
    turned = _slerp(current.where(part, 0), goal.where(part, 0), gamma)
    return torch.where(whole & movable, goal, turned.where(part, current))


def _slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Along the great circle between two vectors of each row (B, K), t (B, 1); straight where that is no plane."""
    norms = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    cosine = (start * end).sum(1, keepdim=True) / (norms[0] * norms[1])
    angle = cosine.clamp(-1, 1).arccos()
    turned = (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
    straight = (torch.minimum(*norms) < _ARRIVED) | (cosine.abs() > _PARALLEL)
    return torch.where(straight, start + t * (end - start), turned)


def _anchored(
    nodes: Iterator[Node],
    model: Model,
    baselines: Tensor,
    inputs: Tensor,
    target: Tensor | None,
    *,
    instead: bool = False,
    last: bool = True,
) -> Iterator[Node]:
    """The nodes between the raw baseline, which may take the place of the first, and the raw input."""
    yield Node(baselines, baselines, score_gradient(model, baselines, target))
    yield from itertools.islice(nodes, int(instead), None)
    yield Node(inputs, inputs, score_gradient(model, inputs, target) if last else None)


def _check(inputs: Tensor, baselines: Tensor | float | None, n_steps: int, fraction: float) -> Tensor:
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    check_share(fraction, "fraction")
    return check_like(0.0 if baselines is None else baselines, inputs, "baselines").detach()
