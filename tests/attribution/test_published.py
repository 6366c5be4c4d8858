"""Sums and paths as released: each against its formula or a loop of our own. None of them is a line integral."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import Counting, CurvedVAE, IdentityVAE, Quadratic, close, draw, seeded, smooth_model, wavy_path
from torch import nn

import manifold_lib as ml
from manifold_lib.attribution import published
from manifold_lib.core.scorer import scoring
from manifold_lib.data.photographs import find_photos, read_photos
from manifold_lib.paths.quadrature import rule
from manifold_lib.paths.refine import Node
from manifold_lib.reproduction import zoo

# --- paper 3: chord times mean gradient ----


class ThreeLatents(nn.Module):
    """A decoder of 3 latents and a linear encoder."""

    def __init__(self):
        super().__init__()
        self.up = seeded(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 16)).double(), 1)
        self.down = seeded(nn.Linear(16, 3).double(), 2)

    def encode(self, x):
        return self.down(x.flatten(1))

    def decode(self, z):
        return self.up(z).view(-1, 1, 4, 4)


def test_the_published_sum_stays_wrong_however_many_steps():
    """Chord times mean gradient: no line integral on a curved path (and a path that ends short of the input)."""
    model, vae, inputs = smooth_model(), ThreeLatents(), 2 * draw(4, 1, 4, 4)
    ends = [vae.decode(vae.encode(x)) for x in (inputs, 0 * inputs)]
    change = (model(ends[0]) - model(ends[1]))[:, 1].detach()
    gaps = {}
    for released_sum in (True, False):
        gaps[released_sum] = [
            (ml.manifold_ig(model, inputs, 1, vae=vae, n_steps=n, bridge=False, published=released_sum) - 0)
            .flatten(1)
            .sum(1)
            .sub(change)
            .abs()
            .mean()
            for n in (32, 256)
        ]
    assert gaps[True][1] > 0.3 * gaps[True][0]
    assert gaps[True][1] > 20 * gaps[False][1]


def test_the_published_sum_is_the_chord_times_the_mean_gradient():
    model, vae, inputs = smooth_model(), ThreeLatents(), draw(2, 1, 4, 4)
    found = ml.manifold_ig(model, inputs, 1, vae=vae, n_steps=10, max_iter=0, published=True)
    start, end = vae.encode(0 * inputs), vae.encode(inputs)
    points = torch.stack([vae.decode(start + i / 10 * (end - start)) for i in range(10)]).detach()
    slopes = torch.stack([ml.gradient(model, p, 1) for p in points])
    close(found, (points[-1] - points[0]) * slopes.mean(0), 1e-8)


def test_the_chord_of_any_path_takes_the_points_that_fall_short_of_its_end():
    model, inputs = Quadratic(3, None), draw(2, 3, seed=1)
    curve = wavy_path(inputs, 0 * inputs)
    counted = Counting(model)
    path = published.chord_times_mean(curve, 5)
    found = ml.integrate(counted, path, internal_batch_size=4)
    points = torch.stack([curve.at(torch.arange(2), torch.full((2,), i / 5, dtype=torch.float64)) for i in range(5)])
    close(found, (points[-1] - points[0]) * model.gradient(points).mean(0), 1e-12)
    assert counted.gradient_rows == 10 and counted.largest <= 4
    # the path itself is as it was: other rules integrate along it
    close(ml.integrate(model, path, n_steps=9), ml.integrate(model, curve, n_steps=9), 1e-13)


# --- paper 4: gradients weighed by the length of the path ----


def plane_model(seed=0, n_classes=2):
    net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, n_classes), nn.LogSoftmax(1))
    return seeded(net, seed).double()


def test_the_released_sum_is_no_line_integral():
    """For a linear score it is the length of the path times the right answer; black pixels before black get zero."""
    model = seeded(nn.Linear(3, 2, bias=False)).double()
    inputs = draw(4, 3, seed=1)
    inputs[0, 1] = 0
    maps = ml.energy_ig(model, inputs, 1, published=True, energy="potential")
    nodes, _ = rule("gausslegendre", 51, inputs)
    length = (nodes[-1] - nodes[0] + nodes[-1] - nodes[-2]) * inputs.norm(dim=1, keepdim=True)
    torch.testing.assert_close(maps, length * model.weight[1] * inputs)
    assert maps[0, 1] == 0
    curved = plane_model()
    _, delta = ml.energy_ig(
        curved, 3 * draw(9, 2, seed=1), 1, published=True, energy="potential", return_convergence_delta=True
    )
    assert delta.abs().median() > 0.05


@pytest.mark.parametrize("size", [1, 7, 100])
def test_lengths_weigh_the_gradients_and_the_last_counts_twice(size):
    model, points = Quadratic(3, None), draw(2, 6, 3, seed=1)
    with scoring(model, points[:, -1], internal_batch_size=size) as scorer:
        found = published.length_weighted(points, draw(2, 3, seed=2), scorer)
    steps = points.diff(dim=1).norm(dim=2)
    weights = torch.cat([steps, steps[:, -1:]], 1)
    close(found, draw(2, 3, seed=2) * torch.einsum("bt,bti->bi", weights, model.gradient(points)), 1e-12)


# --- paper 5: left sums, slerp, a schedule of N + 1 points ----


def case(n=4):
    return smooth_model(), CurvedVAE(), draw(n, 1, 4, 4), draw(n, 1, 4, 4, seed=2), torch.tensor([0, 1, 2, 0, 1])[:n]


def released(model, vae, x, x0, label, n_points, q, slerp=True):
    """Section 3.6 of the paper's spec, one image, one coordinate group after the other."""
    x, x0 = x[None], x0[None]
    z, current = (vae.encode(a).detach().flatten() for a in (x, x0))
    shape, n = vae.encode(x).shape, z.numel()
    length, points, lefts = float((z - current).abs().sum()), [], []
    for k in range(n_points - 1):
        latent = current.view(shape).clone().requires_grad_()
        image = vae.decode(latent)
        points.append(x0 if k == 0 else image.detach())
        lefts.append(float((z - current).abs().sum()))
        g = torch.autograd.grad(model(image)[0, label], latent)[0].flatten().abs()
        target = length * (1 - (k + 1) / n_points)
        while True:
            rest = float((z - current).abs().sum())
            if math.isclose(rest, target, rel_tol=1e-9, abs_tol=1e-9):
                break
            g[(z - current).abs() < 1e-9] = math.inf
            threshold = g.sort().values[math.floor(q * (n - 1))]
            chosen = (g <= threshold) & g.isfinite()
            gamma = (rest - target) / float((z - current).abs()[chosen].sum())
            if gamma > 1:
                current = torch.where(chosen, z, current)
                continue
            a, b = current[chosen], z[chosen]
            cosine = float(a @ b / (a.norm() * b.norm())) if min(a.norm(), b.norm()) > 1e-9 else 1.0
            if slerp and abs(cosine) <= 0.9995:
                angle = math.acos(cosine)
                moved = (math.sin((1 - gamma) * angle) * a + math.sin(gamma * angle) * b) / math.sin(angle)
            else:
                moved = a + gamma * (b - a)
            current = current.clone()
            current[chosen] = moved
            break
    points.append(x)
    total = torch.zeros_like(x)
    for here, after in itertools.pairwise(points):
        here = here.clone().requires_grad_()
        total += torch.autograd.grad(model(here)[0, label], here)[0] * (after - here).detach()
    return total[0], torch.cat(points), lefts


@pytest.mark.parametrize(("n_points", "q"), [(30, 0.05), (12, 0.3), (5, 1.0), (2, 0.05), (60, 0.15)])
def test_published_is_the_released_rule(n_points, q):
    model, vae, inputs, baselines, target = case()
    options = {"vae": vae, "baselines": baselines, "n_steps": n_points - 1, "fraction": q, "published": True}
    found = ml.ma_gig(model, inputs, target, **options)
    path = ml.ma_gig_path(model, inputs, target, **options)
    times = torch.linspace(0, 1, n_points, dtype=torch.float64)
    for i in range(len(inputs)):
        expected, points, _ = released(model, vae, inputs[i], baselines[i], target[i], n_points, q)
        close(found[i], expected, 1e-9)
        close(path.at(torch.full((n_points,), i), times), points, 1e-9)
    close(ml.integrate(model, path, target, method="left", n_steps=n_points - 1), found, 1e-9)


def test_published_is_the_released_rule_on_photographs_too():
    x = read_photos(find_photos("shipped"), range(2), size=64, crop=True).double()
    target = torch.tensor([285, 967])
    model = nn.Sequential(ml.imagenet_network("efficientnet_lite0"), nn.Softmax(1)).double()
    vae = zoo.load("photo-ae").double()
    found = ml.ma_gig(model, x, target, vae=vae, n_steps=9, published=True)
    for i in range(2):
        expected, _, _ = released(model, vae, x[i], 0 * x[i], target[i], 10, 0.05)
        close(found[i], expected, 1e-9)


def test_slerp_breaks_the_schedule():
    model, _, inputs, baselines, target = case()
    n_points = 40
    left = [
        torch.tensor(released(model, IdentityVAE(), *row, n_points, 0.1)[2])
        for row in zip(inputs, baselines, target, strict=True)
    ]
    share = torch.stack([part / part[0] for part in left]) - (1 - torch.arange(n_points - 1) / n_points)
    assert share.abs().amax() > 1e-3


def test_raw_ends_take_the_place_of_the_first_and_the_last_point():
    inputs, baselines = draw(3, 4, seed=1), draw(3, 4, seed=2)
    with scoring(smooth_model((4,)), inputs, 1) as scorer:
        nodes = list(published.anchored((Node(x, x) for x in draw(5, 3, 4)), scorer, baselines, inputs))
        close(nodes[0].gradient, scorer.gradient(baselines), 1e-14)
    assert len(nodes) == 6 and torch.equal(nodes[0].point, baselines) and torch.equal(nodes[-1].point, inputs)
    assert all(torch.equal(node.point, x) for node, x in zip(nodes[1:-1], draw(5, 3, 4)[1:], strict=True))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_along_the_great_circle_and_straight_where_there_is_none(t):
    t = torch.full((4, 1), t, dtype=torch.float64)
    angle = torch.tensor([0.7, 2.0], dtype=torch.float64)
    start = torch.tensor([[2.0, 0.0, 0.0]] * 2 + [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    end = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0 * angle], 1)
    end = torch.cat([end, 2 * start[2:3], torch.ones(1, 3).double()])
    found = published._slerp(start, end, t)
    turned = torch.stack([2 * (t[:2, 0] * angle).cos(), 2 * (t[:2, 0] * angle).sin(), 0 * angle], 1)
    close(found[:2], turned, 1e-12)
    close(found[2:], start[2:] + t[2:] * (end - start)[2:], 1e-12)
