import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

from manifold_lib.reproduction.ranks import (
    Ranks,
    cliques,
    correlation_by_image,
    correlation_over_methods,
    mean_ranks,
    plot_critical_difference,
)

# Demšar (2006), Table 6: AUC of four variants of C4.5 on fourteen data sets, and their ranks
DEMSAR = torch.tensor(
    [
        *([0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967]),
        *([0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931]),
        *([0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875]),
        *([1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669]),
        *([0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970]),
    ]
)


def test_the_example_of_the_literature():
    ranks = mean_ranks(DEMSAR)
    np.testing.assert_allclose(ranks.mean, [3.143, 2.000, 2.893, 1.964], atol=1e-3)
    # 2.569 / √2 · √(4 · 5 / (6 · 14)) with the tabled 2.569 already divided by √2
    assert ranks.n == 14 and ranks.critical_difference == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=2e-3)
    assert ranks.p_value == pytest.approx(stats.friedmanchisquare(*DEMSAR.double().numpy().T).pvalue)
    assert ranks.p_value < 0.05


def test_smaller_can_be_better_and_ties_share_their_rank():
    values = torch.tensor([[1.0, 2, 2, 4], [1, 2, 2, 4]])
    assert mean_ranks(values).mean.tolist() == [4, 2.5, 2.5, 1]
    assert mean_ranks(values, larger_is_better=False).mean.tolist() == [1, 2.5, 2.5, 4]


def test_images_without_a_value_are_left_out():
    values = torch.cat([DEMSAR, torch.tensor([[float("nan"), 1, 2, 3]])])
    assert mean_ranks(values).n == 14 and np.array_equal(mean_ranks(values).mean, mean_ranks(DEMSAR).mean)


def test_methods_that_never_differ():
    ranks = mean_ranks(torch.ones(5, 3))
    assert ranks.p_value == 1 and ranks.mean.tolist() == [2, 2, 2] and cliques(ranks) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "values", [torch.ones(4), torch.ones(4, 2), torch.full((4, 3), float("nan")), torch.ones(1, 3)]
)
def test_too_little_is_refused(values):
    with pytest.raises(ValueError, match="values"):
        mean_ranks(values)


def test_cliques_are_the_largest_runs_within_the_difference():
    ranks = Ranks(np.array([5.0, 1.0, 1.6, 2.4, 4.9]), 0.0, 1.0, 9)
    assert cliques(ranks) == [[1, 2], [2, 3], [4, 0]]
    assert cliques(ranks._replace(critical_difference=0.05)) == []
    assert cliques(ranks._replace(critical_difference=4.0)) == [[1, 2, 3, 4, 0]]


def test_the_diagram_names_every_method_once_with_its_rank():
    _, axis = plt.subplots()
    plot_critical_difference(["a", "b", "c", "d"], mean_ranks(DEMSAR), ax=axis)
    texts = [text.get_text() for text in axis.texts]
    assert [text for text in texts if text[0] in "abcd" and "  " in text] == ["d  2.0", "b  2.0", "c  2.9", "a  3.1"]
    assert any("critical difference 1.3" in text for text in texts)
    with pytest.raises(ValueError, match="names"):
        plot_critical_difference(["a"], mean_ranks(DEMSAR), ax=axis)
    plt.close("all")


def test_the_correlation_over_methods_is_scipys_and_its_interval_is_over_methods_and_images():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.0, 1, 2, 3, 4])
    first = levels + 0.1 * torch.randn(40, 5, generator=generator)
    second = torch.tensor([1.0, 0, 2, 4, 3]) + 0.1 * torch.randn(40, 5, generator=generator)
    value, low, high = correlation_over_methods(first, second)
    assert value == pytest.approx(stats.spearmanr(first.mean(0), second.mean(0)).statistic) == pytest.approx(0.8)
    assert low < value < high, "other methods might have another order, however sure the means of these are"
    assert correlation_over_methods(first, -first)[0] == -1
    assert correlation_over_methods(first, torch.ones(40, 5))[0] == 0


def test_measures_that_have_nothing_to_do_with_each_other_are_seldom_called_related():
    """Thirteen methods with levels of their own: over images alone, two in three intervals would leave 0 out."""
    generator, outside = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        first, second = (
            torch.randn(13, generator=generator) + 0.3 * torch.randn(16, 13, generator=generator) for _ in range(2)
        )
        _, low, high = correlation_over_methods(first, second, n_resamples=300)
        outside += low > 0 or high < 0
    assert outside <= 7, "a tenth and its chance"


def test_images_without_a_value_do_not_count_in_the_correlation():
    first, second = torch.rand(6, 4), torch.rand(6, 4)
    first[2, 1] = float("nan")
    rows = torch.tensor([0, 1, 3, 4, 5])
    assert correlation_over_methods(first, second) == correlation_over_methods(first[rows], second[rows])
    for other in (second[:3], second[:, :2], torch.full((6, 4), float("nan"))):
        with pytest.raises(ValueError, match="first, second"):
            correlation_over_methods(first, other)


def test_the_correlation_of_an_image_is_scipys_over_its_methods():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 7, generator=generator) for _ in range(2))
    wanted = [stats.spearmanr(*rows).statistic for rows in zip(first, second, strict=True)]
    np.testing.assert_allclose(correlation_by_image(first, second), wanted, atol=1e-6)
    assert correlation_by_image(first, first.exp()).tolist() == pytest.approx([1] * 5)
    second[1], second[2, 0] = 3.0, float("inf")
    found = correlation_by_image(first, second)
    assert found[1] == 0 and found[2].isnan() and found[[0, 3, 4]].isfinite().all()
    with pytest.raises(ValueError, match="first, second"):
        correlation_by_image(first, second[:, :2])
