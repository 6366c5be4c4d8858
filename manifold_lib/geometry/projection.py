"""Projection onto a tangent space whose Jacobian is too large to store."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_positive
from ..core.scorer import jvp
from .tangent import Decoder, check_mode


def project_matrix_free(
    vectors: Tensor, decoder: Decoder, latents: Tensor, rtol: float = 1e-6, max_iter: int = 200
) -> Tensor:
    """Projection onto the tangent space without storing the Jacobian: J w with w = argmin ‖J w − v‖.

    Golub–Kahan bidiagonalisation (as in LSQR, Paige and Saunders 1982) with one jvp and one vjp an iteration, all
    images in lock-step. The small latent vectors are kept and re-orthogonalised, and the small bidiagonal problem
    is solved by a truncated SVD, so that weak and dead directions are told apart from rounding.

    Parameters
    ----------
    vectors : Tensor
        (B, *shape).
    decoder, latents
        As for :func:`decoder_jacobian`.
    rtol : float
        Directions with a singular value of at most max(rtol, 32 · eps) times the largest are dropped. An image
        stops when ‖Jᵀ r‖ ≤ rtol² · ‖J‖ · ‖J w‖ for its residual r, or when its Krylov space is exhausted. A weak
        direction is as exact as the precision allows, about eps times largest over own singular value.
    max_iter : int
        Most iterations; images that need more are counted in one warning.

    Returns
    -------
    Tensor
        (B, *shape).
    """
    check_batch(vectors, "vectors")
    check_batch(latents, "latents")
    check_count(max_iter, "max_iter")
    check_positive(rtol, "rtol")
    if len(vectors) != len(latents):
        raise ValueError(f"latents: got {len(latents)} rows, wants {len(vectors)} like vectors")
    check_mode(decoder)
    vectors, latents = vectors.detach(), latents.detach().clone()
    images, pull = torch.func.vjp(decoder, latents)
    if images.shape != vectors.shape:
        raise ValueError(
            f"vectors: got shape {tuple(vectors.shape)}, wants {tuple(images.shape)} like the decoder's output"
        )

    def forward(w: Tensor) -> Tensor:
        return jvp(decoder, latents, w.view_as(latents))[1].flatten(1)

    def backward(u: Tensor) -> Tensor:
        return pull(u.view_as(images))[0].flatten(1)

    with torch.no_grad():
        solution, converged = _least_squares(forward, backward, vectors.flatten(1), rtol, max_iter)
        if not converged.all():
            count = f"{int((~converged).sum())} of {len(vectors)}"
            warnings.warn(
                f"project_matrix_free: {count} images not converged in {max_iter} iterations",
                RuntimeWarning,
                stacklevel=2,
            )
        return forward(solution).view_as(vectors)


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
    n = alphas.shape[1]
    finite = (torch.isfinite(alphas) & torch.isfinite(betas)).all(1)
    bidiagonal = torch.zeros(len(alphas), n + 1, n, dtype=torch.float64, device=alphas.device)
    places = torch.arange(n, device=alphas.device)
    bidiagonal[:, places, places] = alphas.double()
    bidiagonal[:, places + 1, places] = betas.double()
    u, values, vh = torch.linalg.svd(bidiagonal.where(finite[:, None, None], 0), full_matrices=False)
    inverse = torch.where(values > rtol * values[:, :1], 1 / values, 0)
    solution = torch.einsum("bij,bi->bj", vh, inverse * u[:, 0])
    return solution.where(finite[:, None], torch.nan).to(alphas.dtype)
