"""The scorecard of a method of notebook 06: every metric for each image, and whether more of it is better."""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attribution import integrated_gradients
from ..core.scorer import LEAST_CHANGE, scoring
from ..evaluation import attribution_attack, completeness_error, max_sensitivity, pearson, spearman
from ..evaluation.erasure import RATIOS, comprehensiveness, diffid, insertion_deletion, log_odds
from ..evaluation.localisation import relevance_mass, relevance_rank
from ..geometry import nearest_on_manifold, tangent_fraction
from ..paths import Path
from .comparison import METHODS, Case, Counted

# name -> 1 where more is better, −1 where less is better, 0 where neither is
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
    # noise would do best, and a factor |x − x'| keeps most of a map as it was, whatever the method
    "randomised weights": 0,
    "relevance mass": 1,
    "relevance rank": 1,
}
_NO_SUM = "not in units of the score: no sum to compare"
_NO_PATH = "no path, or no single one"
_NO_TRUTH = "the evidence is not known"
_NO_MANIFOLD = "not searched: too many latents"
_UNSUMMED = ("random", "|x − x'|", "gradient", "SmoothGrad")


class Truth(NamedTuple):
    """What is known about generated images.

    basis : (B, D, K), of the true tangent spaces.
    decoder : the generator, (N, *latent) -> (N, *shape); None if unknown.
    latents : (B, S, *latent), where the search for the nearest image starts.
    mask : (B, 1, H, W) bool, the pixels that hold all of the evidence; None if unknown.
    ink : (B, 1, H, W) bool, those of the mask that are not background, for the rank.
    """

    basis: Tensor
    decoder: Callable[[Tensor], Tensor] | None = None
    latents: Tensor | None = None
    mask: Tensor | None = None
    ink: Tensor | None = None


class Card(NamedTuple):
    """One method on one case.

    maps : (B, *shape).
    values : metric -> (B,).
    reasons : metric -> why it has no value.
    gradients : images through the network backward, for each explained image; a decoder's passes are not counted.
    milliseconds : per image, of the call that gave the maps.
    """

    maps: Tensor
    values: dict[str, Tensor]
    reasons: dict[str, str]
    gradients: float
    milliseconds: float


def transfer_attack(case: Case, *, eps: float, n_steps: int) -> Tensor:
    """Images that carry Integrated Gradients' map to that of the next image, the prediction kept (L∞): (B, *shape).

    The attack is on Integrated Gradients alone; to the other methods it transfers.
    """
    if len(case.inputs) < 2:
        raise ValueError(f"inputs: got {len(case.inputs)}, wants at least 2 images, whose maps are each other's goals")
    attribution: Any = functools.partial(integrated_gradients, n_steps=8)
    goals = attribution(case.model, case.inputs, case.target).roll(1, 0)
    options: dict[str, Any] = {"attribution": attribution, "eps": eps, "n_steps": n_steps}
    return attribution_attack(case.model, case.inputs, goals, case.target, **options).inputs


def score(case: Case, name: str, truth: Truth, *, attacked: Tensor, others: list[nn.Module], n_samples: int) -> Card:
    """Every metric of a method.

    ``attacked`` are the images of :func:`transfer_attack`, ``others`` networks with other weights
    (:func:`manifold_lib.randomised`), over which the mean is taken, and ``n_samples`` the maximum sensitivity's draws.
    """
    method = METHODS[name]
    counted = Counted(case.model)
    with warnings.catch_warnings():
        # few solver passes are part of the setting; the notebook says so once
        warnings.filterwarnings("ignore", message=".*had not converged")
        _synchronise(case.inputs)
        started = time.perf_counter()
        maps = method.maps(case._replace(model=counted))
        _synchronise(case.inputs)
        milliseconds = 1000 * (time.perf_counter() - started) / len(maps)
        values, reasons = _alignment(maps, truth.basis) | _faithfulness(case, maps), dict[str, str]()
        if name in (*_UNSUMMED, "expected gradients"):
            why = _NO_SUM if name in _UNSUMMED else "no single baseline"
            reasons |= dict.fromkeys(("completeness error", "cancellation"), why)
        else:
            values |= _sums(case, maps, case.baselines if method.baselines is None else method.baselines(case))
        values["kept under attack"] = pearson(method.maps(case._replace(inputs=attacked)), maps)
        draws = torch.Generator().manual_seed(case.seed)
        noise: dict[str, Any] = {"n_samples": n_samples, "generator": draws, "maps": maps}
        noise["attribution"] = lambda model, inputs, target: method.maps(case._replace(inputs=inputs))
        values["max-sensitivity"] = max_sensitivity(case.model, case.inputs, case.target, **noise)
        changed = [spearman(method.maps(case._replace(model=other)), maps) for other in others]
        values["randomised weights"] = torch.stack(changed).mean(0)
        if method.path is None or truth.decoder is None:
            reasons["path off the manifold"] = _NO_PATH if method.path is None else _NO_MANIFOLD
        else:
            values["path off the manifold"] = _distance(method.path(case), case.inputs, truth)
    if truth.mask is None or truth.ink is None:
        reasons |= dict.fromkeys(("relevance mass", "relevance rank"), _NO_TRUTH)
    else:
        values["relevance mass"] = relevance_mass(maps, truth.mask)
        values["relevance rank"] = relevance_rank(maps, truth.ink)
    for metric in [metric for metric, found in values.items() if not found.isfinite().any()]:
        reasons[metric] = "no finite value"
        del values[metric]
    return Card(maps, values, reasons, counted.backward / len(maps), milliseconds)


def _synchronise(inputs: Tensor) -> None:
    """Wait for the GPU, so that its work is in the time that is measured."""
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)


def _alignment(maps: Tensor, basis: Tensor) -> dict[str, Tensor]:
    """The fraction in the image's own tangent space, and how much it is above that in up to three other images'."""
    own = tangent_fraction(maps, basis)
    shifts = range(1, min(4, len(maps)))
    foreign = torch.stack([tangent_fraction(maps, basis.roll(shift, 0)) for shift in shifts]).mean(0)
    return {"tangent fraction": own, "selectivity": own - foreign}


def _sums(case: Case, maps: Tensor, baselines: Tensor) -> dict[str, Tensor]:
    """Completeness error, and Σ|A| over |Δf|, which is at least 0.05 there."""
    with scoring(case.model, case.inputs, case.target) as scorer:
        change = scorer.change(case.inputs, baselines).abs().clamp_min(LEAST_CHANGE)
    error = completeness_error(case.model, case.inputs, maps, case.target, baselines=baselines)
    return {"completeness error": error, "cancellation": maps.flatten(1).abs().sum(1) / change}


def _faithfulness(case: Case, maps: Tensor) -> dict[str, Tensor]:
    """Paper 5's curves by probability and its DiffID by hits, paper 4's two; means over ratios."""
    given = (case.model, case.inputs, maps, case.target)
    curves = insertion_deletion(*given, score="probability")
    assert curves.insertion is not None and curves.deletion is not None
    return {
        "insertion": curves.insertion.mean(1),
        "deletion": curves.deletion.mean(1),
        "DiffID": diffid(*given),
        "comprehensiveness": _area(comprehensiveness(*given)),
        "log-odds": _area(log_odds(*given)),
    }


def _area(curves: Tensor) -> Tensor:
    """The area under (B, ratios), over the width: a mean over shares."""
    ratios = torch.tensor(RATIOS).to(curves)
    return torch.trapezoid(curves, ratios) / (ratios[-1] - ratios[0])


def _distance(path: Path, inputs: Tensor, truth: Truth) -> Tensor:
    """Mean over three places of ‖p − nearest image of the generator‖ / ‖x‖: a local search, an upper bound.

    The places are a quarter, half and three quarters of the path's length, whatever its speed.
    """
    assert truth.decoder is not None and truth.latents is not None
    points = path.sample(4, by="length")[:, 1:-1]
    starts = truth.latents[:, None].expand(-1, points.shape[1], *truth.latents.shape[1:]).flatten(0, 1)
    found = nearest_on_manifold(truth.decoder, points.flatten(0, 1), starts, max_iter=15, tolerance=1e-2)
    return found.distance.view(len(inputs), -1).mean(1) / inputs.flatten(1).norm(dim=1)
