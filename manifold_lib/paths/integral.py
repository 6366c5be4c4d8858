"""The line integral of a model's gradient along a path: the one integrator behind every path method.

``A = ∫₀¹ ∇f(γ(t)) ⊙ γ'(t) dt``, whose entries sum to f(γ(1)) − f(γ(0)).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_positive, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import Model, left_as_found, module_of, resolve_target, score_change
from .adaptive import Info, adaptive_integral
from .path import Path, path_starts, polyline
from .quadrature import METHODS, count_nodes, line_integral


def integrate(
    model: Model,
    path: Path | Tensor,
    target: int | Tensor | None = None,
    *,
    method: str = "trapezoid",
    n_steps: int | None = None,
    tolerance: float | None = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
    return_info: bool = False,
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
        Segments (for Gauss–Legendre: nodes). By default 50 for a Path, and a polyline's own T − 1;
        a larger number subdivides each of its edges equally, so that no corner is cut. With ``tolerance``,
        the most segments of an image (1,024 by default).
    tolerance : float, optional
        Adaptive trapezoid: segments are halved where their error is large, by calling the path, until the errors
        add up to at most tolerance · max(|f(end) − f(start)|, 0.05 · the spread of the image's scores). Images
        that do not get there are counted in one warning.
    internal_batch_size : int, optional
        Points per pass through the model. By default they are sized to the cache of a CPU or the
        memory of a GPU. Memory never grows with B · n_steps; with ``tolerance`` it holds the points of some images.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself.
    return_info : bool
        Also return an :class:`Info`: completeness gap, gradient evaluations and convergence of each image.

    Returns
    -------
    Tensor, or (Tensor, Info)
        (B, *shape), in the units of the score.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants.
    """
    check_choice(method, "method", METHODS)
    n_edges, usual = 1, 50
    if isinstance(path, Tensor):
        n_edges, path = path.shape[1] - 1 if path.ndim > 2 else 1, polyline(path)
        usual = 50 if method == "gausslegendre" else n_edges
    if n_steps is not None:
        check_count(n_steps, "n_steps")
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    path = _with_end(model, path)
    assert path.end is not None
    info, explained = None, model
    with left_as_found(model, path.end):
        model, size = plan_passes(model, path.end, n_steps or usual, internal_batch_size, exact=True)
        classes = resolve_target(model, path.end, target, size)
        path = _own_gradients(path, explained, classes, create_graph)
        if tolerance is not None:
            attributions, info = adaptive_integral(
                model, path, classes, tolerance=tolerance, n_edges=n_edges, most=n_steps, size=size
            )
        else:
            rule = {"method": method, "n_steps": n_steps or usual, "n_edges": n_edges}
            attributions = line_integral(model, path, classes, **rule, size=size, create_graph=create_graph)
            if return_info:
                change = score_change(model, path.end, path_starts(path, size), classes, size)
                delta = attributions.detach().flatten(1).sum(1) - change
                info = Info(delta, torch.full_like(delta, count_nodes(**rule), dtype=torch.int64), None)
    warn_non_finite(attributions, "integrate")
    attributions = attributions if create_graph else attributions.detach()
    return (attributions, info) if return_info and info is not None else attributions


def check_adaptive(tolerance: float, method: str, create_graph: bool = False) -> None:
    """Refuse what the adaptive rule, a trapezoid, cannot do."""
    check_positive(tolerance, "tolerance")
    if method not in ("trapezoid", "gausslegendre"):
        raise ValueError(f"method: got {method!r} with a tolerance, which goes by the trapezoid")
    if create_graph:
        raise ValueError("create_graph: cannot be combined with tolerance, whose choice of points has no gradient")


def _own_gradients(path: Path, model: Model, target: Tensor | None, create_graph: bool) -> Path:
    """The path, without the gradients it brought if they are of another model or other classes, or lack the graph."""
    same_model = path.model is None or path.model == model
    same_classes = path.target is None or target is None or torch.equal(path.target, target)
    return path if same_model and same_classes and not create_graph else dataclasses.replace(path, gradients=None)


def _with_end(model: Model, path: Path) -> Path:
    """The path with its end points, which give batch size, shape, dtype and device."""
    if not isinstance(path, Path):
        raise ValueError(f"path: got {type(path).__name__}, wants a Path or a tensor (B, T, *shape)")
    if path.end is None:
        module = module_of(model)
        tensors = [] if module is None else [*module.parameters(), *module.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.ones(1))
        try:
            with torch.no_grad():
                end = path.at(slice(None), torch.ones(1, device=like.device, dtype=like.dtype))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(
                "path: got a Path without end whose at(rows, t) does not take rows = slice(None), "
                "wants Path(at, end=...) with the end points (B, *shape)"
            ) from error
        path = dataclasses.replace(path, end=end)
    end = check_batch(path.end, "path")
    if path.displacement is not None:
        return path

    def at(rows: Tensor, t: Tensor) -> Tensor:
        points = path.at(rows, t)
        wants = ((len(t), *end.shape[1:]), end.dtype, end.device)
        got = (tuple(points.shape), points.dtype, points.device) if isinstance(points, Tensor) else type(points)
        if got != wants:
            raise ValueError(f"path: at(rows, t) gave {got}, wants {wants} like its end")
        return points

    return dataclasses.replace(path, at=at)
