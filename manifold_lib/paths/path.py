"""Paths: where the points lie between a baseline (the papers also write base-point) and an input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_like, require
from ..core.scorer import Scorer


@dataclass(frozen=True)
class Path:
    """A batch of curves γ: [0, 1] → inputs, one for each image.

    A new attribution method is a new function that returns one of these.

    Parameters
    ----------
    at : callable
        ``at(rows, t)`` gives the points of those images at those times: rows (n,) int64 and t (n,) -> (n, *shape).
    gradients : callable, optional
        ``gradients(rows, t)`` -> (n, *shape), where a builder already has ∂f/∂x at these points.
    displacement : Tensor, optional
        (B, *shape), set for straight lines only: the constant velocity γ(1) − γ(0).
    start, end : Tensor, optional
        (B, *shape), γ(0) and γ(1). An end not given is asked for once, as ``at(slice(None), t)`` with t of shape (1,).
    n_edges : int
        Equal parts of [0, 1] that are straight each; rules divide every one of them, so that no corner is cut.
    parts : tuple of Path
        The paths that this one consists of, in order, each integrated by a rule of its own.
    integral : callable, optional
        ``integral(scorer, method, create_graph)`` -> (B, *shape), where a builder meets the gradients along the path
        anyway, or None where it cannot give it. See :func:`manifold_lib.paths.greedy.streamed_path`.
    bounds : tuple of float
        Times at which the parts begin and end, from 0 to 1.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> path = ml.straight_path(torch.ones(1, 2), torch.zeros(1, 2))
    >>> path.at(torch.tensor([0, 0]), torch.tensor([0.25, 1.0]))
    tensor([[0.2500, 0.2500],
            [1.0000, 1.0000]])
    """

    at: Callable[[Any, Tensor], Tensor]
    gradients: Callable[[Tensor, Tensor], Tensor] | None = None
    displacement: Tensor | None = None
    end: Any = None  # a tensor, wherever the library integrates
    n_edges: int = 1
    parts: tuple["Path", ...] = ()
    integral: Callable[[Scorer, str, bool], Tensor | None] | None = None
    bounds: tuple[float, ...] = ()
    start: Tensor | None = None

    def sample(self, n: int, by: str = "t", *, internal_batch_size: int = 256) -> Tensor:
        """Points of each curve at equal steps, its ends among them: (B, n + 1, *shape), without a graph.

        Parameters
        ----------
        n : int
            Steps, at least 1.
        by : {"t", "length"}
            Equal steps of t, or of the length of the curve in input units, which is measured part by part.
        internal_batch_size : int
            Points at once, since a path may decode.

        Raises
        ------
        ValueError
            For a number of steps below 1, or another word.

        Examples
        --------
        >>> import torch, manifold_lib as ml
        >>> ml.polyline(torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]]])).sample(2, by="length")
        tensor([[[0., 0.],
                 [2., 0.],
                 [3., 1.]]])
        """
        check_count(n, "n")
        check_choice(by, "by", ("t", "length"))
        end = self.at(slice(None), torch.ones(1)) if self.end is None else self.end
        times = torch.linspace(0, 1, n + 1, device=end.device, dtype=end.dtype).expand(len(end), -1)
        if by == "length":
            measured, lengths = _lengths(self, end, n, internal_batch_size)
            whole = torch.isfinite(lengths).all(1, keepdim=True)  # a curve that breaks off has no length
            times = torch.where(whole, even_times(measured, lengths, n), times)
        found = _points(self, times, internal_batch_size)
        if self.end is not None:
            last = found[:, -1]
            found[:, -1] = torch.where(torch.isfinite(last), self.end.detach(), last)  # exact to the last bit
        return found


def _points(path: Path, times: Tensor, size: int) -> Tensor:
    """Points of each curve at its own times, without a graph: (B, T) -> (B, T, *shape)."""
    rows = torch.arange(len(times), device=times.device).repeat_interleave(times.shape[1])
    pairs = zip(rows.split(size), times.flatten().split(size), strict=True)
    with torch.no_grad():
        return torch.cat([path.at(some, t) for some, t in pairs]).unflatten(0, times.shape)


def _lengths(path: Path, end: Tensor, n: int, size: int) -> tuple[Tensor, Tensor]:
    """Times (B, T) and the lengths of each curve between them (B, T − 1), not finite where it breaks off."""
    if path.bounds:  # part by part, so that no corner between them is cut
        found = [_lengths(part, end, n, size) for part in path.parts]
        spans = zip(found, path.bounds[:-1], path.bounds[1:], strict=True)
        times = [low + (high - low) * times[:, :-1] for (times, _), low, high in spans]
        return torch.cat([*times, torch.ones_like(times[0][:, :1])], 1), torch.cat([steps for _, steps in found], 1)
    # 64 steps or more, and one of a straight line; the corners of a polyline are known
    known = path.n_edges > 1 or path.displacement is not None
    base = path.n_edges if known else n
    n_first = 1 if path.displacement is not None else base * -(-64 // base)
    times = torch.linspace(0, 1, n_first + 1, device=end.device, dtype=end.dtype).expand(len(end), -1)
    steps = _points(path, times, size).diff(dim=1).flatten(2).norm(dim=2)
    whole = torch.isfinite(steps).all(1, keepdim=True)
    for _ in range(0 if known else 2):  # correct the times by the lengths of their own steps
        times = even_times(times, steps, n_first)
        steps = _points(path, times, size).diff(dim=1).flatten(2).norm(dim=2)
    return times, steps.where(whole, torch.nan)


def column(t: Tensor, like: Tensor) -> Tensor:
    """Times (n,) shaped to multiply points (n, *shape)."""
    return t.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def straight_path(inputs: Tensor, baselines: Tensor | float = 0.0) -> Path:
    """The straight line γ(t) = x' + t (x − x') of Integrated Gradients (Sundararajan et al. 2017).

    Parameters
    ----------
    inputs : Tensor
        (B, *shape), the ends.
    baselines : Tensor or float
        (B, *shape), (1, *shape) or a number, the starts.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        For inputs that are no batch, and baselines of another shape, type or device.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.straight_path(torch.ones(1, 1), 0.5).sample(1)
    tensor([[[0.5000],
             [1.0000]]])
    """
    check_batch(inputs)
    return line(check_like(baselines, inputs, "baselines"), inputs)


def line(start: Tensor, end: Tensor) -> Path:
    """:func:`straight_path` without checks: a decoder may have given an end that is not finite."""
    displacement = end - start

    def at(rows: Any, t: Tensor) -> Tensor:
        # torch.lerp would be exact at both ends, but has no forward-mode derivative in t for a broadcast weight
        if isinstance(rows, slice):
            return start[rows] + column(t, end) * displacement[rows]
        # index_select is several times faster than indexing
        return start.index_select(0, rows) + column(t, end) * displacement.index_select(0, rows)

    return Path(at, displacement=displacement, end=end, start=start)


def polyline(points: Tensor) -> Path:
    """The path through given points at equal steps of t.

    Parameters
    ----------
    points : Tensor
        (B, T, *shape), T ≥ 2; what is not raises a ``ValueError``.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.polyline(torch.tensor([[[0.0], [1.0], [4.0]]])).at(torch.tensor([0]), torch.tensor([0.75]))
    tensor([[2.5000]])
    """
    check_batch(points, "path", min_dim=3)
    n_edges = points.shape[1] - 1
    require(n_edges >= 1, "path", f"shape {tuple(points.shape)}", "(B, T, *shape) with T of at least 2")

    def at(rows: Any, t: Tensor) -> Tensor:
        position = t * n_edges
        edge = position.detach().floor().long().clamp(0, n_edges - 1)
        if isinstance(rows, slice):
            rows = torch.arange(len(points), device=points.device)
        start, stop = points[rows, edge], points[rows, edge + 1]
        return start + column(position - edge, start) * (stop - start)

    return Path(at, end=points[:, -1], n_edges=n_edges)


def joined(parts: tuple[Path, ...], weights: tuple[float, ...]) -> Path:
    """One path after the other, each over its share of [0, 1]: weights give the shares."""
    ends = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)
    bounds = (0.0, *ends.tolist())

    def at(rows: Tensor, t: Tensor) -> Tensor:
        part = torch.bucketize(t.detach().double(), ends[:-1].to(t.device))
        places, points = [], []
        for index, path in enumerate(parts):
            own = (part == index).nonzero().squeeze(1)
            if len(own):
                low, high = bounds[index : index + 2]
                points.append(path.at(rows[own], ((t[own] - low) / (high - low)).clamp(0, 1)))
                places.append(own)
        return torch.cat(points)[torch.cat(places).argsort()]

    return Path(at, end=parts[-1].end, parts=parts, bounds=bounds, start=parts[0].start)


def decoded_path(decode: Callable[[Tensor], Tensor], latent_path: Path, size: int) -> Path:
    """The image of a path through the latents: a path through inputs."""
    end = torch.cat([decode(chunk.clone()) for chunk in latent_path.end.split(size)])
    return Path(lambda rows, t: decode(latent_path.at(rows, t)), end=end)


def path_starts(path: Path, size: int, *, create_graph: bool = False) -> Tensor:
    """γ(0) of each image, ``size`` at a time, since a path may decode: (B, *shape)."""
    if path.start is not None:
        return path.start if create_graph else path.start.detach()
    rows = torch.arange(len(path.end), device=path.end.device)
    with torch.set_grad_enabled(create_graph):
        return torch.cat([path.at(chunk, path.end.new_zeros(len(chunk))) for chunk in rows.split(size)])


def even_times(times: Tensor, steps: Tensor, n_steps: int) -> Tensor:
    """Times at equal parts of the arc length, which is linear between given times: (B, T), (B, T − 1) -> (B, n + 1)."""
    arc = torch.cat([steps.new_zeros(len(steps), 1), torch.nan_to_num(steps).cumsum(1)], 1)
    even = torch.linspace(0, 1, n_steps + 1, device=arc.device, dtype=arc.dtype)
    wanted = even * arc[:, -1:]
    edge = (torch.searchsorted(arc, wanted.contiguous(), right=True) - 1).clamp(0, steps.shape[1] - 1)
    start, stop = arc.gather(1, edge), arc.gather(1, edge + 1)
    share = ((wanted - start) / (stop - start).clamp_min(torch.finfo(arc.dtype).tiny)).clamp(0, 1)
    early, late = times.gather(1, edge), times.gather(1, edge + 1)
    return torch.where(arc[:, -1:] > 0, early + share * (late - early), even)
