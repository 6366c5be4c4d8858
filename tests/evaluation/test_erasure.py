"""Comprehensiveness, log-odds and purity on cases that can be counted by hand."""

import numpy as np
import pytest
import torch
from helpers import draw, one_warning, smooth_model, untouched

import manifold_lib as ml
from manifold_lib.evaluation import erasure


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


def moons_like():
    """Points on a line, class 1 to the right of 0."""
    inputs = torch.tensor([[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]])
    return (lambda x: torch.cat([-x, x], 1)), inputs


def test_purity_counts_the_points_of_the_other_class_among_the_larger_half():
    model, inputs = moons_like()
    maps = torch.tensor([[0.1], [5.0], [0.2], [4.0], [-3.0], [1.0]])
    # the three largest: −2 (of the baseline's class), 1 and 2
    assert ml.purity(model, inputs, maps, baselines=-1.0).item() == pytest.approx(2 / 3)
    assert ml.purity(model, inputs, maps, baselines=1.0).item() == pytest.approx(1 / 3)


def test_the_released_purity_is_right_for_a_baseline_in_class_one_and_the_complement_otherwise():
    model, inputs = moons_like()
    perfect_for_one = torch.tensor([[3.0], [4.0], [5.0], [0.0], [0.1], [0.2]])
    for baseline, wanted in ((1.0, 1.0), (-1.0, 0.0)):
        maps = perfect_for_one if baseline > 0 else 5 - perfect_for_one
        assert ml.purity(model, inputs, maps, baselines=baseline).item() == 1
        assert ml.purity(model, inputs, maps, baselines=baseline, published=True).item() == wanted


def test_purity_of_given_classes_and_of_baselines_of_their_own():
    model, inputs = moons_like()
    maps = torch.tensor([[6.0], [5.0], [4.0], [3.0], [2.0], [1.0]])
    baselines = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [1.0], [1.0]])
    assert ml.purity(model, inputs, maps, baselines=baselines).item() == pytest.approx(2 / 3)
    assert ml.purity(model, inputs, maps, 1, baselines=-1.0).item() == 1


def test_purity_of_random_numbers_is_a_half():
    model = lambda x: torch.cat([-x, x], 1)  # noqa: E731
    inputs, maps = draw(4000, 1, seed=1), draw(4000, 1, seed=2)
    assert abs(ml.purity(model, inputs, maps, baselines=-1.0).item() - 0.5) < 0.03


def test_a_map_with_nan_has_no_purity_and_one_point_no_half():
    model, inputs = moons_like()
    maps = inputs.clone()
    maps[2] = torch.nan
    with one_warning():
        assert ml.purity(model, inputs, maps).isnan()
    with pytest.raises(ValueError, match="two or more"):
        ml.purity(model, inputs[:1], inputs[:1])


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
