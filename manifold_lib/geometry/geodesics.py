"""Geodesics of the pullback metric JᵀJ of a decoder: batched curves of least energy between latents.

The solver is preconditioned: the number of iterations depends neither on the number of points nor on the scale of the
latents, and a linear decoder needs one. An iteration is one decode of the points and one backward pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_like, check_positive, check_precise, warn_of
from ..core.derivatives import check_decoder
from ..core.progress import progress_bar
from . import curves
from .curves import energy_of, knot_basis, line_between, of_less_energy
from .implicit import follow_ends
from .solver import descend, mean_metric, mean_stretch
from .starts import along_codes, at_even_times, bent, check_starts
from .tangent import Decoder

# Segments of the coarsest curve. Fewer bend too little to be worth a level of their own.
COARSEST = 4


class Geodesic(NamedTuple):
    """Curves of least energy.

    Attributes
    ----------
    points : Tensor
        (B, T, *latent), T = n_steps + 1, at constant decoded speed as far as it has converged.
    energy : Tensor
        (B,), ½ n Σ ‖g(z_{i+1}) − g(z_i)‖².
    length : Tensor
        (B,), Σ ‖g(z_{i+1}) − g(z_i)‖.
    iterations : Tensor
        (B,) int64, passes through the decoder and back from the start that is kept, those on coarser curves included.
    converged : Tensor
        (B,) bool.
    certificate : Tensor or None
        (B,) in [0, 1], by how much the lowest energy found from several starts is below the highest, as a share of
        that. Near 0 all starts agree, which speaks for a shortest curve and does not prove it. None with one start.

    Examples
    --------
    >>> found = geodesic(lambda z: 2 * z, torch.zeros(1, 3), torch.ones(1, 3), n_steps=4)
    >>> found.points.shape, found.energy
    (torch.Size([1, 5, 3]), tensor([6.]))
    """

    points: Tensor
    energy: Tensor
    length: Tensor
    iterations: Tensor
    converged: Tensor
    certificate: Tensor | None = None


def geodesic(
    decoder: Decoder,
    start: Tensor,
    end: Tensor,
    *,
    n_steps: int = 16,
    max_iter: int = 40,
    tolerance: float = 1e-4,
    n_knots: int | None = None,
    init: str | Tensor = "line",
    data: Tensor | None = None,
    certify: bool = False,
    internal_batch_size: int | None = None,
    progress: bool = False,
    create_graph: bool = False,
) -> Geodesic:
    """Curves of least energy between latents, solved coarse to fine, all in lock-step (paper 3, eq. 1 and 2).

    Never of more energy than where the search starts. Curves that have not converged are counted in one warning.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape); its Jacobian gives the metric JᵀJ. Other metrics are other maps: stack the
        decoder and a multiple of the classifier's scores to count the classifier in.
    start, end : Tensor
        (B, *latent), the ends, kept exactly. One of them may be (1, *latent), one for all; ``end`` also a number.
    n_steps : int
        Segments of the curve. Below 32 the energy is taken on twice as many, since the images of a coarse curve can
        jump over what lies between them.
    max_iter : int
        Passes through the decoder and back, over all levels, for each start. With 0 the curve stays where it starts.
    tolerance : float
        A curve stops when the saving that the preconditioner predicts, or each of the last three savings, is below
        this share of the energy.
    n_knots : int, optional
        A cubic spline with this many inner knots instead of a curve whose every point moves.
    init : {"line", "graph"} or Tensor
        Where the search starts. ``"graph"``: from the straight line, and from the shortest path through ``data``, of
        which each is joined to its ten nearest by edges as long as their images; the curve of less energy is kept.
        Or curves (B, T, *latent) between the same ends, at equal steps of time.
    data : Tensor, optional
        (N, *latent), for ``"graph"``: codes of data.
    certify : bool
        Search also from two curves bent to either side, from one of them backwards. Of all results that of the least
        energy is kept, and ``certificate`` compares them.
    internal_batch_size, progress
        Images decoded at once, and whether to show a bar over the curves.
    create_graph : bool
        Give the points a graph that leads to the ends, by the implicit function theorem: exact where every point moves
        and the curve has converged, and derived once, not twice. With ``max_iter=0`` points follow the line.

    Raises
    ------
    ValueError
        As for :func:`decoder_jacobian`; for curves of other ends, ``"graph"`` without ``data``, half precision, and
        images that are not finite where the search starts.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> found = ml.geodesic(lambda z: torch.cat([z, z**2], 1), -torch.ones(1, 1), torch.ones(1, 1), n_steps=32)
    >>> found.length.round(decimals=2)
    tensor([2.9600])
    """
    check_precise(check_batch(start, "start"), "start")
    if isinstance(end, Tensor) and len(start) == 1 < len(end):
        start = check_like(start, check_batch(end, "end"), "start", "end")
    end = check_like(end, start, "end", "start")
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter", least=0)
    check_positive(tolerance, "tolerance")
    check_starts(init, data, start, end)
    if n_knots is not None:
        check_count(n_knots, "n_knots")
    needs = "graph" if max_iter else "rows"
    check_decoder(decoder, torch.cat([start[:1], end[-1:]]), needs=needs, size=internal_batch_size)
    ends = start, end
    # the weights of the decoder may have a graph, of which nothing here wants to know
    with torch.inference_mode(False), torch.no_grad():
        # copies, since tensors made in inference mode take part in no graph
        start, end = start.detach().clone(), end.detach().clone()
        size = curves.curves_at_once(_n_seen(n_steps) + 1, start, internal_batch_size)
        decode = curves.in_parts(decoder, internal_batch_size)
        ways = None if data is None else along_codes(decode, data, start, end, n_steps, internal_batch_size)
        given = None
        if isinstance(init, Tensor):
            given = at_even_times(init.detach(), n_steps).clone()
            given[:, 0], given[:, -1] = start, end
        found = []
        for i in progress_bar(range(0, len(start), size), show=progress, desc="geodesic"):
            line = line_between(start[i : i + size], end[i : i + size], n_steps)
            firsts = [line if given is None else given[i : i + size]]
            if ways is not None:
                firsts.append(ways[i : i + size])
            if certify:
                firsts.append(bent(line, 0.5))
            solved = [_solve(decode, first, max_iter, tolerance, n_knots, first is line) for first in firsts]
            if certify:
                back = _solve(decode, bent(line, -0.5).flip(1), max_iter, tolerance, n_knots)
                solved.append((back[0].flip(1), back[1], back[2]))
            found.append(_best(decode, solved))
        points, iterations, converged, apart = (torch.cat(part) for part in zip(*found, strict=True))
        steps = curves.decoded_steps(decode, points)
    if max_iter:
        warn_of("geodesic", ~converged, f"curves had not converged after {max_iter} iterations")
    energy, certificate = steps.square().sum(1) * n_steps / 2, apart if certify or ways is not None else None
    if create_graph and not max_iter and given is None and ways is None:
        points = line_between(*ends, n_steps)
    elif create_graph:
        points = follow_ends(decode, points, *ends, _n_seen(n_steps))
    return Geodesic(points, energy, steps.sum(1), iterations, converged, certificate)


def _n_seen(n_steps: int) -> int:
    """Segments on which the energy of a curve is taken."""
    return 2 * n_steps if n_steps < 32 else n_steps


def _best(decoder: Decoder, solved: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the curves solved from several starts those of least energy, and how far the highest energy is above it."""
    energies = torch.stack([energy_of(decoder, points) for points, _, _ in solved])
    least, best = energies.min(0)
    rows = torch.arange(len(best), device=best.device)
    points, iterations, converged = (torch.stack(part)[best, rows] for part in zip(*solved, strict=True))
    highest = energies.amax(0)
    return points, iterations, converged, (highest - least) / highest.clamp_min(torch.finfo(least.dtype).tiny)


def _solve(
    decoder: Decoder, first: Tensor, max_iter: int, tolerance: float, n_knots: int | None, straight: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, iterations and convergence of a few curves, from where they start."""
    energy = energy_of(decoder, first)
    bad = ~torch.isfinite(energy)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()[:8]
        raise ValueError(f"decoder: got NaN or infinity where the curves {rows} start, wants finite images")
    iterations = torch.zeros(len(first), dtype=torch.int64, device=first.device)
    if not max_iter:
        return first, iterations, torch.zeros_like(iterations, dtype=torch.bool)
    metric, knots = mean_stretch(decoder, first), knot_basis(first.shape[1] - 1, n_knots, first)
    if max_iter < 2 * COARSEST:  # too few passes for levels and Jacobians
        # without Jacobians the full first step raised the energy of every pair of latents that we tried, a tenth of
        # the step that of few
        return descend(decoder, first, knots, max_iter, tolerance, iterations, metric, 1 / 16)
    # one pass, with a strict tolerance, finds the curves that are geodesics from the start
    points, iterations, converged = descend(decoder, first, knots, 1, 1e-3 * tolerance, iterations, metric)
    rows = (~converged).nonzero().squeeze(1)
    if len(rows):
        found = _by_levels(decoder, first[rows], energy[rows], max_iter, tolerance, n_knots, iterations[rows], straight)
        points[rows], iterations[rows], converged[rows] = found
    return points, iterations, converged


def _by_levels(
    decoder: Decoder,
    first: Tensor,
    energy: Tensor,
    max_iter: int,
    tolerance: float,
    n_knots: int | None,
    iterations: Tensor,
    straight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, iterations and convergence, coarse to fine, of no more than the energy of where they start."""
    n_steps, points = first.shape[1] - 1, first
    levels = [n_steps]
    while levels[0] >= 2 * COARSEST and 3 * len(levels) < max_iter:
        levels.insert(0, levels[0] // 2)
    for index, level in enumerate(levels):
        n_seen, last = _n_seen(level), level == n_steps
        own = line_between(first[:, 0], first[:, -1], n_seen) if straight else at_even_times(first, n_seen)
        # the energy of where the search starts is that on the segments asked for, which is known
        points = of_less_energy(decoder, curves.even_points(decoder, points, n_seen), own, energy)[0] if index else own
        if index <= 1:
            # the metric along a coarse solution is nearer to that of the geodesic than along the straight line
            metric = mean_metric(decoder, points, n_steps, stretch_only=index == 0 and len(levels) > 1)
        # coarse curves, whose passes are cheap, get most of them: level l of L ends at the share √(l / L)
        budget = max_iter if last else int(max_iter * ((index + 1) / len(levels)) ** 0.5)
        knots = knot_basis(n_seen, level - 1 if n_knots is None else n_knots, points)
        goal = tolerance if last else 10 * tolerance
        # images bend more than their Jacobians tell: of most curves the full first step raises the energy
        points, iterations, converged = descend(decoder, points, knots, budget, goal, iterations, metric, 1 / 4)
    even = curves.even_points(decoder, points, n_steps, n_corrections=1)
    points, energy = of_less_energy(decoder, points[:, :: _n_seen(n_steps) // n_steps], first, energy)
    return of_less_energy(decoder, even, points, energy)[0], iterations, converged
