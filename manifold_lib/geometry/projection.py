"""Attributions and tangent spaces: projections, and the tangent fraction of an attribution and of noise."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_positive, warn_of
from ..core.derivatives import check_decoder, jvp
from .tangent import Decoder, check_basis, check_floats, decoded


def project(vectors: Tensor, basis: Tensor) -> Tensor:
    """Orthogonal projection P v = Q Qᵀ v onto the tangent space (paper 1, Eq. 1): (B, *shape), differentiable.

    Parameters
    ----------
    vectors : Tensor
        (B, *shape), in any unit, which the result has too.
    basis : Tensor
        (B, D, K) orthonormal columns, D = prod(shape), as from :func:`tangent_basis`.

    Raises
    ------
    ValueError
        For vectors or a basis that are no such batch, or do not fit each other.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.project(torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.0], [0.0]]]))
    tensor([[3., 0.]])
    """
    flat = flat_like(vectors, basis)
    coordinates = torch.einsum("bdk,bd->bk", basis, flat)
    return torch.einsum("bdk,bk->bd", basis, coordinates).view_as(vectors)


def project_matrix_free(
    vectors: Tensor, decoder: Decoder, latents: Tensor, rtol: float = 1e-6, max_iter: int = 200
) -> Tensor:
    """Projection onto the tangent space without storing the Jacobian, J w with w = argmin ‖J w − v‖: (B, *shape).

    Golub–Kahan bidiagonalisation (as in LSQR, Paige and Saunders 1982) with one jvp and one vjp an iteration, all
    images in lock-step. The small latent vectors are kept and re-orthogonalised, and the small bidiagonal problem is
    solved by a truncated SVD, so that weak and dead directions are told apart from rounding.

    Parameters
    ----------
    vectors, decoder, latents
        As for :func:`project` and :func:`decoder_jacobian`.
    rtol : float
        Directions with a singular value of at most max(rtol, 32 · eps) times the largest are dropped; the error of a
        weak one is about eps · largest / own singular value. An image stops when ‖Jᵀ r‖ ≤ rtol² · ‖J‖ · ‖J w‖ for its
        residual r, or when its Krylov space is exhausted.
    max_iter : int
        Most iterations; images that need more are counted in one warning.

    Raises
    ------
    ValueError
        As for :func:`project` and :func:`decoder_jacobian`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.project_matrix_free(torch.tensor([[3.0, 4.0]]), lambda z: torch.cat([z, 0 * z], 1), torch.ones(1, 1)).round()
    tensor([[3., 0.]])
    """
    check_batch(vectors, "vectors")
    check_batch(latents, "latents")
    check_count(max_iter, "max_iter")
    check_positive(rtol, "rtol")
    if len(vectors) != len(latents):
        raise ValueError(f"latents: got {len(latents)} rows, wants {len(vectors)} like vectors")
    check_decoder(decoder, latents, needs="graph")
    vectors, latents = vectors.detach(), latents.detach()
    with torch.inference_mode(False), torch.enable_grad():
        point = latents.clone().requires_grad_()
        images = decoded(decoder, point)
    if images.shape != vectors.shape:
        got, wants = tuple(vectors.shape), tuple(images.shape)
        raise ValueError(f"vectors: got shape {got}, wants {wants} like the decoder's output")

    def forward(w: Tensor) -> Tensor:
        return jvp(lambda z: decoded(decoder, z), point.detach(), w.view_as(point))[1].flatten(1)

    def backward(u: Tensor) -> Tensor:
        return torch.autograd.grad(images, point, u.view_as(images), retain_graph=True)[0].flatten(1)

    with torch.no_grad():
        solution, converged = _least_squares(forward, backward, vectors.flatten(1), rtol, max_iter)
        warn_of("project_matrix_free", ~converged, f"images not converged in {max_iter} iterations")
        return forward(solution).view_as(vectors)


def tangent_fraction(attributions: Tensor, basis: Tensor) -> Tensor:
    """Share ‖P a‖₂ / ‖a‖₂ of an attribution inside the tangent space (paper 1, Eq. 1): (B,) in [0, 1], differentiable.

    A ratio of norms, not of their squares: the cosine of the angle between attribution and tangent space. NaN, with one
    warning, where the attribution is zero everywhere. Arguments and exceptions are those of :func:`project`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.tangent_fraction(torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.0], [0.0]]]))
    tensor([0.6000])
    """
    flat = flat_like(attributions, basis, "attributions")
    # scaled by the largest entry, so that tiny attributions do not underflow when squared
    scale = flat.detach().abs().amax(1, keepdim=True)
    undefined = (scale == 0) | ~torch.isfinite(scale)
    warn_of("tangent_fraction", undefined, "attributions are zero everywhere or not finite; their fraction is NaN")
    flat = flat / scale
    inside = torch.linalg.vector_norm(torch.einsum("bdk,bd->bk", basis, flat), dim=1)
    return inside / torch.linalg.vector_norm(flat, dim=1)


def tangent_share(basis: Tensor) -> Tensor:
    """Tangent share of each input entry, t_p = Σ_j Q_pj², which sums to the rank: (B, D, K) -> (B, D), no unit.

    The squared length of the tangent part of the unit vector e_p; paper 1 uses it as a saliency map in ROAR.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.tangent_share(torch.tensor([[[0.6], [0.8]]]))
    tensor([[0.3600, 0.6400]])
    """
    return check_basis(basis).square().sum(2)


def random_fraction(k: int, d: int) -> tuple[float, float]:
    """Mean and standard deviation of the tangent fraction of isotropic Gaussian noise, exactly.

    The squared fraction follows Beta(k/2, (d − k)/2), so the mean is Γ((k+1)/2) Γ(d/2) / (Γ(k/2) Γ((d+1)/2)) and the
    variance k/d minus its square. The √(k/d) drawn in the papers is the root of the mean square, slightly above the
    mean. k and d are the dimensions of the tangent space and of the input. Raises ``ValueError`` unless 0 ≤ k ≤ d.

    Examples
    --------
    >>> import manifold_lib as ml
    >>> "%.4f %.4f" % ml.random_fraction(10, 1024)
    '0.0964 0.0217'
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


def flat_like(vectors: Tensor, basis: Tensor, name: str = "vectors") -> Tensor:
    """Vectors as (B, D), checked against the basis."""
    check_basis(basis)
    flat = check_floats(vectors, name, "(B, *shape) with B of at least 1").flatten(1)
    if basis.shape[:2] != flat.shape:
        wants = f"({flat.shape[0]}, {flat.shape[1]}, K) for {name} of shape {tuple(vectors.shape)}"
        raise ValueError(f"basis: got shape {tuple(basis.shape)}, wants {wants}")
    if (basis.dtype, basis.device) != (flat.dtype, flat.device):
        got, wants = (f"{tensor.dtype} on {tensor.device}" for tensor in (basis, flat))
        raise ValueError(f"basis: got {got}, wants {wants} like the {name}")
    return flat


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to length 1, and the lengths (B, 1); zero rows stay zero."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.where(lengths > 0, 1), lengths


def _least_squares(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor], b: Tensor, rtol: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Rows of argmin ‖J w − b‖ over the directions that ``rtol`` keeps, and whether each has converged."""
    eps = torch.finfo(b.dtype).eps
    u, first = _unit(b)
    v, alpha = _unit(backward(u))
    kept, alphas, betas = [v], [alpha], []
    phi_bar, rho_bar = first, alpha
    norm, explained = alpha.clone(), torch.zeros_like(alpha)
    done = (alpha * first == 0).squeeze(1)
    for _ in range(min(max_iter, v.shape[1])):
        u, beta = _unit(forward(v) - alpha * u)
        v = backward(u) - beta * v
        basis = torch.stack(kept, 2)
        for _ in range(2):  # once is not enough when the new vector is small
            v = v - torch.einsum("bkj,bj->bk", basis, torch.einsum("bkj,bk->bj", basis, v))
        v, alpha = _unit(v)
        norm = torch.maximum(norm, torch.hypot(alpha, beta))
        spent = alpha <= eps * norm
        v, alpha = v.where(~spent, 0), alpha.where(~spent, 0)
        betas.append(beta)
        rho = torch.hypot(rho_bar, beta)
        cosine, sine = rho_bar / rho.where(rho > 0, 1), beta / rho.where(rho > 0, 1)
        rho_bar, phi, phi_bar = -cosine * alpha, cosine * phi_bar, sine * phi_bar
        # ‖Jᵀ r‖ = φ̄ α |c|, and ‖J w‖² = Σ φ² (Paige and Saunders, section 5)
        explained = torch.hypot(explained, phi)
        small = phi_bar * alpha * cosine.abs() <= rtol**2 * norm * explained
        done = done | small.squeeze(1) | ~torch.isfinite(phi).squeeze(1)
        if done.all():
            break
        kept.append(v)
        alphas.append(alpha)
    n = len(betas)
    done = done | (n == v.shape[1])
    coordinates = first * _truncated(torch.cat(alphas[:n], 1), torch.cat(betas, 1), max(rtol, 32 * eps))
    return torch.einsum("bkj,bj->bk", torch.stack(kept[:n], 2), coordinates), done


def _truncated(alphas: Tensor, betas: Tensor, rtol: float) -> Tensor:
    """Rows of argmin ‖B y − e₁‖ for lower bidiagonal B with these diagonals, small singular values dropped."""
    finite = (torch.isfinite(alphas) & torch.isfinite(betas)).all(1)
    diagonal, below = (torch.diag_embed(entries.double()) for entries in (alphas, betas))
    bidiagonal = torch.nn.functional.pad(diagonal, (0, 0, 0, 1)) + torch.nn.functional.pad(below, (0, 0, 1, 0))
    u, values, vh = torch.linalg.svd(bidiagonal.where(finite[:, None, None], 0), full_matrices=False)
    inverse = torch.where(values > rtol * values[:, :1], 1 / values, 0)
    solution = torch.einsum("bij,bi->bj", vh, inverse * u[:, 0])
    return solution.where(finite[:, None], torch.nan).to(alphas.dtype)
