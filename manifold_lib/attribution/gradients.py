"""Attributions: one tensor (B, *shape) that says how much each input entry moves the score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import (
    check_batch,
    check_choice,
    check_count,
    check_generator,
    check_like,
    check_positive,
    warn_non_finite,
)
from ..core.passes import plan_passes
from ..core.scorer import Model, left_as_found, resolve_target, score, score_change, score_gradient
from ..paths.adaptive import adaptive_integral
from ..paths.integral import check_adaptive
from ..paths.path import column, path_starts, straight_path
from ..paths.quadrature import METHODS, empty_sum, mean_gradient, pairs, rule, summed_gradients


def gradient(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """∂f/∂x, signed, of the logit.

    Parameters
    ----------
    model : callable
        Scores (B, C), or (B,), from inputs (B, *shape).
    inputs : Tensor
        (B, *shape).
    target : int, Tensor or None
        Class explained, for all or for each image (B,); None means the predicted class.
    internal_batch_size : int, optional
        Images per pass through the model.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself, as attacks on it do.

    Returns
    -------
    Tensor
        (B, *shape), score units per input unit.
    """
    check_batch(inputs)
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, 1, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        attributions = summed_gradients(
            model,
            lambda rows, _: inputs[rows],
            inputs.new_ones(1),
            inputs,
            classes,
            size=size,
            create_graph=create_graph,
        )
    warn_non_finite(attributions, "gradient")
    return attributions


def input_x_gradient(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """x ⊙ ∂f/∂x (Shrikumar et al. 2016), in score units; arguments as for :func:`gradient`."""
    slopes = gradient(model, inputs, target, internal_batch_size=internal_batch_size, create_graph=create_graph)
    return (inputs if create_graph else inputs.detach()) * slopes


def smoothgrad(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    n_samples: int = 25,
    stdevs: float = 0.02,
    generator: torch.Generator | None = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Mean signed gradient over noisy copies x + N(0, σ²) (Smilkov et al. 2017).

    The class is that of the clean image. The noise is drawn once for each (sample, *shape) and shared by
    the images, so no attribution depends on its batch.

    Parameters
    ----------
    n_samples : int
        Noisy copies; 25 in paper 1.
    stdevs : float
        σ in input units; 0.02 for the digits of paper 1, 0.2 for its medical images.
    generator : torch.Generator, optional
        For the noise; torch's default one otherwise.

    Returns
    -------
    Tensor
        (B, *shape), score units per input unit.
    """
    check_batch(inputs)
    check_count(n_samples, "n_samples")
    check_positive(stdevs, "stdevs", zero=True)
    device = check_generator(generator, inputs.device)
    noise = torch.randn((n_samples, *inputs.shape[1:]), generator=generator, device=device, dtype=inputs.dtype)
    noise = stdevs * noise.to(inputs.device)
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_samples, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        attributions = summed_gradients(
            model,
            lambda rows, index: inputs[rows] + noise[index],
            inputs.new_full((n_samples,), 1 / n_samples),
            inputs,
            classes,
            size=size,
            create_graph=create_graph,
        )
    warn_non_finite(attributions, "smoothgrad")
    return attributions


def integrated_gradients(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    multiply_by_inputs: bool = True,
    tolerance: float | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    create_graph: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrated Gradients (Sundararajan et al. 2017): the integral along the straight line.

    Parameters
    ----------
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros. Give them in the units of ``inputs``:
        after normalisation, zero is not black.
    n_steps : int
        Segments of the rule; for Gauss–Legendre, nodes.
    method : str
        Quadrature rule, see :func:`manifold_lib.integrate`.
    multiply_by_inputs : bool
        False leaves out the factor (x − x') and gives the path-averaged gradient, which paper 1 calls
        IG on its digits. It does not sum to the change of the score.
    tolerance : float, optional
        As many steps as each image needs to be complete to this share of its change of score, instead of
        ``n_steps`` and ``method``; see :func:`manifold_lib.integrate`.
    return_convergence_delta : bool
        Also return Σ IG − (f(x) − f(x')), where IG is taken with its factor.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units (per input unit without the factor), and the deltas (B,).
    """
    check_count(n_steps, "n_steps")
    check_choice(method, "method", METHODS)
    if tolerance is not None:
        check_adaptive(tolerance, method, create_graph)
    path = straight_path(inputs, 0.0 if baselines is None else baselines)
    assert path.displacement is not None
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, n_steps, internal_batch_size, exact=True)
        classes = resolve_target(model, inputs, target, size)
        if tolerance is None:
            nodes, weights = rule(method, n_steps, inputs)
            average = mean_gradient(model, path, classes, nodes, weights, size=size, create_graph=create_graph)
        else:
            average, _ = adaptive_integral(
                model, path, classes, tolerance=tolerance, n_edges=1, most=None, size=size, average=True
            )
        products = average * (path.displacement if create_graph else path.displacement.detach())
        delta = None
        if return_convergence_delta:
            delta = products.detach().flatten(1).sum(1) - score_change(
                model, inputs, path_starts(path, size), classes, size
            )
    attributions = products if multiply_by_inputs else average
    warn_non_finite(attributions, "integrated_gradients")
    return attributions if delta is None else (attributions, delta)


def expected_gradients(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    references: Tensor,
    n_samples: int = 100,
    generator: torch.Generator | None = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Expected Gradients (Erion et al. 2021): Integrated Gradients averaged over baselines, by Monte Carlo.

    Each sample is a reference and a time t ~ U(0, 1), drawn once and shared by the images.

    Parameters
    ----------
    references : Tensor
        (N, *shape), the images that baselines are drawn from.
    n_samples : int
        Gradients of each image.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − mean f(references drawn)) (B,), of order 1/√n_samples.
    """
    check_batch(inputs)
    check_batch(references, "references")
    if references.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"references: got shape {tuple(references.shape)}, wants (N, *{tuple(inputs.shape[1:])})")
    check_like(references[:1], inputs, "references")
    check_count(n_samples, "n_samples")
    device = check_generator(generator, inputs.device)
    drawn = torch.randint(len(references), (n_samples,), generator=generator, device=device).to(inputs.device)
    times = torch.rand(n_samples, generator=generator, device=device, dtype=inputs.dtype).to(inputs.device)
    inputs, references = inputs.detach(), references.detach()
    delta = None
    with left_as_found(model, inputs):
        sums = empty_sum(inputs)
        model, size = plan_passes(model, inputs, n_samples, internal_batch_size)
        classes = resolve_target(model, inputs, target, size)
        for rows, index in pairs(len(inputs), n_samples, size, inputs.device):
            starts = references[drawn[index]]
            displacement = inputs[rows] - starts
            points = starts + column(times[index], inputs) * displacement
            slopes = score_gradient(model, points, None if classes is None else classes[rows])
            sums.index_add_(0, rows, (slopes * displacement).to(sums.dtype) / n_samples)
        attributions = sums.to(inputs.dtype)
        if return_convergence_delta:
            change = score(model, inputs, classes, size)
            for rows, index in pairs(len(inputs), n_samples, size, inputs.device):
                own = None if classes is None else classes[rows]
                change.index_add_(0, rows, -score(model, references[drawn[index]], own, size) / n_samples)
            delta = attributions.flatten(1).sum(1) - change
    warn_non_finite(attributions, "expected_gradients")
    return attributions if delta is None else (attributions, delta)
