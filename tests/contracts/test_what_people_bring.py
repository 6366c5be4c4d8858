"""Models and decoders of the kinds that people bring, through every public function that takes one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import draw, seeded
from torch import Tensor, nn

import manifold_lib as ml

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:geodesic")
Call = Callable[..., Any]

# ------------------------------------------------------------------------------------------------------- decoders

DECODER_CALLS: dict[str, Call] = {
    "decoder_jacobian": lambda g, z: ml.decoder_jacobian(g, z),
    "tangent_basis": lambda g, z: (lambda q: q @ q.mT)(ml.tangent_basis(g, z)),  # columns have no sign of their own
    "pullback_metric": lambda g, z: ml.pullback_metric(g, z),
    "magnification_factor": lambda g, z: ml.magnification_factor(g, z),
    "exp_map": lambda g, z: ml.exp_map(g, z, 0.1 * z.flip(0), n_steps=2),
    "log_map": lambda g, z: ml.log_map(g, z, z.flip(0), n_steps=4),
    "geodesic": lambda g, z: ml.geodesic(g, z, z.flip(0), n_steps=4, max_iter=100).points,
    "karcher_mean": lambda g, z: ml.karcher_mean(g, z, n_steps=4)[None],
    "parallel_transport": lambda g, z: ml.parallel_transport(g, torch.stack([z, z.flip(0)], 1), z, n_steps=4),
    "curve_energy": lambda g, z: ml.curve_energy(g, torch.stack([z, z.flip(0)], 1)),
    "curve_length": lambda g, z: ml.curve_length(g, torch.stack([z, z.flip(0)], 1)),
    "resample": lambda g, z: ml.resample(g, torch.stack([z, z.flip(0)], 1), 4),
    "project_matrix_free": lambda g, z: ml.project_matrix_free(draw(3, 5), g, z),
    "nearest_on_manifold": lambda g, z: ml.nearest_on_manifold(g, draw(3, 5), z[:, None], max_iter=4).distance,
}
NEED_NO_SLOPE = ("curve_energy", "curve_length", "resample")
NEED_A_GRAPH = ("log_map", "geodesic", "karcher_mean", "project_matrix_free")


class Plain(nn.Module):
    """(B, 4) -> (B, 5), with a mixing of two tokens by softmax that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.out = nn.Linear(2, 4), nn.Linear(8, 5)

    def mix(self, x: Tensor) -> Tensor:
        return (x @ x.mT / 2).softmax(2) @ x

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.mix(self.lift(z.unflatten(1, (2, 2)))).flatten(1)).tanh()


class Fused(Plain):
    """The same by torch's attention, whose kernels have no forward mode."""

    def mix(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


def plain() -> nn.Module:
    return seeded(Plain()).double().eval()


class Gradient(nn.Module):
    """The gradient of an energy, taken inside: (B, 4) -> (B, 5), W tanh(V z) with W Vᵀ's parts from log cosh."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("lift", draw(5, 4, seed=3))

    def energy(self, x: Tensor) -> Tensor:
        return (x.exp() + (-x).exp()).log().sum()

    def forward(self, z: Tensor) -> Tensor:
        x = z @ self.lift.mT
        if self.how == "formula":
            return x.tanh()
        if self.how == "func":
            return torch.func.vmap(torch.func.grad(self.energy))(x)
        if not x.requires_grad:
            x.requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x), x, create_graph=True)
        return slope


def branch(net: nn.Module, z: Tensor) -> Tensor:
    return net(z) if z.sum() < 1e9 else z


def called(net: nn.Module, z: Tensor) -> Tensor:
    return net(z)


def scripted(module: nn.Module, freeze: bool) -> Any:
    traced = torch.jit.trace(module, draw(2, 4))
    return torch.jit.freeze(traced) if freeze else traced


# what is brought, and a plain function of the same values
BROUGHT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "fused attention": (lambda: seeded(Fused()).double().eval(), plain),
    "torch.func inside": (lambda: Gradient("func"), lambda: Gradient("formula")),
    "autograd inside": (lambda: Gradient("autograd"), lambda: Gradient("formula")),
    "traced": (lambda: scripted(plain(), False), plain),
    "frozen": (lambda: scripted(plain(), True), plain),
    "a branch on values": (lambda: functools.partial(branch, plain()), plain),
}


@pytest.mark.parametrize("call", DECODER_CALLS)
@pytest.mark.parametrize("kind", BROUGHT)
def test_decoders_people_bring_give_what_plain_ones_give(kind: str, call: str) -> None:
    brought, wanted = (make() for make in BROUGHT[kind])
    z = draw(3, 4, seed=1)
    settings = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    # a curve is solved to a tolerance, and another rounding may take it there by another way
    solved = call in ("geodesic", "karcher_mean", "log_map")
    near = {"rtol": 1e-2, "atol": 1e-2} if solved else {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(DECODER_CALLS[call](brought, z), DECODER_CALLS[call](wanted, z), **near)
    assert settings == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())


@pytest.mark.parametrize("call", DECODER_CALLS)
def test_a_decoder_of_lower_precision_gives_results_in_that_of_the_latents(call: str) -> None:
    net, z = plain(), draw(3, 4, seed=1).float()
    low = seeded(Plain()).eval()
    low.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    run = functools.partial(DECODER_CALLS[call], z=z.double())
    found, wanted = run(lambda latents: low(latents.float())), run(net)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)


CUT: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "no_grad": lambda net: torch.no_grad()(net.forward),
    "inference_mode": lambda net: torch.inference_mode()(net.forward),
    "detach": lambda net: lambda z: net(z).detach(),
    "detached latents": lambda net: lambda z: net(z.detach()),
    "through NumPy": lambda net: lambda z: torch.from_numpy(net(z.detach()).detach().numpy()),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call", DECODER_CALLS)
@pytest.mark.parametrize("cut", CUT)
def test_a_cut_derivative_is_refused_or_seen_through(cut: str, call: str, grad: bool) -> None:
    net, z = plain(), draw(3, 4, seed=1)
    with torch.set_grad_enabled(grad):
        if call in NEED_NO_SLOPE or (cut == "no_grad" and call not in NEED_A_GRAPH):
            found, wanted = DECODER_CALLS[call](CUT[cut](net), z), DECODER_CALLS[call](net, z)
            torch.testing.assert_close(found, wanted)
        else:
            with pytest.raises(ValueError, match="decoder: its output does not depend on the latents differentiably"):
                DECODER_CALLS[call](CUT[cut](net), z)


class AcrossTheBatch(Plain):
    """Attention whose tokens are the rows of the batch, by mistake."""

    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x.transpose(0, 1)).transpose(0, 1)


ON_OTHERS: dict[str, Callable[[], Any]] = {
    "batch norm without statistics": lambda: nn.Sequential(
        plain(), nn.BatchNorm1d(5, track_running_stats=False)
    ).double(),
    "the same in a partial": lambda: functools.partial(called, ON_OTHERS["batch norm without statistics"]()),
    "a mean over the batch": lambda: lambda z: plain()(z - z.mean(0)),
    "attention over the batch": lambda: seeded(AcrossTheBatch()).eval(),
    "rows after others": lambda: lambda z: plain()(z).cumsum(0),
    "the largest of the batch": lambda: lambda z: plain()(z) / plain()(z).abs().amax(),
    "functional dropout": lambda: lambda z: F.dropout(plain()(z), 0.5),
    "a rare chance": lambda: lambda z: plain()(z) * (torch.rand(()) < 0.7),
    "a global name": lambda: by_a_global_name,
    "attention's own dropout": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True).eval(),
}


LEFT_IN_TRAIN_MODE = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout()).double()


def by_a_global_name(z: Tensor) -> Tensor:
    return LEFT_IN_TRAIN_MODE(z)


def on_others(kind: str) -> Any:
    model = ON_OTHERS[kind]()
    if kind == "attention's own dropout":
        layer, head = model, nn.Linear(4, 5)
        layer.self_attn.train()
        model = nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), head)
        model.train(False)
        layer.self_attn.train()
    return model.double() if isinstance(model, nn.Module) else model


@pytest.mark.parametrize("call", DECODER_CALLS)
@pytest.mark.parametrize("kind", ON_OTHERS)
def test_a_decoder_whose_rows_are_not_on_their_own_is_refused(kind: str, call: str) -> None:
    with pytest.raises(ValueError, match=r"decoder: got (rows that depend|train mode|layers that mix)"):
        DECODER_CALLS[call](on_others(kind), draw(3, 4, seed=1))


@pytest.mark.parametrize("call", ["exp_map", "log_map", "geodesic", "nearest_on_manifold"])
def test_half_precision_is_refused_where_systems_are_solved(call: str) -> None:
    decoder = lambda z: torch.cat([z, z[:, :1].sin()], 1)  # noqa: E731
    calls = DECODER_CALLS | {
        "nearest_on_manifold": lambda g, z: ml.nearest_on_manifold(g, draw(3, 5).half(), z[:, None])
    }
    with pytest.raises(ValueError, match=r"got torch.float16, wants float32 or float64"):
        calls[call](decoder, draw(3, 4).half())


# --------------------------------------------------------------------------------------------------- autoencoders

VAE_CALLS: dict[str, Call] = {
    "enhanced_ig": lambda f, x, vae: ml.enhanced_ig(f, x, 1, vae=vae, n_steps=3),
    "enhanced_ig, Gauss": lambda f, x, vae: ml.enhanced_ig(f, x, 1, vae=vae, n_steps=3, method="gausslegendre"),
    "manifold_ig": lambda f, x, vae: ml.manifold_ig(f, x, 1, vae=vae, n_steps=3, max_iter=5),
    "ma_gig": lambda f, x, vae: ml.ma_gig(f, x, 1, vae=vae, n_steps=3),
    "geodesic_ig": lambda f, x, vae: ml.geodesic_ig(f, x, 1, nodes=draw(6, 5), n_neighbors=2, n_nodes=3, space=vae),
    "tangential_ig": lambda f, x, vae: ml.tangential_ig(
        f,
        x,
        1,
        basis=torch.eye(5).double()[:, :2].repeat(len(x), 1, 1),
        constraint="manifold",
        vae=vae,
        max_iter=2,
        n_starts=1,
    ),
    "enhanced_path": lambda f, x, vae: ml.enhanced_path(x, vae=vae).sample(4),
    "manifold_path": lambda f, x, vae: ml.manifold_path(x, vae=vae, n_steps=3, max_iter=5).sample(4),
    "ma_gig_path": lambda f, x, vae: ml.ma_gig_path(f, x, 1, vae=vae, n_steps=3).sample(4),
}


def autoencoder(decode: Any, encode: Any = None) -> Any:
    matrix = draw(5, 4, seed=9) / 3
    return SimpleNamespace(encode=encode or (lambda x: x @ matrix), decode=decode)


def scores() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))).double().eval()


@pytest.mark.parametrize("call", VAE_CALLS)
@pytest.mark.parametrize("kind", BROUGHT)
def test_autoencoders_people_bring_give_what_plain_ones_give(kind: str, call: str) -> None:
    brought, wanted = (autoencoder(make()) for make in BROUGHT[kind])
    f, x = scores(), draw(2, 5, seed=4)
    torch.testing.assert_close(VAE_CALLS[call](f, x, brought), VAE_CALLS[call](f, x, wanted), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("call", VAE_CALLS)
@pytest.mark.parametrize("cut", CUT)
def test_a_cut_decode_is_refused_by_the_methods_that_need_its_derivative(cut: str, call: str) -> None:
    net, f, x = plain(), scores(), draw(2, 5, seed=4)
    seen_through = cut == "no_grad" and call in ("enhanced_ig, Gauss", "geodesic_ig")
    if call in ("enhanced_ig", "enhanced_path") or seen_through:
        found, wanted = (VAE_CALLS[call](f, x, autoencoder(decode)) for decode in (CUT[cut](net), net))
        torch.testing.assert_close(found, wanted)
    else:
        with pytest.raises(
            ValueError, match=r"(vae: what decode gives|(path|decoder): its output) does not depend on the "
        ):
            VAE_CALLS[call](f, x, autoencoder(CUT[cut](net)))


@pytest.mark.parametrize("call", VAE_CALLS)
@pytest.mark.parametrize("part", ["encode", "decode"])
def test_an_autoencoder_whose_rows_are_not_on_their_own_is_refused(part: str, call: str) -> None:
    if (part, call) == ("encode", "tangential_ig"):
        pytest.skip("the method encodes black images alone")
    matrix, net = draw(5, 4, seed=9) / 3, plain()
    vae = autoencoder(net, lambda x: (x - 2 * x.mean(0)) @ matrix)
    if part == "decode":
        vae = autoencoder(lambda z: net(z - z.mean(0)))
    with pytest.raises(ValueError, match=f"vae: {part} gave rows that depend on each other or on chance"):
        VAE_CALLS[call](scores(), draw(2, 5, seed=4), vae)


@pytest.mark.parametrize("call", VAE_CALLS)
def test_every_method_says_the_same_of_the_same_mistake(call: str) -> None:
    f, x, net = scores(), draw(2, 5, seed=4), plain()
    mistakes = {
        r"vae: decode gave shape \(\d+, 3\)": autoencoder(lambda z: net(z)[:, :3]),
        "vae: decode gave tuple": autoencoder(lambda z: (net(z), z)),
        "vae: encode gave tuple": autoencoder(net, lambda x: (x, x)),
        "vae: got SimpleNamespace without encode": SimpleNamespace(decode=net),
        r"vae: got train mode \(Dropout\)": autoencoder(nn.Sequential(net, nn.Dropout())),
    }
    for message, vae in mistakes.items():
        with pytest.raises(ValueError, match=message):
            VAE_CALLS[call](f, x, vae)


@pytest.mark.parametrize("call", VAE_CALLS)
def test_an_autoencoder_of_lower_precision_is_used_in_its_own(call: str) -> None:
    net, matrix, f, x = plain(), draw(5, 4, seed=9) / 3, scores(), draw(2, 5, seed=4)
    low = seeded(Plain()).eval()
    vae = autoencoder(low, lambda x: x.float() @ matrix.float())  # decode takes the latents that encode gives
    found, wanted = VAE_CALLS[call](f, x, vae), VAE_CALLS[call](f, x, autoencoder(net))
    assert found.dtype == torch.float64
    if call not in (
        "ma_gig",
        "ma_gig_path",
        "tangential_ig",
    ):  # these choose by the gradient, and rounding decides ties
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- models

MAPS = draw(3, 1, 4, 4, seed=7)
MODEL_CALLS: dict[str, Call] = {
    "gradient": lambda f, x: ml.gradient(f, x, 1),
    "input_x_gradient": lambda f, x: ml.input_x_gradient(f, x),
    "smoothgrad": lambda f, x: ml.smoothgrad(f, x, 1, generator=torch.Generator().manual_seed(0)),
    "integrated_gradients": lambda f, x: ml.integrated_gradients(f, x),
    "integrated_gradients, tolerance": lambda f, x: ml.integrated_gradients(f, x, 1, tolerance=1e-3),
    "expected_gradients": lambda f, x: ml.expected_gradients(
        f, x, 1, references=x, generator=torch.Generator().manual_seed(0), return_convergence_delta=True
    )[0],
    "integrate": lambda f, x: ml.integrate(f, ml.straight_path(x), 1, n_steps=20),
    "guided_ig": lambda f, x: ml.guided_ig(f, x, 1, n_steps=12),
    "blur_ig": lambda f, x: ml.blur_ig(f, x, 1, n_steps=12),
    "geodesic_ig": lambda f, x: ml.geodesic_ig(f, x, 1, nodes=draw(6, 1, 4, 4), n_neighbors=2, n_nodes=8),
    "energy_ig": lambda f, x: ml.energy_ig(f, x, 1, n_steps=8, max_iter=3),
    "energy_ig, potential": lambda f, x: ml.energy_ig(f, x, 1, n_steps=8, max_iter=3, energy="potential"),
    "tangential_ig": lambda f, x: ml.tangential_ig(
        f, x, 1, basis=torch.eye(16).double()[:, :3].repeat(3, 1, 1), max_iter=3, n_starts=1
    ),
    "completeness_error": lambda f, x: ml.completeness_error(f, x, MAPS, 1),
    "cancellation_ratio": lambda f, x: ml.cancellation_ratio(f, x, MAPS, 1),
    "insertion_deletion": lambda f, x: ml.insertion_deletion(f, x, MAPS, 1, score="probability").deletion,
    "diffid": lambda f, x: ml.diffid(f, x, MAPS, 1, soft=True),
    "pgd": lambda f, x: ml.pgd(f, x, 1, eps=0.1, clamp=None, n_steps=3),
    "attribution_attack": lambda f, x: (
        ml.attribution_attack(f, x, MAPS, 1, attribution=ml.gradient, eps=0.1, n_steps=2, clamp=None).inputs
    ),
    "max_sensitivity": lambda f, x: ml.max_sensitivity(
        f, x, 1, attribution=ml.integrated_gradients, n_samples=2, generator=torch.Generator().manual_seed(0)
    ),
}


class Scores(nn.Module):
    """A decoder's head on images: (B, 1, 4, 4) -> (B, 3), smooth in all of its derivatives."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(16, 4), body, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x.flatten(1))))


def classifier(body: Any) -> nn.Module:
    model = Scores(body)
    with torch.no_grad():
        for index, parameter in enumerate((*model.first.parameters(), *model.last.parameters())):
            parameter.copy_(draw(*parameter.shape, seed=index) / 2)
    return model.double().eval()


@pytest.mark.parametrize("call", MODEL_CALLS)
@pytest.mark.parametrize("kind", BROUGHT)
def test_models_people_bring_give_what_plain_ones_give(kind: str, call: str) -> None:
    brought, wanted = (classifier(make()) for make in BROUGHT[kind])
    x = draw(3, 1, 4, 4, seed=5)
    torch.testing.assert_close(MODEL_CALLS[call](brought, x), MODEL_CALLS[call](wanted, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("call", MODEL_CALLS)
def test_a_model_that_works_in_lower_precision_gives_results_in_that_of_the_inputs(call: str) -> None:
    model, low, x = classifier(plain()), classifier(plain()).float(), draw(3, 1, 4, 4, seed=5)
    found = MODEL_CALLS[call](lambda points: low(points.float()), x)
    assert found.dtype == torch.float64
    if call not in ("guided_ig", "pgd", "attribution_attack"):  # whose choices rounding may turn
        torch.testing.assert_close(found, MODEL_CALLS[call](model, x), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("call", MODEL_CALLS)
def test_weights_of_another_precision_are_named(call: str) -> None:
    with pytest.raises(ValueError, match=r"inputs: got torch.float64, wants torch.float32 like the parameters"):
        MODEL_CALLS[call](classifier(plain()).float(), draw(3, 1, 4, 4))


WITHOUT_TRIAL = ("gradient", "input_x_gradient", "completeness_error", "cancellation_ratio", "insertion_deletion")
WITHOUT_TRIAL += ("diffid", "pgd", "geodesic_ig, rank1")


NO_GRADIENT = ("completeness_error", "cancellation_ratio", "insertion_deletion", "diffid")

# these refine until a sum is complete, which that of such a model never is
REFINING = ("energy_ig", "energy_ig, potential", "integrated_gradients, tolerance")


@pytest.mark.parametrize("call", [call for call in MODEL_CALLS if call not in REFINING])
@pytest.mark.parametrize("kind", ON_OTHERS)
def test_a_model_whose_rows_are_not_on_their_own_is_said_once(kind: str, call: str) -> None:
    """Layers that torch knows are seen at once; functions only where a method takes gradients enough for a trial."""
    body = on_others(kind)
    model = classifier(body)
    if isinstance(body, nn.Module):
        for module in body.modules():
            module.train(isinstance(module, nn.MultiheadAttention))
    known = kind in ("batch norm without statistics", "attention's own dropout")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MODEL_CALLS[call](model, draw(3, 1, 4, 4))
    said = [w for w in caught if "used as found" in str(w.message)]
    if known or call not in WITHOUT_TRIAL:
        assert len(said) == 1 and issubclass(said[0].category, UserWarning)
    if known:
        assert "BatchNorm1d" in str(said[0].message) or "MultiheadAttention" in str(said[0].message)


@pytest.mark.parametrize("call", [call for call in MODEL_CALLS if call not in NO_GRADIENT])
@pytest.mark.parametrize("cut", CUT)
def test_a_cut_model_is_refused(cut: str, call: str) -> None:
    with pytest.raises(ValueError, match="model: its scores do not depend on the inputs differentiably"):
        MODEL_CALLS[call](CUT[cut](classifier(plain())), draw(3, 1, 4, 4))


@pytest.mark.parametrize("call", MODEL_CALLS)
def test_several_inputs_and_outputs_are_refused_by_name(call: str) -> None:
    model, x = classifier(plain()), draw(3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"inputs: got tuple, wants a tensor .*manifold_lib.gradient"):
        MODEL_CALLS[call](model, (x, x))

    def with_slope(points: Tensor) -> tuple[Tensor, Tensor]:
        points = points if points.requires_grad else points.requires_grad_()
        scores = model(points)
        return scores, torch.autograd.grad(scores.sum(), points, create_graph=True)[0]

    for several in (lambda points: (model(points), points), with_slope):
        with pytest.raises(ValueError, match=r"model: got scores tuple, wants \(B, C\).*manifold_lib.gradient"):
            MODEL_CALLS[call](several, x)


BATCH_NORM = nn.BatchNorm1d(8, track_running_stats=False)


@pytest.mark.parametrize("make", [lambda m: m, lambda m: torch.jit.trace(m, draw(2, 4)), torch.jit.script])
@pytest.mark.parametrize("n_images", [1, 3])
def test_layers_that_mix_are_seen_in_scripts_and_used_on_one_image(make: Callable, n_images: int) -> None:
    x = draw(n_images, 4)
    for norm, mixes in ((BATCH_NORM, True), (nn.BatchNorm1d(8), False)):
        model = make(nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Linear(8, 3)).double().eval())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ml.gradient(model, x, 1)
            ml.attribution_attack(model, x, x.flip(1), 1, attribution=ml.gradient, eps=0.1, n_steps=2)
        assert ["BatchNorm1d" in str(w.message) for w in caught if "as found" in str(w.message)] == 2 * [True] * mixes
    assert torch.backends.cudnn.enabled


def test_recurrent_layers_are_derived_without_cudnn() -> None:
    """In eval mode cuDNN gives no derivative."""
    used: list[bool] = []
    layer = nn.LSTM(4, 3, batch_first=True).double().eval()

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            used.append(torch.backends.cudnn.enabled)
            return self.layer(x[:, None])[0][:, 0]

    ml.integrated_gradients(Recurrent(), draw(2, 4), 1, n_steps=8)
    assert not any(used) and torch.backends.cudnn.enabled


def test_generated_samples_take_no_decoder_or_labeller_that_mixes_or_draws() -> None:
    sure = lambda x: 9 * x  # noqa: E731
    options: dict[str, Any] = {"latent_dim": 4}
    for kind in ON_OTHERS:
        other = on_others(kind)
        other = other.float() if isinstance(other, nn.Module) else (lambda z, f=other: f(z.double()).float())
        for pair in ((other, sure), (torch.sin, other)):
            with pytest.raises(ValueError, match=r"(decoder|labeller): got (rows that|train mode|layers that)"):
                ml.sample_generated(*pair, 5, generator=torch.Generator().manual_seed(0), **options)
    with pytest.raises(ValueError, match="labeller: got tuple"):
        ml.sample_generated(sure, lambda x: (x,), 5, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("layer", [BATCH_NORM, nn.BatchNorm1d(8), nn.Dropout()])
def test_networks_that_cannot_be_retrained_together_are_refused(layer: nn.Module) -> None:
    build = lambda: nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))  # noqa: E731
    with pytest.raises(ValueError, match=f"build: got a network with {type(layer).__name__}"):
        ml.retrain(build, draw(2, 6, 4), torch.arange(6) % 2, draw(2, 6, 4), torch.arange(6) % 2)


def test_an_attribution_that_gives_more_than_a_map_is_named() -> None:
    model, x = classifier(plain()), draw(3, 1, 4, 4)
    pair = functools.partial(ml.integrated_gradients, return_convergence_delta=True)
    for call in (
        lambda: ml.attribution_attack(model, x, MAPS, 1, attribution=pair, eps=0.1),
        lambda: ml.max_sensitivity(model, x, 1, attribution=pair, maps=MAPS),
    ):
        with pytest.raises(ValueError, match="attribution: got tuple"):
            call()


def test_energies_have_second_derivatives_through_attention() -> None:
    points = draw(1, 3, 4, seed=2)
    hessians = [
        torch.autograd.functional.hessian(lambda p, net=net: ml.curve_energy(net, p).sum(), points)
        for net in (seeded(Fused()).double().eval(), plain())
    ]
    torch.testing.assert_close(*hessians)


# ---------------------------------------------------------------------------------------- baselines, volumes, sums

BASELINE_CALLS: dict[str, Call] = {
    "integrated_gradients": lambda f, x, b: ml.integrated_gradients(f, x, 1, baselines=b),
    "guided_ig": lambda f, x, b: ml.guided_ig(f, x, 1, baselines=b, n_steps=5),
    "straight_path": lambda f, x, b: ml.straight_path(x, b).sample(3),
    "energy_ig": lambda f, x, b: ml.energy_ig(f, x, 1, baselines=b, n_steps=5, max_iter=2),
    "geodesic_ig": lambda f, x, b: ml.geodesic_ig(f, x, 1, baselines=b, nodes=x, n_neighbors=1),
    "completeness_error": lambda f, x, b: ml.completeness_error(f, x, x, 1, baselines=b),
    "cancellation_ratio": lambda f, x, b: ml.cancellation_ratio(f, x, x, 1, baselines=b),
    "insertion_deletion": lambda f, x, b: ml.insertion_deletion(f, x, x, 1, fill=b, score="probability").deletion,
}


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (3, 2, 1, 1), (1, 1, 4, 1), (3, 1, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("call", BASELINE_CALLS)
def test_a_baseline_may_be_anything_that_expands_to_the_inputs(call: str, shape: tuple[int, ...]) -> None:
    f = seeded(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 3))).double().eval()
    x, baseline = draw(3, 2, 4, 4, seed=2), draw(*shape, seed=3)
    found, wanted = (BASELINE_CALLS[call](f, x, b) for b in (baseline, baseline.expand_as(x).clone()))
    torch.testing.assert_close(found, wanted)


def test_a_fill_that_does_not_broadcast_is_named() -> None:
    x = draw(2, 3, 4, 4)
    for shape in ((), (4,), (3, 1, 1), (1, 3, 1, 1), (2, 3, 4, 4)):
        assert ml.remove_top(x, x, 0.5, fill=torch.zeros(shape).double()).shape == x.shape
    for shape in ((7,), (2, 1, 1), (1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="fill: got shape"):
            ml.remove_top(x, x, 0.5, fill=torch.zeros(shape).double())


def test_a_volume_is_measured_like_the_image_it_is_one_slice_of() -> None:
    image, other = draw(2, 3, 12, 13, seed=1), draw(2, 3, 12, 13, seed=2)
    mask = torch.zeros(2, 1, 12, 13, dtype=torch.bool)
    mask[..., 3:6, 4:9] = True
    for measure in (
        lambda a, b, m: ml.total_variation(a),
        lambda a, b, m: ml.pearson(a, b),
        lambda a, b, m: ml.spearman(a, b),
        lambda a, b, m: ml.map_mse(a, b),
        lambda a, b, m: ml.top_k(a, b),
        lambda a, b, m: ml.relevance_mass(a, m),
        lambda a, b, m: ml.relevance_rank(a, m),
        lambda a, b, m: ml.baselines.mean(a).flatten(1),
    ):
        flat, deep = measure(image, other, mask), measure(image[:, :, None], other[:, :, None], mask[:, :, None])
        torch.testing.assert_close(deep, flat)


def test_a_volume_is_measured_along_all_of_its_axes() -> None:
    volume = torch.zeros(1, 1, 3, 3, 3)
    volume[0, 0, 1, 1, 1] = 2.0  # six neighbours, each 1 away after scaling
    torch.testing.assert_close(ml.total_variation(volume), torch.tensor([6 / 27]))
    solid = draw(1, 2, 12, 12, 12).float()
    torch.testing.assert_close(ml.ssim(solid, solid.flip(1)), torch.ones(1))
    deletion = ml.insertion_deletion(
        lambda v: v.flatten(1)[:, :2], solid, solid, 0, unit="pixel", ratios=[0.5]
    ).deletion
    assert deletion is not None and deletion.shape == (1, 1)


@pytest.mark.parametrize("call", ["blurred", "blur_ig"])
def test_what_is_for_images_alone_refuses_volumes_by_name(call: str) -> None:
    volume = draw(1, 1, 6, 7, 8)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ml.baselines.blurred(volume) if call == "blurred" else ml.blur_ig(lambda v: v.flatten(1), volume, 0)


def wall(x: Tensor) -> Tensor:
    """A step of height 1 at one half, far too steep for some steps: (B, 2) -> (B, 1)."""
    return (1e6 * (x.mean(1, keepdim=True) - 0.5031)).sigmoid()


STEEP: dict[str, Call] = {
    "guided_ig": lambda x, delta: ml.guided_ig(wall, x, 0, n_steps=5, return_convergence_delta=delta),
    "enhanced_ig": lambda x, delta: ml.enhanced_ig(
        wall, x, 0, vae=autoencoder(lambda z: z, lambda x: x), n_steps=7, return_convergence_delta=delta
    ),
    "manifold_ig": lambda x, delta: ml.manifold_ig(
        wall, x, 0, vae=autoencoder(lambda z: z, lambda x: x), n_steps=7, return_convergence_delta=delta
    ),
    "ma_gig": lambda x, delta: ml.ma_gig(
        wall, x, 0, vae=autoencoder(lambda z: z, lambda x: x), n_steps=5, return_convergence_delta=delta
    ),
}
SAME = {"vae": autoencoder(lambda z: z, lambda x: x), "n_steps": 7, "return_convergence_delta": True}
STEEP_WITH_DELTA: dict[str, Call] = {
    "enhanced_ig, bridge": lambda x, bridge: ml.enhanced_ig(wall, x, 0, bridge=bridge, create_graph=True, **SAME),
    "enhanced_ig, no graph": lambda x, bridge: ml.enhanced_ig(wall, x, 0, bridge=bridge, **SAME),
    "manifold_ig, bridge": lambda x, bridge: ml.manifold_ig(wall, x, 0, bridge=bridge, create_graph=True, **SAME),
    "manifold_ig, no graph": lambda x, bridge: ml.manifold_ig(wall, x, 0, bridge=bridge, **SAME),
    "ma_gig": lambda x, bridge: ml.ma_gig(wall, x, 0, bridge=bridge, **SAME),
    "idgi": lambda x, _: ml.idgi(
        wall, x, 0, path=ml.polyline(torch.stack([0 * x, x / 2, x], 1)), n_steps=7, return_convergence_delta=True
    ),
}


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("call", STEEP)
def test_a_sum_that_misses_half_of_the_change_is_said_once(call: str, delta: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = STEEP[call](torch.ones(3, 2), delta)
    total = (found[0] if delta else found).sum(1)
    assert ((total - 1).abs() >= 0.5).all(), "the wall is met by no gradient"
    (message,) = [str(item.message) for item in caught]
    assert message.startswith(f"{call}: 3 of 3 sums miss the change of the score by half")


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize("call", STEEP_WITH_DELTA)
def test_who_asks_for_the_delta_is_told_once(call: str, bridge: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        STEEP_WITH_DELTA[call](torch.ones(3, 2), bridge)
    misses = [str(item.message) for item in caught if "miss the change" in str(item.message)]
    assert len(misses) == 1 and misses[0].startswith(f"{call.split(',')[0]}: 3 of 3 sums miss the change")


def test_whoever_asks_for_the_delta_is_told_too() -> None:
    x = torch.ones(3, 2)
    with pytest.warns(ml.AttributionWarning, match="integrated_gradients: 3 of 3 sums miss"):
        ml.integrated_gradients(wall, x, 0, n_steps=7, return_convergence_delta=True)
    with pytest.warns(ml.AttributionWarning, match="integrate: 3 of 3 sums miss"):
        ml.integrate(wall, ml.straight_path(x), 0, n_steps=7, return_info=True)
    with pytest.warns(ml.AttributionWarning, match="expected_gradients: 3 of 3 sums miss"):
        ml.expected_gradients(wall, x, 0, references=0 * x, n_samples=7, return_convergence_delta=True)


def test_shapley_values_of_a_linear_score_are_exact_whatever_the_default_type() -> None:
    weights, x = draw(5), draw(4, 5)
    torch.testing.assert_close(ml.shapley_values(lambda p: p @ weights, x), weights * x, rtol=0, atol=1e-14)
