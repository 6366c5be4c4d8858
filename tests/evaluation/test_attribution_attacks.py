"""Targeted attacks on attributions."""

import functools

import pytest
import torch
import torch.nn.functional as F
from conditional import CLASSES, CONDITION, INPUTS, MAPS, MODEL, SIZES, given, same_alone
from helpers import draw, seeded
from torch import nn

import manifold_lib as ml
from manifold_lib.evaluation import attribution_attacks


class Functional(nn.Module):
    """A network that calls its ReLUs as functions, one of them in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6 * 64, 4)

    def forward(self, x):
        return self.head(torch.relu_(self.second(F.relu(self.first(x)))).flatten(1))


def network():
    layers = (nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True), nn.Flatten())
    return seeded(nn.Sequential(*layers, nn.Linear(6 * 64, 4))).eval()


def images(n=4, seed=0):
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


class VAE:
    weights = draw(144, 8, dtype=torch.float32) / 12
    encode = staticmethod(lambda x: x.flatten(1) @ VAE.weights)
    decode = staticmethod(lambda z: torch.sigmoid(z @ VAE.weights.T).view(-1, 1, 12, 12))


ATTRIBUTIONS = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "smoothgrad": lambda model, x, target: ml.smoothgrad(
        model, x, target, n_samples=4, generator=torch.Generator().manual_seed(0), create_graph=True
    ),
    "integrated_gradients": functools.partial(ml.integrated_gradients, n_steps=6),
    "integrate": lambda model, x, target: ml.integrate(
        model, ml.straight_path(x), target, n_steps=6, create_graph=True
    ),
    "enhanced_ig": functools.partial(ml.enhanced_ig, vae=VAE, n_steps=4),
    "manifold_ig": functools.partial(ml.manifold_ig, vae=VAE, n_steps=4, max_iter=3, bridge=False),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTRIBUTIONS)
@pytest.mark.filterwarnings("ignore:geodesic")
def test_the_map_comes_nearer_within_the_bound_and_the_prediction_stays(name, norm):
    model, x, explain = network(), images(), ATTRIBUTIONS[name]
    eps = 0.1 if norm == "linf" else 1.0
    goal = explain(model, images(seed=1), model(x).argmax(1)).detach()
    before = explain(model, x, model(x).argmax(1)).detach()
    attack = ml.attribution_attack(model, x, goal, attribution=explain, eps=eps, norm=norm, n_steps=40)
    delta = (attack.inputs - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= eps * (1 + 1e-5)).all() and attack.inputs.min() >= 0 and attack.inputs.max() <= 1
    assert attack.kept.all() and torch.equal(model(attack.inputs).argmax(1), model(x).argmax(1))
    assert attack.history.shape == (40, 4)

    def distance(maps):
        return (ml.relevance(maps) - ml.relevance(goal)).square().sum((1, 2))

    assert (distance(attack.attributions) <= distance(before)).all()
    assert distance(attack.attributions).mean() < 0.8 * distance(before).mean()
    again = explain(model, attack.inputs, model(x).argmax(1)).detach()
    torch.testing.assert_close(attack.attributions, again, rtol=1e-3, atol=1e-5)  # of the model as it is
    assert not attack.inputs.requires_grad and not attack.attributions.requires_grad


def test_attacks_of_images_do_not_mix():
    model, x = network().double(), images().double()
    goal = ml.gradient(model, images(seed=1).double(), 0)
    attack = functools.partial(
        ml.attribution_attack, model, attribution=ml.gradient, norm="l2", n_steps=12, internal_batch_size=3
    )
    eps = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    whole = attack(x, goal, 0, eps=eps)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(attack(x[order], goal[order], 0, eps=eps[order]).inputs, whole.inputs[order])
    single = attack(x[3:], goal[3:], 0, eps=2.0)
    torch.testing.assert_close(single.inputs, whole.inputs[3:])
    torch.testing.assert_close(single.history[:, 0], whole.history[:, 3])


def test_relus_are_softplus_within_the_model_only_and_come_back():
    model, x = seeded(Functional()).eval(), images()
    sharp = attribution_attacks._softened(model, 7.0)(x)
    by_hand = F.softplus(model.second(F.softplus(model.first(x), beta=7.0)), beta=7.0)
    torch.testing.assert_close(sharp, model.head(by_hand.flatten(1)))
    assert torch.equal(torch.relu(torch.tensor([-1.0])), torch.tensor([0.0]))
    found = attribution_attacks._softened(model, 1e4)(x)
    torch.testing.assert_close(found, model(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(attribution_attacks._softened(model, float("inf"))(x), model(x))


def test_sharpness_grows_geometrically():
    betas = attribution_attacks._betas((10, 100), 3)
    assert betas == pytest.approx([10, 10 * 10**0.5, 100])


def test_the_model_is_left_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    goal = ml.gradient(model, images(seed=1), 0)
    ml.attribution_attack(model, images(), goal, attribution=ml.gradient, eps=0.1, n_steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.modules()) == modules and all(parameter.grad is None for parameter in model.parameters())


def test_a_relu_network_without_softplus_is_refused_where_nothing_flows():
    model, goal = network(), ml.gradient(network(), images(seed=1), 0)
    with pytest.raises(ValueError, match="softplus_beta"):
        ml.attribution_attack(model, images(), goal, attribution=ml.gradient, eps=0.1, n_steps=2, softplus_beta=None)
    attack = ml.attribution_attack(
        model, images(), goal, attribution=ml.input_x_gradient, eps=0.1, n_steps=2, softplus_beta=None
    )
    assert attack.kept.all()


def test_an_attribution_without_a_graph_is_refused():
    model, goal = network(), ml.gradient(network(), images(seed=1), 0)
    with pytest.raises(ValueError, match="attribution: got a result without a graph"):
        ml.attribution_attack(
            model, images(), goal, attribution=lambda model, x, t: ml.gradient(model, x, t), eps=0.1, n_steps=2
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_maps": torch.zeros(4, 1, 12, 12)}, "target_maps"),
        ({"target_maps": torch.rand(3, 1, 12, 12)}, "target_maps"),
        ({"attribution": "gradient"}, "attribution"),
        ({"eps": -1.0}, "eps"),
        ({"eps": torch.ones(3)}, "eps"),
        ({"norm": "l1"}, "norm"),
        ({"n_steps": 0}, "n_steps"),
        ({"clamp": (1, 0)}, "clamp"),
        ({"softplus_beta": (10, 0)}, "softplus_beta"),
        ({"softplus_beta": 10}, "softplus_beta"),
        ({"internal_batch_size": 0}, "internal_batch_size"),
    ],
)
def test_bad_settings_are_refused(changes, says):
    settings = {"target_maps": images(seed=1), "attribution": ml.gradient, "eps": 0.1, "n_steps": 2}
    with pytest.raises(ValueError, match=rf"^{says}: "):
        ml.attribution_attack(network(), images(), **(settings | changes))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_bound_holds_for_inputs_beyond_the_range_too(norm):
    x = 3 * images() - 1
    options = {"attribution": ml.gradient, "eps": 0.1, "norm": norm, "n_steps": 6}
    found = ml.attribution_attack(network(), x, images(seed=1), **options)
    assert (found.inputs != x).flatten(1).any(1).any()
    moved = (found.inputs - x).flatten(1)
    assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= 0.1 * (1 + 1e-5)
    assert (found.inputs >= x.clamp_max(0)).all() and (found.inputs <= x.clamp_min(1)).all()


def test_an_image_whose_map_is_zero_stays_as_it_is_and_harms_no_other():
    x = images()
    x[0] = 0
    options = {"attribution": ml.input_x_gradient, "eps": 0.5, "n_steps": 8}
    with pytest.warns(RuntimeWarning, match="1 of 4 images have maps of zeros"):
        found = ml.attribution_attack(network(), x, images(seed=1), **options)
    assert torch.equal(found.inputs[0], x[0])
    assert (found.inputs[1:] != x[1:]).flatten(1).any(1).all()
    assert torch.isfinite(found.attributions).all()


class Rectified(nn.Module):
    """A network whose ReLUs are written in one of the ways there are."""

    def __init__(self, way):
        super().__init__()
        self.first, self.head, self.way = nn.Conv2d(1, 6, 3), nn.Linear(600, 4), way

    def forward(self, x):
        h = self.first(x)
        if self.way == "statement":
            torch.relu_(h)
        elif self.way == "inplace statement":
            F.relu(h, inplace=True)
        elif self.way == "module statement":
            nn.ReLU(inplace=True)(h)
        elif self.way == "method statement":
            h.relu_()
        elif self.way == "before activation":
            h = h + 0.1 * torch.relu_(h)
        elif self.way == "keyword":
            h = torch.relu(input=h)
        else:
            h = F.relu(h, False)
        return self.head(h.flatten(1))


WAYS = (
    "statement",
    "inplace statement",
    "module statement",
    "method statement",
    "before activation",
    "keyword",
    "by place",
)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_relu_is_softened_to_itself(way):
    """A sharp softplus is the ReLU: the softened network is the network."""
    model, x = seeded(Rectified(way)).eval().double(), images().double()
    kept = x.clone()
    assert torch.allclose(attribution_attacks._softened(model, 1e6)(x), model(x), atol=1e-4)
    smooth = attribution_attacks._softened(model, 10.0)(x)
    assert not torch.allclose(smooth, model(x), atol=1e-4) and torch.equal(x, kept)
    goal = ml.gradient(model, x.flip(0), 0)
    attack = ml.attribution_attack(model, x, goal, attribution=ml.gradient, eps=0.1, n_steps=10)
    assert (attack.history[-1] < attack.history[0]).all()


def test_an_attribution_of_ones_own_may_mark_its_input_and_needs_no_grad_mode():
    def own(model, x, target):
        x.requires_grad_(True)
        score = model(x).gather(1, target[:, None]).sum()
        return x * torch.autograd.grad(score, x, create_graph=True)[0]

    model, x = network(), images()
    goal = ml.input_x_gradient(model, x.flip(0), model(x).argmax(1))
    more = {"attribution": own, "eps": 0.1, "n_steps": 10}
    attack = ml.attribution_attack(model, x, goal, **more)
    with torch.no_grad():
        off = ml.attribution_attack(model, x, goal, **more)
    assert not x.requires_grad and not attack.inputs.requires_grad and torch.equal(attack.inputs, off.inputs)


EXPLAINED = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "integrated_gradients": functools.partial(ml.integrated_gradients, n_steps=5),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPLAINED)
def test_an_image_with_an_argument_of_its_own_gets_what_it_gets_alone(name, size):
    def attacked(model, inputs, maps, target, **options):
        found = ml.attribution_attack(
            *(model, inputs, maps, target), attribution=EXPLAINED[name], eps=0.2, n_steps=11, **options
        )
        parts = (found.inputs, found.attributions, found.history.T, found.kept[:, None].double())
        return torch.cat([part.flatten(1) for part in parts], 1)

    same_alone(attacked, size)


def test_an_argument_that_all_share_needs_no_attribution_that_takes_it_apart():
    """One of each image is passed on with the chunk, and the model that is given knows the shared ones."""
    seen = []

    def own(model, inputs, target, *, additional_forward_args=None, create_graph=False):
        seen.append(additional_forward_args)
        options = {"additional_forward_args": additional_forward_args, "create_graph": create_graph}
        return ml.gradient(model, inputs, target, **options)

    more = {"attribution": own, "eps": 0.2, "n_steps": 2, "internal_batch_size": 3, **given()}
    ml.attribution_attack(MODEL, INPUTS, MAPS, CLASSES, **more)
    assert {len(args) for args in seen} == {1}
    assert torch.equal(seen[0][0], CONDITION[:3]) and torch.equal(seen[-1][0], CONDITION[3:])


def test_an_attribution_that_does_not_take_other_arguments_is_refused():
    options = {"eps": 0.2, "n_steps": 2, **given()}
    with pytest.raises(ValueError, match="additional_forward_args"):
        ml.attribution_attack(MODEL, INPUTS, MAPS, 0, attribution=lambda m, x, t: x, **options)
