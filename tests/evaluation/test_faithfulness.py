"""Completeness, cancellation and curves: by hand, against Quantus, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from helpers import Counting, close, draw, no_warning, one_warning, smooth_model, untouched

import manifold_lib as ml
from manifold_lib.evaluation import faithfulness

RATIOS = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]


def model(x):
    """Two classes that count the left and the right half."""
    flat = x.flatten(1)
    half = flat.shape[1] // 2
    return torch.stack([flat[:, :half].sum(1), flat[:, half:].sum(1)], 1)


def by_hand(function, image, attribution, target, ratio, kind, fill, rank, unit, score):
    """One image, one ratio, in plain loops."""
    image, attribution = image.numpy(), attribution.numpy()
    relevance = np.abs(attribution) if rank == "abs" else attribution
    if unit == "pixel":
        relevance = relevance.sum(0)
    flat = relevance.flatten()
    count = math.floor(ratio * flat.size)
    order = np.argsort(-flat, kind="stable")
    gone = np.zeros(flat.size, bool)
    gone[order[:count] if kind == "deletion" else order[flat.size - count :]] = True
    gone = np.broadcast_to(gone.reshape(relevance.shape), image.shape)
    if isinstance(fill, torch.Tensor):
        value = fill.numpy()
    elif fill == "mean":
        value = image[~gone].mean() if (~gone).any() else image.mean()
    else:
        value = 0.0 if fill == "zero" else fill
    changed = torch.from_numpy(np.where(gone, value, image))[None]
    scores = function(changed)
    if score == "accuracy":
        return float(scores.argmax(1) == target)
    return scores.softmax(1)[0, target].item()


@pytest.mark.parametrize("score", ["accuracy", "probability"])
@pytest.mark.parametrize("unit", ["entry", "pixel"])
@pytest.mark.parametrize("rank", ["abs", "signed"])
@pytest.mark.parametrize("fill", ["mean", "zero", 0.3, "image"])
def test_curves_are_what_loops_give(score, unit, rank, fill):
    function = smooth_model((2, 4, 5))
    inputs, attributions = draw(3, 2, 4, 5, seed=1), draw(3, 2, 4, 5, seed=2)
    other = draw(3, 2, 4, 5, seed=3)
    target = torch.tensor([0, 2, 1])
    settings = {"score": score, "unit": unit, "rank": rank}
    found = ml.insertion_deletion(
        function, inputs, attributions, target, ratios=RATIOS, fill=other if fill == "image" else fill, **settings
    )
    assert found.ratios.tolist() == RATIOS
    for kind in ("insertion", "deletion"):
        expected = [
            [
                by_hand(
                    function,
                    inputs[i],
                    attributions[i],
                    target[i],
                    r,
                    kind,
                    other[i] if fill == "image" else fill,
                    rank,
                    unit,
                    score,
                )
                for r in RATIOS
            ]
            for i in range(3)
        ]
        close(getattr(found, kind), torch.tensor(expected, dtype=torch.float64), 1e-9)


def test_deletion_equals_quantus_pixel_flipping():
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    network = ml.tiny_cnn().eval()
    inputs = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1, 2, 3, 4, 5])
    attributions = ml.integrated_gradients(network, inputs, target)
    metric = quantus.PixelFlipping(
        features_in_step=32,
        perturb_baseline=0.0,
        abs=False,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    expected = metric(
        model=network, x_batch=inputs.numpy(), y_batch=target.numpy(), a_batch=attributions.numpy(), softmax=True
    )
    found = ml.insertion_deletion(
        network,
        inputs,
        attributions,
        target,
        ratios=[(i + 1) / 32 for i in range(32)],
        fill="zero",
        score="probability",
        rank="signed",
        curves="deletion",
    )
    close(found.deletion, torch.tensor(np.array(expected)).float(), 1e-4)
    assert found.insertion is None


def test_an_image_does_not_depend_on_its_batch_or_chunk():
    function, inputs, attributions = smooth_model((2, 4, 5)), draw(4, 2, 4, 5, seed=1), draw(4, 2, 4, 5, seed=2)
    whole = ml.insertion_deletion(function, inputs, attributions, score="probability")
    for size in (1, 3):
        other = ml.insertion_deletion(function, inputs, attributions, score="probability", internal_batch_size=size)
        close(other.deletion, whole.deletion, 1e-12)
    for i in range(4):
        rows = slice(i, i + 1)
        one = ml.insertion_deletion(function, inputs[rows], attributions[rows], score="probability")
        close(one.insertion, whole.insertion[rows], 1e-12)


def test_passes_are_few_and_small():
    counting = Counting(smooth_model((2, 4, 5)))
    inputs, attributions = draw(10, 2, 4, 5), draw(10, 2, 4, 5)
    ml.insertion_deletion(counting, inputs, attributions, 0, internal_batch_size=30)
    assert counting.largest <= 30 and len(counting.calls) <= 2 * 3 + 1 and counting.gradient_rows == 0


def test_a_perfect_map_deletes_at_once():
    inputs = torch.ones(2, 1, 4, 4).double()
    inputs[:, :, :2] += 1
    attributions = torch.zeros(2, 1, 4, 4).double()
    attributions[:, :, :2] = 1
    found = ml.insertion_deletion(model, inputs, attributions, ratios=[0.4, 0.5], fill="zero")
    assert found.deletion.tolist() == [[0.0, 0.0]] * 2 and found.insertion.tolist() == [[1.0, 1.0]] * 2


def test_a_map_with_nan_gives_nan_and_one_warning():
    inputs, attributions = draw(3, 1, 4, 4), draw(3, 1, 4, 4)
    attributions[1, 0, 0, 0] = math.nan
    with one_warning():
        found = ml.insertion_deletion(model, inputs, attributions)
    assert found.deletion[1].isnan().all() and found.insertion[[0, 2]].isfinite().all()


def test_completeness_error_and_cancellation_by_hand():
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.01]], dtype=torch.float64)
    attributions = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, -1.0, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]).double()
    change = torch.tensor([3.0, 1.0, 0.0]).double()
    close(
        ml.completeness_error(model, inputs, attributions, 0, baselines=0.0),
        torch.tensor([1 / 3, 0.0, 0.0], dtype=torch.float64),
        1e-12,
    )
    close(
        ml.cancellation_ratio(model, inputs, attributions, 0, baselines=0.0),
        torch.tensor((2 + 4) / 4.0).double(),
        1e-12,
    )
    gap = ml.cancellation_ratio(model, inputs, attributions, 0, baselines=0.0, reduction="none")
    close(gap, torch.tensor([2.0, 4.0, 0.0]).double() - change, 1e-12)
    # the target is the class predicted at the inputs, and small changes are measured against 0.05
    close(
        ml.completeness_error(model, inputs[2:], attributions[2:], baselines=0.0),
        torch.tensor([0.01 / 0.05], dtype=torch.float64),
        1e-12,
    )


def test_integrated_gradients_of_a_smooth_network_are_complete():
    function, inputs = smooth_model(), draw(4, 1, 4, 4)
    attributions = ml.integrated_gradients(function, inputs)
    assert ml.completeness_error(function, inputs, attributions, baselines=0.0).max() < 1e-6
    assert ml.cancellation_ratio(function, inputs, attributions, baselines=0.0, reduction="none").min() > -1e-6


def test_the_model_is_left_as_found():
    function, inputs, attributions = smooth_model(), draw(3, 1, 4, 4), draw(3, 1, 4, 4)
    with untouched(function, inputs, attributions), no_warning():
        ml.insertion_deletion(function, inputs, attributions)
        ml.completeness_error(function, inputs, attributions)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("ratios", value) for value in ([], [0.1, 1.2], [-0.1], [math.nan])),
        *(("fill", value) for value in ("black", math.nan, torch.zeros(2))),
        *(("score", value) for value in ("logit", "")),
        *(("rank", value) for value in ("squared",)),
        *(("unit", value) for value in ("patch",)),
        *(("curves", value) for value in ("none",)),
    ],
)
def test_bad_settings_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        ml.insertion_deletion(model, draw(2, 1, 4, 4), draw(2, 1, 4, 4), **{argument: value})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, None])
@pytest.mark.parametrize("unit", ["entry", "pixel"])
def test_blocks_of_ranks_do_not_change_a_curve(size, unit):
    inputs, maps = draw(7, 2, 4, 4), draw(7, 2, 4, 4, seed=1)
    net = smooth_model((2, 4, 4))
    options = {"ratios": (0.2, 0.5, 0.9), "unit": unit, "score": "probability"}
    for fill in ("mean", draw(7, 2, 4, 4, seed=2)):
        whole = ml.insertion_deletion(net, inputs, maps, fill=fill, **options, internal_batch_size=1000)
        found = ml.insertion_deletion(net, inputs, maps, fill=fill, **options, internal_batch_size=size)
        close(found.insertion, whole.insertion, 1e-12), close(found.deletion, whole.deletion, 1e-12)


def test_a_small_chunk_ranks_few_images_at_once(monkeypatch):
    ranked = []
    ranks = faithfulness._ranks
    monkeypatch.setattr(faithfulness, "_ranks", lambda maps, *rest: ranked.append(len(maps)) or ranks(maps, *rest))
    ml.diffid(model, draw(40, 1, 4, 4), draw(40, 1, 4, 4), 0, internal_batch_size=4)
    assert max(ranked) <= 4 and sum(ranked) == 40


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"attributions.*\(2, 1, 4, 5\).*\(2, 1, 4, 4\)"):
        ml.insertion_deletion(model, draw(2, 1, 4, 4), draw(2, 1, 4, 5))
    with pytest.raises(ValueError, match=r"attributions.*pixel"):
        ml.insertion_deletion(model, draw(2, 16), draw(2, 16), unit="pixel")
    with pytest.raises(ValueError, match="model"):
        ml.insertion_deletion(lambda x: x.flatten(1).sum(1), draw(2, 16), draw(2, 16))
    with pytest.raises(ValueError, match="reduction"):
        ml.cancellation_ratio(model, draw(2, 16), draw(2, 16), reduction="mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_lose_no_unit_to_rounding(dtype):
    """0.29 · 100 is 28.999… in float64, 0.7 · 100 is 69.99… in float32."""
    model = lambda x: torch.stack([x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)  # noqa: E731
    inputs = torch.full((1, 1, 10, 10), 0.01)
    ratios = torch.tensor([0.0, 0.29, 0.57, 0.58, 0.6, 0.7, 0.9, 1.0], dtype=dtype)
    maps = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    found = ml.insertion_deletion(model, inputs, maps, 0, ratios=ratios, fill="zero", score="probability")
    left = torch.logit(found.deletion.double())[0] * 100
    assert (100 - left).round().int().tolist() == [0, 29, 57, 58, 60, 70, 90, 100]
    again = ml.insertion_deletion(model, inputs, maps, 0, ratios=found.ratios, fill="zero", score="probability")
    assert torch.equal(again.deletion, found.deletion)


def test_given_classes_cost_no_passes_and_are_checked_all_the_same():
    counting, inputs = Counting(smooth_model()), draw(2, 1, 4, 4)
    maps = draw(2, 1, 4, 4, seed=1)
    ml.insertion_deletion(counting, inputs, maps, 1, ratios=[0.5], curves="deletion")
    assert len(counting.calls) == 1
    with pytest.raises(ValueError, match="target: got classes 7 to 7, wants 0 to 2"):
        ml.insertion_deletion(counting, inputs, maps, 7)


def test_one_column_of_scores_is_no_probability():
    model, inputs = (lambda x: x.flatten(1).sum(1, keepdim=True)), torch.rand(2, 1, 4, 4)
    for measure in (ml.comprehensiveness, ml.log_odds, ml.diffid):
        with pytest.raises(ValueError, match=r"got scores \(B, 1\), wants logits"):
            measure(model, inputs, inputs, 0)
