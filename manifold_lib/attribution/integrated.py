"""Integrated Gradients (Sundararajan et al. 2017): the integral along the straight line."""

from typing import Any

from torch import Tensor

from ..core.checks import check_choice, check_count, warn_non_finite
from ..core.scorer import Model, Target, scoring
from ..paths.adaptive import adaptive, check_adaptive
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import path_starts, straight_path
from ..paths.quadrature import RULES, mean_gradient, rule


@path_method
def integrated_gradients(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    multiply_by_inputs: bool = True,
    tolerance: float | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrated Gradients (Sundararajan et al. 2017): the integral along the straight line.

    Parameters
    ----------
    model, inputs, target, additional_forward_args, internal_batch_size, create_graph
        As for :func:`manifold_lib.gradient`.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros, in the units of ``inputs``: after normalisation, zero is
        not black.
    n_steps : int
        Segments of the rule; for Gauss–Legendre, nodes.
    method : str
        Quadrature rule, see :func:`manifold_lib.integrate`.
    multiply_by_inputs : bool
        False leaves out the factor (x − x') and gives the path-averaged gradient, which paper 1 calls IG on its digits.
        It does not sum to the change of the score.
    tolerance : float, optional
        As many steps as each image needs to be complete to this share of its change of score, instead of ``n_steps``
        and ``method``; see :func:`manifold_lib.integrate`.
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(x')), A with its factor.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units (per input unit without the factor); with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        As for :func:`manifold_lib.gradient`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.integrated_gradients(lambda x: (x**2).sum(1, keepdim=True), torch.tensor([[1.0, 2.0]]), 0)
    tensor([[1., 4.]])
    """
    check_count(n_steps, "n_steps")
    check_choice(method, "method", RULES)
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    path = straight_path(inputs, 0.0 if baselines is None else baselines)
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size) as scorer:
        named: dict[str, Any] = {"create_graph": create_graph, "name": "integrated_gradients"}
        if multiply_by_inputs:
            steps = None if tolerance else n_steps
            attributions = integrate(scorer, path, method=method, n_steps=steps, tolerance=tolerance, **named)
        elif tolerance is None:
            attributions = mean_gradient(scorer, path, *rule(method, n_steps, inputs), create_graph=create_graph)
        else:
            attributions = adaptive(scorer, path, tolerance, average=True, name="integrated_gradients")[0]
        if not multiply_by_inputs:
            warn_non_finite(attributions, "integrated_gradients")
        if not return_convergence_delta:
            return attributions
        starts, products = path_starts(path, scorer.size), attributions.detach()
        products = products if multiply_by_inputs else products * (inputs - starts).detach()
        # an adaptive integral says itself what it misses
        who = "integrated_gradients" if tolerance is None else None
        return attributions, with_delta(scorer, products, inputs, starts, True, who)[1]
