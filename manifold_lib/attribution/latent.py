"""Paths through a latent space, decoded, with straight bridges to the raw baseline and input."""

from typing import Any

import torch
from torch import Tensor

from ..core.autoencoder import encoded
from ..core.checks import check_baselines, check_batch, check_choice, check_count, check_precise, require
from ..core.modules import buffers_as_found, modules_of
from ..core.passes import forward_points
from ..core.scorer import Model, Target, scoring
from ..geometry.curves import spline_path
from ..geometry.geodesics import geodesic
from ..paths.adaptive import check_adaptive
from ..paths.integral import integrate, path_method, unsaid, with_delta
from ..paths.path import Path, decoded_path, joined, line, path_starts, straight_path
from ..paths.quadrature import RULES
from .published import chord_times_mean


@path_method
def enhanced_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    bridge: bool = True,
    method: str = "trapezoid",
    tolerance: float | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Enhanced Integrated Gradients (Jha et al. 2020): along the straight line between latents, decoded.

    Parameters
    ----------
    model, inputs, target, baselines, n_steps, method, tolerance, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.integrated_gradients`.
    vae : object
        With ``encode(x)``, which gives latent means (B, *latent), of the baselines too, and ``decode(z)``.
    bridge : bool
        Join the raw baseline and input to the decoded ends by straight lines, so that the sum is f(x) − f(x'), else
        the change between reconstructions. Each has 16 Gauss–Legendre nodes, more where these miss the change of score.
    return_convergence_delta, create_graph : bool
        As for :func:`manifold_lib.integrated_gradients`; the graph is kept through encoder and decoder too.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        For bad input, a VAE in train mode, and one whose images are not like the inputs.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.enhanced_ig(lambda x: x.flatten(1).sum(1), torch.ones(1, 1, 32, 32), vae=ml.VAE(4).eval(), n_steps=4).shape
    torch.Size([1, 1, 32, 32])
    """
    check_choice(method, "method", RULES)
    check_count(n_steps, "n_steps")
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size, vae) as scorer:
        baselines, graph = check_baselines(baselines, inputs), {"create_graph": create_graph}
        given: dict[str, Any] = {"bridge": bridge, "internal_batch_size": scorer.size, **graph}
        path = enhanced_path(inputs, vae=vae, baselines=baselines, **given)
        steps = None if tolerance else n_steps
        named: dict[str, Any] = {"tolerance": tolerance, "name": "enhanced_ig", **graph}
        attributions = integrate(scorer, path, method=method, n_steps=steps, **named)
        name = None if tolerance else unsaid(path, "enhanced_ig", create_graph)
        return with_delta(scorer, attributions, inputs, baselines, return_convergence_delta, name)


@path_method
def manifold_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 20,
    max_iter: int = 60,
    bridge: bool = True,
    published: bool = False,
    tolerance: float | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Manifold Integrated Gradients (Zaher et al. 2024): along the geodesic between latents, decoded (paper 3, eq. 5).

    Parameters
    ----------
    model, inputs, target, vae, baselines, additional_forward_args, internal_batch_size, return_convergence_delta
        As for :func:`enhanced_ig`.
    n_steps : int
        Segments of the geodesic, and of the trapezoid rule along it.
    max_iter : int
        Iterations of :func:`manifold_lib.geodesic`. With 0 the path is the straight line, and this is Enhanced IG.
    bridge, published : bool
        ``bridge`` as for :func:`enhanced_ig`; ``published`` gives the released sum for the record, without bridges, see
        :func:`manifold_lib.attribution.published.chord_times_mean`.
    tolerance : float, optional
        Nodes of their own for the rule, on the smooth curve through the geodesic's points: as many as each image needs
        to be complete to this share of its change of score; see :func:`manifold_lib.integrate`.
    create_graph : bool
        Keep the graph. The geodesic moves with its ends as the implicit function theorem says, exactly so where it has
        converged; the map can be derived once.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        As for :func:`enhanced_ig`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.manifold_ig(lambda x: x.flatten(1).sum(1), torch.ones(1, 1, 32, 32), vae=ml.VAE(4).eval(), max_iter=0).shape
    torch.Size([1, 1, 32, 32])
    """
    check_count(n_steps, "n_steps")
    if tolerance is not None:
        check_adaptive(tolerance, "trapezoid", create_graph)
        require(not published, "tolerance", f"{tolerance:g} with published", "one of the two")
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size, vae) as scorer:
        baselines, graph = check_baselines(baselines, inputs), {"create_graph": create_graph}
        # not scorer.size, since the solver of geodesics has a better number of its own
        given: dict[str, Any] = {"n_steps": n_steps, "max_iter": max_iter, "internal_batch_size": internal_batch_size}
        path = manifold_path(inputs, vae=vae, baselines=baselines, bridge=bridge and not published, **given, **graph)
        if published:
            path = chord_times_mean(path, n_steps)
        steps = None if published or tolerance else n_steps
        attributions = integrate(scorer, path, n_steps=steps, tolerance=tolerance, name="manifold_ig", **graph)
        name = None if tolerance else unsaid(path, "manifold_ig", create_graph)
        return with_delta(scorer, attributions, inputs, baselines, return_convergence_delta, name)


def enhanced_path(
    inputs: Tensor,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    bridge: bool = True,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Path:
    """The path of :func:`enhanced_ig`, whose arguments these are; each bridge takes a hundredth of [0, 1].

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.enhanced_path(torch.ones(1, 1, 32, 32), vae=ml.VAE(4).eval()).sample(2).shape
    torch.Size([1, 3, 1, 32, 32])
    """
    given: dict[str, Any] = {"internal_batch_size": internal_batch_size, "create_graph": create_graph, "bridge": bridge}
    return manifold_path(inputs, vae=vae, baselines=baselines, max_iter=0, **given)


def manifold_path(
    inputs: Tensor,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 20,
    max_iter: int = 60,
    bridge: bool = True,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Path:
    """The path of :func:`manifold_ig`, whose arguments these are; each bridge takes a hundredth of [0, 1].

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.manifold_path(torch.ones(1, 1, 32, 32), vae=ml.VAE(4).eval(), n_steps=2, max_iter=3).sample(2).shape
    torch.Size([1, 3, 1, 32, 32])
    """
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter", least=0)
    check_precise(check_batch(inputs), "inputs")
    baselines = check_baselines(baselines, inputs)
    if not create_graph:
        inputs, baselines = inputs.detach(), baselines.detach()
    size = forward_points(inputs) if internal_batch_size is None else internal_batch_size
    check_count(size, "internal_batch_size")
    needs = "graph" if max_iter or create_graph else "rows"
    with buffers_as_found(modules_of(vae)), torch.inference_mode(False), torch.set_grad_enabled(create_graph):
        decode, (end, start) = encoded(vae, size, inputs, baselines, needs=needs)
        latent_path = straight_path(end, start)
        if max_iter:
            options: dict[str, Any] = {"n_steps": n_steps, "max_iter": max_iter}
            options |= {"internal_batch_size": internal_batch_size, "create_graph": create_graph}
            latent_path = spline_path(geodesic(decode, start, end, **options).points)
        curve = decoded_path(decode, latent_path, size)
        if not bridge:
            return curve
        return bridged(curve, path_starts(curve, size, create_graph=create_graph), inputs, baselines)


def bridged(curve: Path, start: Tensor, inputs: Tensor, baselines: Tensor, weight: float = 98.0) -> Path:
    """A curve from ``start``, between straight bridges that each take 1 / ``weight`` as much of [0, 1] as it."""
    return joined((line(baselines, start), curve, line(curve.end, inputs)), (1.0, weight, 1.0))
