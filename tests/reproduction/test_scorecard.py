"""The scorecard: every metric has a value or a reason, and each value is what its own function says."""

import pytest
import torch
from test_comparison import Coder, case, model

import manifold_lib as ml
from manifold_lib.evaluation.erasure import RATIOS
from manifold_lib.reproduction import scorecard
from manifold_lib.reproduction.comparison import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:spearman", "ignore:pearson")


class Net(torch.nn.Module):
    """The model of the comparison's tests as a module, whose weights can be drawn anew."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(36, 4).double()

    def forward(self, x):
        return torch.tanh(self.layer(x.flatten(1)))


def truth(given, **more):
    latents = Coder.encode(given.inputs)
    mask = torch.zeros_like(given.inputs, dtype=torch.bool)
    mask[..., :3] = True
    known = {"decoder": Coder.decode, "latents": latents[:, None], "mask": mask, "ink": mask} | more
    return scorecard.Truth(ml.tangent_basis(Coder.decode, latents), **known)


def card(name, known=None, **more):
    given = case(4)
    torch.manual_seed(0)
    options = {"attacked": given.inputs.flip(3), "others": [Net(), Net()], "n_samples": 2} | more
    return given, scorecard.score(given, name, truth(given) if known is None else known(given), **options)


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_has_a_value_or_a_reason(name):
    given, found = card(name)
    assert set(found.values) | set(found.reasons) == set(scorecard.METRICS)
    assert not set(found.values) & set(found.reasons)
    for metric, values in found.values.items():
        assert values.shape == (4,), metric
        assert values.isfinite().all(), metric
    assert all(found.reasons.values()) and found.milliseconds >= 0
    torch.testing.assert_close(found.maps, METHODS[name].maps(given))


def test_values_are_those_of_the_functions_behind_them():
    given, found = card("IG")
    maps, values = found.maps, found.values
    args = (model, given.inputs, maps, given.target)
    torch.testing.assert_close(values["DiffID"], ml.diffid(*args))
    shares = torch.tensor(RATIOS, dtype=torch.float64)
    for name, function in (("log-odds", ml.log_odds), ("comprehensiveness", ml.comprehensiveness)):
        torch.testing.assert_close(values[name], torch.trapezoid(function(*args), shares) / 0.64)
    torch.testing.assert_close(values["completeness error"], ml.completeness_error(*args))
    curves = ml.insertion_deletion(*args, score="probability")
    torch.testing.assert_close(values["insertion"] - values["deletion"], (curves.insertion - curves.deletion).mean(1))
    basis = truth(given).basis
    torch.testing.assert_close(values["tangent fraction"], ml.tangent_fraction(maps, basis))
    other = torch.stack([ml.tangent_fraction(maps, basis.roll(i, 0)) for i in (1, 2, 3)]).mean(0)
    torch.testing.assert_close(values["selectivity"], ml.tangent_fraction(maps, basis) - other)
    flipped = METHODS["IG"].maps(given._replace(inputs=given.inputs.flip(3)))
    torch.testing.assert_close(values["kept under attack"], ml.pearson(flipped, maps))
    assert found.gradients >= given.n_steps


def test_a_path_through_the_generator_is_on_its_manifold_and_the_straight_one_is_off():
    assert card("EIG")[1].values["path off the manifold"].max() < 1e-3
    given, found = card("IG")
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64).view(1, 3, 1, 1, 1)
    places = (given.baselines[:, None] + shares * (given.inputs - given.baselines)[:, None]).flatten(0, 1)
    starts = Coder.encode(given.inputs)[:, None].repeat_interleave(3, 0)
    far = ml.nearest_on_manifold(Coder.decode, places, starts, max_iter=15, tolerance=1e-2).distance.view(4, 3).mean(1)
    torch.testing.assert_close(found.values["path off the manifold"], far / given.inputs.flatten(1).norm(dim=1))
    assert far.min() > 0.1


def test_what_is_not_known_has_its_reason():
    _, found = card("IG", lambda given: truth(given, decoder=None, latents=None, mask=None))
    assert set(found.reasons) == {"path off the manifold", "relevance mass", "relevance rank"}
    torch.testing.assert_close(card("random")[1].values["randomised weights"], torch.ones(4, dtype=torch.float64))
    blank = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)).double()]
    torch.nn.init.zeros_(blank[0][1].weight)
    with pytest.warns(RuntimeWarning, match="spearman"):
        found = card("gradient", others=blank)[1]
    assert found.reasons["randomised weights"] == "no finite value"


def test_two_images_will_do_and_one_has_no_other():
    given = case(2)
    options = {"attacked": given.inputs.flip(3), "others": [Net()], "n_samples": 1}
    assert scorecard.score(given, "IG", truth(given), **options).values["selectivity"].isfinite().all()
    with pytest.raises(ValueError, match="inputs"):
        scorecard.transfer_attack(case(1), eps=0.05, n_steps=2)


def test_the_attack_moves_ig_within_its_ball_and_keeps_the_prediction():
    given = case(4)._replace(model=Net(), target=None)
    given = given._replace(target=given.model(given.inputs).argmax(1))
    attacked = scorecard.transfer_attack(given, eps=0.05, n_steps=40)
    assert ((attacked - given.inputs).abs() <= 0.05 + 1e-12).all() and attacked.min() >= 0 and attacked.max() <= 1
    assert torch.equal(given.model(attacked).argmax(1), given.target) and not torch.equal(attacked, given.inputs)
