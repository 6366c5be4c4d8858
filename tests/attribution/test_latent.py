"""Enhanced IG and Manifold IG: closed forms, bridges, completeness, independence of the batch."""

import warnings

import pytest
import torch
from helpers import close, draw, seeded, smooth_model, untouched
from torch import nn

import manifold_lib as ml


class Identity:
    encode = decode = staticmethod(lambda x: x)


class Curved(nn.Module):
    """A decoder of 3 latents and a linear encoder."""

    def __init__(self):
        super().__init__()
        self.up = seeded(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 16)).double(), 1)
        self.down = seeded(nn.Linear(16, 3).double(), 2)

    def encode(self, x):
        return self.down(x.flatten(1))

    def decode(self, z):
        return self.up(z).view(-1, 1, 4, 4)


@pytest.mark.parametrize("method", ["trapezoid", "midpoint", "gausslegendre"])
def test_the_identity_gives_integrated_gradients(method):
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    found = ml.enhanced_ig(model, inputs, vae=Identity(), n_steps=20, method=method)
    close(found, ml.integrated_gradients(model, inputs, n_steps=20, method=method), 1e-10)


def test_bridges_make_it_complete_and_without_them_it_joins_reconstructions():
    model, vae, inputs = smooth_model(), Curved(), draw(4, 1, 4, 4)
    baselines, target = draw(4, 1, 4, 4, seed=2), torch.tensor([0, 1, 2, 0])

    def change(a, b):
        return (model(a) - model(b)).gather(1, target[:, None])[:, 0].detach()

    found, delta = ml.enhanced_ig(
        model, inputs, target, vae=vae, baselines=baselines, n_steps=200, return_convergence_delta=True
    )
    assert delta.abs().max() < 5e-3
    close(delta, found.flatten(1).sum(1) - change(inputs, baselines), 1e-9)
    bare = ml.enhanced_ig(model, inputs, target, vae=vae, baselines=baselines, n_steps=400, bridge=False)
    ends = [vae.decode(vae.encode(x)) for x in (inputs, baselines)]
    close(bare.flatten(1).sum(1), change(*ends), 1e-4)
    assert (change(*ends) - change(inputs, baselines)).abs().max() > 0.1


def test_it_is_the_integral_of_the_decoded_line():
    model, vae, inputs = smooth_model(), Curved(), draw(3, 1, 4, 4)
    line = torch.linspace(0, 1, 31).double()[None, :, None]
    start, end = vae.encode(torch.zeros_like(inputs))[:, None], vae.encode(inputs)[:, None]
    points = vae.decode(((1 - line) * start + line * end).flatten(0, 1)).view(3, 31, 1, 4, 4).detach()
    target = model(inputs).argmax(1)
    expected = ml.integrate(model, points, target)
    close(ml.enhanced_ig(model, inputs, vae=vae, n_steps=30, bridge=False), expected, 1e-10)


def test_batch_chunk_and_models_do_not_matter():
    model, vae, inputs = smooth_model(), Curved(), draw(5, 1, 4, 4)
    whole = ml.enhanced_ig(model, inputs, vae=vae, n_steps=7)
    with untouched(model, inputs), untouched(vae):
        small = ml.enhanced_ig(model, inputs, vae=vae, n_steps=7, internal_batch_size=2)
    close(small, whole, 1e-12)
    close(torch.cat([ml.enhanced_ig(model, x[None], vae=vae, n_steps=7) for x in inputs]), whole, 1e-12)


def test_a_vae_that_is_none_is_refused():
    model, inputs = smooth_model(), draw(2, 1, 4, 4)
    with pytest.raises(ValueError, match="vae"):
        ml.enhanced_ig(model, inputs, vae=nn.Linear(2, 2))
    training = Curved()
    training.up.append(nn.Dropout())
    with pytest.raises(ValueError, match="eval"):
        ml.enhanced_ig(model, inputs, vae=training.train())

    class Wrong(Identity):
        decode = staticmethod(lambda z: z[:, :, :2])

    with pytest.raises(ValueError, match=r"vae.*\(2, 1, 2, 4\)"):
        ml.enhanced_ig(model, inputs, vae=Wrong())


# --- Manifold IG ----


@pytest.mark.parametrize("n_steps", [8, 20])
def test_no_iterations_are_enhanced_ig(n_steps):
    model, vae, inputs = smooth_model(), Curved(), draw(3, 1, 4, 4)
    found = ml.manifold_ig(model, inputs, vae=vae, n_steps=n_steps, max_iter=0)
    assert torch.equal(found, ml.enhanced_ig(model, inputs, vae=vae, n_steps=n_steps))


@pytest.mark.parametrize(("method", "bound"), [("gausslegendre", 1e-6), ("trapezoid", 1e-3)])
def test_enhanced_ig_is_complete_with_its_bridges(method, bound):
    model, vae, inputs = smooth_model(), Curved(), draw(4, 1, 4, 4)
    maps = ml.enhanced_ig(model, inputs, 1, vae=vae, n_steps=256, method=method)
    assert ml.completeness_error(model, inputs, maps, 1).max() < bound


def test_attributions_are_linear_in_the_model():
    """X11: the maps of a F + b G are a times those of F and b times those of G, on the same geodesics."""
    first, second, vae, inputs = smooth_model(seed=1), smooth_model(seed=2), Curved(), draw(3, 1, 4, 4)
    along = {"vae": vae, "n_steps": 6, "max_iter": 12}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = ml.manifold_ig(lambda x: 2 * first(x) - 3 * second(x), inputs, 1, **along)
        parts = [ml.manifold_ig(model, inputs, 1, **along) for model in (first, second)]
    close(both, 2 * parts[0] - 3 * parts[1], 1e-12)


def test_a_vae_in_train_mode_is_refused_though_a_plain_object_holds_it():
    class Holder:
        def __init__(self):
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16).double()).train()

        def encode(self, x):
            return self.net(x)

        def decode(self, z):
            return z.view(-1, 1, 4, 4)

    holder = Holder()
    for method in (ml.enhanced_ig, ml.manifold_ig):
        with pytest.raises(ValueError, match=r"vae: got train mode \(BatchNorm1d\)"):
            method(smooth_model(), draw(2, 1, 4, 4), vae=holder)
    assert holder.net[1].num_batches_tracked == 0


def test_on_the_identity_and_on_linear_decoders_it_is_ig():
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    found = ml.manifold_ig(model, inputs, vae=Identity())
    close(found, ml.integrated_gradients(model, inputs, n_steps=20, method="trapezoid"), 1e-8)

    class Turn:
        turn = torch.linalg.qr(draw(16, 16, seed=4)).Q

        def encode(self, x):
            return x.flatten(1) @ self.turn

        def decode(self, z):
            return (z @ self.turn.T).view(-1, 1, 4, 4)

    close(ml.manifold_ig(model, inputs, vae=Turn()), found, 1e-8)


def test_manifold_ig_is_complete_and_converges_with_its_steps():
    model, vae, inputs = smooth_model(), Curved(), draw(4, 1, 4, 4)
    errors = []
    for n_steps in (16, 32, 64):
        _, delta = ml.manifold_ig(model, inputs, 1, vae=vae, n_steps=n_steps, return_convergence_delta=True)
        errors.append(delta.abs().max())
    change = (model(inputs) - model(0 * inputs))[:, 1].abs().clamp_min(0.05)
    assert (delta.abs() < 1e-3 * change).all()
    bare = [
        ml.manifold_ig(model, inputs, 1, vae=vae, n_steps=n, bridge=False).flatten(1).sum(1) for n in (16, 32, 64, 512)
    ]
    gaps = [(total - bare[-1]).abs().max() for total in bare[:3]]
    assert gaps[0] / gaps[1] > 2.5
    assert gaps[1] / gaps[2] > 2.5


def test_where_every_frame_has_a_constant_pixel_its_attribution_is_zero():
    model, inputs = smooth_model(), draw(3, 1, 4, 4)

    class Masked(Curved):
        def decode(self, z):
            return super().decode(z) * (torch.arange(16) != 5).view(1, 4, 4)

    found = ml.manifold_ig(model, inputs, vae=Masked(), bridge=False)
    assert not found.flatten(1)[:, 5].any()
    assert found.flatten(1)[:, 6].all()


def test_reversal_of_manifold_ig_flips_its_sign():
    model, vae, inputs, other = smooth_model(), Curved(), draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=3)
    forth = ml.manifold_ig(model, inputs, 1, vae=vae, baselines=other, max_iter=0)
    close(forth, -ml.manifold_ig(model, other, 1, vae=vae, baselines=inputs, max_iter=0), 1e-9)


@pytest.mark.parametrize("bridge", [True, False])
@pytest.mark.parametrize("method", ["trapezoid", "midpoint", "gausslegendre"])
def test_gradcheck_through_enhanced_ig(bridge, method):
    """Through encoder, decoder, path and bridges, in the inputs and the baselines."""
    model, vae = smooth_model(), Curved()
    points = draw(2, 1, 4, 4, seed=1).requires_grad_(), draw(2, 1, 4, 4, seed=2).requires_grad_()

    def attribution(x, b):
        more = {"baselines": b, "n_steps": 3, "method": method, "bridge": bridge, "create_graph": True}
        return ml.enhanced_ig(model, x, 1, vae=vae, **more)

    assert torch.autograd.gradcheck(attribution, points)


def test_gradcheck_through_manifold_ig_without_descent():
    model, vae, inputs = smooth_model(), Curved(), draw(2, 1, 4, 4, seed=1).requires_grad_()
    more = {"vae": vae, "n_steps": 3, "max_iter": 0, "create_graph": True}
    assert torch.autograd.gradcheck(lambda x: ml.manifold_ig(model, x, 1, **more), inputs)


def test_the_slope_of_manifold_ig_is_that_of_maps_with_geodesics_solved_anew():
    """Implicit differentiation against central differences, to 1e-2; with its bend kept the slope is another."""
    model, vae, inputs, weights = smooth_model(), Curved(), draw(2, 1, 4, 4, seed=1), draw(2, 1, 4, 4, seed=2)

    def score(x, **more):
        return (ml.manifold_ig(model, x, 1, vae=vae, n_steps=8, max_iter=200, bridge=False, **more) * weights).sum()

    x = inputs.clone().requires_grad_()
    (found,) = torch.autograd.grad(score(x, create_graph=True), x)
    for row, column in ((0, 5), (0, 11), (1, 2), (1, 14)):
        change = torch.zeros_like(inputs)
        change.view(2, -1)[row, column] = 1e-3
        difference = (score(inputs + change) - score(inputs - change)) / 2e-3
        assert abs(found.view(2, -1)[row, column] - difference) < 1e-2 * found.abs().max()


@pytest.mark.parametrize("bridge", [False, True])
def test_a_tolerance_gives_the_rule_nodes_of_its_own(bridge):
    model, vae, inputs = smooth_model(), Curved(), draw(3, 1, 4, 4, seed=1)
    about = {"vae": vae, "bridge": bridge, "return_convergence_delta": True}
    fine = ml.manifold_ig(model, inputs, 1, n_steps=3, tolerance=1e-6, **about)[0]
    for explain, more in ((ml.enhanced_ig, {}), (ml.manifold_ig, {"n_steps": 3})):
        coarse, tight = (explain(model, inputs, 1, **about, **more, tolerance=tolerance) for tolerance in (1e-2, 1e-4))
        if bridge:
            change = coarse[0].flatten(1).sum(1) - coarse[1]
            assert (coarse[1].abs() <= 1e-2 * change.abs().clamp_min(1e-3)).all()
            assert (tight[1].abs() <= 1e-4 * change.abs().clamp_min(1e-3)).all()
        assert (coarse[0] - tight[0]).abs().max() < 0.05 * tight[0].abs().max()
    close(ml.manifold_ig(model, inputs, 1, n_steps=3, tolerance=1e-4, **about)[0], fine, 1e-2)


def test_a_tolerance_is_refused_with_what_it_cannot_do():
    model, vae, inputs = smooth_model(), Curved(), draw(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"tolerance: got 0\.01 with published"):
        ml.manifold_ig(model, inputs, 1, vae=vae, tolerance=0.01, published=True)
    for explain in (ml.enhanced_ig, ml.manifold_ig):
        with pytest.raises(ValueError, match="create_graph"):
            explain(model, inputs, 1, vae=vae, tolerance=0.01, create_graph=True)
        with pytest.raises(ValueError, match="tolerance"):
            explain(model, inputs, 1, vae=vae, tolerance=-1.0)


def test_manifold_ig_of_a_batch_is_that_of_its_images():
    """X9."""
    model, vae, inputs = smooth_model(), Curved(), draw(3, 1, 4, 4, seed=1)
    whole = ml.manifold_ig(model, inputs, 1, vae=vae, n_steps=8)
    for i in range(3):
        close(ml.manifold_ig(model, inputs[i : i + 1], 1, vae=vae, n_steps=8), whole[i : i + 1], 1e-9)


def test_manifold_ig_of_the_identity_is_integrated_gradients_with_the_solver_at_work():
    """X12."""
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    found = ml.manifold_ig(model, inputs, 1, vae=Identity(), n_steps=20, max_iter=30)
    close(found, ml.integrate(model, ml.straight_path(inputs), 1, n_steps=20), 1e-9)


class Counted(torch.nn.Module):
    """A VAE whose decoder counts its calls in a buffer, and depends on it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def encode(self, x):
        return x.flatten(1)[:, :6]

    def decode(self, z):
        self.calls += 1
        return torch.tanh(torch.cat([z, z, z[:, :4]], 1)).view(-1, 1, 4, 4) * (1 + 0.1 * self.calls)


@pytest.mark.parametrize("name", ["enhanced_ig", "ma_gig", "ma_gig_path"])  # forward mode refuses such a decoder
def test_the_buffers_of_a_vae_are_put_back(name):
    model, inputs, vae = smooth_model((1, 4, 4)), draw(3, 1, 4, 4), Counted().eval()
    first = getattr(ml, name)(model, inputs, 0, vae=vae)
    assert vae.calls == 0
    again = getattr(ml, name)(model, inputs, 0, vae=vae)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, again)


@pytest.mark.parametrize(
    "build",
    [
        lambda model, inputs, vae: ml.enhanced_path(inputs, vae=vae),
        lambda model, inputs, vae: ml.manifold_path(inputs, vae=vae, max_iter=0, bridge=False),
        lambda model, inputs, vae: ml.ma_gig_path(model, inputs, 0, vae=vae, n_steps=3),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_path_that_decodes_later_leaves_the_buffers_of_its_vae_as_found(build, training):
    model, inputs, vae = smooth_model((1, 4, 4)), draw(3, 1, 4, 4), Counted().train(training)
    path, buffer = build(model, inputs, vae), vae.calls
    first = path.sample(4)
    path.at(torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))
    ml.integrate(model, path, 0, n_steps=3)
    ml.integrate(model, path, 0, n_steps=3, method="gausslegendre")  # in forward mode
    assert vae.calls is buffer and buffer == 0
    assert torch.equal(path.sample(4), first)


@pytest.mark.parametrize("hold", [list, tuple, lambda parts: dict(enumerate(parts)), lambda parts: [{"deep": parts}]])
def test_train_mode_is_seen_wherever_a_plain_object_holds_it(hold):
    layers = [torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16)).double() for _ in range(2)]

    class Held:
        def __init__(self):
            self.parts = hold(layers)

        def encode(self, x):
            return layers[0](x.flatten(1))

        def decode(self, z):
            return layers[1](z).view(-1, 1, 4, 4)

    with pytest.raises(ValueError, match="vae: got train mode"):
        ml.ma_gig(smooth_model((1, 4, 4)), draw(3, 1, 4, 4), 0, vae=Held(), n_steps=3)
    assert all(layer[1].num_batches_tracked == 0 for layer in layers)


@pytest.mark.parametrize("rows", [lambda x: x[:1], lambda x: torch.cat([x, x])])
def test_an_encoder_of_other_rows_is_refused(rows):
    class Wrong:
        encode = staticmethod(lambda x: rows(x.flatten(1)))
        decode = staticmethod(lambda z: z.view(-1, 1, 4, 4))

    with pytest.raises(ValueError, match=r"encode gave shape .* for 3 images"):
        ml.enhanced_ig(smooth_model((1, 4, 4)), draw(3, 1, 4, 4), 0, vae=Wrong)
