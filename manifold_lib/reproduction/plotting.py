"""Figures: one style, one colour per method, diverging maps centred at 0 on a scale they share."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from .verdicts import pooling

WIDTH = 7.0  # inches: a text-wide figure of a two-column paper

_PALETTE = sns.color_palette("colorblind", 10)
_DARK = sns.color_palette("dark", 10)  # for the baselines of Integrated Gradients
_BRIGHT = sns.color_palette("bright", 10)  # for what notebooks 04 and 05 compare
_STYLES: dict[str, tuple[Any, Any]] = {
    "gradient": (_PALETTE[0], "-"),
    "SmoothGrad": (_PALETTE[2], "--"),
    "averaged gradient": (_PALETTE[1], "-."),
    "IG": (_PALETTE[4], "-"),
    "input × gradient": (_PALETTE[3], ":"),
    "robust gradient": (_PALETTE[5], "-"),
    "tangent share": (_PALETTE[9], "-"),
    "Grad-CAM": (_PALETTE[8], "-"),
    "random": (_PALETTE[7], (0, (1, 1))),
    "IG, zero": (_DARK[4], "-"),
    "IG, max. distance": (_DARK[8], "--"),
    "IG, uniform": (_DARK[5], "-."),
    "IG, Gaussian": (_DARK[9], ":"),
    "aligned IG": (_DARK[3], "-"),
    "EIG": (_DARK[1], "-"),
    "MIG": (_DARK[0], "-"),
    "MIG, Fisher–Rao": ((0.75, 0.1, 0.55), "--"),
    "MIG, variance": ((0.45, 0.5, 0.1), "-."),
    "IG, decoded": ((0.0, 0.55, 0.55), "--"),
    "aligned IG, random subspace": (_DARK[6], "--"),
    "GeoIG-kNN": (_DARK[2], "-"),
    "GeoIG-energy": (_BRIGHT[0], "-"),
    "rank one": (_BRIGHT[9], "--"),
    "Enhanced IG (k-NN)": (_BRIGHT[1], "-."),
    "Guided IG": (_BRIGHT[8], "--"),
    "Occlusion": (_BRIGHT[5], ":"),
    "MA-GIG": (_BRIGHT[2], "-"),
    "IDGI": (_BRIGHT[4], "--"),
    "Blur IG": (_DARK[7], "-"),
    "expected gradients": (_BRIGHT[3], "-"),
}
COLOURS = {name: colour for name, (colour, _) in _STYLES.items()}
_DASHES = {name: dash for name, (_, dash) in _STYLES.items()}
DIVERGING = "RdBu_r"


def setup_style() -> None:
    """Set matplotlib's defaults: readable at column width, no top and right spines, white background."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.dpi": 74,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.labelsize": 9,
            "legend.fontsize": 8,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.interpolation": "nearest",
        },
    )


def colour(method: str) -> tuple[float, float, float]:
    """The method's colour, the same in every figure and however it is capitalised; grey for any other name."""
    return COLOURS.get(method, COLOURS.get(method.lower(), (0.35, 0.35, 0.35)))


def _pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W) for one channel, (H, W, 3) for three."""
    array = image.detach().float().cpu().numpy()
    return array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0).clip(0, 1)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def plot_images(images: Tensor, titles: Sequence[str] | None = None, *, n_columns: int = 16) -> Figure:
    """A sheet of images (N, C, H, W) in [0, 1]."""
    n_rows = -(-len(images) // n_columns)
    cell = WIDTH / n_columns
    height = cell * n_rows * (1.0 if titles is None else 1.45)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(WIDTH, height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(_pixels(image), cmap="gray_r", vmin=0, vmax=1)
        if titles is not None:
            axis.set_title(titles[index], fontsize=7, pad=2)
    return fig


def plot_maps(
    rows: Mapping[str, Tensor],
    *,
    images: str | Sequence[str] = "image",
    titles: Sequence[str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    clip: float = 0.005,
) -> Figure:
    """A grid of ``rows``, label -> (N, C, H, W): images, then attribution maps, all on one diverging scale.

    Every map is scaled to unit L2 norm, then the scale ends at the 1 − ``clip`` quantile of the pooled absolute values.
    The rows named by ``images`` are shown as they are. ``titles`` has one for each column, ``notes`` a few characters
    for the corner of each map of a row.
    """
    pictures = (images,) if isinstance(images, str) else tuple(images)
    maps = {name: _unit_norm(values).sum(1, keepdim=True) for name, values in rows.items() if name not in pictures}
    pooled = np.concatenate([values.abs().flatten().cpu().numpy() for values in maps.values()])
    limit = float(np.quantile(pooled, 1 - clip))
    n_columns = len(next(iter(rows.values())))
    cell = (WIDTH - 1.5) / n_columns
    fig, axes = plt.subplots(len(rows), n_columns, figsize=(WIDTH, cell * len(rows) + 0.45), squeeze=False)
    drawn = None
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        for axis, value in zip(line, maps.get(name, values), strict=True):
            if name in pictures:
                axis.imshow(_pixels(value), cmap="gray_r", vmin=0, vmax=1)
            else:
                drawn = axis.imshow(_pixels(value), cmap=DIVERGING, vmin=-limit, vmax=limit)
            _bare(axis)
        for axis, note in zip(line, (notes or {}).get(name, ()), strict=False):
            ground = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8}
            place = {"transform": axis.transAxes, "ha": "right", "va": "bottom"}
            axis.text(0.975, 0.03, note, fontsize=6.5, bbox=ground, **place)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=6.5, pad=3)
    if drawn is not None:
        bar = fig.colorbar(drawn, ax=axes[1:], shrink=0.9, pad=0.01, aspect=18)
        bar.set_label("unit-norm map", fontsize=7)
        bar.ax.tick_params(labelsize=6.5)
    return fig


def _unit_norm(values: Tensor) -> Tensor:
    lengths = values.flatten(1).norm(dim=1).clamp_min(1e-30)
    return values / lengths.view(-1, *(1,) * (values.ndim - 1))


def plot_densities(fractions: Mapping[str, Tensor], *, k: int, d: int, ax: Axes, title: str = "") -> None:
    """Densities of tangent fractions, one curve a method, with the exact law of random vectors.

    The grey area is the density of the fraction of Gaussian noise in d dimensions on a k-dimensional space, whose
    square follows Beta(k/2, (d − k)/2); it may rise above the frame. (The papers draw a line at √(k/d).) Curves are
    reflected at 0 and 1, so that none loses mass there.
    """
    grid = np.linspace(0, 1, 801)
    law, top = 2 * grid * stats.beta.pdf(grid**2, k / 2, (d - k) / 2), 0.0
    ax.fill_between(grid, law, color=colour("random"), alpha=0.45, lw=0, label="random vectors, exact law")
    for method, values in fractions.items():
        array = values.detach().cpu().numpy()
        smooth = stats.gaussian_kde(array[np.isfinite(array)])
        density = smooth(grid) + smooth(-grid) + smooth(2 - grid)
        top, dash = max(top, density.max()), _DASHES.get(method, "-")
        label = f"{method}, mean {np.nanmean(array):.2f}"
        ax.plot(grid, density, color=colour(method), ls=dash, lw=1.6, label=label)
    ax.set(xlim=(0, 1), ylim=(0, 1.1 * top), xlabel="fraction in tangent space ‖PA‖ / ‖A‖", ylabel="density")
    ax.set_title(title)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.19), fontsize=7, handlelength=2.6)


def plot_intervals(table: pd.DataFrame, *, ax: Axes, xlabel: str, reference: float | None = None) -> None:
    """Means with 95 % intervals, one line a row; columns ``name, mean, low, high`` and optionally ``kind``."""
    places = np.arange(len(table))[::-1]
    kinds = table["kind"] if "kind" in table else pd.Series(["explainer"] * len(table))
    for kind, marker, shade in (("explainer", "o", _PALETTE[0]), ("control", "D", _PALETTE[1])):
        rows = (kinds == kind).to_numpy()
        if not rows.any():
            continue
        part = table[rows]
        spread = np.abs(part[["low", "high"]].to_numpy().T - part["mean"].to_numpy())
        ax.errorbar(part["mean"], places[rows], xerr=spread, fmt=marker, ms=4.5, color=shade, lw=1.2, label=kind)
    if reference is not None:
        ax.axvline(reference, color=colour("random"), ls="--", lw=1, label="random, exact mean")
    ax.set_yticks(places, table["name"])
    ax.set(xlabel=xlabel, ylim=(-0.6, len(table) - 0.4))
    ax.grid(axis="x", lw=0.4, alpha=0.6)


def plot_curves(table: pd.DataFrame, *, x: str, y: str, hue: str, ax: Axes, interval: bool = True) -> None:
    """Lines with the shaded 95 % bootstrap interval over repeated rows (seeds, images), colours as everywhere."""
    for method, part in table.groupby(hue, sort=False):
        name, grouped = str(method), part.groupby(x)[y]
        mean, dash = grouped.mean(), _DASHES.get(name, _DASHES.get(name.lower(), "-"))
        ax.plot(mean.index, mean, marker="o", ms=3, lw=1.4, color=colour(name), ls=dash, label=method)
        if interval and grouped.size().max() > 1:
            low, high = np.array([pooling.interval(values)[1:] for _, values in grouped]).T
            ax.fill_between(mean.index, low, high, color=colour(name), alpha=0.18, lw=0)
    ax.set(xlabel=x, ylabel=y)


def label_ends(ax: Axes, *, gap: float = 0.07, fontsize: float = 7) -> None:
    """Write the name of each line beside its right end, at least ``gap`` of the axis below the one above it."""
    ends = {line: float(np.asarray(line.get_ydata(), float)[-1]) for line in ax.lines}
    (low, high), places = ax.get_ylim(), dict[Any, float]()
    for line in sorted(ends, key=lambda line: -ends[line]):
        if not str(line.get_label()).startswith("_"):
            places[line] = min((ends[line] - low) / (high - low), min(places.values(), default=2.0) - gap)
    lift = max(0.0, -min(places.values(), default=0.0))  # the lowest may have been pushed out of the axis
    for line, place in places.items():
        words: dict[str, Any] = {"color": line.get_color(), "fontsize": fontsize, "va": "center"}
        ax.text(1.02, place + lift, str(line.get_label()), transform=ax.transAxes, **words)


def forest(claims: Sequence[tuple[Mapping[str, Any], pd.DataFrame]], *, xlabel: str) -> Figure:
    """Claims with their replications: a dot a network, a line a set, a diamond for the pooled difference.

    ``claims`` are rows of ``results.json`` with the means of their units (set, network, mean), as
    ``Results.replications`` gives them; those without a value are left out. The diamond spans the 95 % interval, the
    thin line that of another network, and the grey band holds the differences that are smaller than the margin.
    """
    claims = [(row, units) for row, units in claims if row["value"] is not None and row["kind"] != "identity"]
    titles = [textwrap.fill(f"{row['id']}  {row['statement']}", 98, subsequent_indent="      ") for row, _ in claims]
    extras = [0.8 * title.count("\n") for title in titles]
    lines = [2.4 + units["set"].nunique() + extra for extra, (_, units) in zip(extras, claims, strict=True)]
    fig, axis = plt.subplots(figsize=(WIDTH, 0.55 + 0.19 * sum(lines)))
    place, ticks, shades = 0.0, {}, {"paper": _DARK[0], "control": _PALETTE[1], "expectation": _PALETTE[2]}
    for (row, units), title, extra, height in zip(claims, titles, extras, lines, strict=True):
        shade, middle = shades[row["kind"]], place + 1 + extra
        words: dict[str, Any] = {"fontsize": 7, "va": "center", "transform": axis.get_yaxis_transform()}
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.text(0, place + extra / 2, title, bbox=ground, in_layout=False, **words)
        band = [place + extra + 0.5, place + height - 0.9]
        axis.fill_betweenx(band, -row["margin"], row["margin"], color="0.92", lw=0)
        if row["ci95"] is not None:
            (low, high), value = row["ci95"], row["value"]
            axis.plot(row["prediction95"] or [value, value], [middle, middle], color=shade, lw=0.7)
            axis.fill([low, value, high, value], [middle, middle + 0.32, middle, middle - 0.32], color=shade, lw=0.8)
        size = f"{row['value']:+.3f}".replace("-", "−")
        said = f"{size} {row['unit']}\n{row['verdict']}"
        axis.text(1.02, middle + 0.3, said, color=shade, **words)
        ticks[middle] = "pooled"
        for step, (name, means) in enumerate(units.groupby("set", sort=False)["mean"], start=1):
            axis.plot(means, np.full(len(means), middle + step), "o", ms=3.2, color=shade, alpha=0.5, mew=0)
            ticks[middle + step] = f"{name} ({len(means)})"
        place += height
    axis.axvline(0, color="0.4", lw=0.8)
    axis.set_yticks([*ticks], [*ticks.values()], fontsize=7)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(xlabel=xlabel, ylim=(place - 0.8, -0.6))
    return fig
