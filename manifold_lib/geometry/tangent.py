"""Tangent spaces of a decoder's manifold of images: Jacobians, orthonormal bases, and the angles between them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_positive, warn_of
from ..core.derivatives import called, check_decoder, check_images, jvp

Decoder = Callable[[Tensor], Tensor]


def decoder_jacobian(decoder: Decoder, latents: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """Jacobian ∂g/∂z of a decoder at each latent, in output units per latent unit: (B, D, K).

    By forward mode, in K passes instead of D.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape) with D = prod(shape), rows independent of each other.
    latents : Tensor
        (B, *latent), with K = prod(latent).
    internal_batch_size : int, optional
        Tangent vectors (latents × directions) per pass; bounds the memory beside the result.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants; for a decoder whose images depend on each
        other or on chance, and one whose derivative is cut (``inference_mode``, ``detach``).

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.decoder_jacobian(lambda z: torch.cat([z, z**2], 1), torch.tensor([[3.0]])).flatten()
    tensor([1., 6.])
    """
    check_batch(latents, "latents")
    check_decoder(decoder, latents, size=internal_batch_size)
    return jacobians(decoder, latents, internal_batch_size)


def jacobians(decoder: Decoder, latents: Tensor, internal_batch_size: int | None = None) -> Tensor:
    """:func:`decoder_jacobian` of a decoder and latents that were checked."""
    return torch.cat(list(_jacobian_blocks(decoder, latents, internal_batch_size)))


def _jacobian_blocks(decoder: Decoder, latents: Tensor, internal_batch_size: int | None) -> Iterator[Tensor]:
    """The Jacobians of some latents at a time, (b, D, K)."""
    if internal_batch_size is None:
        internal_batch_size = 16_384 if latents.device.type == "cuda" else 640  # more would leave a CPU's cache
    check_count(internal_batch_size, "internal_batch_size")
    n_directions = latents[0].numel()
    n_rows = max(internal_batch_size // n_directions, 1)
    n_at_once = min(max(internal_batch_size // n_rows, 1), n_directions)
    directions = torch.eye(n_directions, device=latents.device, dtype=latents.dtype).view(-1, 1, *latents.shape[1:])

    def push(chunk: Tensor, direction: Tensor) -> Tensor:
        return jvp(lambda z: decoded(decoder, z), chunk, direction.expand_as(chunk))[1]

    for chunk in latents.split(n_rows):
        with torch.inference_mode(False), torch.no_grad():
            try:
                columns = torch.vmap(lambda direction, z=chunk: push(z, direction), chunk_size=n_at_once)(directions)
            except RuntimeError:  # a decoder that takes gradients inside, or branches, is pushed row by row
                rows = ((chunk.repeat_interleave(len(some), 0), some) for some in directions[:, 0].split(n_at_once))
                parts = [push(z, some.repeat(len(chunk), *(1,) * (z.ndim - 1))) for z, some in rows]
                columns = torch.cat([part.unflatten(0, (len(chunk), -1)) for part in parts], 1).movedim(1, 0)
            columns = columns.flatten(2).permute(1, 2, 0)
        yield columns.to(latents.dtype)


def least_squares(jacobian: Tensor, vectors: Tensor) -> Tensor:
    """The shortest w of least ‖J w − v‖: (b, D, K) and (b, D) -> (b, K), without directions that J does not have."""
    q, r = torch.linalg.qr(jacobian)
    inverse = torch.linalg.pinv(r, rtol=max(1e-6, 32 * torch.finfo(r.dtype).eps))
    return torch.einsum("bkj,bdj,bd->bk", inverse, q, vectors)


def decoded(decoder: Decoder, latents: Tensor) -> Tensor:
    """Images of some latents, as (n, *shape): of a copy, since a decoder may begin with an in-place layer."""
    images = check_images(called(decoder, latents.clone(), name="decoder"), latents, "decoder")
    # weights in lower precision than the latents must not make norms and sums so
    return images.to(torch.promote_types(images.dtype, latents.dtype))


def tangent_basis(
    decoder: Decoder, latents: Tensor, rtol: float | None = None, *, internal_batch_size: int | None = None
) -> Tensor:
    """Orthonormal basis of the tangent space at each decoded latent (paper 1, section 3.1): (B, D, K).

    By QR of the Jacobian and the SVD of the small factor, never from JᵀJ, which would square the condition number.
    Columns are in the order of falling singular value, unused ones zero. A latent whose Jacobian is not finite gets
    NaN, with one warning. Other arguments and exceptions are those of :func:`decoder_jacobian`.

    Parameters
    ----------
    rtol : float, optional
        Directions with a singular value of at most ``rtol`` times the largest are dropped. By default
        max(1e-6, 32 · eps): independent of the image size, unlike the reference code's threshold.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.tangent_basis(lambda z: torch.cat([3 * z, 4 * z], 1), torch.tensor([[1.0]])).abs().flatten()
    tensor([0.6000, 0.8000])
    """
    if rtol is not None:
        check_positive(rtol, "rtol", zero=True)
    check_batch(latents, "latents")
    check_decoder(decoder, latents, size=internal_batch_size)
    blocks = _jacobian_blocks(decoder, latents, internal_batch_size)
    basis = torch.cat([orthonormal_columns(block, rtol) for block in blocks])
    warn_of("tangent_basis", torch.isnan(basis[:, 0, 0]), "Jacobians hold NaN or infinity")
    return basis


def orthonormal_columns(matrices: Tensor, rtol: float | None = None) -> Tensor:
    """Orthonormal basis of the column space of each matrix: (B, D, K) -> (B, D, K), as in :func:`tangent_basis`.

    A matrix with NaN or infinity gives NaN. Half precision is computed in single.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.orthonormal_columns(torch.tensor([[[2.0], [0.0]]])).abs().flatten()
    tensor([1., 0.])
    """
    dtype = matrices.dtype
    matrices = matrices.to(torch.promote_types(dtype, torch.float32))
    if rtol is None:
        rtol = max(1e-6, 32 * torch.finfo(matrices.dtype).eps)
    finite = torch.isfinite(matrices).flatten(1).all(1)[:, None, None]
    matrices = matrices.where(finite, 0)
    q, r = torch.linalg.qr(matrices)
    rotation, values, _ = torch.linalg.svd(r, full_matrices=False)
    kept = (values > rtol * values[:, :1]).to(matrices.dtype)
    basis = (q @ rotation) * kept[:, None, :]
    basis = torch.nn.functional.pad(basis, (0, matrices.shape[2] - basis.shape[2]))
    return basis.where(finite, torch.nan).to(dtype)


def principal_angles(basis: Tensor, other: Tensor) -> Tensor:
    """Principal angles between two subspaces, per image, in radians, ascending: (B, min(K, L)).

    Parameters
    ----------
    basis, other : Tensor
        (B, D, K) and (B, D, L), orthonormal columns, as from :func:`tangent_basis`. Columns of zeros, unused ones, are
        at π / 2 to everything. Where one holds NaN, that image's angles are NaN.

    Raises
    ------
    ValueError
        For columns that are not orthonormal, and bases of other shapes, types or devices.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.principal_angles(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.6], [0.8]]]))
    tensor([[0.9273]])
    """
    for columns, name in ((basis, "basis"), (other, "other")):
        check_basis(columns, name)
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
    # small angles from their sine, large ones from their cosine: near 1 either loses half of the digits
    leading = narrow @ vectors.mT
    sines = (leading - wide @ (wide.mT @ leading)).norm(dim=1)
    angles = torch.where(cosines.square() > 0.5, sines.clamp_max(1).asin(), cosines.clamp_max(1).acos())
    return angles.where(finite[:, None], torch.nan)


def check_basis(basis: Tensor, name: str = "basis") -> Tensor:
    """A floating-point (B, D, K); a row of NaN, from a decoder that failed for one latent, may pass."""
    return check_floats(basis, name, "(B, D, K), not empty", ndim=3)


def check_floats(value: Tensor, name: str, wants: str, *, ndim: int | None = None) -> Tensor:
    """Floating point with at least one entry and ``ndim`` dimensions, by default two or more; NaN may pass."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, wants floating point {wants}")
    if value.ndim < 2 or ndim not in (None, value.ndim) or value.numel() == 0 or not value.is_floating_point():
        raise ValueError(f"{name}: got {value.dtype} {tuple(value.shape)}, wants floating point {wants}")
    return value
