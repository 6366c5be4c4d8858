"""The line integral of a model's gradient along a path: the one integrator behind every path method.

``A = ∫₀¹ ∇f(γ(t)) ⊙ γ'(t) dt``, whose entries sum to f(γ(1)) − f(γ(0)).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, cast, overload

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, warn_non_finite
from ..core.modules import module_of
from ..core.scorer import Model, Scorer, Target, scoring
from .adaptive import adaptive, check_adaptive
from .path import Path, line, path_starts, polyline
from .quadrature import RULES, count_nodes, empty_sum, line_integral
from .refine import BRIDGE_NODES, DEEPEST_BRIDGE, by_share, finer, gauss, refine, share_of


class Info(NamedTuple):
    """How an integral went, per image.

    delta : (B,), Σ A − (f(end) − f(start)).
    n_gradients : (B,), gradient evaluations; None for a path of several parts, or that brings its integral.
    converged : (B,) bool, whether the tolerance was reached; None where none was given.
    """

    delta: Tensor
    n_gradients: Tensor | None
    converged: Tensor | None


class Integrate(Protocol):
    """:func:`integrate`, to type checkers."""

    @overload
    def __call__(
        self, model: Model | Scorer, path: Path | Tensor, target: Target = None, *, return_info: Literal[True], **_: Any
    ) -> tuple[Tensor, Info]: ...
    @overload
    def __call__(
        self, model: Model | Scorer, path: Path | Tensor, target: Target = None, *, return_info: bool = False, **_: Any
    ) -> Tensor: ...


def _typed(function: Callable[..., Tensor | tuple[Tensor, Info]]) -> Integrate:
    return cast(Integrate, function)


@_typed
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
        Class explained, for all or for each image (B,); None means the class predicted at the path's
        end. It is fixed along the whole path.
    method : {"trapezoid", "left", "right", "midpoint", "gausslegendre"}
        Sums over chords γ(t_{i+1}) − γ(t_i), or Gauss–Legendre nodes with the velocity γ'(t) by
        forward-mode differentiation.
    n_steps : int, optional
        Segments (for Gauss–Legendre: nodes). By default 50, and the own edges of a polyline or of a path that was
        guided or found in a graph; a larger number divides each edge equally, so that no corner is cut. With
        ``tolerance``, the most segments of an image (1,024 by default).
    tolerance : float, optional
        Adaptive trapezoid: segments are halved where their error is large, by calling the path, until the errors
        add up to at most tolerance · max(|f(end) − f(start)|, 0.05 · the spread of the image's scores). Images
        that do not get there are counted in one warning.
    additional_forward_args : tuple, Tensor or other, optional
        Other arguments of the model, as in Captum: tensors whose first dimension is B follow their image.
    internal_batch_size : int, optional
        Points per pass through the model. By default they are sized to the cache of a CPU or the
        memory of a GPU. Memory never grows with B · n_steps; with ``tolerance`` it holds the points of some images.
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
    >>> model = lambda x: (x**2).sum(1, keepdim=True)
    >>> ml.integrate(model, ml.straight_path(torch.tensor([[1.0, 2.0]])), 0)
    tensor([[1., 4.]])
    """
    check_choice(method, "method", RULES)
    path = polyline(path) if isinstance(path, Tensor) else path
    if n_steps is not None:
        check_count(n_steps, "n_steps")
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    path = _with_end(model, path)
    assert path.end is not None
    steps = n_steps or (50 if path.n_edges == 1 or method == "gausslegendre" else path.n_edges)
    info, counts, converged = None, None, None
    with scoring(model, path.end, target, steps, additional_forward_args, internal_batch_size) as scorer:
        own = path.integral if n_steps is None and tolerance is None else None
        known = None if own is None else own(scorer, method, create_graph)
        if known is not None:
            attributions = known
        elif tolerance is not None:
            attributions, counts, converged = adaptive(scorer, path, tolerance, most=n_steps, name=name)
        else:
            attributions = sum_of_parts(scorer, path, method, steps, n_steps is None, create_graph=create_graph)
            if not path.parts:
                n_taken = count_nodes(method, steps, path.n_edges)
                counts = torch.full((len(path.end),), n_taken, device=path.end.device)
        if return_info:
            change = scorer.change(path.end, path_starts(path, scorer.size))
            info = Info(attributions.detach().flatten(1).sum(1) - change, counts, converged)
    warn_non_finite(attributions, name)
    attributions = attributions if create_graph else attributions.detach()
    return attributions if info is None else (attributions, info)


def sum_of_parts(
    scorer: Scorer, path: Path, method: str, n_steps: int, own: bool, *, create_graph: bool = False
) -> Tensor:
    """The integral along a path, or along each of its parts: (B, *shape).

    Straight parts are bridges. With ``own``, a part that brings its integral gives that.
    """
    if not path.parts:
        return line_integral(scorer, path, method=method, n_steps=n_steps, create_graph=create_graph)
    first, last = path.parts[0], path.parts[-1]
    assert last.end is not None
    total, allowed = empty_sum(last.end), None
    if not create_graph:
        allowed = share_of(scorer.change(last.end, path_starts(first, scorer.size)))
    for part in path.parts:
        if part.displacement is not None:
            total = total + bridge(scorer, part, allowed)
            continue
        known = None if part.integral is None or not own else part.integral(scorer, method, create_graph)
        if known is None:
            known = line_integral(scorer, part, method=method, n_steps=n_steps, create_graph=create_graph)
        total = total + known
    return total.to(last.end.dtype)


def bridge(scorer: Scorer, path: Path, allowed: Tensor | None) -> Tensor:
    """The integral along straight lines by 16 Gauss–Legendre nodes, or 64 or 256 where these miss Δf by more than
    ``allowed`` (B,); without it, the graph is kept: (B, *shape)."""
    if allowed is None:
        return line_integral(scorer, path, method="gausslegendre", n_steps=BRIDGE_NODES, create_graph=True)
    assert path.end is not None
    start, end = path_starts(path, scorer.size), path.end.detach()

    def integral(rows: Tensor, n_times: int) -> Tensor:
        settings: dict[str, Any] = {"method": "gausslegendre", "n_steps": n_times * BRIDGE_NODES}
        return line_integral(scorer.of(rows), line(start[rows], end[rows]), **settings).detach().double()

    rows = torch.arange(len(end), device=end.device)
    pieces, total = gauss(rows, rows, scorer.change(end, start), integral(rows, 1)), end.new_zeros(end.shape).double()
    again = finer(lambda pieces, n_times: integral(pieces.rows, n_times))
    refine(total, pieces, again, by_share(allowed.double(), lambda pieces: allowed[pieces.rows], DEEPEST_BRIDGE))
    broken = ~(torch.isfinite(start) & torch.isfinite(end)).flatten(1).all(1)
    total[broken] = torch.nan
    return total.to(end.dtype)


def _with_end(model: Model | Scorer, path: Path) -> Path:
    """The path with its end points, which give batch size, shape, dtype and device."""
    if not isinstance(path, Path):
        raise ValueError(f"path: got {type(path).__name__}, wants a Path or a tensor (B, T, *shape)")
    if path.end is None:
        module = module_of(model)
        tensors = [] if module is None else [*module.parameters(), *module.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.ones(1))
        try:
            with torch.no_grad():
                end = path.at(slice(None), torch.ones(1, device=like.device, dtype=like.dtype))
        except TypeError as error:
            raise ValueError(
                "path: got a Path without end whose at(rows, t) does not take rows = slice(None), "
                "wants Path(at, end=...) with the end points (B, *shape)"
            ) from error
        path = dataclasses.replace(path, end=end)
    end = check_batch(cast(Tensor, path.end), "path")
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


class PathMethod(Protocol):
    """An attribution that also returns Σ A − (f(x) − f(x')) if it is asked to."""

    @overload
    def __call__(
        self, model: Model, inputs: Tensor, target: Target = None, *, return_convergence_delta: Literal[True], **_: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self, model: Model, inputs: Tensor, target: Target = None, *, return_convergence_delta: bool = False, **_: Any
    ) -> Tensor: ...


def path_method(function: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> PathMethod:
    """Tell type checkers what a method returns; the function stays as it is."""
    return cast(PathMethod, function)


def with_delta(scorer: Scorer, attributions: Tensor, inputs: Tensor, baselines: Tensor, wanted: bool) -> Any:
    """Attributions, and Σ A − (f(x) − f(x')) where it is wanted."""
    if not wanted:
        return attributions
    return attributions, attributions.detach().flatten(1).sum(1) - scorer.change(inputs, baselines)
