"""MA-GIG (paper 5): the greedy path of Guided IG on the latents of a decoder, decoded, and its integral."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.autoencoder import encoded
from ..core.checks import check_baselines, check_batch, check_count, check_share
from ..core.derivatives import require_slope
from ..core.passes import plan_passes
from ..core.scorer import Model, Scorer, Target, check_differentiable, scoring
from ..paths.greedy import Evaluate, greedy_nodes, streamed_path
from ..paths.integral import integrate, path_method, unsaid, with_delta
from ..paths.path import Path, decoded_path, path_starts, straight_path
from ..paths.refine import Node
from .latent import bridged
from .published import anchored, released_nodes


@path_method
def ma_gig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.05,
    bridge: bool = True,
    published: bool = False,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Manifold-Aligned Guided Integrated Gradients (Kim et al. 2026), the images of a batch in lock-step.

    From E(x') to E(x), the latents with the smallest |∂f(D(z))/∂z_j| move first (paper 5, section 3.5), each step the
    n_steps-th part of the L1 way between the two. One pass through decoder and model gives a step's point, the gradient
    there and the guidance.

    Parameters
    ----------
    model, inputs, target, vae, baselines, bridge, additional_forward_args, return_convergence_delta
        As for :func:`manifold_lib.enhanced_ig`. The paper explains probabilities: wrap the model in a softmax for them.
    n_steps : int
        Segments of the path, each with a decode and a gradient of its own. Rough ones are halved as by
        :func:`manifold_lib.guided_ig`, between their latents: 0.2 to 0.9 · n_steps gradients more on the zoo's
        networks, 4.6 · n_steps on the one of CIFAR-10.
    fraction : float
        In (0, 1], share of the latents that move together. With 1 the path is the straight latent line.
    published : bool
        The released formula for the record, without bridges: left rule; the raw baseline and input in the place of the
        first and the last decoded point; the last group moved along a great circle (slerp), which keeps neither the L1
        schedule nor the box between the ends; N = n_steps + 1 points, step k (from 0) leaving 1 − (k + 1) / N to go.
    internal_batch_size : int, optional
        Images per pass through decoder and model.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        For bad input, a VAE in train mode, and one that gives no gradient.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.ma_gig(lambda x: x.flatten(1).sum(1), torch.ones(1, 1, 32, 32), vae=ml.VAE(4).eval(), n_steps=4).shape
    torch.Size([1, 1, 32, 32])
    """
    check_count(n_steps, "n_steps")
    options: dict[str, Any] = {"n_steps": n_steps, "fraction": fraction, "published": published, "progress": progress}
    given: dict[str, Any] = {"vae": vae, "bridge": bridge, "internal_batch_size": internal_batch_size}
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size, vae) as scorer:
        baselines = check_baselines(baselines, inputs).detach()
        path = ma_gig_path(scorer, inputs, baselines=baselines, **given, **options)
        attributions = integrate(scorer, path, name="ma_gig")
        name = unsaid(path, "ma_gig")
        return with_delta(scorer, attributions, inputs.detach(), baselines, return_convergence_delta, name)


def ma_gig_path(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    *,
    vae: Any,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.05,
    bridge: bool = True,
    published: bool = False,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Path:
    """The path of :func:`ma_gig`, whose arguments these are, to look at or to integrate.

    It has n_steps + 2 equal parts of [0, 1]: one for each bridge and one for each segment of decoded points; with
    ``published`` it has n_steps. Its nodes are found when they are needed: to look at them keeps n_steps · B images in
    memory, the integral one node at a time.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> vae, model = ml.VAE(4).eval(), lambda x: x.flatten(1).sum(1)
    >>> ml.ma_gig_path(model, torch.ones(1, 1, 32, 32), vae=vae, n_steps=4).sample(6).shape
    torch.Size([1, 7, 1, 32, 32])
    """
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    check_share(fraction, "fraction")
    baselines = check_baselines(baselines, inputs).detach()
    inputs = inputs.detach()
    with (
        scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size, vae) as own,
        torch.no_grad(),
    ):
        if own is not model:
            own.look(inputs)
        size = own.size
        decode, (starts, ends) = encoded(vae, size, baselines, inputs, needs="graph")
        if internal_batch_size is None:  # decoder and model are kept together
            planned = plan_passes(lambda z, rows: own.scores(decode(z), rows), starts.contiguous(), n_steps)
            size = min(size, planned)

        def stream(scorer: Scorer, rows: Tensor, last: bool) -> tuple[Iterator[Node], Evaluate]:
            evaluate = functools.partial(_evaluate, scorer, decode)
            way = (evaluate, starts[rows], ends[rows], n_steps, fraction)
            if published:
                return anchored(released_nodes(*way), scorer, baselines[rows], inputs[rows]), evaluate
            return greedy_nodes(*way), evaluate

        settings: dict[str, Any] = {"n_steps": n_steps, "size": size, "progress": progress, "name": "ma_gig"}
        path = streamed_path(own, stream, (baselines, inputs), **settings, method="left" if published else None)
        if published:
            return path
        line = decoded_path(decode, straight_path(ends, starts), size)
        curve = Path(path.at, end=line.end, n_edges=n_steps, integral=path.integral)
        return bridged(curve, path_starts(line, size), inputs, baselines, n_steps) if bridge else curve


def _evaluate(
    scorer: Scorer, decode: Callable[[Tensor], Tensor], latents: Tensor, rows: Tensor, guide: bool
) -> tuple[Node, Tensor | None]:
    """Point p = D(z), ∇f(p) and g = J_D(z)ᵀ ∇f(p), from one pass forward and one backward."""
    if not guide:
        with torch.no_grad():
            point = decode(latents.clone())
        value, gradient = scorer.score_and_gradient(point, rows)
        return Node(latents, point, gradient, value), None
    with torch.enable_grad():
        coordinates = latents.detach().requires_grad_()
        point = decode(coordinates.clone())
        require_slope(point.requires_grad, "vae.decode")
        values = scorer.values(point, rows)
        check_differentiable(values)
        ones = torch.ones_like(values)
        gradient, guidance = torch.autograd.grad(values, (point, coordinates), ones, allow_unused=True)
    require_slope(gradient is not None, "model")
    require_slope(guidance is not None, "vae.decode")
    # without a guide the path explains nothing, although its sum may be right
    lost = guidance.flatten(1).isnan().any(1)
    gradient = torch.where(lost.view(-1, *(1,) * (point.ndim - 1)), torch.nan, gradient)
    return Node(latents, point.detach(), gradient, values.detach()), guidance
