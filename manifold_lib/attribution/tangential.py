"""Tangentially aligned Integrated Gradients (paper 2): the baseline whose attribution is most tangent.

``α* = argmax_a μ(IG(x, a))`` with the tangent fraction μ, solved for each image on its own. The fraction itself is
optimised, so a high one proves little: notebook 02 shows the controls.
"""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.autoencoder import encoded
from ..core.progress import progress_bar
from ..core.scorer import Model, Scorer, Target, scoring
from ..geometry.projection import flat_like, tangent_fraction
from ..geometry.tangent import Decoder
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import straight_path
from .alignment import Search, Steps, gradient_steps, is_piecewise_linear, projection_steps
from .baselines import uniform
from .gradients import drawn


class TangentialBaseline(NamedTuple):
    """What :func:`tangential_baseline` found.

    Attributes
    ----------
    baselines : Tensor
        (B, *shape).
    tangent_fraction : Tensor
        (B,), of Integrated Gradients from them, by 64 Gauss–Legendre nodes.
    history : Tensor
        (max_iter + 1, B), the fraction by ``n_steps`` nodes at each iteration, of the start that won.
    converged : Tensor
        (B,) bool, a fraction of 0.99, or no gain for 50 iterations.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> basis = torch.tensor([[[1.0], [0.0]]])
    >>> ml.tangential_baseline(lambda x: (x**2).sum(1), torch.ones(1, 2), basis=basis, max_iter=9).history.shape
    torch.Size([10, 1])
    """

    baselines: Tensor
    tangent_fraction: Tensor
    history: Tensor
    converged: Tensor


def tangential_baseline(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    *,
    basis: Tensor,
    constraint: str = "none",
    c: float = 0.8,
    vae: Any = None,
    solver: str | None = None,
    n_starts: int = 3,
    max_iter: int = 200,
    n_steps: int = 8,
    learning_rate: float = 0.05,
    stop_gradient: bool | None = None,
    clamp: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> TangentialBaseline:
    """The baseline of each image from which Integrated Gradients lies most in its tangent space (paper 2).

    Paper 2 names neither start, optimiser, rate nor iterations; these are ours.

    Parameters
    ----------
    model, inputs, target, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.gradient`.
    basis : Tensor
        (B, D, K) orthonormal columns, see :func:`manifold_lib.tangent_basis`.
    constraint, c, vae : {"none", "box", "change", "manifold"}, float, object
        ``"box"`` keeps the baseline within ``clamp``; ``"change"`` keeps the explained change,
        f(x) − f(a) ≥ c · (f(x) − f(0)), by a penalty; ``"manifold"`` searches a = dec(z) with ``vae``.
    solver : {"projection", "gradient"}, optional
        A fixed point of damped projections (:mod:`manifold_lib.attribution.alignment`), which gets closer to 1 in fewer
        steps, or Adam on the fraction. By default Adam for ``"change"`` and ``"manifold"`` only, which need it.
    n_starts : int
        Starting points of each image, of which the one that ends most aligned is kept: zero, then uniform noise within
        ``clamp`` (on the manifold: the encoded zero image, then draws of N(0, I)).
    max_iter : int
        Most iterations; the search stops when every image has a fraction of 0.99 or no gain of 1e-4 in 50.
    n_steps : int
        Midpoint nodes of Integrated Gradients while optimising.
    learning_rate : float
        Of Adam, in the units of ``inputs`` (on the manifold, of latents).
    stop_gradient : bool, optional
        For Adam: treat the path-averaged gradient h of IG = (x − a) ⊙ h as constant, which costs less. By default where
        the model is piecewise linear, as ReLU networks are: h is constant almost everywhere there.
    clamp : (float, float)
        Valid range of the inputs.
    generator, progress : torch.Generator or None, bool
        For the starts, each drawn once and shared by the images; and whether to show a bar.

    Returns
    -------
    TangentialBaseline
        Never less aligned than its start: the best point seen is kept.

    Raises
    ------
    ValueError
        For bad input, ``vae`` without ``"manifold"`` or the reverse, and a constraint that the solver cannot keep.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> basis = torch.tensor([[[1.0], [0.0]]])
    >>> ml.tangential_baseline(lambda x: (x**2).sum(1), torch.ones(1, 2), basis=basis, max_iter=9).baselines.shape
    torch.Size([1, 2])
    """
    checks.check_batch(inputs)
    flat_like(inputs, basis)
    checks.check_choice(constraint, "constraint", ("none", "box", "change", "manifold"))
    checks.check_share(c, "c")
    checks.check_positive(learning_rate, "learning_rate")
    checks.check_range(clamp, "clamp")
    if clamp is None or not all(math.isfinite(end) for end in clamp):
        raise ValueError(f"clamp: got {clamp}, wants two finite numbers, the range of images")
    for count, name in ((n_starts, "n_starts"), (max_iter, "max_iter"), (n_steps, "n_steps")):
        checks.check_count(count, name)
    checks.check_generator(generator, inputs.device)
    easy = constraint in ("none", "box")
    solver = ("projection" if easy else "gradient") if solver is None else solver
    checks.check_choice(solver, "solver", ("projection", "gradient"))
    if solver == "projection" and not easy:
        raise ValueError(f"solver: got 'projection' with constraint={constraint!r}, wants 'gradient'")
    if (constraint == "manifold") == (vae is None):
        raise ValueError(f"vae: got {vae!r} with constraint={constraint!r}, wants one for 'manifold' only")
    inputs, n_points = inputs.detach(), n_steps * max_iter
    with scoring(model, inputs, target, n_points, additional_forward_args, internal_batch_size, vae) as scorer:
        if stop_gradient is None:
            stop_gradient = is_piecewise_linear(scorer, inputs, clamp)
        decode, starts = _starts(inputs, n_starts, clamp, vae, scorer.size, generator)
        starts = starts.clamp(*clamp) if constraint == "box" else starts
        search = Search(scorer, decode, constraint, c, clamp, n_steps, learning_rate, stop_gradient)
        steps = projection_steps if solver == "projection" else gradient_steps
        images = torch.arange(len(inputs), device=inputs.device).repeat_interleave(n_starts)
        rows = torch.arange(len(images), device=inputs.device).split(max(scorer.size // n_steps, 1))
        found = []
        for part in progress_bar(rows, show=progress, desc="tangential_baseline"):
            own = images[part]
            found.append(_follow(steps(search, inputs[own], starts.flatten(0, 1)[part], basis[own], own), max_iter))
        points, history, converged, feasible = (torch.cat(part) for part in zip(*found, strict=True))
        maps = integrate(scorer.of(images), straight_path(inputs[images], points), method="gausslegendre", n_steps=64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a start at the input itself explains nothing
            fraction = tangent_fraction(maps, basis[images])
        # of the starts that keep the constraint, where any does, the one that ended most aligned
        preferred = torch.nan_to_num(fraction, nan=-1.0) + feasible.to(fraction.dtype) * 2
        best = preferred.view(-1, n_starts).argmax(1) + torch.arange(len(inputs), device=inputs.device) * n_starts
    checks.warn_non_finite(fraction[best, None], "tangential_baseline")
    return TangentialBaseline(points[best], fraction[best], history[best].T.contiguous(), converged[best])


@path_method
def tangential_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    basis: Tensor,
    n_ig_steps: int = 50,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    **search: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrated Gradients from the baseline that :func:`tangential_baseline` finds.

    Parameters
    ----------
    model, inputs, target, basis, additional_forward_args, internal_batch_size, **search
        As for :func:`tangential_baseline`.
    n_ig_steps : int
        Gauss–Legendre nodes of the attribution.
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(a)).

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        As for :func:`tangential_baseline`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> basis = torch.tensor([[[1.0], [0.0]]])
    >>> ml.tangential_ig(lambda x: (x**2).sum(1), torch.ones(1, 2), basis=basis, max_iter=9).shape
    torch.Size([1, 2])
    """
    checks.check_count(n_ig_steps, "n_ig_steps")
    with scoring(model, inputs, target, n_ig_steps, additional_forward_args, internal_batch_size) as scorer:
        found = tangential_baseline(scorer, inputs, basis=basis, **search)
        inputs, path = inputs.detach(), straight_path(inputs.detach(), found.baselines)
        attributions = integrate(scorer, path, method="gausslegendre", n_steps=n_ig_steps, name="tangential_ig")
        delta = return_convergence_delta
        return with_delta(scorer, attributions, inputs, found.baselines, delta, name="tangential_ig")


def _follow(steps: Steps, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best of the steps of a few images: baselines, history (B, max_iter + 1), converged, feasible.

    Best is the largest fraction that keeps the constraint; before that, the smallest violation.
    """
    history: list[Tensor] = []
    for baselines, fraction, violation in steps:
        if not history:
            best, best_fraction, best_violation = baselines.clone(), fraction, violation
            stale, done = torch.zeros_like(fraction), torch.zeros_like(fraction, dtype=torch.bool)
        feasible = (violation <= 1e-6) & (best_violation <= 1e-6)
        better = torch.where(feasible, fraction > best_fraction, violation < best_violation)
        better &= ~done  # an image must not gain from others that take longer
        gained = better & (~feasible | (fraction > best_fraction + 1e-4))
        best[better] = baselines[better]
        best_fraction = torch.where(better, fraction, best_fraction)
        best_violation = torch.where(better, violation, best_violation)
        stale = torch.where(gained, 0, stale + 1)
        history.append(torch.where(done, best_fraction, fraction))
        done |= ((best_fraction >= 0.99) & (best_violation <= 1e-6)) | (stale >= 50)
        if done.all() or len(history) > max_iter:
            break
    history += [best_fraction] * (max_iter + 1 - len(history))
    return best, torch.stack(history, 1), done, best_violation <= 1e-6


def _starts(
    inputs: Tensor, n_starts: int, clamp: tuple[float, float], vae: Any, size: int, generator: torch.Generator | None
) -> tuple[Decoder | None, Tensor]:
    """(B, n_starts, ...) baselines, or latents where there is a VAE, with its decoder."""
    if vae is None:
        noise = [uniform(inputs, low=clamp[0], high=clamp[1], generator=generator) for _ in range(n_starts - 1)]
        return None, torch.stack([torch.zeros_like(inputs), *noise], 1)
    with torch.no_grad():
        decode, (latents,) = encoded(vae, size, torch.zeros_like(inputs), needs="graph")
    draws = drawn(torch.randn, (n_starts - 1, *latents.shape[1:]), latents, generator)
    return decode, torch.cat([latents[:, None], draws.expand(len(inputs), *draws.shape)], 1)
