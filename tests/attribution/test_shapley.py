"""Exact Shapley values against Captum, and against their axioms."""

import pytest
import torch
from helpers import Counting, draw, seeded, smooth_model, untouched

import manifold_lib as ml


def test_two_entries_take_four_evaluations_and_agree_with_captum_on_twenty_points():
    captum = pytest.importorskip("captum.attr")
    model = smooth_model((2,))
    inputs, baselines = draw(20, 2, seed=1), draw(1, 2, seed=2).expand(20, 2)
    counted = Counting(model)
    found = ml.shapley_values(counted, inputs, 1, baselines=baselines)
    assert sum(rows for rows, _ in counted.calls) <= 20 * 4 + 2
    exact = captum.ShapleyValues(model).attribute(inputs, baselines, target=1)
    torch.testing.assert_close(found, exact, check_dtype=False, atol=1e-6, rtol=1e-5)
    # it draws its subsets, so that of its two single entries one may count for more
    torch.manual_seed(0)
    sampled = captum.KernelShap(model)
    options = {"target": 1, "n_samples": 2000, "perturbations_per_eval": 2000}
    for i in range(20):
        wanted = sampled.attribute(inputs[[i]], baselines[[i]], **options)
        torch.testing.assert_close(
            found[[i]], wanted, atol=0.05 * float(exact[i].abs().max()), rtol=0, check_dtype=False
        )


def test_three_entries_agree_with_all_orders():
    captum = pytest.importorskip("captum.attr")
    model, inputs = smooth_model((3,)), draw(4, 3, seed=1)
    wanted = captum.ShapleyValues(model).attribute(inputs, torch.zeros(1, 3, dtype=torch.float64), target=0)
    torch.testing.assert_close(ml.shapley_values(model, inputs, 0), wanted, check_dtype=False, atol=1e-6, rtol=1e-5)


def test_they_sum_to_the_change_and_a_linear_score_gets_its_weights():
    model, inputs = smooth_model((1, 2, 3)), draw(5, 1, 2, 3, seed=1)
    maps = ml.shapley_values(model, inputs, 2, baselines=0.3)
    wanted = (model(inputs) - model(torch.full_like(inputs, 0.3)))[:, 2]
    torch.testing.assert_close(maps.flatten(1).sum(1), wanted)
    linear = seeded(torch.nn.Linear(4, 2)).double()
    points = draw(3, 4, seed=2)
    torch.testing.assert_close(ml.shapley_values(linear, points, 1), linear.weight[1].detach() * points)


def test_too_many_entries_are_refused_and_the_model_is_left_as_it_was():
    with pytest.raises(ValueError, match="17 entries"):
        ml.shapley_values(smooth_model((17,)), draw(2, 17))
    model, inputs = smooth_model((2,)), draw(3, 2)
    with untouched(model, inputs):
        ml.shapley_values(model, inputs)
    counted = Counting(model)
    ml.shapley_values(counted, inputs, internal_batch_size=3)
    assert counted.largest <= 3
