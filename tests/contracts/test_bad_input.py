"""Bad input to any public function is a ValueError that names the argument, what it got and what it wants."""

import inspect
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import manifold_lib as ml

B, C, K, SHAPE = 3, 4, 2, (1, 3, 3)
RULES = ["trapezoid", "left", "right", "midpoint", "gausslegendre"]
D = math.prod(SHAPE)
_generator = torch.Generator().manual_seed(0)
WEIGHTS = torch.randn(C, D, generator=_generator)
MIXING = torch.randn(D, K, generator=_generator)


def model(x):
    return x.flatten(1) @ WEIGHTS.T


def decoder(z):
    return torch.tanh(z.flatten(1) @ MIXING.T).view(-1, *SHAPE)


class VAE:
    encode = staticmethod(lambda x: x.flatten(1) @ MIXING)
    decode = staticmethod(lambda z: decoder(z))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def inputs():
    return normal(B, *SHAPE)


def basis():
    return ml.tangent_basis(decoder, normal(B, K))


def seed():
    return torch.Generator().manual_seed(0)


EVALUATION = (
    "completeness_error",
    "cancellation_ratio",
    "insertion_deletion",
    "comprehensiveness",
    "log_odds",
    "purity",
    "diffid",
)
WITH_BASELINES = ("completeness_error", "cancellation_ratio", "purity")

# name -> (function, valid positional and keyword arguments by name, as makers)
FUNCTIONS = {
    "gradient": (ml.gradient, {"model": lambda: model, "inputs": inputs, "target": lambda: 1}),
    "input_x_gradient": (ml.input_x_gradient, {"model": lambda: model, "inputs": inputs, "target": lambda: 1}),
    "smoothgrad": (
        ml.smoothgrad,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "n_samples": lambda: 2, "generator": seed},
    ),
    "integrated_gradients": (
        ml.integrated_gradients,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs, "n_steps": lambda: 2},
    ),
    "integrate": (
        ml.integrate,
        {"model": lambda: model, "path": lambda: normal(B, 4, *SHAPE), "target": lambda: 1, "n_steps": lambda: 3},
    ),
    "guided_ig": (
        ml.guided_ig,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs, "n_steps": lambda: 3},
    ),
    "guided_path": (
        ml.guided_path,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs, "n_steps": lambda: 3},
    ),
    "enhanced_ig": (
        ml.enhanced_ig,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
            **{"n_steps": lambda: 3, "vae": lambda: VAE},
        },
    ),
    **{
        name: (
            getattr(ml, name),
            {
                **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
                **{"n_steps": lambda: 3, "vae": lambda: VAE},
            },
        )
        for name in ("ma_gig", "ma_gig_path")
    },
    "enhanced_path": (ml.enhanced_path, {"inputs": inputs, "baselines": inputs, "vae": lambda: VAE}),
    "manifold_path": (
        ml.manifold_path,
        {
            **{"inputs": inputs, "baselines": inputs, "vae": lambda: VAE},
            **{"n_steps": lambda: 3, "max_iter": lambda: 0},
        },
    ),
    "idgi": (
        ml.idgi,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs, "n_steps": lambda: 3},
    ),
    "manifold_ig": (
        ml.manifold_ig,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
            **{"n_steps": lambda: 3, "max_iter": lambda: 0, "vae": lambda: VAE},
        },
    ),
    **{
        name: (
            getattr(ml, name),
            {
                **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
                **{"nodes": lambda: 2 * normal(6, *SHAPE), "n_neighbors": lambda: 2, "n_nodes": lambda: 2},
            },
        )
        for name in ("geodesic_ig", "geodesic_paths")
    },
    **{
        name: (
            getattr(ml, name),
            {
                **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
                **{"n_steps": lambda: 3, "max_iter": lambda: 2},
            },
        )
        for name in ("energy_ig", "energy_path")
    },
    "shapley_values": (
        ml.shapley_values,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "baselines": inputs},
    ),
    "geodesic": (
        ml.geodesic,
        {
            **{"decoder": lambda: decoder, "start": lambda: normal(B, K), "end": lambda: -normal(B, K)},
            **{"n_steps": lambda: 3},
        },
    ),
    **{
        name: (getattr(ml, name), {"decoder": lambda: decoder, "points": lambda: normal(B, 4, K)})
        for name in ("curve_energy", "curve_length")
    },
    "resample": (
        ml.resample,
        {"decoder": lambda: decoder, "points": lambda: normal(B, 4, K), "n_steps": lambda: 3},
    ),
    **{
        name: (getattr(ml, name), {"decoder": lambda: decoder, "latents": lambda: normal(B, K)})
        for name in ("pullback_metric", "magnification_factor")
    },
    "nearest_on_manifold": (
        ml.nearest_on_manifold,
        {
            **{"decoder": lambda: decoder, "points": lambda: normal(B, *SHAPE), "starts": lambda: normal(B, 2, K)},
            **{"max_iter": lambda: 2},
        },
    ),
    "exp_map": (
        ml.exp_map,
        {
            **{"decoder": lambda: decoder, "latents": lambda: normal(B, K), "velocities": lambda: normal(B, K)},
            **{"n_steps": lambda: 2},
        },
    ),
    "log_map": (
        ml.log_map,
        {"decoder": lambda: decoder, "start": lambda: normal(B, K), "end": lambda: -normal(B, K)},
    ),
    "karcher_mean": (
        ml.karcher_mean,
        {"decoder": lambda: decoder, "latents": lambda: normal(B, K), "n_steps": lambda: 3, "max_iter": lambda: 2},
    ),
    "parallel_transport": (
        ml.parallel_transport,
        {
            **{"decoder": lambda: decoder, "curve": lambda: normal(B, 4, K), "vectors": lambda: normal(B, K)},
            **{"n_steps": lambda: 3},
        },
    ),
    "rbf_std": (ml.rbf_std, {"vae": lambda: VAE, "inputs": inputs, "n_centers": lambda: 2}),
    "expected_gradients": (
        ml.expected_gradients,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1},
            **{"references": inputs, "n_samples": lambda: 3, "generator": seed},
        },
    ),
    "tangential_baseline": (
        ml.tangential_baseline,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "basis": basis},
            **{"n_starts": lambda: 2, "max_iter": lambda: 2, "n_steps": lambda: 2, "generator": seed},
        },
    ),
    "tangential_ig": (
        ml.tangential_ig,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "basis": basis},
            **{"n_starts": lambda: 2, "max_iter": lambda: 2, "n_steps": lambda: 2, "generator": seed},
        },
    ),
    **{
        name: (
            getattr(ml, name),
            {
                **{"model": lambda: model, "inputs": inputs, "target": lambda: 1},
                "attributions": lambda: normal(B, *SHAPE),
                **({"baselines": lambda: torch.zeros(B, *SHAPE)} if name in WITH_BASELINES else {}),
            },
        )
        for name in EVALUATION
    },
    **{
        f"baselines.{name}": (getattr(ml.baselines, name), {"inputs": inputs})
        for name in ("zero", "constant", "max_distance", "uniform", "gaussian", "blurred", "mean")
    },
    "blur_ig": (
        ml.blur_ig,
        {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "n_steps": lambda: 3, "sigma": lambda: 1.0},
    ),
    "blur_path": (ml.blur_path, {"inputs": inputs, "sigma": lambda: 1.0}),
    "straight_path": (ml.straight_path, {"inputs": inputs, "baselines": inputs}),
    "attribution_attack": (
        ml.attribution_attack,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1, "target_maps": inputs},
            **{"attribution": lambda: ml.input_x_gradient, "eps": lambda: 0.1, "n_steps": lambda: 2},
        },
    ),
    **{
        name: (getattr(ml, name), {"maps": inputs, "others": lambda: -inputs()})
        for name in ("pearson", "spearman", "map_mse", "top_k")
    },
    "ssim": (ml.ssim, {"maps": lambda: normal(B, 1, 11, 11), "others": lambda: normal(B, 1, 11, 11)}),
    "max_sensitivity": (
        ml.max_sensitivity,
        {
            **{"model": lambda: model, "inputs": inputs, "target": lambda: 1},
            **{"attribution": lambda: ml.input_x_gradient, "n_samples": lambda: 2, "generator": seed},
        },
    ),
    **{
        name: (getattr(ml, name), {"maps": inputs, "mask": lambda: torch.eye(3, dtype=torch.bool).expand(B, 1, 3, 3)})
        for name in ("relevance_mass", "relevance_rank")
    },
    "principal_angles": (ml.principal_angles, {"basis": basis, "other": basis}),
    "pgd": (ml.pgd, {"model": lambda: model, "inputs": inputs, "target": lambda: 1, "eps": lambda: 0.1}),
    "decoder_jacobian": (ml.decoder_jacobian, {"decoder": lambda: decoder, "latents": lambda: normal(B, K)}),
    "tangent_basis": (ml.tangent_basis, {"decoder": lambda: decoder, "latents": lambda: normal(B, K)}),
    "project": (ml.project, {"vectors": inputs, "basis": basis}),
    "tangent_fraction": (ml.tangent_fraction, {"attributions": inputs, "basis": basis}),
    "tangent_share": (ml.tangent_share, {"basis": basis}),
    "project_matrix_free": (
        ml.project_matrix_free,
        {"vectors": inputs, "decoder": lambda: decoder, "latents": lambda: normal(B, K)},
    ),
    "random_fraction": (ml.random_fraction, {"k": lambda: 2, "d": lambda: 9}),
    "render_shapes": (
        ml.render_shapes,
        {"latents": lambda: 0.5 * torch.ones(B, 8), "labels": lambda: torch.tensor([0, 1, 3])},
    ),
    "sample_shapes": (ml.sample_shapes, {"n_samples": lambda: 2, "generator": seed}),
    "sample_generated": (
        ml.sample_generated,
        {
            "decoder": lambda: decoder,
            "labeller": lambda: lambda x: 50 * model(x),
            "n_samples": lambda: 2,
            "latent_dim": lambda: K,
            "generator": seed,
        },
    ),
}


# they make models and losses, or work on what these tests have no need to vary
OTHERS = {
    *("beta_tcvae_loss", "elbo_loss", "labeller", "lenet", "load_kl_autoencoder", "orthonormal_columns", "polyline"),
    *("imagenet_classes", "imagenet_network", "load_taef2", "load_tiny_autoencoder"),
    *(
        "fisher_rao",
        "variance_metric",
        "randomised",
        "relevance",
        "remove_top",
        "retrain",
        "shape_decoder",
        "small_inception",
        "small_resnet",
    ),
    *("small_vgg", "soft_cnn", "tiny_cnn", "total_variation"),
}


def call(name, **changes):
    function, makers = FUNCTIONS[name]
    return function(**{**{key: make() for key, make in makers.items()}, **changes})


def refused(name, argument, says=(), **changes):
    """Assert the refusal, and that it names the argument and what it got."""
    with pytest.raises(ValueError) as caught:
        call(name, **changes)
    message = str(caught.value)
    assert re.search(rf"\b{argument}\b", message), f"{message!r} does not name {argument}"
    for words in says:
        assert words in message, f"{message!r} does not say {words}"
    return message


def with_argument(*names):
    """Pairs of a function and one of these arguments of it."""
    return [(name, argument) for name, (_, makers) in FUNCTIONS.items() for argument in makers if argument in names]


# what is NaN for one image passes through these, to that image only
PASS_ON = ("project", "tangent_fraction", "tangent_share")
BATCHES = ("inputs", "path", "latents", "vectors", "attributions", "basis", "baselines", "references", "maps")
BATCHES += ("nodes", "curve", "start", "end", "starts", "points", "velocities", "others", "target_maps")
ASK_FOR_LOGITS = ("insertion_deletion", "comprehensiveness", "log_odds", "purity", "diffid")
MEASURES = ("pearson", "spearman", "map_mse", "top_k", "ssim", "relevance_mass", "relevance_rank")


def test_every_public_function_is_here():
    public = {name for name in ml.__all__ if inspect.isfunction(getattr(ml, name))}
    assert public - set(FUNCTIONS) == OTHERS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_valid_call_works(name):
    call(name)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, argument in with_argument(*BATCHES)
        if name not in (*PASS_ON, *MEASURES)
        and argument != "basis"
        and (name not in EVALUATION or argument != "attributions")
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_number_that_is_not_finite_is_refused_wherever_it_stands(name, argument, value, data):
    good = FUNCTIONS[name][1][argument]()
    bad = good.clone()
    bad.view(-1)[data.draw(st.integers(0, bad.numel() - 1))] = value
    refused(name, argument, **{argument: bad})


@pytest.mark.parametrize("name", PASS_ON)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_basis_with_nan_harms_that_image_only(name):
    bad = basis()
    bad[1] = math.nan
    found, clean = call(name, basis=bad), call(name)
    assert torch.equal(found[[0, 2]], clean[[0, 2]]) and found[1].isnan().all()


@pytest.mark.parametrize(("name", "argument"), with_argument("generator"))
@pytest.mark.parametrize("value", [5, "seed", 0.5])
def test_a_seed_is_no_generator(name, argument, value):
    refused(name, argument, [type(value).__name__, "torch.Generator"], generator=value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_baseline_of_no_number_is_refused(value):
    with pytest.raises(ValueError, match="value: got"):
        ml.baselines.constant(inputs(), value=value)


@pytest.mark.parametrize("value", [5, "seed"])
@pytest.mark.parametrize("baseline", [ml.baselines.uniform, ml.baselines.gaussian])
def test_a_seed_is_no_generator_of_baselines(baseline, value):
    with pytest.raises(ValueError, match="generator: got"):
        baseline(inputs(), generator=value)


@pytest.mark.parametrize("name", ASK_FOR_LOGITS)
@pytest.mark.parametrize("target", [None, 0, [0, 0, 0]])
def test_a_measure_of_a_model_of_one_score_asks_for_logits(name, target):
    target = torch.tensor(target) if isinstance(target, list) else target
    with pytest.raises(ValueError, match="logits"):
        call(name, model=lambda x: x.flatten(1).sum(1), target=target)


@pytest.mark.parametrize(("name", "argument"), with_argument(*BATCHES))
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_refused(name, argument, dtype):
    good = FUNCTIONS[name][1][argument]()
    refused(name, argument, [str(dtype)], **{argument: (100 * good).to(dtype)})


@pytest.mark.parametrize(("name", "argument"), with_argument(*BATCHES))
def test_an_empty_batch_is_refused(name, argument):
    good = FUNCTIONS[name][1][argument]()
    message = refused(name, argument, **{argument: good[:0]})
    assert str(tuple(good[:0].shape)) in message


@pytest.mark.parametrize(("name", "argument"), with_argument(*BATCHES))
def test_a_tensor_of_one_dimension_is_refused(name, argument):
    refused(name, argument, [f"({D},)" if argument != "basis" else "(9,)"], **{argument: normal(D)})


@pytest.mark.parametrize(("name", "argument"), with_argument(*BATCHES))
@pytest.mark.parametrize("value", ["images", [[1.0, 2.0]]])
def test_what_is_no_tensor_is_refused(name, argument, value):
    refused(name, argument, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument", "other"),
    [
        ("integrated_gradients", "baselines", "inputs"),
        *(
            (name, "baselines", "inputs")
            for name in ("guided_ig", "guided_path", "enhanced_ig", "enhanced_path", "idgi")
        ),
        *((name, "baselines", "inputs") for name in ("ma_gig", "ma_gig_path", "manifold_path", "geodesic_paths")),
        ("geodesic_ig", "baselines", "inputs"),
        ("energy_ig", "baselines", "inputs"),
        ("tangential_baseline", "basis", "inputs"),
        *((name, "attributions", "inputs") for name in EVALUATION),
        ("straight_path", "baselines", "inputs"),
        ("project", "basis", "vectors"),
        ("tangent_fraction", "basis", "attributions"),
        ("project_matrix_free", "latents", "vectors"),
        ("render_shapes", "labels", "latents"),
    ],
)
@given(extra=st.integers(2, 6).filter(lambda n: n != B))
@settings(max_examples=5, deadline=None)
def test_batches_of_two_lengths_are_refused_with_both_shapes(name, argument, other, extra):
    good = FUNCTIONS[name][1][argument]()
    bad = good[torch.arange(extra) % B]
    message = refused(name, f"({argument}|{other})", **{argument: bad})
    assert str(extra) in message and str(B) in message


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [
        ("integrated_gradients", "baselines", (B, 1, 3, 4)),
        ("integrated_gradients", "baselines", (B, D)),
        ("straight_path", "baselines", (B, 1, 4, 3)),
        ("geodesic_ig", "nodes", (B, 1, 3, 4)),
        ("project", "basis", (B, D + 1, K)),
        ("project", "basis", (B, D)),
        ("tangent_fraction", "basis", (B, D + 1, K)),
        ("project_matrix_free", "vectors", (B, 1, 3, 4)),
        ("render_shapes", "latents", (B, 7)),
        ("integrate", "path", (B, 1, *SHAPE)),
    ],
)
def test_a_wrong_shape_is_refused_with_the_shape_it_got(name, argument, bad):
    with pytest.raises(ValueError) as caught:
        call(name, **{argument: normal(*bad)})
    assert str(tuple(bad)) in str(caught.value) and "wants" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("integrated_gradients", "baselines"), ("straight_path", "baselines"), ("project", "basis")),
        *(("geodesic_ig", "nodes"), ("energy_ig", "baselines")),
    ],
)
def test_two_dtypes_are_refused(name, argument):
    refused(name, argument, ["float64"], **{argument: FUNCTIONS[name][1][argument]().double()})


WITH_TARGET = [name for name, (_, makers) in FUNCTIONS.items() if "target" in makers]


@pytest.mark.parametrize("name", WITH_TARGET)
@given(target=st.one_of(st.integers(C, 10**6), st.integers(-(10**6), -1)))
@settings(max_examples=10, deadline=None)
def test_a_target_out_of_range_is_refused_with_the_range(name, target):
    message = refused(name, "target", [str(target)], target=target)
    assert str(C - 1) in message
    refused(name, "target", [str(target)], target=torch.tensor([0, target, 1]))


@pytest.mark.parametrize("name", WITH_TARGET)
@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([0, 1]),
        torch.zeros(B + 1, dtype=torch.int64),
        torch.zeros(B, 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(B),
        torch.zeros(B, dtype=torch.float64),
        torch.zeros(B, dtype=torch.bool),
        1.0,
        True,
        "cat",
        [0, 1, 2],
    ],
    ids=repr,
)
def test_a_target_of_wrong_shape_or_type_is_refused(name, target):
    says = [str(tuple(target.shape))] if isinstance(target, torch.Tensor) and target.dtype == torch.int64 else []
    refused(name, "target", says, target=target)


@pytest.mark.parametrize("name", [n for n in WITH_TARGET if n not in ("pgd", *ASK_FOR_LOGITS)])
def test_a_target_for_a_model_with_one_score_is_refused(name):
    refused(name, "target", model=lambda x: x.flatten(1).sum(1), target=0)


@pytest.mark.parametrize("name", WITH_TARGET)
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize(
    "bad",
    [
        lambda x: x,
        lambda x: model(x)[:, :, None],
        lambda x: model(x).sum(),
        lambda x: model(x)[:-1] if len(x) > 1 else torch.cat([model(x)] * 2),
    ],
    ids=["(B, *shape)", "(B, C, 1)", "()", "(B', C)"],
)
def test_scores_of_wrong_shape_are_refused(name, target, bad):
    refused(name, "model", model=bad, target=target)


@pytest.mark.parametrize("name", WITH_TARGET)
def test_scores_without_a_gradient_are_refused(name):
    if name in (*EVALUATION, "shapley_values"):
        pytest.skip("needs no gradient")
    with pytest.raises(ValueError, match="model"):
        call(name, model=lambda x: model(x).detach())


COUNTS = [
    ("integrate", "n_steps"),
    ("integrated_gradients", "n_steps"),
    *(("geodesic_ig", name) for name in ("n_neighbors", "n_nodes", "internal_batch_size")),
    *(("energy_ig", name) for name in ("n_steps", "internal_batch_size")),
    *((name, "n_steps") for name in ("ma_gig", "ma_gig_path", "energy_path", "manifold_path", "idgi")),
    *((name, "internal_batch_size") for name in ("ma_gig", "ma_gig_path", "guided_path", "energy_path", "idgi")),
    *((name, "internal_batch_size") for name in ("enhanced_path", "manifold_path", "geodesic_paths")),
    *(("geodesic_paths", name) for name in ("n_neighbors", "n_nodes")),
    ("pgd", "n_steps"),
    ("attribution_attack", "n_steps"),
    ("attribution_attack", "internal_batch_size"),
    ("smoothgrad", "n_samples"),
    ("sample_generated", "n_samples"),
    ("sample_shapes", "n_samples"),
    ("project_matrix_free", "max_iter"),
    *((name, "internal_batch_size") for name in ("gradient", "input_x_gradient", "smoothgrad", "integrated_gradients")),
    *((name, "internal_batch_size") for name in ("integrate", "decoder_jacobian", "tangent_basis")),
    *((name, "internal_batch_size") for name in ("guided_ig", "enhanced_ig", "expected_gradients", *EVALUATION)),
    *((name, "n_steps") for name in ("guided_ig", "guided_path", "enhanced_ig", "tangential_baseline")),
    ("expected_gradients", "n_samples"),
    *((name, "n_steps") for name in ("geodesic", "resample", "exp_map", "log_map", "manifold_ig")),
    *((name, "internal_batch_size") for name in ("geodesic", "resample", "curve_energy", "curve_length")),
    *((name, "internal_batch_size") for name in ("pullback_metric", "magnification_factor", "manifold_ig")),
    ("geodesic", "n_knots"),
    *(("karcher_mean", name) for name in ("n_steps", "max_iter")),
    ("parallel_transport", "n_steps"),
    *(("rbf_std", name) for name in ("n_centers", "internal_batch_size")),
    ("tangential_ig", "n_ig_steps"),
    *(("tangential_baseline", name) for name in ("n_starts", "max_iter", "internal_batch_size")),
]


@pytest.mark.parametrize(("name", "argument"), COUNTS)
@given(value=st.one_of(st.integers(-(10**6), 0), st.floats(allow_nan=True), st.booleans(), st.text(max_size=3)))
@settings(max_examples=12, deadline=None)
def test_a_count_below_one_or_of_another_type_is_refused(name, argument, value):
    refused(name, argument, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("smoothgrad", "stdevs"),
        ("pgd", "eps"),
        ("attribution_attack", "eps"),
        ("tangent_basis", "rtol"),
        ("project_matrix_free", "rtol"),
    ],
)
@given(value=st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf, -1])))
@settings(max_examples=12, deadline=None)
def test_a_negative_or_infinite_number_is_refused(name, argument, value):
    refused(name, argument, **{argument: value})


@pytest.mark.parametrize("name", ["integrate", "integrated_gradients"])
@given(method=st.text(max_size=12).filter(lambda m: m not in RULES))
@settings(max_examples=10, deadline=None)
def test_an_unknown_method_is_refused_with_the_known_ones(name, method):
    refused(name, "method", RULES, method=method)


@pytest.mark.parametrize(("k", "d"), [(-1, 9), (10, 9), (1, 0), (1.5, 9), (2, math.nan), (True, 9)])
def test_random_fraction_refuses_what_is_no_subspace(k, d):
    refused("random_fraction", "(k|d)", k=k, d=d)


@pytest.mark.parametrize("value", [math.nan, math.inf, "black", torch.tensor(0)])
def test_a_baseline_that_is_no_finite_number_is_refused(value):
    refused("integrated_gradients", "baselines", baselines=value)


def test_bad_input_is_refused_before_the_model_is_called():
    def never(x):
        raise AssertionError("the model was called")

    for name in WITH_TARGET:
        argument = "path" if name == "integrate" else "inputs"
        bad = FUNCTIONS[name][1][argument]()
        bad.view(-1)[0] = math.nan
        refused(name, argument, model=never, **{argument: bad})
