"""Insertion and deletion by hand and against Quantus; comprehensiveness, log-odds and DiffID as the papers count."""

import math

import numpy as np
import pytest
import torch
from conditional import SIZES, same_alone
from helpers import Counting, close, draw, no_warning, one_warning, smooth_model, untouched

import manifold_lib as ml
from manifold_lib.evaluation import erasure

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
    ranks = erasure.ranks_of
    monkeypatch.setattr(erasure, "ranks_of", lambda maps, *rest: ranked.append(len(maps)) or ranks(maps, *rest))
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
    with pytest.raises(ValueError, match=r"target: got classes . to 7, wants 0 to 2"):
        ml.insertion_deletion(counting, inputs, maps, 7)


def test_one_column_of_scores_is_no_probability():
    model, inputs = (lambda x: x.flatten(1).sum(1, keepdim=True)), torch.rand(2, 1, 4, 4)
    for measure in (ml.comprehensiveness, ml.log_odds, ml.diffid):
        with pytest.raises(ValueError, match=r"got scores \(B, 1\), wants logits"):
            measure(model, inputs, inputs, 0)


def test_both_are_differences_to_the_whole_image():
    model, inputs = smooth_model((2, 3, 3)), draw(4, 2, 3, 3)
    maps = draw(4, 2, 3, 3, seed=1)
    shares = [0.0, 0.25, 0.5, 1.0]
    target = torch.tensor([0, 1, 2, 1])
    options = {"ratios": shares}
    lost = ml.comprehensiveness(model, inputs, maps, target, **options)
    odds = ml.log_odds(model, inputs, maps, target, **options)
    assert lost.shape == odds.shape == (4, 4)
    for j, share in enumerate(shares):
        masked = inputs.flatten(1).clone()
        top = maps.flatten(1).abs().argsort(1, descending=True)[:, : int(share * 18)]
        masked.scatter_(1, top, 0)
        p, q = (model(x.view_as(inputs)).softmax(1).gather(1, target[:, None])[:, 0] for x in (inputs, masked))
        torch.testing.assert_close(lost[:, j], p - q)
        torch.testing.assert_close(odds[:, j], q.log() - p.log())


def test_the_shares_are_the_papers_unless_others_are_given():
    assert erasure.RATIOS[:4] == (0.01, 0.02, 0.05, 0.1) and erasure.RATIOS[-1] == 0.65 and len(erasure.RATIOS) == 15
    assert ml.comprehensiveness(smooth_model(), draw(2, 1, 4, 4), draw(2, 1, 4, 4)).shape == (2, 15)


def test_log_odds_of_a_probability_too_small_to_write_stay_finite():
    def model(x):
        return torch.stack([200 * x.sum(1), -200 * x.sum(1)], 1)

    inputs = torch.ones(2, 3)
    odds = ml.log_odds(model, inputs, inputs, 0, ratios=[1.0], fill=-1.0)
    torch.testing.assert_close(odds, torch.full((2, 1), -1200.0))


def test_the_model_is_left_as_it_was():
    model, inputs = smooth_model((1, 4, 4)), draw(3, 1, 4, 4)
    with untouched(model, inputs):
        ml.purity(model, inputs, inputs)
        ml.comprehensiveness(model, inputs, inputs)
        ml.log_odds(model, inputs, inputs)


def counted_diffid(model, inputs, maps, target, soft=False):
    """Section 6 of paper 5, one image and one ratio after the other."""
    found = []
    for x, a, y in zip(inputs, maps, target, strict=True):
        flat, order = x.flatten(), a.abs().flatten().argsort(descending=True)
        p = model(x[None]).softmax(1)[0, y]
        per_ratio = []
        for ratio in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]:
            m = int(ratio * flat.numel())
            scores = []
            for gone in (order[flat.numel() - m :], order[:m]):
                kept = torch.ones_like(flat, dtype=torch.bool)
                kept[gone] = False
                filled = torch.where(kept, flat, flat[kept].mean())
                logits = model(filled.view_as(x)[None])[0]
                share = (logits.softmax(0)[y] / p).clamp(0, 1)
                scores.append(share if soft else (logits.argmax() == y).to(x.dtype))
            per_ratio.append(scores[0] - scores[1])
        found.append(torch.stack(per_ratio).mean())
    return torch.stack(found).detach()


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 9, 10)])
@pytest.mark.parametrize("soft", [False, True])
def test_diffid_is_counted_as_the_paper_does(shape, soft):
    model = smooth_model(shape)
    inputs, maps, target = draw(9, *shape), draw(9, *shape, seed=1), torch.arange(9) % 3
    with untouched(model, inputs, maps):
        found = ml.diffid(model, inputs, maps, target, soft=soft)
    torch.testing.assert_close(found, counted_diffid(model, inputs, maps, target, soft))
    assert found.abs().max() > 0
    parts = ml.diffid(model, inputs, maps, target, soft=soft, internal_batch_size=4)
    torch.testing.assert_close(parts, found)


def test_diffid_depends_on_the_order_of_sizes_alone_and_changes_sign_with_it():
    model, inputs, maps = smooth_model(), draw(8, 1, 4, 4), draw(8, 1, 4, 4, seed=1)
    found = ml.diffid(model, inputs, maps)
    assert torch.equal(ml.diffid(model, inputs, -(maps.abs() ** 3)), found)
    assert torch.equal(ml.diffid(model, inputs, 1 / maps), -found)
    torch.testing.assert_close(
        ml.diffid(model, inputs, 1 / maps, soft=True), -ml.diffid(model, inputs, maps, soft=True)
    )


def test_diffid_takes_its_parts_from_the_two_curves():
    model, inputs, maps = smooth_model(), draw(8, 1, 4, 4), draw(8, 1, 4, 4, seed=1)
    curves = ml.insertion_deletion(model, inputs, maps, 1)
    torch.testing.assert_close(ml.diffid(model, inputs, maps, 1), (curves.insertion - curves.deletion).mean(1))
    shares = torch.tensor([0.25, 0.5])
    curves = ml.insertion_deletion(model, inputs, maps, 1, ratios=shares, fill=0.0)
    found = ml.diffid(model, inputs, maps, 1, ratios=shares, fill=0.0)
    torch.testing.assert_close(found, (curves.insertion - curves.deletion).mean(1))


def test_a_map_that_failed_has_no_diffid():
    maps = draw(3, 1, 4, 4, seed=1)
    maps[1, 0, 0, 0] = torch.nan
    with one_warning():
        found = ml.diffid(smooth_model(), draw(3, 1, 4, 4), maps)
    assert found.isnan().tolist() == [False, True, False]


def test_soft_diffid_of_a_probability_too_small_to_write_stays_finite():
    def model(x):
        return torch.stack([200 * x.sum(1), -200 * x.sum(1)], 1)

    inputs = torch.full((2, 10), -1.0)
    found = ml.diffid(model, inputs, draw(2, 10, dtype=torch.float32), 0, soft=True)
    assert found.isfinite().all()


def test_shares_that_are_no_short_decimals_lose_no_entry():
    model, inputs, maps = smooth_model((300,)), draw(4, 300), draw(4, 300, seed=1)
    found = ml.diffid(model, inputs, maps, 0, ratios=[1 / 3], fill=0.0, soft=True)
    expected = ml.diffid(model, inputs, maps, 0, ratios=[100 / 300], fill=0.0, soft=True)
    assert torch.equal(found, expected)
    short = ml.diffid(model, inputs, maps, 0, ratios=[99 / 300], fill=0.0, soft=True)
    assert not torch.equal(found, short)


def test_logits_that_are_nan_are_neither_right_nor_wrong():
    def model(x):
        scores = x.flatten(1)[:, :3]
        return torch.where(scores.sum(1, keepdim=True) < 1, torch.nan, scores)

    inputs = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for target in (0, 1):
        assert ml.diffid(model, inputs, inputs, target).isnan().any()


def test_ratios_of_single_precision_count_as_they_read():
    model, inputs = (lambda x: torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)), torch.rand(3, 1, 10, 10)
    wanted = ml.diffid(model, inputs, inputs, 0, soft=True)
    for ratios in (np.linspace(0.1, 0.9, 9, dtype=np.float32), torch.linspace(0.1, 0.9, 9)):
        torch.testing.assert_close(ml.diffid(model, inputs, inputs, 0, soft=True, ratios=ratios), wanted)


def test_a_target_without_any_probability_keeps_none():
    def model(x):
        return torch.stack([x.flatten(1).sum(1), torch.full((len(x),), -torch.inf)], 1)

    inputs = torch.rand(3, 1, 4, 4)
    assert (ml.diffid(model, inputs, inputs, 1, soft=True) == 0).all()


CURVES = {
    "insertion": lambda *a, **k: ml.insertion_deletion(*a, score="probability", **k).insertion,
    "deletion": lambda *a, **k: ml.insertion_deletion(*a, score="probability", fill=0.2, **k).deletion,
    "comprehensiveness": ml.comprehensiveness,
    "log_odds": ml.log_odds,
    "diffid": lambda *a, **k: ml.diffid(*a, soft=True, **k),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CURVES)
def test_an_image_with_an_argument_of_its_own_gets_what_it_gets_alone(name, size):
    same_alone(CURVES[name], size)
