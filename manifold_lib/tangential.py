"""Tangentially aligned Integrated Gradients (paper 2): the baseline whose attribution is most tangent.

``α* = argmax_a μ(IG(x, a))`` with the tangent fraction μ, solved for each image by Adam. The fraction is what is
optimised, so a high one proves little by itself: notebook 02 shows the controls.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import baselines as starting_points
from . import runtime
from .attribution import integrated_gradients
from .checks import check_batch, check_choice, check_count, check_positive, check_range, check_share
from .latent import encode
from .paths import straight_path
from .quadrature import mean_gradient, rule
from .scores import Model, chunk_size, left_as_found, resolve_target, score, score_and_gradient
from .tangent import check_mode, flat_like, tangent_fraction

_GOAL = 0.99
_PATIENCE, _GAIN = 50, 1e-4
_PENALTY = 2.0
_FINE_STEPS = 64


class TangentialBaseline(NamedTuple):
    """What :func:`tangential_baseline` found.

    baselines : (B, *shape).
    tangent_fraction : (B,), of Integrated Gradients from them, by 64 Gauss–Legendre nodes.
    history : (max_iter + 1, B), the fraction by ``n_steps`` nodes at each iteration, of the start that won.
    converged : (B,) bool, a fraction of 0.99, or no gain for 50 iterations.
    """

    baselines: Tensor
    tangent_fraction: Tensor
    history: Tensor
    converged: Tensor


def tangential_baseline(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    basis: Tensor,
    constraint: str = "none",
    c: float = 0.8,
    vae: Any = None,
    n_starts: int = 3,
    max_iter: int = 300,
    n_steps: int = 8,
    learning_rate: float = 0.02,
    stop_gradient: bool | None = None,
    clamp: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> TangentialBaseline:
    """The baseline of each image from which Integrated Gradients lies most in its tangent space (paper 2, §3.6).

    Paper 2 names neither start, optimiser, rate nor iterations; these are ours.

    Parameters
    ----------
    basis : Tensor
        (B, D, K) orthonormal columns, see :func:`manifold_lib.tangent_basis`.
    constraint : {"none", "box", "change", "manifold"}
        ``"box"`` keeps the baseline within ``clamp``; ``"change"`` keeps the explained change,
        f(x) − f(a) ≥ c · (f(x) − f(0)), by a penalty; ``"manifold"`` searches a = dec(z) with ``vae``.
    n_starts : int
        Starting points of each image: zero, then uniform noise within ``clamp`` (on the manifold: the encoded zero
        image, then draws of N(0, I)). The one that ends most aligned is kept.
    max_iter : int
        Adam iterations; an image stops at a fraction of 0.99, or after 50 without a gain of 1e-4.
    n_steps : int
        Midpoint nodes of Integrated Gradients while optimising.
    learning_rate : float
        In the units of ``inputs`` (on the manifold, of latents).
    stop_gradient : bool, optional
        Treat the path-averaged gradient h of IG = (x − a) ⊙ h as constant. On a ReLU network, where h is constant
        almost everywhere, that is the same at less cost; None finds out.
    clamp : (float, float)
        Valid range of the inputs.
    generator : torch.Generator, optional
        For the starts; each is drawn once and shared by the images.

    Returns
    -------
    TangentialBaseline
        Never less aligned than its start: the best point seen is kept.
    """
    check_batch(inputs)
    flat_like(inputs, basis)
    check_choice(constraint, "constraint", ("none", "box", "change", "manifold"))
    check_share(c, "c")
    check_positive(learning_rate, "learning_rate")
    check_range(clamp, "clamp")
    for count, name in ((n_starts, "n_starts"), (max_iter, "max_iter"), (n_steps, "n_steps")):
        check_count(count, name)
    if (constraint == "manifold") == (vae is None):
        raise ValueError(f"vae: got {vae!r} with constraint={constraint!r}, wants one for 'manifold' only")
    inputs = inputs.detach()
    with left_as_found(model, inputs):
        size = chunk_size(model, inputs, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        if stop_gradient is None:
            stop_gradient = _is_piecewise_linear(model, inputs[:1], None if classes is None else classes[:1])
        starts = _starts(inputs, n_starts, clamp, vae, size, generator)
        decode = vae.decode if constraint == "manifold" else None
        search = _Search(model, decode, constraint, c, clamp, n_steps, max_iter, learning_rate, stop_gradient)
        rows = torch.arange(len(inputs) * n_starts, device=inputs.device).split(max(size // n_steps, 1))
        found = []
        for part in runtime.progress_bar(rows, show=progress, desc="tangential_baseline"):
            image = part // n_starts
            own = None if classes is None else classes[image]
            found.append(_optimise(search, inputs[image], starts[image, part % n_starts], basis[image], own))
        points, history, converged, feasible = (torch.cat(part) for part in zip(*found, strict=True))
    return _best(model, inputs, classes, basis, points, history, converged, feasible, n_starts, internal_batch_size)


def tangential_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    basis: Tensor,
    n_ig_steps: int = 50,
    internal_batch_size: int | None = None,
    **search: Any,
) -> Tensor:
    """Integrated Gradients from the baseline that :func:`tangential_baseline` finds: (B, *shape).

    Parameters
    ----------
    n_ig_steps : int
        Gauss–Legendre nodes of the attribution.
    **search
        Keywords of :func:`tangential_baseline`.
    """
    found = tangential_baseline(model, inputs, target, basis=basis, internal_batch_size=internal_batch_size, **search)
    attributions = integrated_gradients(
        model,
        inputs,
        target,
        baselines=found.baselines,
        n_steps=n_ig_steps,
        internal_batch_size=internal_batch_size,
    )
    assert isinstance(attributions, Tensor)
    return attributions


class _Search(NamedTuple):
    """What does not differ from image to image."""

    model: Model
    decode: Any
    constraint: str
    c: float
    clamp: tuple[float, float]
    n_steps: int
    max_iter: int
    learning_rate: float
    stop_gradient: bool


def _optimise(
    search: _Search, inputs: Tensor, starts: Tensor, basis: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adam on a few images in lock-step: best baselines, history (B, iterations + 1), converged, feasible."""
    needed = scale = torch.zeros(())
    if search.constraint == "change":
        change = score(search.model, inputs, target, len(inputs)) - score(
            search.model, torch.zeros_like(inputs), target, len(inputs)
        )
        needed, scale = search.c * change, change.abs().clamp_min(0.05)
    variable = starts.clone()
    first, second = torch.zeros_like(variable), torch.zeros_like(variable)
    n = len(inputs)
    best = torch.zeros_like(inputs)
    best_fraction = inputs.new_full((n,), -1.0)
    best_violation = inputs.new_full((n,), torch.inf)
    stale = torch.zeros(n, dtype=torch.int64, device=inputs.device)
    history = inputs.new_empty(n, search.max_iter + 1)
    done = torch.zeros(n, dtype=torch.bool, device=inputs.device)
    for iteration in range(search.max_iter + 1):
        variable.requires_grad_()
        with torch.enable_grad():
            baselines = variable if search.decode is None else search.decode(variable)
            fraction = _fraction(search, inputs, baselines, basis, target)
            violation = torch.zeros_like(fraction)
            if search.constraint == "change":
                end = score(search.model, inputs, target, n)
                start, slope = score_and_gradient(search.model, baselines, target)
                violation = (needed - (end - start)).clamp_min(0) / scale
                # the score enters by its gradient, which is at hand
                linear = (slope * baselines).flatten(1).sum(1)
                objective = fraction - _PENALTY * torch.where(violation > 0, linear / scale, 0)
            else:
                objective = fraction
            (gradient,) = torch.autograd.grad(objective.sum(), variable)
        variable = variable.detach()
        fraction, violation = fraction.detach(), violation.detach()
        feasible = violation <= 1e-6
        better = torch.where(feasible & (best_violation <= 1e-6), fraction > best_fraction, violation < best_violation)
        better &= ~done
        gained = better & ((fraction > best_fraction + _GAIN) | (best_violation > 1e-6))
        best = torch.where(_spread(better, best), baselines.detach(), best)
        best_fraction = torch.where(better, fraction, best_fraction)
        best_violation = torch.where(better, violation, best_violation)
        history[:, iteration] = torch.where(done, best_fraction, fraction)
        stale = torch.where(gained, 0, stale + 1)
        done |= ((best_fraction >= _GOAL) & (best_violation <= 1e-6)) | (stale >= _PATIENCE)
        if done.all():
            history[:, iteration + 1 :] = best_fraction[:, None]
            break
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9 ** (iteration + 1)) / ((second / (1 - 0.999 ** (iteration + 1))).sqrt() + 1e-8)
        variable = variable + search.learning_rate * step
        if search.constraint == "box":
            variable = variable.clamp(*search.clamp)
    return best, history, done, best_violation <= 1e-6


def _fraction(search: _Search, inputs: Tensor, baselines: Tensor, basis: Tensor, target: Tensor | None) -> Tensor:
    """μ(IG(x, a)), differentiable in the baselines; 0 where the attribution is."""
    nodes, weights = rule("midpoint", search.n_steps, inputs)
    held = baselines.detach() if search.stop_gradient else baselines
    average = mean_gradient(
        search.model,
        straight_path(inputs, held),
        target,
        nodes,
        weights,
        size=len(inputs) * search.n_steps,
        create_graph=not search.stop_gradient,
    )
    values = (average * (inputs - baselines)).flatten(1)
    values = values / values.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    length = torch.linalg.vector_norm(values, dim=1)
    inside = torch.linalg.vector_norm(torch.einsum("bdk,bd->bk", basis, values), dim=1)
    return torch.where(length > 0, inside / length.clamp_min(0.5), inside)


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (like.ndim - 1))


def _starts(
    inputs: Tensor,
    n_starts: int,
    clamp: tuple[float, float],
    vae: Any,
    size: int,
    generator: torch.Generator | None,
) -> Tensor:
    """(B, n_starts, ...) baselines, or latents where there is a VAE."""
    if vae is None:
        low, high = clamp
        noise = [starting_points.uniform(inputs, low=low, high=high, generator=generator) for _ in range(n_starts - 1)]
        return torch.stack([torch.zeros_like(inputs), *noise], 1)
    check_mode(vae.decode)
    latents = encode(vae, torch.zeros_like(inputs), size)
    device = inputs.device if generator is None else generator.device
    draws = torch.randn((n_starts - 1, *latents.shape[1:]), generator=generator, device=device, dtype=latents.dtype)
    return torch.cat([latents[:, None], draws.to(latents.device).expand(len(inputs), *draws.shape)], 1)


def _is_piecewise_linear(model: Model, inputs: Tensor, target: Tensor | None) -> bool:
    """Whether the gradient has no derivative, as on ReLU networks: then h is locally constant."""
    points = inputs.clone().requires_grad_()
    with torch.enable_grad():
        slope = score_and_gradient(model, points, target, create_graph=True)[1]
        if not slope.requires_grad:
            return True
        (second,) = torch.autograd.grad(slope.square().sum(), points, allow_unused=True)
    return second is None or not second.any()


def _best(
    model: Model,
    inputs: Tensor,
    target: Tensor | None,
    basis: Tensor,
    points: Tensor,
    history: Tensor,
    converged: Tensor,
    feasible: Tensor,
    n_starts: int,
    internal_batch_size: int | None,
) -> TangentialBaseline:
    """The start of each image that ended most aligned, among those that keep the constraint where any does."""
    images = torch.arange(len(inputs), device=inputs.device).repeat_interleave(n_starts)
    maps = integrated_gradients(
        model,
        inputs[images],
        None if target is None else target[images],
        baselines=points,
        n_steps=_FINE_STEPS,
        internal_batch_size=internal_batch_size,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a start at the input itself explains nothing
        fraction = tangent_fraction(maps, basis[images])
    preferred = torch.nan_to_num(fraction, nan=-1.0) + feasible.to(fraction.dtype) * 2
    chosen = preferred.view(-1, n_starts).argmax(1) + torch.arange(len(inputs), device=inputs.device) * n_starts
    return TangentialBaseline(points[chosen], fraction[chosen], history[chosen].T.contiguous(), converged[chosen])
