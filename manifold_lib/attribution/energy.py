"""Geodesic IG by energy: a path that is relaxed under the metric of the model, the large-model route of paper 4."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_like, check_positive, warn_non_finite
from ..core.passes import plan_passes
from ..core.progress import progress_bar
from ..core.scorer import Model, left_as_found, resolve_target, score_change, score_gradient
from ..geometry.curves import line_between
from ..geometry.geodesics import Geodesic
from ..paths.adaptive import adaptive_integral
from ..paths.path import column, polyline
from ..paths.quadrature import rule
from ..paths.relax import curve_energy_and_gradient, floors, relax_curves, relax_potential, slope_turns, uneven

ENERGIES = ("curve", "potential")
_MAX_ITER = {"curve": 100, "potential": 500}
_TOLERANCE = 2e-3


def energy_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    energy: str = "curve",
    beta: float = 0.1,
    sign: int = 1,
    max_iter: int | None = None,
    published: bool = False,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Geodesic Integrated Gradients (Salek and Enguehard 2025) by energy (paper 4, section 3.4, its SVI route).

    The line integral along :func:`energy_path`, whose segments are halved until it is complete: a path that keeps away
    from a steep place crosses it in few, long segments.

    Parameters
    ----------
    published : bool
        The released sum for the record: (x − x') ⊙ Σ_s ‖γ_{s+1} − γ_s‖ ∇f(γ_s) over points that begin at n_steps + 1
        Gauss–Legendre nodes, ends not among them, the last step counted twice. No line integral: for a linear score
        it gives the length of the path times the right answer.
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(x')).

    Other parameters are those of :func:`energy_path`.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and the deltas (B,). Paths that had not converged are counted in one warning.
    """
    baselines = _check(inputs, baselines, n_steps, energy, beta, sign, max_iter)
    inputs = inputs.detach()
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size, exact=True)
        classes = resolve_target(model, inputs, target, size)
        settings = {"energy": energy, "beta": beta, "sign": sign, "max_iter": max_iter, "progress": progress}
        found = _relaxed(model, inputs, classes, baselines, n_steps, size, published=published, **settings)
        if published:
            attributions = (inputs - baselines) * _released_sum(model, found.points, classes, size)
        else:
            attributions, _ = adaptive_integral(
                model,
                polyline(found.points),
                classes,
                tolerance=_TOLERANCE,
                n_edges=n_steps,
                most=max(1024, 4 * n_steps),
                size=size,
            )
        delta = None
        if return_convergence_delta:
            change = score_change(model, inputs, baselines, classes, size)
            delta = attributions.flatten(1).sum(1) - change
    warn_non_finite(attributions, "energy_ig")
    return attributions if delta is None else (attributions, delta)


def energy_path(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    energy: str = "curve",
    beta: float = 0.1,
    sign: int = 1,
    max_iter: int | None = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Geodesic:
    """Paths from baselines to inputs that keep away from large gradients, relaxed from the straight line.

    Each image is on its own: no state is kept from one call or image to the next.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`. The score needs a second derivative: for a network of ReLU explain
        log-probabilities, or put softplus in its place.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros.
    n_steps : int
        Segments of the path.
    energy : {"curve", "potential"}
        ``"curve"``: the energy ½ n Σ (‖∇f‖² + ε) ‖Δγ‖² of a curve in the conformal metric, whose minimum is a geodesic
        of it; ε = (0.01 · median ‖∇f‖ on the straight line)². ``"potential"``: Σ_i ‖γ_i − γ⁰_i‖ + sign · β ‖∇f(γ_i)‖,
        the paper's, of points that know nothing of each other; its steps are 0.01 in the units of the inputs, as
        released, so that inputs far from the order of 1 want to be scaled.
    beta : float
        Of ``"potential"`` alone: β, in input units per gradient unit. A point leaves the line only where β ‖∇‖∇f‖‖ is
        above 1, its pull.
    sign : {1, -1}
        Of ``"potential"`` alone: 1 as intended, away from large gradients; −1 as printed and released, towards them.
    max_iter : int, optional
        Passes over all points of a path; 100 for ``"curve"``, 500 for ``"potential"``. With 0 the line stays straight.

    Returns
    -------
    Geodesic
        ``points`` (B, n_steps + 1, *shape), ends exact; ``energy`` (B,); ``length`` (B,), Σ √(‖∇f‖² + ε) ‖Δγ‖ in score
        units; ``iterations`` and ``converged`` (B,).

    Raises
    ------
    ValueError
        For bad input, and for a score whose second derivative is zero on every path although its gradient changes. An
        image of which this is true beside others keeps its straight line and counts as not converged.
    """
    baselines = _check(inputs, baselines, n_steps, energy, beta, sign, max_iter)
    inputs = inputs.detach()
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size, exact=True)
        classes = resolve_target(model, inputs, target, size)
        settings = {"energy": energy, "beta": beta, "sign": sign, "max_iter": max_iter, "progress": progress}
        return _relaxed(model, inputs, classes, baselines, n_steps, size, published=False, **settings)


def _relaxed(
    model: Model,
    inputs: Tensor,
    target: Tensor | None,
    baselines: Tensor,
    n_steps: int,
    size: int,
    *,
    energy: str,
    beta: float,
    sign: int,
    max_iter: int | None,
    published: bool,
    progress: bool,
) -> Geodesic:
    """Relaxed paths on arguments that were checked, some images at a time."""
    most = _MAX_ITER[energy] if max_iter is None else max_iter
    moves = most > 0 and (n_steps > 1 or published) and (energy == "curve" or beta > 0)
    blocks = torch.arange(len(inputs), device=inputs.device).split(max(size // n_steps, 1))
    slope = functools.partial(slope_turns, model, inputs.shape[1:], size, turn=moves)
    lines = functools.partial(_first_lines, inputs.flatten(1), baselines.flatten(1), n_steps, published)
    epsilon = inputs.new_empty(len(inputs))
    bends, turns_up = torch.zeros(2, len(inputs), dtype=torch.bool, device=inputs.device)
    for rows in blocks:
        squares, turns = slope(lines(rows), None if target is None else target[rows])
        epsilon[rows], bends[rows], turns_up[rows] = floors(squares), uneven(squares), turns.flatten(1).any(1)
    stuck = bends & ~turns_up
    if moves and stuck.any() and not turns_up.any():
        raise ValueError(
            "model: its second derivative is zero wherever it was taken, as that of a network of ReLU is, and a path "
            "cannot tell where the gradient falls; explain log-probabilities, or put softplus in the place of ReLU"
        )
    parts = []
    bar = iter(progress_bar(range(len(blocks) * most), show=progress, desc="energy_path"))
    for rows in blocks:
        own, passes = None if target is None else target[rows], range(most if moves else 0)
        counted = (step for step, _ in zip(passes, bar, strict=False))
        if energy == "curve":
            found = relax_curves(slope, lines(rows), own, epsilon[rows], counted)
        else:
            options = {"beta": beta, "sign": sign, "free_ends": published}
            found = relax_potential(slope, lines(rows), own, counted, **options)
        first_order = functools.partial(slope, turn=False)
        _, _, metric = curve_energy_and_gradient(first_order, found[0], own, epsilon[rows])
        length = (metric.sqrt() * found[0].diff(dim=1).norm(dim=2)).sum(1)
        parts.append((found[0].unflatten(2, inputs.shape[1:]), found[1], length, *found[2:]))
    result = Geodesic(*(torch.cat(part) for part in zip(*parts, strict=True)))
    if moves:
        result = result._replace(converged=result.converged & ~stuck)
    late = int((~result.converged & ~result.energy.isnan()).sum())  # NaN is counted elsewhere
    if late and moves:
        message = f"energy_path: {late} of {len(inputs)} paths had not converged after {most} iterations"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return result


def _first_lines(inputs: Tensor, baselines: Tensor, n_steps: int, published: bool, rows: Tensor) -> Tensor:
    """The points that some images' paths begin with: (b, n_steps + 1, D)."""
    if not published:
        return line_between(baselines[rows], inputs[rows], n_steps)
    nodes, _ = rule("gausslegendre", n_steps + 1, inputs)
    return baselines[rows, None] + nodes[:, None] * (inputs - baselines)[rows, None]


def _released_sum(model: Model, points: Tensor, target: Tensor | None, size: int) -> Tensor:
    """Σ_s ‖γ_{s+1} − γ_s‖ ∇f(γ_s), the last step counted twice: (B, T, *shape) -> (B, *shape)."""
    steps = points.diff(dim=1).flatten(2).norm(dim=2)
    steps = torch.cat([steps, steps[:, -1:]], 1).flatten()
    flat, total = points.flatten(0, 1), torch.zeros_like(points[:, 0])
    rows = torch.arange(len(flat), device=flat.device) // points.shape[1]
    for chunk in torch.arange(len(flat), device=flat.device).split(size):
        slopes = score_gradient(model, flat[chunk], None if target is None else target[rows[chunk]])
        total.index_add_(0, rows[chunk], slopes * column(steps[chunk], slopes))
    return total


def _check(
    inputs: Tensor,
    baselines: Tensor | float | None,
    n_steps: int,
    energy: str,
    beta: float,
    sign: int,
    max_iter: int | None,
) -> Tensor:
    check_batch(inputs)
    if inputs.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"inputs: got {inputs.dtype}, wants float32 or float64, which a second derivative needs")
    check_count(n_steps, "n_steps")
    check_choice(energy, "energy", ENERGIES)
    check_positive(beta, "beta", zero=True)
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"sign: got {sign!r}, wants 1 or -1")
    if max_iter is not None:
        check_count(max_iter, "max_iter", least=0)
    return check_like(0.0 if baselines is None else baselines, inputs, "baselines").detach()
