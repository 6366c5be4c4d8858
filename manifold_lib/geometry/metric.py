"""The pullback metric JᵀJ of a decoder, and the maps between tangent vectors and points that its geodesics give."""

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_like, check_precise, warn_of
from ..core.derivatives import check_decoder, jvp
from .geodesics import geodesic
from .tangent import Decoder, decoded, decoder_jacobian, jacobians, least_squares

# Geodesics that log_map shoots at most.
_SHOTS = 40


def pullback_metric(decoder: Decoder, latents: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """G = JᵀJ at each latent: (B, *latent) -> (B, K, K), in squared output units per squared latent unit.

    Arguments and exceptions are those of :func:`decoder_jacobian`. The product squares the condition number of J: for
    a basis of the tangent space use :func:`tangent_basis`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.pullback_metric(lambda z: torch.cat([z, 2 * z], 1), torch.ones(1, 1))
    tensor([[[5.]]])
    """
    jacobian = decoder_jacobian(decoder, latents, internal_batch_size=internal_batch_size)
    return jacobian.mT @ jacobian


def magnification_factor(decoder: Decoder, latents: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """√det(JᵀJ), by how much the decoder stretches volume (Chen et al. 2018): (B, *latent) -> (B,).

    In output units per latent unit, to the power K. Arguments and exceptions are those of :func:`decoder_jacobian`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.magnification_factor(lambda z: z * torch.tensor([2.0, 3.0]), torch.ones(1, 2))
    tensor([6.])
    """
    jacobian = decoder_jacobian(decoder, latents, internal_batch_size=internal_batch_size)
    if jacobian.shape[1] < jacobian.shape[2]:
        return jacobian.new_zeros(len(jacobian))
    # from the triangular factor of J, so that small factors keep their digits; half precision in single
    factor = torch.linalg.qr(jacobian.to(torch.promote_types(jacobian.dtype, torch.float32)), mode="r").R
    return factor.diagonal(dim1=1, dim2=2).abs().log().sum(1).exp().to(latents.dtype)


def exp_map(decoder: Decoder, latents: Tensor, velocities: Tensor, *, n_steps: int = 32) -> Tensor:
    """The end of the geodesic that leaves a latent with a velocity, after unit time: (B, *latent).

    Runge–Kutta steps of fourth order on the geodesic equation. For latents of few dimensions and smooth decoders:
    on a piecewise linear one the acceleration is zero almost everywhere.

    Parameters
    ----------
    decoder, latents
        As for :func:`decoder_jacobian`. The geodesics start at the latents.
    velocities : Tensor or float
        (B, *latent), latent units per unit of time.
    n_steps : int
        Steps of Runge–Kutta.

    Raises
    ------
    ValueError
        As for :func:`decoder_jacobian`; for half precision, or a geodesic that leads to where the decoder is not
        finite.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.exp_map(lambda z: torch.cat([z, 2 * z], 1), torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    tensor([[1.5000]])
    """
    check_precise(check_batch(latents, "latents"), "latents")
    velocities = check_like(velocities, latents, "velocities", "latents")
    check_count(n_steps, "n_steps")
    check_decoder(decoder, latents)
    return _flow(decoder, latents, velocities, n_steps, strict=True)


def _flow(decoder: Decoder, latents: Tensor, velocities: Tensor, n_steps: int, *, strict: bool = False) -> Tensor:
    """:func:`exp_map` of what was checked; one that leads to where the decoder is not finite is refused, or NaN."""
    h = 1 / n_steps
    # with grad mode off torch takes other formulas, and some of them have no forward mode
    with torch.inference_mode(False), torch.enable_grad():
        z, v = latents.detach().clone(), velocities.detach().clone()
        for step in range(n_steps):
            a1 = acceleration(decoder, z, v)
            a2 = acceleration(decoder, z + h / 2 * v, v + h / 2 * a1)
            a3 = acceleration(decoder, z + h / 2 * (v + h / 2 * a1), v + h / 2 * a2)
            a4 = acceleration(decoder, z + h * (v + h / 2 * a2), v + h * a3)
            z = (z + h * (v + h / 6 * (a1 + a2 + a3))).detach()
            v = (v + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)).detach()
            bad = ~(torch.isfinite(z) & torch.isfinite(v)).flatten(1).all(1)
            if strict and bad.any():
                rows = bad.nonzero().flatten().tolist()[:8]
                where = f"at step {step + 1} of {n_steps} of the geodesics {rows}"
                raise ValueError(f"decoder: got NaN or infinity {where}, wants a smooth decoder where they lead")
    return z


def log_map(decoder: Decoder, start: Tensor, end: Tensor, *, n_steps: int = 32, max_iter: int = 100) -> Tensor:
    """The velocity with which the geodesic to ``end`` leaves ``start``: twice (B, *latent) -> (B, *latent).

    The inverse of :func:`exp_map` with as many steps, where the geodesic is the shortest one. Its norm in the metric is
    the length. The curve of :func:`geodesic` gives a first velocity, and Broyden's method corrects it until the
    geodesic that it starts ends at ``end``, with 4 ``n_steps`` Jacobians for each of some ten shots. Where that fails,
    as on decoders that are not smooth, the first one stays, and a warning counts it. Arguments and exceptions are those
    of :func:`geodesic`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.log_map(lambda z: torch.cat([z, 2 * z], 1), torch.tensor([[1.0]]), torch.tensor([[1.5]]))
    tensor([[0.5000]])
    """
    curve = geodesic(decoder, start, end, n_steps=n_steps, max_iter=max_iter, tolerance=1e-8)
    z = curve.points
    # one-sided differences, of fourth order where there are points enough
    of_few = {1: (-1, 1), 2: (-1.5, 2, -0.5), 3: (-11 / 6, 3, -1.5, 1 / 3)}
    weights = of_few.get(n_steps, (-25 / 12, 4, -3, 4 / 3, -0.25))
    first = n_steps * torch.einsum("i,bi...->b...", z.new_tensor(weights), z[:, : len(weights)])
    velocities, met = _shoot(decoder, z[:, 0], z[:, -1], first, n_steps)
    # a geodesic to the same end may be longer, or run straight over the kinks of a decoder that is not smooth
    speed = jvp(lambda q: decoded(decoder, q), z[:, 0], velocities)[1].flatten(1).norm(dim=1)
    met = met & ((speed - curve.length).abs() <= 0.1 * curve.length + torch.finfo(z.dtype).eps)
    warn_of("log_map", ~met, "velocities do not lead to the end by the shortest way; they are those of the curve found")
    return velocities.where(met.view(-1, *(1,) * (z.ndim - 2)), first)


def _shoot(decoder: Decoder, start: Tensor, end: Tensor, first: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """Velocities (B, *latent) whose geodesics lead from start to end, by Broyden's method, and whether they do."""

    def missed(rows: Tensor, velocities: Tensor) -> Tensor:
        ahead = _flow(decoder, start[rows], velocities.view_as(start[rows]), n_steps)
        return (ahead - end[rows]).flatten(1)

    velocity = first.flatten(1).clone()
    miss = missed(torch.arange(len(first), device=first.device), velocity)
    inverse = torch.eye(velocity.shape[1], dtype=first.dtype, device=first.device).repeat(len(first), 1, 1)
    eps = torch.finfo(first.dtype).eps
    apart, rounding = (end - start).flatten(1).norm(dim=1), 32 * eps * end.flatten(1).norm(dim=1)
    reach = torch.ones_like(apart)  # the share of a step that is tried, smaller after one that led away
    for _ in range(_SHOTS):
        due = (miss.norm(dim=1) > 1e-10 * apart + rounding) & (reach > 1e-3)
        rows = due.nonzero().squeeze(1)
        if not len(rows):
            break
        step = -reach[rows, None] * torch.einsum("bij,bj->bi", inverse[rows], miss[rows])
        new = missed(rows, velocity[rows] + step)
        pulled = torch.einsum("bij,bj->bi", inverse[rows], new - miss[rows])
        along = (step * pulled).sum(1, keepdim=True)
        rank1 = torch.einsum("bi,bj->bij", (step - pulled) / along, torch.einsum("bi,bij->bj", step, inverse[rows]))
        inverse[rows] += torch.nan_to_num(rank1, posinf=0.0, neginf=0.0)
        nearer = new.norm(dim=1) < miss[rows].norm(dim=1)  # not where it is NaN
        reach[rows] = torch.where(nearer, 1.0, reach[rows] / 2)
        velocity[rows[nearer]] += step[nearer]
        miss[rows[nearer]] = new[nearer]
    return velocity.view_as(start), miss.norm(dim=1) <= 1e-7 * apart + 2 * rounding


def acceleration(decoder: Decoder, latents: Tensor, velocities: Tensor) -> Tensor:
    """γ'' of the geodesic with γ = latents and γ' = velocities, −(JᵀJ)⁻¹ Jᵀ D²g[γ', γ']: (B, *latent).

    From Jᵀ (J γ'' + D²g[γ', γ']) = 0: the image of a geodesic accelerates at right angles to the manifold only. The
    second derivative along the velocity takes two nested forward passes and no Christoffel symbols.
    """
    # neither LAPACK nor the Jacobian takes NaN: rows that are not finite get NaN without them
    kept = torch.isfinite(latents + velocities).flatten(1).all(1)
    mask = kept.view(-1, *(1,) * (latents.ndim - 1))
    latents, velocities = latents.where(mask, 0), velocities.where(mask, 0)
    bend = jvp(lambda z: jvp(lambda q: decoded(decoder, q), z, velocities)[1], latents, velocities)[1].flatten(1)
    jacobian = jacobians(decoder, latents)
    kept = kept & torch.isfinite(jacobian).flatten(1).all(1) & torch.isfinite(bend).all(1)
    pulled = least_squares(jacobian.where(kept[:, None, None], 0), bend.where(kept[:, None], 0))
    return -pulled.where(kept[:, None], torch.nan).view_as(latents)
