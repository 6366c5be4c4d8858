"""The methods that notebook 06 compares: ``METHODS`` gives the maps and the path of each, one entry a method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import attribution
from ..core.scorer import Model
from ..geometry import tangent_basis
from ..paths import Path, straight_path


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
    """The maps (B, *shape) of a method, and the path that each is integrated along.

    ``path`` is None where there is no path, or no single one. Bridges of latent paths are left out of it.
    ``baselines`` gives the method's own ones, where it does not start from those of the case.
    """

    maps: Callable[[Case], Any]
    path: Callable[[Case], Path] | None = None
    baselines: Callable[[Case], Tensor] | None = None


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
    return attribution.tangential_baseline(*_given(case), **_aligned(case)).baselines


def _latent(case: Case, **more: Any) -> dict[str, Any]:
    return {"vae": case.vae, "baselines": case.baselines, **more}


def _guided(case: Case) -> dict[str, Any]:
    """Without a bound on the distance, as in paper 5: with the default of 0.02 Guided IG differs little from IG."""
    return {"baselines": case.baselines, "n_steps": case.n_steps, "fraction": 0.1, "max_dist": 1.0}


def _graph(case: Case) -> dict[str, Any]:
    """Few neighbours and quadrature nodes: every edge takes gradients, for each class that is explained."""
    n_neighbors = min(5, len(case.nodes) - 1)
    return {"nodes": case.nodes, "baselines": case.baselines, "n_neighbors": n_neighbors, "n_nodes": 6}


def _energy(case: Case) -> dict[str, Any]:
    return {"baselines": case.baselines, "n_steps": 20, "max_iter": case.max_iter}


METHODS: dict[str, Method] = {
    "random": Method(_noise),
    "|x − x'|": Method(lambda case: (case.inputs - case.baselines).abs()),
    "gradient": Method(lambda case: attribution.gradient(*_given(case))),
    "input × gradient": Method(lambda case: (case.inputs - case.baselines) * attribution.gradient(*_given(case))),
    "SmoothGrad": Method(
        lambda case: attribution.smoothgrad(*_given(case), n_samples=case.n_steps, generator=_generator(case))
    ),
    "IG": Method(
        lambda case: attribution.integrated_gradients(*_given(case), baselines=case.baselines, n_steps=case.n_steps),
        lambda case: straight_path(case.inputs, case.baselines),
    ),
    "IDGI": Method(lambda case: attribution.idgi(*_given(case), baselines=case.baselines, n_steps=case.n_steps)),
    "expected gradients": Method(
        lambda case: attribution.expected_gradients(
            *_given(case), references=case.nodes, n_samples=case.n_steps, generator=_generator(case)
        ),
    ),
    "aligned IG": Method(
        lambda case: attribution.tangential_ig(*_given(case), n_ig_steps=case.n_steps, **_aligned(case)),
        lambda case: straight_path(case.inputs, _aligned_start(case)),
        _aligned_start,
    ),
    "Guided IG": Method(
        lambda case: attribution.guided_ig(*_given(case), **_guided(case)),
        lambda case: attribution.guided_path(*_given(case), **_guided(case)),
    ),
    "EIG": Method(
        lambda case: attribution.enhanced_ig(*_given(case), **_latent(case, n_steps=case.n_steps)),
        lambda case: attribution.enhanced_path(case.inputs, **_latent(case, bridge=False)),
    ),
    "MIG": Method(
        lambda case: attribution.manifold_ig(*_given(case), **_latent(case, max_iter=case.max_iter)),
        lambda case: attribution.manifold_path(case.inputs, **_latent(case, max_iter=case.max_iter, bridge=False)),
    ),
    "MA-GIG": Method(
        lambda case: attribution.ma_gig(*_given(case), **_latent(case, n_steps=case.n_steps)),
        lambda case: attribution.ma_gig_path(*_given(case), **_latent(case, n_steps=case.n_steps, bridge=False)),
    ),
    "Blur IG": Method(
        lambda case: attribution.blur_ig(*_given(case), n_steps=case.n_steps),
        lambda case: attribution.blur_path(case.inputs),
        lambda case: attribution.blur_path(case.inputs).sample(1)[:, 0],
    ),
    "GeoIG-kNN": Method(
        lambda case: attribution.geodesic_ig(*_given(case), **_graph(case)),
        lambda case: attribution.geodesic_paths(*_given(case), **_graph(case)),
    ),
    "GeoIG-energy": Method(
        lambda case: attribution.energy_ig(*_given(case), **_energy(case)),
        lambda case: attribution.energy_path(*_given(case), **_energy(case)),
    ),
}
