"""What a user's model, path or precision may be like without harm to the result: each of these once went wrong."""

import pytest
import torch
from helpers import close, draw, no_warning, seeded, smooth_model
from torch import nn

import manifold_lib as ml


class Scaled(nn.Module):
    """Scores of ten coordinates times an eleventh, by which images differ a thousandfold."""

    def __init__(self):
        super().__init__()
        self.inner = seeded(nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 3)), 3)

    def forward(self, x):
        return self.inner(3 * x[:, :10]) * x[:, 10:]


@pytest.mark.parametrize("seed", range(6))
def test_a_small_image_refines_as_it_would_alone_beside_large_ones(seed):
    model, inputs = Scaled(), torch.rand(9, 11, generator=torch.Generator().manual_seed(seed))
    inputs[:, 10] = 1000.0
    inputs[8, 10] = 1.0
    baselines = 0 * inputs
    baselines[:, 10] = inputs[:, 10]

    def run(rows):
        path = ml.straight_path(inputs[rows], baselines[rows])
        return ml.integrate(model, path, 0, tolerance=3e-4, return_info=True)

    with no_warning():
        (found, info), (alone, own) = run(torch.arange(9)), run(torch.tensor([8]))
        turned = run(torch.arange(8, -1, -1))[1]
    assert info.n_gradients[8] == own.n_gradients[0] == turned.n_gradients[0] and info.converged.all()
    close(found[8:], alone, 1e-5)


def test_one_column_of_scores_is_one_score_to_the_adaptive_rule():
    v = draw(8)
    z = draw(2, 8, seed=1)
    z = z - (z @ v)[:, None] * v / (v @ v) + 2 * torch.pi * v / (v @ v)  # Δf = 0
    path = ml.straight_path(z)
    one = ml.integrate(lambda x: (x @ v).sin(), path, tolerance=0.1, return_info=True)
    column = ml.integrate(lambda x: (x @ v).sin()[:, None], path, tolerance=0.1, return_info=True)
    assert torch.equal(one[0], column[0]) and torch.equal(one[1].n_gradients, column[1].n_gradients)
    assert column[1].converged.all()


def test_a_hook_that_is_added_after_a_first_call_is_respected():
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)), 0).eval()
    inputs = torch.rand(2, 3, 8, 8)
    before = ml.integrated_gradients(net, inputs, 0)
    seen = []
    net[0].register_forward_hook(lambda module, args, out: seen.append(out.detach().view(len(out), -1)))
    close(ml.integrated_gradients(net, inputs, 0), before, 1e-5)
    assert seen


def test_a_model_that_turns_to_view_after_a_first_call_is_still_explained():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)
            self.by_view = False

        def forward(self, x):
            x = self.conv(x).tanh()
            return self.out(x.view(len(x), -1) if self.by_view else x.flatten(1))

    net, inputs = seeded(Turning(), 0).eval(), torch.rand(2, 3, 8, 8)
    before = ml.integrated_gradients(net, inputs, 0)
    net.by_view = True
    close(ml.integrated_gradients(net, inputs, 0), before, 1e-5)


@pytest.mark.filterwarnings("ignore:the model is in train mode")
def test_dropout_left_in_train_mode_is_drawn_alike_at_the_first_call():
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    net, inputs, found = seeded(nn.Sequential(*layers), 0).train(), torch.rand(2, 1, 8, 8), []
    for _ in range(3):
        torch.manual_seed(5)
        found.append(ml.integrated_gradients(net, inputs, 0))
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


FIRST_IN_PLACE = {
    "gradient": ml.gradient,
    "smoothgrad": lambda f, x, c: ml.smoothgrad(f, x, c, n_samples=2, generator=torch.Generator().manual_seed(0)),
    "IG": ml.integrated_gradients,
    "adaptive IG": lambda f, x, c: ml.integrated_gradients(f, x, c, tolerance=0.05),
    "guided IG": lambda f, x, c: ml.guided_ig(f, x, c, n_steps=5),
    "PGD": lambda f, x, c: ml.pgd(f, x, torch.full((len(x),), c), eps=0.1, norm="l2"),
    "expected gradients": lambda f, x, c: ml.expected_gradients(
        f, x, c, references=x.flip(0), n_samples=4, generator=torch.Generator().manual_seed(0)
    ),
}


@pytest.mark.parametrize("name", FIRST_IN_PLACE)
def test_a_model_may_begin_with_an_in_place_layer(name):
    body = seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), 0)
    inputs = draw(2, 1, 4, 4)
    kept = inputs.clone()
    found = FIRST_IN_PLACE[name](nn.Sequential(nn.ReLU(inplace=True), body), inputs, 0)
    expected = FIRST_IN_PLACE[name](nn.Sequential(nn.ReLU(), body), inputs, 0)
    assert torch.equal(found, expected) and torch.equal(inputs, kept)


@pytest.mark.parametrize("solver", ["projection", "gradient"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_search_for_a_baseline_pushes_no_more_points_than_asked(solver, size):
    seen, inner = [], smooth_model()

    def model(x):
        seen.append(len(x))
        return inner(x)

    inputs, more = draw(2, 1, 4, 4), {"n_steps": 8, "max_iter": 3, "n_starts": 2, "solver": solver}
    basis = ml.orthonormal_columns(draw(2, 16, 3, seed=1))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    bounded = ml.tangential_baseline(
        model, inputs, 0, basis=basis, internal_batch_size=size, generator=generators[0], **more
    )
    assert max(seen) <= size
    free = ml.tangential_baseline(inner, inputs, 0, basis=basis, generator=generators[1], **more)
    close(bounded.baselines, free.baselines, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, None])
@pytest.mark.parametrize("name", ["guided IG", "IG", "chords", "expected gradients"])
def test_half_precision_is_added_up_in_single(name, dtype, size):
    """A linear model, whose map is exact by any path: what is left is the rounding of one product."""
    weights = draw(64, seed=1).to(dtype)
    inputs, model = draw(2, 64).to(dtype), lambda x: (x * weights).sum(1, keepdim=True)
    more = {"internal_batch_size": size}
    if name == "guided IG":
        found = ml.guided_ig(model, inputs, 0, n_steps=500, **more)
    elif name == "IG":
        found = ml.integrated_gradients(model, inputs, 0, n_steps=500, **more)
    elif name == "chords":
        found = ml.integrate(model, ml.Path(lambda r, t: t[:, None] * inputs[r], end=inputs), 0, n_steps=500, **more)
    else:
        seed = torch.Generator().manual_seed(0)
        found = ml.expected_gradients(
            model, inputs, 0, references=0 * inputs, n_samples=500, generator=seed, internal_batch_size=size
        )
    assert found.dtype == dtype
    close(found.double(), (inputs * weights).double(), 4 * torch.finfo(dtype).eps)


def test_the_mean_fill_of_large_images_in_half_precision():
    inputs = torch.full((1, 3, 224, 224), 0.9, dtype=torch.float16)
    model = lambda x: torch.stack([x.float().mean((1, 2, 3)), 0 * x[:, 0, 0, 0].float()], 1)  # noqa: E731
    relevance = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).half()
    found = ml.insertion_deletion(model, inputs, relevance, 0, ratios=[0.1, 0.5, 1], score="probability")
    expected = model(inputs).softmax(1)[0, 0]
    assert torch.allclose(found.deletion, expected, atol=1e-3) and torch.allclose(found.insertion, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("measure", [ml.pearson, ml.spearman, ml.ssim, ml.top_k, ml.map_mse])
def test_maps_in_half_precision_are_compared_in_single(measure, dtype):
    maps, others = draw(2, 3, 32, 32).to(dtype), draw(2, 3, 32, 32, seed=1).to(dtype)
    found = measure(maps, others)
    assert torch.equal(found.float(), measure(maps.float(), others.float()).to(found.dtype).float())


def test_one_map_that_failed_harms_no_other_in_ssim():
    maps, others = draw(3, 1, 16, 16), draw(3, 1, 16, 16, seed=1)
    clean = ml.ssim(maps, others)
    maps[0] = torch.nan
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        found = ml.ssim(maps, others)
    assert found[0].isnan() and torch.equal(found[1:], clean[1:])


INPUTS = draw(2, 1, 4, 4)
BAD_PATHS = {
    "too few entries": lambda rows, t: INPUTS[rows].flatten(1)[:, :8],
    "too few points": lambda rows, t: INPUTS[rows][:1],
    "another precision": lambda rows, t: INPUTS[rows].float(),
    "nothing": lambda rows, t: None,
}


@pytest.mark.parametrize("at", BAD_PATHS.values(), ids=BAD_PATHS)
@pytest.mark.parametrize("more", [{}, {"method": "midpoint"}, {"tolerance": 0.1}])
def test_a_path_that_gives_other_points_than_its_end_is_refused(at, more):
    with pytest.raises(ValueError, match=r"path: at\(rows, t\) gave"):
        ml.integrate(smooth_model(), ml.Path(at, end=INPUTS), 0, **more)


class Pair:
    encode = staticmethod(lambda x: (x.flatten(1), x.flatten(1)))
    decode = staticmethod(lambda z: z.view(-1, 1, 4, 4))


class Whole:
    encode = staticmethod(lambda x: x.flatten(1))
    decode = staticmethod(lambda z: z.view(-1, 1, 4, 4).long())


@pytest.mark.parametrize(("vae", "says"), [(Pair, "encode gave tuple"), (Whole, "decode gave")])
def test_a_vae_that_gives_something_else_is_refused(vae, says):
    for method in (ml.enhanced_ig, ml.manifold_ig):
        with pytest.raises(ValueError, match=f"vae: {says}"):
            method(smooth_model(), INPUTS, 0, vae=vae())


@pytest.mark.parametrize("clamp", [None, (-torch.inf, torch.inf), (0.0, torch.nan), (1.0, 0.0)])
def test_the_range_of_a_search_is_two_numbers(clamp):
    basis = ml.orthonormal_columns(draw(2, 16, 3, seed=1))
    with pytest.raises(ValueError, match="clamp"):
        ml.tangential_baseline(smooth_model(), INPUTS, 0, basis=basis, clamp=clamp)


@pytest.mark.parametrize("ratios", [None, [[0.1, 0.2]], [], [2.0], ["a"], 0.5, [float("nan")]])
def test_ratios_are_numbers_of_the_unit_interval(ratios):
    with pytest.raises(ValueError, match="ratios"):
        ml.insertion_deletion(smooth_model(), INPUTS, INPUTS, 0, ratios=ratios)


@pytest.mark.parametrize("target", [2**70, -(2**70), 3, -1])
def test_a_class_that_is_not_there_is_named(target):
    with pytest.raises(ValueError, match="target: got classes"):
        ml.gradient(smooth_model(), INPUTS, target)


class Counting(nn.Module):
    """A model that counts its calls in a buffer, made anew or changed in place."""

    def __init__(self, in_place):
        super().__init__()
        self.inner, self.in_place = seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), 0), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.inner(x)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_buffers_that_a_pass_changes_are_put_back(in_place, training):
    model = Counting(in_place).train(training)
    buffer = model.calls
    for method in (ml.gradient, ml.integrated_gradients):
        method(model, INPUTS, 0)
        assert model.calls is buffer and model.calls == 0


def test_a_graph_that_is_kept_survives_the_buffers_being_put_back():
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3)
    model, inputs = seeded(nn.Sequential(*layers).double(), 0).eval(), INPUTS.clone().requires_grad_()
    found = ml.integrated_gradients(model, inputs, 0, n_steps=4, create_graph=True)
    (gradient,) = torch.autograd.grad(found.square().sum(), inputs)
    assert gradient.isfinite().all()
