"""The scorecard of a method of :mod:`manifold_lib.comparison`: every metric for each image, and which way is up."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attribution import integrated_gradients
from .attribution_attacks import attribution_attack
from .comparison import METHODS, Case, Counted, at_shares
from .erasure import comprehensiveness, diffid, log_odds
from .evaluation import completeness_error, insertion_deletion
from .metrics import pearson, relevance_mass, relevance_rank, spearman
from .nearest import nearest_on_manifold
from .sanity import max_sensitivity
from .scores import LEAST_CHANGE, Model, score_change
from .tangent import tangent_fraction

# name -> 1 where more is better, −1 where less is, 0 where it is neither
METRICS = {
    "tangent fraction": 1,
    "selectivity": 1,
    "path off the manifold": -1,
    "completeness error": -1,
    "cancellation": -1,
    "insertion": 1,
    "deletion": -1,
    "DiffID": 1,
    "comprehensiveness": 1,
    "log-odds": -1,
    "kept under attack": 1,
    "max-sensitivity": -1,
    "randomised weights": -1,
    "relevance mass": 1,
    "relevance rank": 1,
    "gradients": -1,
}
_SHARES = (0.25, 0.5, 0.75)
_NO_SUM = "not in units of the score: no sum to compare"
_NO_PATH = "no path, or no single one"
_NO_TRUTH = "the evidence is not known"
_NO_MANIFOLD = "not searched: too many latents"
_CONTROL = "never sees the network"
_UNSUMMED = ("random", "|x − x'|", "gradient", "SmoothGrad")
_BLIND = ("random", "|x − x'|")


class Truth(NamedTuple):
    """What is known of generated images beside themselves.

    basis : (B, D, K), of the true tangent spaces.
    decoder : the generator, (N, *latent) -> (N, *shape); None if unknown.
    latents : (B, S, *latent), where the search for the nearest image starts.
    mask : (B, 1, H, W) bool, the pixels that hold all of the evidence; None if unknown.
    """

    basis: Tensor
    decoder: Callable[[Tensor], Tensor] | None = None
    latents: Tensor | None = None
    mask: Tensor | None = None


class Card(NamedTuple):
    """One method on one case.

    maps : (B, *shape).
    values : metric -> (B,).
    reasons : metric -> why it has no value.
    milliseconds : per image, of the call that gave the maps.
    """

    maps: Tensor
    values: dict[str, Tensor]
    reasons: dict[str, str]
    milliseconds: float


def transfer_attack(case: Case, *, eps: float, n_steps: int) -> Tensor:
    """Images that carry Integrated Gradients' map to that of the next image, the prediction kept (L∞): (B, *shape).

    One attack for all methods: what it does to the others is transfer.
    """

    def attribution(model: Model, inputs: Tensor, target: Any, create_graph: bool = False) -> Any:
        return integrated_gradients(model, inputs, target, n_steps=8, create_graph=create_graph)

    goals = attribution(case.model, case.inputs, case.target).roll(1, 0)
    found = attribution_attack(
        case.model, case.inputs, goals, case.target, attribution=attribution, eps=eps, n_steps=n_steps
    )
    return found.inputs


def score(case: Case, name: str, truth: Truth, *, attacked: Tensor, others: list[nn.Module], n_samples: int) -> Card:
    """Every metric of a method.

    Parameters
    ----------
    attacked : Tensor
        (B, *shape), see :func:`transfer_attack`.
    others : list of nn.Module
        The network with other weights, see :func:`manifold_lib.randomised`; the mean over them is taken.
    n_samples : int
        Draws of the maximum sensitivity.
    """
    method = METHODS[name]
    counted = Counted(case.model)
    with warnings.catch_warnings():
        # limits of a few passes are part of the setting, and are said once, in the notebook
        warnings.filterwarnings("ignore", message=".*had not converged")
        started = time.perf_counter()
        maps = method.maps(case._replace(model=counted))
        milliseconds = 1000 * (time.perf_counter() - started) / len(maps)
        values = {"gradients": torch.full((len(maps),), counted.backward / len(maps))}
        reasons: dict[str, str] = {}
        values |= _alignment(maps, truth.basis) | _faithfulness(case, maps)
        if name in _UNSUMMED:
            reasons |= dict.fromkeys(("completeness error", "cancellation"), _NO_SUM)
        elif name == "expected gradients":
            reasons |= dict.fromkeys(("completeness error", "cancellation"), "no single baseline")
        else:
            values |= _sums(case, maps, case.baselines if method.baselines is None else method.baselines(case))
        values["kept under attack"] = pearson(method.maps(case._replace(inputs=attacked)), maps)
        values |= _stability(case, method.maps, maps, n_samples)
        if name in _BLIND:
            reasons["randomised weights"] = _CONTROL
        else:
            changed = [spearman(method.maps(case._replace(model=other)), maps) for other in others]
            values["randomised weights"] = torch.stack(changed).mean(0)
        if method.path is None:
            reasons["path off the manifold"] = _NO_PATH
        elif truth.decoder is None:
            reasons["path off the manifold"] = _NO_MANIFOLD
        else:
            values["path off the manifold"] = _distance(method.path(case), case.inputs, truth)
    if truth.mask is None:
        reasons |= dict.fromkeys(("relevance mass", "relevance rank"), _NO_TRUTH)
    else:
        values["relevance mass"] = relevance_mass(maps, truth.mask)
        values["relevance rank"] = relevance_rank(maps, truth.mask)
    return Card(maps, values, reasons, milliseconds)


def _alignment(maps: Tensor, basis: Tensor) -> dict[str, Tensor]:
    """The fraction in the image's own tangent space, and how much it is above that in three other images'."""
    own = tangent_fraction(maps, basis)
    foreign = torch.stack([tangent_fraction(maps, basis.roll(shift, 0)) for shift in (1, 2, 3)]).mean(0)
    return {"tangent fraction": own, "selectivity": own - foreign}


def _sums(case: Case, maps: Tensor, baselines: Tensor) -> dict[str, Tensor]:
    """Completeness error, and Σ|A| over |Δf|, which is at least 0.05 there."""
    change = score_change(case.model, case.inputs, baselines, case.target, len(maps)).abs().clamp_min(LEAST_CHANGE)
    error = completeness_error(case.model, case.inputs, maps, case.target, baselines=baselines)
    return {"completeness error": error, "cancellation": maps.flatten(1).abs().sum(1) / change}


def _faithfulness(case: Case, maps: Tensor) -> dict[str, Tensor]:
    """Means over ratios: paper 5's curves by probability, its DiffID by hits, paper 4's two by probability."""
    given = (case.model, case.inputs, maps, case.target)
    curves = insertion_deletion(*given, score="probability")
    assert curves.insertion is not None and curves.deletion is not None
    return {
        "insertion": curves.insertion.mean(1),
        "deletion": curves.deletion.mean(1),
        "DiffID": diffid(*given),
        "comprehensiveness": comprehensiveness(*given).mean(1),
        "log-odds": log_odds(*given).mean(1),
    }


def _stability(case: Case, explain: Callable[[Case], Tensor], maps: Tensor, n_samples: int) -> dict[str, Tensor]:
    def attribution(model: Model, inputs: Tensor, target: Any) -> Tensor:
        return explain(case._replace(inputs=inputs))

    generator = torch.Generator().manual_seed(case.seed)
    options = {"maps": maps, "n_samples": n_samples, "generator": generator}
    return {
        "max-sensitivity": max_sensitivity(case.model, case.inputs, case.target, attribution=attribution, **options)
    }


def _distance(path: Tensor, inputs: Tensor, truth: Truth) -> Tensor:
    """Mean over three places of ‖p − nearest image of the generator‖ / ‖x‖, an upper bound."""
    assert truth.decoder is not None and truth.latents is not None
    points = at_shares(path, _SHARES)
    starts = truth.latents[:, None].expand(-1, len(_SHARES), *truth.latents.shape[1:]).flatten(0, 1)
    found = nearest_on_manifold(truth.decoder, points.flatten(0, 1), starts, max_iter=15, tolerance=1e-2)
    return found.distance.view(len(inputs), -1).mean(1) / inputs.flatten(1).norm(dim=1)
