"""Geodesic IG by energy: a path that is relaxed under the metric of the model, for large models (paper 4)."""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_baselines, check_choice, check_count, check_positive, check_precise, warn_of
from ..core.progress import progress_bar
from ..core.scorer import Model, Scorer, Target, scoring
from ..geometry.curves import line_between
from ..paths.adaptive import adaptive
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import Path, polyline
from ..paths.quadrature import rule
from ..paths.relax import curve_energy_and_gradient, floors, relax_curves, relax_potential, slope_turns, uneven
from .published import length_weighted

# What the integral along a relaxed path may miss, and how many passes a path has by default.
_TOLERANCE, _MAX_ITER = 2e-3, {"curve": 100, "potential": 500}
ENERGIES = ("curve", "potential")


@dataclass(frozen=True)
class EnergyPath(Path):
    """Relaxed paths, polylines, one for each image; for the fields see :func:`energy_path`."""

    points: Tensor = field(kw_only=True)
    energy: Tensor = field(kw_only=True)
    length: Tensor = field(kw_only=True)
    iterations: Tensor = field(kw_only=True)
    converged: Tensor = field(kw_only=True)


class _Settings(NamedTuple):
    """The arguments of :func:`energy_ig` that say how paths are relaxed."""

    energy: str
    beta: float
    sign: int
    max_iter: int | None
    progress: bool
    published: bool = False


@path_method
def energy_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    energy: str = "curve",
    beta: float = 0.1,
    sign: int = 1,
    max_iter: int | None = None,
    published: bool = False,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Geodesic Integrated Gradients (Salek and Enguehard 2025) by energy (paper 4, section 3.4, its SVI route).

    The line integral along :func:`energy_path`. A path that avoids a steep place crosses it in few, long segments, so
    the segments are halved until the integral is complete. Parameters that are not listed are those of the path.

    Parameters
    ----------
    published : bool
        The released sum for the record, see :func:`manifold_lib.attribution.published.length_weighted`, over points
        that begin at n_steps + 1 Gauss–Legendre nodes, ends not among them.
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(x')).

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,). One warning counts paths not converged.

    Raises
    ------
    ValueError
        As for :func:`energy_path`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: torch.tanh(x.sum(1, keepdim=True))
    >>> ml.energy_ig(model, torch.tensor([[1.0, 1.0]]), 0, n_steps=4, max_iter=5).sum().round(decimals=2)
    tensor(0.9600)
    """
    check_count(n_steps, "n_steps")
    settings = _Settings(energy, beta, sign, max_iter, progress, published)
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size) as scorer:
        baselines = check_baselines(baselines, inputs).detach()
        path = _path(scorer, inputs, baselines, n_steps, settings)
        attributions = integrate(scorer, path, name="energy_ig")
        return with_delta(scorer, attributions, inputs.detach(), baselines, return_convergence_delta)


def energy_path(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    energy: str = "curve",
    beta: float = 0.1,
    sign: int = 1,
    max_iter: int | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> EnergyPath:
    """Paths from baselines to inputs that avoid large gradients, relaxed from the straight line, each on its own.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.integrated_gradients`. The score needs a second derivative: for a network of ReLU
        explain log-probabilities, or replace ReLU by softplus.
    n_steps : int
        Segments of the path.
    energy : {"curve", "potential"}
        ``"curve"``: the energy ½ n Σ (‖∇f‖² + ε) ‖Δγ‖² of a curve in the conformal metric, whose minimum is a geodesic
        of it; ε = (0.01 · median ‖∇f‖ on the straight line)². ``"potential"``: the paper's, of independent points,
        Σ_i ‖γ_i − γ⁰_i‖ + sign · β ‖∇f(γ_i)‖. Its steps are 0.01 in input units, as released: scale the inputs to the
        order of 1.
    beta : float
        Of ``"potential"`` alone: β, in input units per gradient unit. A point leaves the line only where β ‖∇‖∇f‖‖ is
        above 1, its pull.
    sign : {1, -1}
        Of ``"potential"`` alone: 1 as intended, away from large gradients; −1 as printed and released, towards them.
    max_iter : int, optional
        Passes over all points of a path; 100 for ``"curve"``, 500 for ``"potential"``. With 0 the line stays straight.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    EnergyPath
        ``points`` (B, n_steps + 1, *shape), ends exact; ``energy`` (B,); ``length`` (B,), Σ √(‖∇f‖² + ε) ‖Δγ‖ in score
        units; ``iterations`` (B,) int64 and ``converged`` (B,) bool.

    Raises
    ------
    ValueError
        For bad input, and where the gradient changes but the second derivative is zero on every path. If it is zero
        for some images only, these keep the straight line and count as not converged.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: torch.tanh(x.sum(1, keepdim=True))
    >>> ml.energy_path(model, torch.tensor([[1.0, 1.0]]), 0, n_steps=4, max_iter=5).points.shape
    torch.Size([1, 5, 2])
    """
    check_count(n_steps, "n_steps")
    settings = _Settings(energy, beta, sign, max_iter, progress)
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size) as scorer:
        return _path(scorer, inputs, baselines, n_steps, settings)


def _path(
    scorer: Scorer, inputs: Tensor, baselines: Tensor | float | None, n_steps: int, settings: _Settings
) -> EnergyPath:
    """A relaxed path with its integral, whose segments are halved until it is complete."""
    check_precise(inputs, "inputs")
    check_choice(settings.energy, "energy", ENERGIES)
    check_positive(settings.beta, "beta", zero=True)
    if isinstance(settings.sign, bool) or settings.sign not in (1, -1):
        raise ValueError(f"sign: got {settings.sign!r}, wants 1 or -1")
    if settings.max_iter is not None:
        check_count(settings.max_iter, "max_iter", least=0)
    starts, inputs = check_baselines(baselines, inputs).detach(), inputs.detach()
    found = _relaxed(scorer, inputs, starts, n_steps, settings)
    line = polyline(found["points"])

    def integral(other: Scorer, method: str, create_graph: bool) -> Tensor | None:
        if settings.published:
            return length_weighted(found["points"], inputs - starts, other)
        if create_graph or method != "trapezoid":
            return None
        return adaptive(other, line, _TOLERANCE, most=max(1024, 4 * n_steps), name="energy_ig")[0]

    return EnergyPath(line.at, end=inputs, n_edges=n_steps, integral=integral, **found)


def _relaxed(scorer: Scorer, inputs: Tensor, baselines: Tensor, n_steps: int, settings: _Settings) -> dict[str, Any]:
    """The fields of :class:`EnergyPath`, some images at a time."""
    energy, beta, sign, max_iter, progress, published = settings
    most = _MAX_ITER[energy] if max_iter is None else max_iter
    moves = most > 0 and (n_steps > 1 or published) and (energy == "curve" or beta > 0)
    shape = inputs.shape[1:]
    blocks = torch.arange(len(inputs), device=inputs.device).split(max(scorer.size // n_steps, 1))
    lines = functools.partial(_first_lines, inputs.flatten(1), baselines.flatten(1), n_steps, published)
    epsilon = inputs.new_empty(len(inputs))
    bends, turns_up = torch.zeros(2, len(inputs), dtype=torch.bool, device=inputs.device)
    for rows in blocks:
        squares, turns = slope_turns(scorer, shape, lines(rows), rows, turn=moves)
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
        slope = functools.partial(slope_turns, scorer.of(rows), shape)
        turning = functools.partial(slope, turn=moves)
        counted = (step for step, _ in zip(range(most if moves else 0), bar, strict=False))
        if energy == "curve":
            found = relax_curves(turning, lines(rows), epsilon[rows], counted)
        else:
            found = relax_potential(turning, lines(rows), counted, beta=beta, sign=sign, free_ends=published)
        points, reached, iterations, converged = found
        own = torch.arange(len(rows), device=rows.device)
        metric = curve_energy_and_gradient(functools.partial(slope, turn=False), points, own, epsilon[rows])[2]
        length = (metric.sqrt() * points.diff(dim=1).norm(dim=2)).sum(1)
        parts.append((points.unflatten(2, shape), reached, length, iterations, converged & ~(stuck[rows] & moves)))
    points, reached, length, iterations, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    late = ~converged & ~reached.isnan() & moves  # NaN is counted elsewhere
    warn_of("energy_path", late, f"paths had not converged after {most} iterations", 5)
    return {"points": points, "energy": reached, "length": length, "iterations": iterations, "converged": converged}


def _first_lines(inputs: Tensor, baselines: Tensor, n_steps: int, published: bool, rows: Tensor) -> Tensor:
    """The points that some images' paths begin with: (b, n_steps + 1, D)."""
    if not published:
        return line_between(baselines[rows], inputs[rows], n_steps)
    nodes, _ = rule("gausslegendre", n_steps + 1, inputs)
    return baselines[rows, None] + nodes[:, None] * (inputs - baselines)[rows, None]
