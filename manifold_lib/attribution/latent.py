"""Paths through a latent space, decoded, with straight bridges to the raw baseline and input.

A ``vae`` is any object with ``encode(x)``, the latent mean, and ``decode(z)``.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_like, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import Model, buffers_as_found, left_as_found, resolve_target, score_change
from ..geometry.curves import spline_path
from ..geometry.geodesics import geodesic
from ..geometry.tangent import check_mode
from ..paths.bridges import bridges
from ..paths.path import Path, straight_path
from ..paths.quadrature import METHODS, line_integral, mean_gradient, rule

_DEEP = 6  # objects within objects in which the parts of a VAE are looked for


def enhanced_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    bridge: bool = True,
    method: str = "trapezoid",
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Enhanced Integrated Gradients (Jha et al. 2020): along the straight line between latents, decoded.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`.
    vae : object
        With ``encode`` and ``decode``.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros: encoded like the inputs.
    n_steps : int
        Segments of the decoded line.
    bridge : bool
        Join the raw baseline and the raw input to the ends of the decoded line by straight lines of 16 segments
        each, so that the sum is f(x) − f(x'). Without, it is the change between their reconstructions.
    method : str
        Quadrature rule, see :func:`manifold_lib.integrate`.
    create_graph : bool
        Keep the graph, through encoder and decoder too, to differentiate the attribution itself.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,).
    """
    check_choice(method, "method", METHODS)

    def line(start: Tensor, end: Tensor) -> Path:
        return straight_path(end, start)

    integral = functools.partial(line_integral, method=method, n_steps=check_count(n_steps, "n_steps"))
    options = {"n_steps": n_steps, "bridge": bridge, "internal_batch_size": internal_batch_size}
    options |= {"create_graph": create_graph, "with_delta": return_convergence_delta}
    with left_as_found(model, check_batch(inputs)), buffers_as_found(modules_of(vae)):
        found = _along(model, inputs, target, vae, baselines, line, integral, **options)
        warn_non_finite(found[0], "enhanced_ig")
        return found if return_convergence_delta else found[0]


def manifold_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 20,
    max_iter: int = 60,
    bridge: bool = True,
    published: bool = False,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Manifold Integrated Gradients (Zaher et al. 2024): along the geodesic between latents, decoded (paper 3, eq. 5).

    Parameters
    ----------
    vae, baselines, bridge
        As for :func:`enhanced_ig`.
    n_steps : int
        Segments of the geodesic, and of the trapezoid rule along it.
    max_iter : int
        Iterations of :func:`manifold_lib.geodesic`. With 0 the path is the straight line, and this is Enhanced IG.
    published : bool
        The released sum for the record: (p_last − p_first) ⊙ mean ∇f(p_i) over the points at i / n_steps, of which
        the last falls short of the input, and no bridges. On a curved path it is no line integral, and its sum does not
        come closer to the change of the score with more steps.
    create_graph : bool
        Keep the graph. The geodesic is solved at the inputs as they are, and then moves with its ends, its bend kept.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,).
    """
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter", least=0)

    def curve(start: Tensor, end: Tensor) -> Path:
        if not max_iter:
            return straight_path(end, start)
        options = {"max_iter": max_iter, "internal_batch_size": internal_batch_size}
        points = geodesic(vae.decode, start, end, n_steps=n_steps, **options).points
        if create_graph:
            t = torch.linspace(0, 1, n_steps + 1).to(points).view(1, -1, *(1,) * (start.ndim - 1))
            points = points + t * (end - end.detach())[:, None] + (1 - t) * (start - start.detach())[:, None]
        return spline_path(points)

    integral = functools.partial(line_integral, method="trapezoid", n_steps=n_steps)
    if published:
        integral, bridge = functools.partial(_chord_times_mean, n_steps=n_steps), False
    options = {"n_steps": n_steps, "bridge": bridge, "internal_batch_size": internal_batch_size}
    options |= {"create_graph": create_graph, "with_delta": return_convergence_delta}
    with left_as_found(model, check_batch(inputs)), buffers_as_found(modules_of(vae)):
        found = _along(model, inputs, target, vae, baselines, curve, integral, **options)
        warn_non_finite(found[0], "manifold_ig")
        return found if return_convergence_delta else found[0]


def _along(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None,
    vae: Any,
    baselines: Tensor | float | None,
    build: Callable[[Tensor, Tensor], Path],
    integral: Callable[..., Tensor],
    *,
    n_steps: int,
    bridge: bool,
    internal_batch_size: int | None,
    create_graph: bool,
    with_delta: bool,
) -> tuple[Tensor, Tensor]:
    """Attributions, and deltas if wanted, along the decoded path that ``build`` makes of both ends' latents."""
    baselines = check_like(0.0 if baselines is None else baselines, inputs, "baselines")
    if not create_graph:
        inputs, baselines = inputs.detach(), baselines.detach()
    model, size = plan_passes(model, inputs, n_steps, internal_batch_size, exact=True)
    classes = resolve_target(model, inputs, target, size)
    with torch.set_grad_enabled(create_graph):
        start, end = encode(vae, baselines, size), encode(vae, inputs, size)
        curve = decoded_path(decoder_of(vae, inputs), build(start, end), size)
    attributions = integral(model, curve, classes, size=size, create_graph=create_graph)
    if bridge:
        attributions = attributions + bridges(model, inputs, baselines, curve, classes, size, create_graph)
    delta = attributions.detach().flatten(1).sum(1)
    return attributions, delta - score_change(model, inputs, baselines, classes, size) if with_delta else delta


def _chord_times_mean(
    model: Model, path: Path, target: Tensor | None, *, n_steps: int, size: int, create_graph: bool
) -> Tensor:
    """(p_last − p_first) ⊙ mean ∇f(p_i), the points at i / n_steps for i < n_steps."""
    assert path.end is not None
    nodes, weights = rule("left", n_steps, path.end)
    average = mean_gradient(model, path, target, nodes, weights, size=size, create_graph=create_graph)
    rows = torch.arange(len(path.end), device=path.end.device)
    with torch.set_grad_enabled(create_graph):
        first, last = (
            torch.cat([path.at(part, node.expand(len(part))) for part in rows.split(size)]) for node in nodes[[0, -1]]
        )
        return (last - first) * average


def encode(vae: Any, inputs: Tensor, size: int) -> Tensor:
    """Latent means, ``size`` images at a time: (B, *shape) -> (B, *latent)."""
    for part in ("encode", "decode"):
        if not callable(getattr(vae, part, None)):
            raise ValueError(f"vae: got {type(vae).__name__} without {part}, wants an object with encode and decode")
    for part in modules_of(vae):
        check_mode(part, "vae")
    parts = []
    for chunk in inputs.split(size):
        parts.append(vae.encode(chunk.clone()))  # a copy, since an encoder may begin with an in-place layer
        if not isinstance(parts[-1], Tensor):
            kind = type(parts[-1]).__name__
            raise ValueError(f"vae: encode gave {kind}, wants a tensor (B, *latent), such as the means")
        if parts[-1].ndim and len(parts[-1]) != len(chunk):
            got = tuple(parts[-1].shape)
            raise ValueError(f"vae: encode gave shape {got} for {len(chunk)} images, wants (B, *latent)")
    return check_batch(torch.cat(parts), "vae.encode(inputs)")


def modules_of(vae: Any) -> list[torch.nn.Module]:
    """The modules that a VAE is, that its ``encode`` and ``decode`` belong to, or that it holds a few objects deep."""
    found: list[torch.nn.Module] = []
    level, seen = [vae, getattr(vae, "encode", None), getattr(vae, "decode", None)], set()
    for _ in range(_DEEP):
        inside: list[Any] = []
        for part in level:
            if id(part) in seen or isinstance(part, (types.ModuleType, Tensor)):
                continue
            seen.add(id(part))
            if isinstance(part, torch.nn.Module):
                found.append(part)
            elif isinstance(part, dict):
                inside += part.values()
            elif isinstance(part, (list, tuple)):
                inside += part
            elif isinstance(part, functools.partial):
                inside += [part.func, *part.args, *part.keywords.values()]
            else:
                inside += [getattr(part, "__self__", None), *getattr(part, "__dict__", {}).values()]
        level = inside
    return found


def decoder_of(vae: Any, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """``vae.decode``, refused where it gives anything but images like the inputs."""
    check_mode(vae.decode)

    def decode(latents: Tensor) -> Tensor:
        images = vae.decode(latents)
        wants = ((len(latents), *inputs.shape[1:]), inputs.dtype)
        got = (tuple(images.shape), images.dtype) if isinstance(images, Tensor) else type(images).__name__
        if got != wants:
            raise ValueError(f"vae: decode gave {got}, wants {wants} like inputs")
        return images

    return decode


def decoded_path(decode: Callable[[Tensor], Tensor], latent_path: Path, size: int) -> Path:
    """The image of a path through the latents: a path through inputs."""

    def at(rows: Tensor, t: Tensor) -> Tensor:
        return decode(latent_path.at(rows, t))

    assert latent_path.end is not None
    end = torch.cat([decode(chunk.clone()) for chunk in latent_path.end.split(size)])
    return Path(at, end=end)
