"""Tangent spaces of a decoder's image manifold, and how much of an attribution lies in them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_positive
from ..core.scorer import jvp, module_of, train_mode_layers

Decoder = Callable[[Tensor], Tensor]

# Tangent vectors pushed through the decoder at once: on a CPU more would leave the cache.
_CPU_TANGENTS = 640
_GPU_TANGENTS = 16_384


def decoder_jacobian(decoder: Decoder, latents: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """Jacobian ∂g/∂z of a decoder at each latent, by forward mode: K passes instead of D.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape), rows independent of each other.
    latents : Tensor
        (B, *latent), with K = prod(latent).
    internal_batch_size : int, optional
        Tangent vectors (latents × directions) per pass; bounds the memory beside the result.

    Returns
    -------
    Tensor
        (B, D, K) with D = prod(shape), in output units per latent unit.
    """
    return torch.cat(list(_jacobian_blocks(decoder, latents, internal_batch_size)))


def _jacobian_blocks(decoder: Decoder, latents: Tensor, internal_batch_size: int | None) -> Iterator[Tensor]:
    """The Jacobians of some latents at a time, (b, D, K)."""
    check_batch(latents, "latents")
    check_mode(decoder)
    if internal_batch_size is None:
        internal_batch_size = _GPU_TANGENTS if latents.device.type == "cuda" else _CPU_TANGENTS
    check_count(internal_batch_size, "internal_batch_size")
    n_directions = latents[0].numel()
    n_rows = max(internal_batch_size // n_directions, 1)
    n_at_once = min(max(internal_batch_size // n_rows, 1), n_directions)
    directions = torch.eye(n_directions, device=latents.device, dtype=latents.dtype).view(-1, 1, *latents.shape[1:])

    def push(chunk: Tensor, direction: Tensor) -> Tensor:
        # a copy, since a decoder may begin with an in-place layer
        images, columns = jvp(decoder, chunk.clone(), direction.expand_as(chunk))
        if images.ndim < 2 or len(images) != len(chunk):
            raise ValueError(f"decoder: got output {tuple(images.shape)}, wants ({len(chunk)}, *shape)")
        return columns

    for chunk in latents.split(n_rows):
        with torch.no_grad():
            columns = torch.vmap(lambda direction, z=chunk: push(z, direction), chunk_size=n_at_once)(directions)
            columns = columns.flatten(2).permute(1, 2, 0)
        yield columns


def check_mode(decoder: Any, name: str = "decoder") -> None:
    """Refuse a decoder whose rows depend on each other or on chance: it has no Jacobian per latent."""
    module = module_of(decoder)
    if module is not None and (kinds := train_mode_layers(module)):
        raise ValueError(f"{name}: got train mode ({kinds}), wants {name}.eval()")


def tangent_basis(
    decoder: Decoder, latents: Tensor, rtol: float | None = None, *, internal_batch_size: int | None = None
) -> Tensor:
    """Orthonormal basis of the tangent space at each decoded latent (paper 1, section 3.1).

    The column space of the Jacobian, by QR and the SVD of the small factor, never from JᵀJ, which would
    square the condition number.

    Parameters
    ----------
    decoder, latents, internal_batch_size
        As for :func:`decoder_jacobian`.
    rtol : float, optional
        Directions with a singular value of at most ``rtol`` times the largest are dropped. By default
        max(1e-6, 32 · eps): independent of the image size, unlike the reference code's threshold.

    Returns
    -------
    Tensor
        (B, D, K), columns by falling singular value, the unused ones zero. A latent whose Jacobian is
        not finite gets NaN.
    """
    if rtol is not None:
        check_positive(rtol, "rtol", zero=True)
    blocks = _jacobian_blocks(decoder, latents, internal_batch_size)
    basis = torch.cat([orthonormal_columns(block, rtol) for block in blocks])
    bad = int(torch.isnan(basis[:, 0, 0]).sum())
    if bad:
        _warn(f"tangent_basis: {bad} of {len(basis)} Jacobians hold NaN or infinity")
    return basis


def orthonormal_columns(matrices: Tensor, rtol: float | None = None) -> Tensor:
    """Orthonormal basis of the column space of each matrix: (B, D, K) -> (B, D, K), see :func:`tangent_basis`.

    A matrix with NaN or infinity gives NaN. Half precision is worked on in single.
    """
    dtype = matrices.dtype
    matrices = matrices.to(torch.promote_types(dtype, torch.float32))
    if rtol is None:
        rtol = _default_rtol(matrices)
    finite = torch.isfinite(matrices).flatten(1).all(1)
    matrices = matrices.where(finite[:, None, None], 0)
    q, r = torch.linalg.qr(matrices)
    rotation, values, _ = torch.linalg.svd(r, full_matrices=False)
    kept = (values > rtol * values[:, :1]).to(matrices.dtype)
    basis = (q @ rotation) * kept[:, None, :]
    if basis.shape[2] < matrices.shape[2]:
        basis = torch.nn.functional.pad(basis, (0, matrices.shape[2] - basis.shape[2]))
    return basis.where(finite[:, None, None], torch.nan).to(dtype)


def _default_rtol(values: Tensor) -> float:
    return max(1e-6, 32 * torch.finfo(values.dtype).eps)


def project(vectors: Tensor, basis: Tensor) -> Tensor:
    """Orthogonal projection P v = Q Qᵀ v onto the tangent space (paper 1, Eq. 1).

    Parameters
    ----------
    vectors : Tensor
        (B, *shape).
    basis : Tensor
        (B, D, K) orthonormal columns, D = prod(shape).

    Returns
    -------
    Tensor
        (B, *shape).
    """
    flat = flat_like(vectors, basis)
    coordinates = torch.einsum("bdk,bd->bk", basis, flat)
    return torch.einsum("bdk,bk->bd", basis, coordinates).view_as(vectors)


def tangent_fraction(attributions: Tensor, basis: Tensor) -> Tensor:
    """Share ‖P a‖₂ / ‖a‖₂ of an attribution inside the tangent space (paper 1, Eq. 1).

    A ratio of norms, not of their squares: the cosine of the angle between attribution and tangent space.

    Parameters
    ----------
    attributions : Tensor
        (B, *shape).
    basis : Tensor
        (B, D, K) orthonormal columns, D = prod(shape).

    Returns
    -------
    Tensor
        (B,) in [0, 1] up to rounding; NaN, with one warning, where the attribution is zero everywhere. Differentiable.
    """
    flat = flat_like(attributions, basis, "attributions")
    # scaled by the largest entry, so that tiny attributions do not underflow when squared
    scale = flat.detach().abs().amax(1, keepdim=True)
    undefined = (scale == 0) | ~torch.isfinite(scale)
    if undefined.any():
        count = f"{int(undefined.sum())} of {len(undefined)}"
        _warn(f"tangent_fraction: {count} attributions are zero everywhere or not finite; their fraction is NaN")
    flat = flat / scale
    inside = torch.linalg.vector_norm(torch.einsum("bdk,bd->bk", basis, flat), dim=1)
    return inside / torch.linalg.vector_norm(flat, dim=1)


def tangent_share(basis: Tensor) -> Tensor:
    """Tangent share of each input entry, t_p = Σ_j Q_pj², which sums to the rank: (B, D, K) -> (B, D).

    The squared length of the tangent part of the unit vector e_p; paper 1 uses it as a saliency map in ROAR.
    """
    return _check_basis(basis).square().sum(2)


def principal_angles(basis: Tensor, other: Tensor) -> Tensor:
    """Principal angles between two subspaces, per image: (B, D, K) and (B, D, L) -> (B, min(K, L)) radians, ascending.

    Parameters
    ----------
    basis, other : Tensor
        Orthonormal columns, as of :func:`tangent_basis`; columns of zeros, unused ones, are at π / 2 to everything.
        Where one holds NaN, that image's angles are NaN.
    """
    for columns, name in ((basis, "basis"), (other, "other")):
        _check_basis(columns, name)
        if columns.shape[:2] != basis.shape[:2] or (columns.dtype, columns.device) != (basis.dtype, basis.device):
            got, wants = (f"{part.dtype} {tuple(part.shape)} on {part.device}" for part in (columns, basis))
            raise ValueError(f"{name}: got {got}, wants columns of the same (B, D) like basis {wants}")
        sizes = columns.square().sum(1)
        if not ((sizes - 1).abs() < 1e-3).logical_or(sizes == 0).logical_or(sizes.isnan()).all():
            raise ValueError(f"{name}: wants orthonormal columns (or zeros), see orthonormal_columns")
    wide, narrow = (basis, other) if basis.shape[2] >= other.shape[2] else (other, basis)
    finite = torch.isfinite(wide).flatten(1).all(1) & torch.isfinite(narrow).flatten(1).all(1)
    wide, narrow = (part.where(finite[:, None, None], 0) for part in (wide, narrow))
    _, cosines, vectors = torch.linalg.svd(wide.mT @ narrow, full_matrices=False)
    # the cosine tells small angles apart badly, the sine large ones
    leading = narrow @ vectors.mT
    sines = (leading - wide @ (wide.mT @ leading)).norm(dim=1)
    angles = torch.where(cosines.square() > 0.5, sines.clamp_max(1).asin(), cosines.clamp_max(1).acos())
    return angles.where(finite[:, None], torch.nan)


def random_fraction(k: int, d: int) -> tuple[float, float]:
    """Mean and standard deviation of the tangent fraction of isotropic Gaussian noise, exactly.

    The squared fraction follows Beta(k/2, (d − k)/2), so the mean is
    Γ((k+1)/2) Γ(d/2) / (Γ(k/2) Γ((d+1)/2)) and the variance k/d minus its square. The √(k/d) drawn in
    the papers is the root of the mean square, slightly above the mean.

    Parameters
    ----------
    k, d : int
        Dimension of the tangent space and of the input, 0 ≤ k ≤ d.
    """
    check_count(d, "d")
    check_count(k, "k", least=0)
    if k > d:
        raise ValueError(f"k: got {k}, wants at most d = {d}")
    if k in (0, d):
        return float(k == d), 0.0
    short_k, short_d = _half_step_deficit(k / 2), _half_step_deficit(d / 2)
    mean_square = k / d * (1 - short_k) / (1 - short_d)
    variance = k / d * (short_k - short_d) / (1 - short_d)
    return math.sqrt(mean_square), math.sqrt(variance)


def _half_step_deficit(x: float) -> float:
    """1 − (Γ(x + ½) / Γ(x))² / x, without the cancellation that a direct difference has for large x."""
    if x < 50:
        return -math.expm1(2 * (math.lgamma(x + 0.5) - math.lgamma(x)) - math.log(x))
    return 1 / (4 * x) - 1 / (32 * x**2) - 1 / (128 * x**3) + 5 / (2048 * x**4)


def _check_basis(basis: Tensor, name: str = "basis") -> Tensor:
    """A floating-point (B, D, K); a row of NaN, from a decoder that failed for one latent, may pass."""
    if not isinstance(basis, Tensor) or basis.ndim != 3 or basis.numel() == 0 or not basis.is_floating_point():
        got = f"{basis.dtype} {tuple(basis.shape)}" if isinstance(basis, Tensor) else type(basis).__name__
        raise ValueError(f"{name}: got {got}, wants floating point (B, D, K), not empty")
    return basis


def flat_like(vectors: Tensor, basis: Tensor, name: str = "vectors") -> Tensor:
    """Vectors as (B, D), after checking them against the basis."""
    _check_basis(basis)
    usable = isinstance(vectors, Tensor) and vectors.ndim >= 2 and vectors.numel() > 0
    if not usable or not vectors.is_floating_point():
        got = f"{vectors.dtype} {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(f"{name}: got {got}, wants floating point (B, *shape) with B of at least 1")
    flat = vectors.flatten(1)
    if basis.shape[:2] != flat.shape:
        raise ValueError(
            f"basis: got shape {tuple(basis.shape)}, wants ({flat.shape[0]}, {flat.shape[1]}, K) "
            f"for {name} of shape {tuple(vectors.shape)}"
        )
    if basis.dtype != flat.dtype or basis.device != flat.device:
        wants = f"{flat.dtype} on {flat.device} like the {name}"
        raise ValueError(f"basis: got {basis.dtype} on {basis.device}, wants {wants}")
    return flat


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
