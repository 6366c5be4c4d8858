"""Figures keep their promises: diverging maps centred at 0 on one scale, one colour a method, labelled axes."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from manifold_lib.reproduction import plotting


@pytest.fixture(autouse=True)
def _closed():
    plotting.setup_style()
    yield
    plt.close("all")


def drawn(fig):
    return [image for axis in fig.axes for image in axis.images]


def test_maps_share_one_scale_centred_at_zero():
    rows = {"image": torch.rand(3, 1, 8, 8), "a": torch.randn(3, 1, 8, 8), "b": 100 * torch.randn(3, 1, 8, 8)}
    limits = {image.get_clim() for image in drawn(plotting.plot_maps(rows)) if image.get_cmap().name == "RdBu_r"}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high < 0


def test_colour_images_and_sheets_with_empty_cells():
    assert drawn(plotting.plot_images(torch.rand(3, 3, 8, 8), n_columns=2))[0].get_array().shape == (8, 8, 3)
    fig = plotting.plot_maps({"image": torch.rand(2, 3, 8, 8), "map": torch.randn(2, 3, 8, 8)}, titles=["x", "y"])
    assert [axis.get_title() for axis in fig.axes[:2]] == ["x", "y"]


def test_densities_name_their_axes_and_show_the_exact_law():
    _, axis = plt.subplots()
    plotting.plot_densities({"gradient": torch.rand(50)}, k=3, d=30, ax=axis, title="t")
    assert axis.get_xlabel() and axis.get_ylabel() and axis.get_title() == "t"
    assert "random vectors, exact law" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_curves_and_intervals_use_the_method_s_colour():
    _, axis = plt.subplots()
    table = pd.DataFrame({"q": [0, 1, 0, 1], "accuracy": [0.9, 0.1, 0.8, 0.2], "method": ["gradient"] * 4})
    plotting.plot_curves(table, x="q", y="accuracy", hue="method", ax=axis)
    assert axis.lines[0].get_color() == plotting.colour("gradient")
    _, axis = plt.subplots()
    rows = pd.DataFrame({"name": ["a", "b"], "mean": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]})
    plotting.plot_intervals(rows, ax=axis, xlabel="x", reference=0.1)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_methods_have_distinct_colours():
    assert len(set(plotting.COLOURS.values())) == len(plotting.COLOURS)


def test_a_forest_has_a_dot_a_network_and_a_diamond_a_claim():
    row = {"id": "1.1", "statement": "a " * 80, "kind": "paper", "margin": 0.02, "value": 0.1, "ci95": [0.05, 0.15]}
    row |= {"prediction95": None, "unit": "fraction", "verdict": "direction only"}
    units = pd.DataFrame({"set": ["a", "a", "b"], "network": ["x", "y", "z"], "mean": [0.1, 0.2, 0.0]})
    few = row | {"kind": "control", "ci95": None, "verdict": "not attempted"}
    none = [(few | {"value": None}, units), (row | {"kind": "identity"}, units)]
    (axis,) = plotting.forest([(row, units), (few, units[:1]), *none], xlabel="difference").axes
    assert [len(line.get_xdata()) for line in axis.lines if line.get_marker() == "o"] == [2, 1, 1]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["pooled", "a (2)", "b (1)", "pooled", "a (1)"]
    assert len(axis.patches) == 1, "no diamond without an interval"
    assert any(text.get_text() == "+0.100 fraction\ndirection only" for text in axis.texts)


def test_lines_are_named_at_their_ends_and_the_names_do_not_overlap():
    _, axis = plt.subplots()
    for name, end in (("a", 0.5), ("b", 0.5), ("c", 0.0), ("_hidden", 1.0)):
        axis.plot([0, 1], [1, end], label=name)
    plotting.label_ends(axis, gap=0.1)
    places = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert set(places) == {"a", "b", "c"} and min(places.values()) >= 0
    ordered = sorted(places.values())
    assert all(upper - lower > 0.0999 for lower, upper in itertools.pairwise(ordered))


def test_bands_of_curves_stay_among_the_values():
    _, axis = plt.subplots()
    rows = [{"q": q, "accuracy": value, "method": "IG"} for q in (0, 1) for value in (0.2, 1.0, 1.0, 1.0, 1.0, 1.0)]
    plotting.plot_curves(pd.DataFrame(rows), x="q", y="accuracy", hue="method", ax=axis)
    assert axis.collections[0].get_paths()[0].vertices[:, 1].max() <= 1
