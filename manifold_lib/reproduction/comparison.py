"""Every method by one name and on one footing: ``METHODS`` says how its maps are had, and its path.

Notebook 06 compares them. A new method is one more line of ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attribution.blur import blur_ig, blur_path
from ..attribution.energy import energy_ig, energy_path
from ..attribution.gradients import expected_gradients, gradient, integrated_gradients, smoothgrad
from ..attribution.guided import guided_ig, guided_path
from ..attribution.knn import geodesic_ig, geodesic_paths
from ..attribution.latent import decoded_path, enhanced_ig, manifold_ig
from ..attribution.latent_guided import ma_gig, ma_gig_path
from ..attribution.tangential import tangential_baseline, tangential_ig
from ..core.checks import check_batch
from ..core.scorer import Model
from ..geometry.curves import spline_path
from ..geometry.geodesics import geodesic
from ..geometry.tangent import tangent_basis
from ..paths.path import Path, straight_path


class Case(NamedTuple):
    """What is explained, and what the methods may use: the same for all of them.

    model : scores (B, C) from inputs.
    inputs, baselines : (B, *shape), and target (B,), the classes explained.
    vae : for paths through latents; for generated images it should be another than their generator.
    charts : a VAE for tangent spaces, with as many latents as these have dimensions.
    nodes : (N, *shape), other images, for the methods that go by examples.
    n_steps : segments of a path.
    max_iter : passes of the solvers and searches.
    seed : of the methods that draw.
    """

    model: Model
    inputs: Tensor
    target: Tensor
    baselines: Tensor
    vae: Any
    charts: Any
    nodes: Tensor
    n_steps: int = 50
    max_iter: int = 40
    seed: int = 0


class Method(NamedTuple):
    """How a method's maps (B, *shape) are had, and the points (B, T, *shape) of the path that each is integrated along.

    ``path`` is None where there is no path, or no single one. Bridges of latent paths are left out of it.
    ``baselines`` gives the method's own ones, where it does not start from those of the case.
    """

    maps: Callable[[Case], Any]
    path: Callable[[Case], Tensor] | None = None
    baselines: Callable[[Case], Tensor] | None = None


def at_shares(points: Tensor, shares: Iterable[float]) -> Tensor:
    """The places at given shares of each path's own length: (B, T, *shape) -> (B, number of shares, *shape).

    Two paths can be compared so whatever their speed: one that waits is not asked where it waits.
    """
    check_batch(points, "points", min_dim=3)
    lengths = points.diff(dim=1).flatten(2).norm(dim=2)
    run = torch.cat([lengths.new_zeros(len(points), 1), lengths.cumsum(1)], 1)
    wanted = torch.tensor(list(shares)).to(run) * run[:, -1:]
    edge = torch.searchsorted(run, wanted.contiguous(), right=True).clamp(1, points.shape[1] - 1)
    start, stop = run.gather(1, edge - 1), run.gather(1, edge)
    inside = ((wanted - start) / (stop - start)).nan_to_num(nan=0.0).clamp(0, 1)
    rows = torch.arange(len(points), device=points.device)[:, None]
    before, after = points[rows, edge - 1], points[rows, edge]
    return before + inside.view(*inside.shape, *(1,) * (points.ndim - 2)) * (after - before)


class Counted:
    """A model that counts the images that go through it, forward and backward."""

    def __init__(self, model: Model) -> None:
        self.model, self.forward, self.backward = model, 0, 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's scores."""
        self.forward += len(inputs)
        if inputs.requires_grad:
            inputs = inputs.view_as(inputs)
            inputs.register_hook(self._add)
        return self.model(inputs)

    def _add(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def _given(case: Case) -> tuple[Model, Tensor, Tensor]:
    return case.model, case.inputs, case.target


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(case.seed)


def _sampled(path: Path, n_steps: int) -> Tensor:
    """The points of a path at equal times: (B, n_steps + 1, *shape)."""
    assert path.end is not None
    rows = torch.arange(len(path.end), device=path.end.device)
    times = torch.linspace(0, 1, n_steps + 1).to(path.end)
    with torch.no_grad():
        return torch.stack([path.at(rows, time.expand(len(rows))) for time in times], 1)


def _noise(case: Case) -> Tensor:
    """The same for every image."""
    return torch.randn(case.inputs.shape[1:], generator=_generator(case)).to(case.inputs).expand_as(case.inputs)


def _aligned(case: Case) -> dict[str, Any]:
    """Aligned IG in the tangent spaces of ``charts``, its baselines within the range of images."""
    with torch.no_grad():
        latents = case.charts.encode(case.inputs)
    basis = tangent_basis(case.charts.decode, latents)
    return {"basis": basis, "constraint": "box", "n_starts": 1, "max_iter": case.max_iter}


def _aligned_start(case: Case) -> Tensor:
    return tangential_baseline(*_given(case), **_aligned(case)).baselines


def _latent(case: Case, bend: Callable[[Tensor, Tensor], Path]) -> Tensor:
    """The decoded points of the path that ``bend`` lays between two latents."""
    with torch.no_grad():
        start, end = case.vae.encode(case.baselines), case.vae.encode(case.inputs)
        return _sampled(decoded_path(case.vae.decode, bend(start, end), len(end)), case.n_steps)


def _latent_geodesic(case: Case) -> Tensor:
    def bend(start: Tensor, end: Tensor) -> Path:
        return spline_path(geodesic(case.vae.decode, start, end, n_steps=20, max_iter=case.max_iter).points)

    return _latent(case, bend)


def _latent_greedy(case: Case) -> Tensor:
    path = ma_gig_path(*_given(case), vae=case.vae, baselines=case.baselines, n_steps=case.n_steps)
    return _sampled(path, case.n_steps + 2)[:, 1:-1]


def _guided(case: Case) -> dict[str, Any]:
    """Without a bound, as paper 5 has it: with its own of 0.02 Guided IG is IG but for the third digit."""
    return {"baselines": case.baselines, "n_steps": case.n_steps, "fraction": 0.1, "max_dist": 1.0}


def _graph(case: Case) -> dict[str, Any]:
    """Few neighbours and quadrature nodes: all edges take gradients, anew for each class that is explained."""
    n_neighbors = min(5, len(case.nodes) - 1)
    return {"nodes": case.nodes, "baselines": case.baselines, "n_neighbors": n_neighbors, "n_nodes": 6}


def _energy(case: Case) -> dict[str, Any]:
    return {"baselines": case.baselines, "n_steps": 20, "max_iter": case.max_iter}


METHODS: dict[str, Method] = {
    "random": Method(_noise),
    "|x − x'|": Method(lambda case: (case.inputs - case.baselines).abs()),
    "gradient": Method(lambda case: gradient(*_given(case))),
    "input × gradient": Method(lambda case: (case.inputs - case.baselines) * gradient(*_given(case))),
    "SmoothGrad": Method(lambda case: smoothgrad(*_given(case), n_samples=case.n_steps, generator=_generator(case))),
    "IG": Method(
        lambda case: integrated_gradients(*_given(case), baselines=case.baselines, n_steps=case.n_steps),
        lambda case: _sampled(straight_path(case.inputs, case.baselines), case.n_steps),
    ),
    "expected gradients": Method(
        lambda case: expected_gradients(
            *_given(case), references=case.nodes, n_samples=case.n_steps, generator=_generator(case)
        ),
    ),
    "aligned IG": Method(
        lambda case: tangential_ig(*_given(case), n_ig_steps=case.n_steps, **_aligned(case)),
        lambda case: _sampled(straight_path(case.inputs, _aligned_start(case)), case.n_steps),
        _aligned_start,
    ),
    "Guided IG": Method(
        lambda case: guided_ig(*_given(case), **_guided(case)),
        lambda case: _sampled(guided_path(*_given(case), **_guided(case)), case.n_steps),
    ),
    "EIG": Method(
        lambda case: enhanced_ig(*_given(case), vae=case.vae, baselines=case.baselines, n_steps=case.n_steps),
        lambda case: _latent(case, lambda start, end: straight_path(end, start)),
    ),
    "MIG": Method(
        lambda case: manifold_ig(*_given(case), vae=case.vae, baselines=case.baselines, max_iter=case.max_iter),
        _latent_geodesic,
    ),
    "MA-GIG": Method(
        lambda case: ma_gig(*_given(case), vae=case.vae, baselines=case.baselines, n_steps=case.n_steps),
        _latent_greedy,
    ),
    "Blur IG": Method(
        lambda case: blur_ig(*_given(case), n_steps=case.n_steps),
        lambda case: _sampled(blur_path(case.inputs), case.n_steps),
        lambda case: _sampled(blur_path(case.inputs), 1)[:, 0],
    ),
    "GeoIG-kNN": Method(
        lambda case: geodesic_ig(*_given(case), **_graph(case)),
        lambda case: geodesic_paths(*_given(case), **_graph(case)).points,
    ),
    "GeoIG-energy": Method(
        lambda case: energy_ig(*_given(case), **_energy(case)),
        lambda case: energy_path(*_given(case), **_energy(case)).points,
    ),
}
