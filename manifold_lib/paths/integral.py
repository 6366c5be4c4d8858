"""The line integral of a model's gradient along a path: the one integrator behind every path method.

``A = ∫₀¹ ∇f(γ(t)) ⊙ γ'(t) dt``, whose entries sum to f(γ(1)) − f(γ(0)).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast, overload

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, require, warn_non_finite
from ..core.modules import tensors_of
from ..core.scorer import Model, Scorer, Target, scoring, warn_incomplete
from .adaptive import adaptive, check_adaptive
from .path import Path, line, path_starts, polyline
from .quadrature import RULES, count_nodes, empty_sum, line_integral
from .refine import BRIDGE_NODES, DEEPEST_BRIDGE, by_share, finer, gauss, refine, share_of


class Info(NamedTuple):
    """How an integral went, per image.

    Attributes
    ----------
    delta : Tensor
        (B,), Σ A − (f(end) − f(start)).
    n_gradients : Tensor or None
        (B,), gradient evaluations; None for a path of several parts, or that brings its integral.
    converged : Tensor or None
        (B,) bool, whether the tolerance was reached; None where none was given.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model, path = lambda x: (x**2).sum(1), ml.straight_path(torch.ones(1, 2))
    >>> ml.integrate(model, path, n_steps=4, return_info=True)[1]
    Info(delta=tensor([0.]), n_gradients=tensor([5]), converged=None)
    """

    delta: Tensor
    n_gradients: Tensor | None
    converged: Tensor | None


class Integrate(Protocol):
    """:func:`integrate`, to type checkers: with a flag it also returns its :class:`Info`."""

    @overload
    def __call__(
        self, model: Model | Scorer, path: Path | Tensor, target: Target = None, *, return_info: Literal[True], **_: Any
    ) -> tuple[Tensor, Info]: ...
    @overload
    def __call__(self, model: Model | Scorer, path: Path | Tensor, target: Target = None, **_: Any) -> Tensor: ...


class PathMethod(Protocol):
    """An attribution, to type checkers: with a flag it also returns its deltas."""

    @overload
    def __call__(
        self, model: Model, inputs: Tensor, target: Target = None, *, return_convergence_delta: Literal[True], **_: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(self, model: Model, inputs: Tensor, target: Target = None, **_: Any) -> Tensor: ...


def path_method(function: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> PathMethod:
    """Tell type checkers what a method returns; the function stays as it is."""
    return cast(PathMethod, function)


def _integrator(function: Callable[..., Tensor | tuple[Tensor, Info]]) -> Integrate:
    return cast(Integrate, function)


@_integrator
def integrate(
    model: Model | Scorer,
    path: Path | Tensor,
    target: Target = None,
    *,
    method: str = "trapezoid",
    n_steps: int | None = None,
    tolerance: float | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
    return_info: bool = False,
    name: str = "integrate",
) -> Tensor | tuple[Tensor, Info]:
    """Line integral of ∂f/∂x along a path, batched over images and path points.

    Parameters
    ----------
    model : callable
        Scores (B, C), or (B,), from inputs (B, *shape).
    path : Path or Tensor
        A :class:`Path`, or points (B, T, *shape) read as a polyline.
    target : int, Tensor or None
        Class explained along the whole path, for all or for each image (B,); None is the class predicted at its end.
    method : {"trapezoid", "left", "right", "midpoint", "gausslegendre"}
        Sums over chords γ(t_{i+1}) − γ(t_i), or Gauss–Legendre nodes with γ'(t) by forward-mode differentiation.
    n_steps : int, optional
        Segments (for Gauss–Legendre: nodes). By default 50, and the own edges of a polyline or of a path that was
        guided or found in a graph; a larger number divides each edge equally, so that no corner is cut. With
        ``tolerance``, the most segments of an image (1,024 by default).
    tolerance : float, optional
        Adaptive trapezoid: segments are halved where their error is large, by calling the path, until the errors add up
        to at most tolerance · max(|f(end) − f(start)|, 0.05 · the spread of the image's scores). One warning counts
        the images that do not get there.
    additional_forward_args : tuple, Tensor or other, optional
        Other arguments of the model, as in Captum: tensors whose first dimension is B follow their image.
    internal_batch_size : int, optional
        Points per pass through the model, by default sized to the cache of a CPU or the memory of a GPU. Memory never
        grows with B · n_steps; with ``tolerance`` it holds the points of some images.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself.
    return_info : bool
        Also return an :class:`Info`: completeness gap, gradient evaluations and convergence of each image.
    name : str
        Who is named in warnings.

    Returns
    -------
    Tensor, or (Tensor, Info)
        (B, *shape), in the units of the score.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.integrate(lambda x: (x**2).sum(1), ml.straight_path(torch.tensor([[1.0, 2.0]])))
    tensor([[1., 4.]])
    """
    check_choice(method, "method", RULES)
    if n_steps is not None:
        check_count(n_steps, "n_steps")
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    path = _with_end(model, polyline(path) if isinstance(path, Tensor) else path)
    steps = n_steps or (50 if path.n_edges == 1 or method == "gausslegendre" else path.n_edges)
    info, counts, converged, change = None, None, None, None
    with scoring(model, path.end, target, steps, additional_forward_args, internal_batch_size) as scorer:
        own = path.integral if n_steps is None and tolerance is None else None
        attributions = None if own is None else own(scorer, method, create_graph)
        if attributions is None and tolerance is not None:
            attributions, counts, converged = adaptive(scorer, path, tolerance, most=n_steps, name=name)
        elif attributions is None:
            if path.parts and not create_graph:
                change = scorer.change(path.end, path_starts(path, scorer.size))
            attributions = _sum_of_parts(scorer, path, method, steps, n_steps is None, create_graph, change)
            if not path.parts:
                n_taken = count_nodes(method, steps, path.n_edges)
                counts = torch.full((len(path.end),), n_taken, device=path.end.device)
        if change is None and (return_info or (own is not None and path.start is not None and not create_graph)):
            change = scorer.change(path.end, path_starts(path, scorer.size))
        if change is not None and tolerance is None:  # an adaptive integral says itself what it misses
            warn_incomplete(attributions, change, name)
        if return_info:
            assert change is not None
            info = Info(attributions.detach().flatten(1).sum(1) - change, counts, converged)
    warn_non_finite(attributions, name)
    attributions = attributions if create_graph else attributions.detach()
    return attributions if info is None else (attributions, info)


def _sum_of_parts(
    scorer: Scorer, path: Path, method: str, n_steps: int, own: bool, create_graph: bool, change: Tensor | None
) -> Tensor:
    """The integral along a path or each of its parts, of which straight ones are bridges: (B, *shape).

    With ``own``, a part that brings its integral gives that. ``change`` (B,) says what bridges may miss.
    """
    settings: dict[str, Any] = {"method": method, "n_steps": n_steps, "create_graph": create_graph}
    if not path.parts:
        return line_integral(scorer, path, **settings)
    total, allowed = empty_sum(path.end), None if change is None else share_of(change)
    for part in path.parts:
        known = None
        if part.displacement is not None:
            known = bridge(scorer, part, allowed)
        elif part.integral is not None and own:
            known = part.integral(scorer, method, create_graph)
        total = total + (line_integral(scorer, part, **settings) if known is None else known)
    return total.to(path.end.dtype)


def bridge(scorer: Scorer, path: Path, allowed: Tensor | None) -> Tensor:
    """The integral along straight lines by 16 Gauss–Legendre nodes, or 64 or 256 where these miss Δf by more than
    ``allowed`` (B,); without it, the graph is kept: (B, *shape)."""
    if allowed is None:
        return line_integral(scorer, path, method="gausslegendre", n_steps=BRIDGE_NODES, create_graph=True)
    start, end = path_starts(path, scorer.size), path.end.detach()

    def integral(rows: Tensor, n_times: int) -> Tensor:
        settings: dict[str, Any] = {"method": "gausslegendre", "n_steps": n_times * BRIDGE_NODES}
        return line_integral(scorer.of(rows), line(start[rows], end[rows]), **settings).detach().double()

    rows = torch.arange(len(end), device=end.device)
    pieces, total = gauss(rows, rows, scorer.change(end, start), integral(rows, 1)), end.new_zeros(end.shape).double()
    again = finer(lambda pieces, n_times: integral(pieces.rows, n_times))
    refine(total, pieces, again, by_share(allowed.double(), lambda pieces: allowed[pieces.rows], DEEPEST_BRIDGE))
    total[~(torch.isfinite(start) & torch.isfinite(end)).flatten(1).all(1)] = torch.nan
    return total.to(end.dtype)


def _with_end(model: Model | Scorer, path: Path) -> Path:
    """The path with its end points, which give batch size, shape, dtype and device; its points are checked."""
    require(isinstance(path, Path), "path", type(path).__name__, "a Path or a tensor (B, T, *shape)")
    if path.end is None:
        like = next((tensor for tensor in tensors_of(model) if tensor.is_floating_point()), torch.ones(1))
        try:
            with torch.no_grad():
                path = dataclasses.replace(path, end=path.at(slice(None), like.new_ones(1)))
        except TypeError as error:
            got = "a Path without end whose at(rows, t) does not take rows = slice(None)"
            raise ValueError(f"path: got {got}, wants Path(at, end=...) with the end points (B, *shape)") from error
    end = check_batch(path.end, "path")
    if path.displacement is not None or path.integral is not None:
        return path

    def at(rows: Tensor, t: Tensor) -> Tensor:
        points = path.at(rows, t)
        wants = ((len(t), *end.shape[1:]), end.dtype, end.device)
        got = (tuple(points.shape), points.dtype, points.device) if isinstance(points, Tensor) else type(points)
        if got != wants:
            raise ValueError(f"path: at(rows, t) gave {got}, wants {wants} like its end")
        return points

    return dataclasses.replace(path, at=at)


def unsaid(path: Path, name: str, create_graph: bool = False) -> str | None:
    """The name for :func:`with_delta` to say a misfit by, where :func:`integrate` did not know it and said nothing."""
    known = path.parts or (path.integral is not None and path.start is not None)
    return None if known and not create_graph else name


def with_delta(
    scorer: Scorer, attributions: Tensor, inputs: Tensor, baselines: Tensor, wanted: bool, name: str | None = None
) -> Any:
    """Attributions, and Σ A − (f(x) − f(x')) where it is wanted; with a name, sums that miss are said in its."""
    if not wanted:
        return attributions
    change = scorer.change(inputs, baselines)
    if name is not None:
        warn_incomplete(attributions, change, name)
    return attributions, attributions.detach().flatten(1).sum(1) - change
