"""Paths through a latent space, decoded, with straight bridges to the raw baseline and input.

A ``vae`` is any object with ``encode(x)``, the latent mean, and ``decode(z)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import check_batch, check_choice, check_count, check_like, warn_non_finite
from .passes import plan_passes
from .paths import Path, path_starts, straight_path
from .quadrature import METHODS, line_integral
from .scores import Model, left_as_found, resolve_target, score_change
from .tangent import check_mode

_BRIDGE_STEPS = 16


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

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,).
    """
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    check_choice(method, "method", METHODS)
    baselines = check_like(0.0 if baselines is None else baselines, inputs, "baselines").detach()
    inputs = inputs.detach()
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        start, end = encode(vae, baselines, size), encode(vae, inputs, size)
        curve = decoded_path(vae.decode, straight_path(end, start), inputs, size)
        attributions = line_integral(model, curve, classes, method=method, n_steps=n_steps, size=size)
        if bridge:
            attributions += bridges(model, inputs, baselines, curve, classes, size)
        delta = None
        if return_convergence_delta:
            delta = attributions.flatten(1).sum(1) - score_change(model, inputs, baselines, classes, size)
    warn_non_finite(attributions, "enhanced_ig")
    return attributions if delta is None else (attributions, delta)


def encode(vae: Any, inputs: Tensor, size: int) -> Tensor:
    """Latent means without a graph, ``size`` images at a time: (B, *shape) -> (B, *latent)."""
    for part in ("encode", "decode"):
        if not callable(getattr(vae, part, None)):
            raise ValueError(f"vae: got {type(vae).__name__} without {part}, wants an object with encode and decode")
    check_mode(vae.encode)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk) for chunk in inputs.split(size)])
    return check_batch(latents, "vae.encode(inputs)")


def decoded_path(decode: Callable[[Tensor], Tensor], latent_path: Path, inputs: Tensor, size: int) -> Path:
    """The image of a path through the latents: a path through inputs."""
    check_mode(decode)

    def at(rows: Tensor, t: Tensor) -> Tensor:
        return decode(latent_path.at(rows, t))

    with torch.no_grad():
        end = torch.cat([decode(chunk) for chunk in latent_path.end.split(size)])
    if end.shape != inputs.shape:
        raise ValueError(f"vae: decodes to shape {tuple(end.shape)}, wants {tuple(inputs.shape)} like inputs")
    return Path(at, end=end)


def bridges(model: Model, inputs: Tensor, baselines: Tensor, curve: Path, target: Tensor | None, size: int) -> Tensor:
    """Integrals along the straight lines from the baselines to the curve's starts and from its ends to the inputs."""
    total = torch.zeros_like(inputs)
    for first, last in ((baselines, path_starts(curve, size)), (curve.end, inputs)):
        line = straight_path(last, first)
        total += line_integral(model, line, target, method="trapezoid", n_steps=_BRIDGE_STEPS, size=size)
    return total
