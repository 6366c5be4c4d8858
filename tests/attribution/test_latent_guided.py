"""MA-GIG: the exact statements of paper 5 (X1 to X12), and the released rule against a loop of our own."""

import pytest
import torch
from helpers import (
    PROBES,
    Counting,
    CurvedVAE,
    IdentityVAE,
    close,
    draw,
    one_warning,
    relu_net,
    root_model,
    seeded,
    smooth_model,
    untouched,
)
from torch import nn

import manifold_lib as ml
from manifold_lib.reproduction import zoo


def case(n=4):
    return smooth_model(), CurvedVAE(), draw(n, 1, 4, 4), draw(n, 1, 4, 4, seed=2), torch.tensor([0, 1, 2, 0, 1])[:n]


def nodes_of(path, n_images, n_segments):
    rows = torch.arange(n_images).repeat_interleave(n_segments + 1)
    times = torch.linspace(0, 1, n_segments + 1, dtype=torch.float64).repeat(n_images)
    return path.at(rows, times).view(n_images, n_segments + 1, 1, 4, 4)


def test_each_step_takes_its_share_of_the_way_and_none_goes_back():
    model, _, inputs, baselines, target = case()
    path = ml.ma_gig_path(model, inputs, target, vae=IdentityVAE(), baselines=baselines, n_steps=40)
    points = nodes_of(path, 4, 42)
    way = (inputs - baselines).abs().flatten(1).sum(1)
    share = (inputs[:, None] - points[:, 1:-1]).abs().flatten(2).sum(2) / way[:, None]
    close(share, (1 - torch.arange(41).double() / 40).expand(4, -1), 1e-10)  # X2
    moves = points.diff(dim=1) * (inputs - baselines).sign()[:, None]
    assert moves.min() > -1e-12  # X3: forth only, and so within the box


def test_the_schedule_holds_on_latents_of_any_decoder():
    """The decoder is one to one, so the latents can be read off its images."""
    model, inputs, target = smooth_model(), draw(3, 1, 4, 4), torch.tensor([2, 0, 1])
    mixing = draw(16, 16, seed=5)

    class Mixed:
        encode = staticmethod(lambda x: x.flatten(1) @ mixing.inverse())
        decode = staticmethod(lambda z: (z @ mixing).view(-1, 1, 4, 4))

    points = nodes_of(ml.ma_gig_path(model, inputs, target, vae=Mixed, n_steps=20, fraction=0.2), 3, 22)
    latents = Mixed.encode(points[:, 1:-1].flatten(0, 1)).view(3, 21, 16)
    end = Mixed.encode(inputs)[:, None]
    left = (end - latents).abs().sum(2) / end.abs().sum(2)
    close(left, (1 - torch.arange(21).double() / 20).expand(3, -1), 1e-10)


def test_ends_are_the_raw_images_to_the_bit():
    model, vae, inputs, baselines, target = case()
    for published in (False, True):
        path = ml.ma_gig_path(model, inputs, target, vae=vae, baselines=baselines, n_steps=9, published=published)
        rows = torch.arange(4)
        assert torch.equal(path.at(rows, torch.zeros(4).double()), baselines)
        assert torch.equal(path.end, inputs)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 1.0])
def test_the_identity_gives_guided_ig_without_bounds(fraction):
    model, _, inputs, baselines, target = case()
    options = {"baselines": baselines, "n_steps": 30, "fraction": fraction}
    expected = ml.guided_ig(model, inputs, target, max_dist=1.0, **options)
    assert torch.equal(ml.ma_gig(model, inputs, target, vae=IdentityVAE(), **options), expected)


def test_all_latents_at_once_is_the_straight_latent_line():
    model, vae, inputs, baselines, target = case()
    options = {"vae": vae, "baselines": baselines, "n_steps": 25}
    for bridge in (True, False):
        found = ml.ma_gig(model, inputs, target, fraction=1.0, bridge=bridge, **options)
        close(found, ml.enhanced_ig(model, inputs, target, bridge=bridge, **options), 1e-9)
    path = ml.ma_gig_path(model, inputs, target, fraction=1.0, **options)
    start, end = vae.encode(baselines), vae.encode(inputs)
    for k in (0, 7, 25):
        at = path.at(torch.arange(4), torch.full((4,), (k + 1) / 27, dtype=torch.float64))
        close(at, vae.decode(start + k / 25 * (end - start)), 1e-9)


@pytest.mark.parametrize("published", [False, True])
def test_an_affine_model_gives_its_weights_times_the_way(published):
    weights = draw(16, 3, seed=7)
    _, vae, inputs, baselines, target = case()
    found, delta = ml.ma_gig(
        lambda x: x.flatten(1) @ weights + 0.5,
        inputs,
        target,
        vae=vae,
        baselines=baselines,
        n_steps=11,
        published=published,
        return_convergence_delta=True,
    )
    close(found, weights.T[target].view(4, 1, 4, 4) * (inputs - baselines), 1e-10)
    assert delta.abs().max() < 1e-10


def test_no_way_no_attribution_and_none_for_a_pixel_without_influence():
    model, vae, inputs, _, target = case()
    same = ml.ma_gig(model, inputs, target, vae=vae, baselines=inputs, n_steps=6)
    assert same.abs().max() < 1e-12
    with torch.no_grad():
        model[1].weight[:, 5] = 0
    for published in (False, True):
        found = ml.ma_gig(model, inputs, target, vae=vae, n_steps=6, published=published)
        assert found.flatten(1)[:, 5].abs().max() == 0


def test_it_is_complete_and_the_released_sum_is_not():
    model, _, inputs, baselines, target = case()
    vae = CurvedVAE(scale=2.0)  # far from the raw images
    options = {"vae": vae, "baselines": baselines, "return_convergence_delta": True}
    gaps = [ml.ma_gig(model, inputs, target, n_steps=n, **options)[1].abs().max().item() for n in (25, 100, 400)]
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] < 1e-3
    kept = [
        ml.ma_gig(model, inputs, target, n_steps=n, published=True, **options)[1].abs().max().item() for n in (100, 400)
    ]
    assert min(kept) > 0.1


def test_without_bridges_it_joins_the_reconstructions():
    model, vae, inputs, baselines, target = case()
    found = ml.ma_gig(model, inputs, target, vae=vae, baselines=baselines, n_steps=400, bridge=False)
    ends = [model(vae.decode(vae.encode(x))).gather(1, target[:, None])[:, 0] for x in (inputs, baselines)]
    close(found.flatten(1).sum(1), ends[0] - ends[1], 1e-3)


@pytest.mark.parametrize("published", [False, True])
def test_batch_order_and_chunks_do_not_matter_and_nothing_is_touched(published):
    model, vae, inputs, baselines, target = case()
    options = {"vae": vae, "n_steps": 15, "published": published}
    whole = ml.ma_gig(model, inputs, target, baselines=baselines, **options)
    with untouched(model, inputs), untouched(vae):
        small = ml.ma_gig(model, inputs, target, baselines=baselines, internal_batch_size=3, **options)
    close(small, whole, 1e-12)
    order = torch.tensor([2, 0, 3, 1])
    turned = ml.ma_gig(model, inputs[order], target[order], baselines=baselines[order], **options)
    close(turned, whole[order], 1e-12)
    for i in range(4):
        one = ml.ma_gig(model, inputs[i : i + 1], target[i : i + 1], baselines=baselines[i : i + 1], **options)
        close(one, whole[i : i + 1], 1e-12)
    assert torch.equal(whole, ml.ma_gig(model, inputs, target, baselines=baselines, **options))  # X15


def test_one_decode_and_one_gradient_a_step():
    model, vae, inputs, _, target = case()
    counted, decoder = Counting(model), Counting(vae.decode)

    class Counted:
        encode = staticmethod(vae.encode)
        decode = decoder

    ml.ma_gig(counted, inputs, target, vae=Counted, n_steps=50, bridge=False, internal_batch_size=4)
    trial = [(2, False), (2, False), (2, False), (1, True)]
    steps = [(4, False)] + [(4, True)] * 50 + [(4, False)]
    assert decoder.calls == trial + steps, "the end of the path, then its steps"
    assert 4 * 51 <= counted.gradient_rows <= 4 * 51 + PROBES
    decoder.calls.clear(), counted.calls.clear()
    ml.ma_gig(counted, inputs, target, vae=Counted, n_steps=50, internal_batch_size=4)
    assert len(decoder.calls) == len(trial) + 53 and 0 <= counted.gradient_rows - 4 * (51 + 32) <= PROBES
    decoder.calls.clear(), counted.calls.clear()
    ml.ma_gig(counted, inputs, target, vae=Counted, n_steps=50, published=True, internal_batch_size=4)
    assert len(decoder.calls) == len(trial) + 50 and 0 <= counted.gradient_rows - 4 * 51 <= PROBES


def test_a_chunk_bounds_what_goes_through_at_once():
    model, vae, inputs, _, target = case()
    counted = Counting(model)
    ml.ma_gig(counted, inputs, target, vae=vae, n_steps=12, internal_batch_size=2)
    assert counted.largest <= 2


def test_probabilities_by_wrapping_and_scores_without_classes():
    model, vae, inputs, baselines, target = case()

    def probability(x):
        return model(x).softmax(1)

    found, delta = ml.ma_gig(
        probability, inputs, target, vae=vae, baselines=baselines, n_steps=200, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-3

    def one(x):
        return probability(x)[:, 1]

    same = torch.full((4,), 1)
    close(ml.ma_gig(one, inputs, vae=vae, n_steps=9), ml.ma_gig(probability, inputs, same, vae=vae, n_steps=9), 1e-12)
    assert found.shape == inputs.shape


def test_a_gradient_that_is_nan_harms_one_image_and_ends():
    damaged, sound = draw(3, 4), torch.ones(3, 4).double()
    damaged[1] = 0  # the gradient at 0 is NaN
    for published, inputs, baselines in ((False, damaged, sound), (False, sound, damaged), (True, sound, damaged)):
        with one_warning():
            found = ml.ma_gig(
                root_model, inputs, 0, vae=IdentityVAE(), baselines=baselines, n_steps=5, published=published
            )
        assert found[1].isnan().any() and found[[0, 2]].isfinite().all()


def test_single_and_half_precision_keep_their_type():
    model, vae, inputs, baselines, target = case()
    expected = ml.ma_gig(model, inputs, target, vae=vae, baselines=baselines, n_steps=20, fraction=1.0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        found = ml.ma_gig(
            smooth_model(dtype=dtype),
            inputs.to(dtype),
            target,
            vae=CurvedVAE().to(dtype),
            baselines=baselines.to(dtype),
            n_steps=20,
            fraction=1.0,
        )
        assert found.dtype == dtype
        close(found.double(), expected, tolerance)


def test_thousands_of_latents_in_a_map():
    up = seeded(nn.Conv2d(4, 1, 3, padding=1))

    class Wide:
        encode = staticmethod(lambda x: x.repeat(1, 4, 1, 1) * torch.linspace(0.5, 1.5, 4).view(1, 4, 1, 1))
        decode = staticmethod(up)

    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.Tanh(), nn.Linear(16, 3)))
    inputs = draw(2, 1, 32, 32, dtype=torch.float32)
    for published in (False, True):
        found = ml.ma_gig(model, inputs, 1, vae=Wide, n_steps=10, published=published)
        assert found.shape == inputs.shape and found.isfinite().all()


def test_what_is_no_vae_is_refused():
    model, vae, inputs, _, _ = case()

    class Detached:
        encode = staticmethod(vae.encode)
        decode = staticmethod(lambda z: vae.decode(z).detach())

    with pytest.raises(ValueError, match="vae: what decode gives does not depend on the latents"):
        ml.ma_gig(model, inputs, vae=Detached, n_steps=2)
    with pytest.raises(ValueError, match="vae"):
        ml.ma_gig(model, inputs, vae=nn.Linear(2, 2))
    for options in ({"n_steps": 0}, {"fraction": 0.0}, {"fraction": 1.5}, {"baselines": draw(3, 1, 4, 4)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ml.ma_gig(model, inputs, vae=vae, **options)


def test_the_path_brings_its_integral_for_the_score_that_guides_it():
    model, vae, inputs, baselines, target = case()
    options = {"vae": vae, "baselines": baselines, "n_steps": 30}
    counted = Counting(model)
    path = ml.ma_gig_path(counted, inputs, target, **options)
    assert counted.gradient_rows <= 2, "a look at the model: its nodes are found when they are needed"
    assert torch.equal(ml.integrate(counted, path, target), ml.ma_gig(model, inputs, target, **options))
    # another class is integrated along the path of this one
    other = (target + 1) % 3
    found = ml.integrate(model, path, other, n_steps=400)
    change = (model(inputs) - model(baselines)).gather(1, other[:, None])[:, 0]
    close(found.flatten(1).sum(1), change, 1e-2)


def test_nothing_of_the_graph_is_kept_whatever_the_vae_is_made_of():
    model, vae, inputs, _, target = case()  # both have parameters that ask for gradients
    for options in ({}, {"bridge": False}, {"published": True}):
        found, delta = ml.ma_gig(model, inputs, target, vae=vae, n_steps=5, return_convergence_delta=True, **options)
        assert not found.requires_grad and not delta.requires_grad
        assert all(parameter.grad is None for part in (model, vae) for parameter in part.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_it_adds_up_for_a_relu_network_and_a_poor_vae(seed):
    model, inputs = relu_net(seed), draw(16, 64, seed=seed)

    class Shifted:
        encode = staticmethod(lambda x: x)
        decode = staticmethod(lambda z: 0.8 * z + 0.3)

    target = model(inputs).argmax(1)
    found = ml.ma_gig(model, inputs, target, vae=Shifted)
    error = ml.completeness_error(model, inputs, found, target)
    assert error.median() < 7e-3 and error.max() < 0.05  # with changes of the score down to 0.05
    released = ml.ma_gig(model, inputs, target, vae=Shifted, published=True)
    assert ml.completeness_error(model, inputs, released, target).median() > 0.05


def test_it_adds_up_for_deep_networks_of_relus():
    vae = zoo.load("fashion32-conv-vae")
    for name, seed in (("fashion32-vgg", 8), ("fashion32-resnet", 7)):
        model, inputs = zoo.load(name), zoo.samples("fashion32", 12, seed=seed).inputs
        target = model(inputs).argmax(1)
        error = ml.completeness_error(model, inputs, ml.ma_gig(model, inputs, target, vae=vae), target)
        assert error.median() < 7e-3 and error.max() < 5e-2


def test_a_decoded_image_that_is_nan_harms_one_image():
    model, inputs = smooth_model((4,)), draw(3, 4).abs() + 0.1
    inputs[1, 2] = -1.0

    class Root:
        encode = staticmethod(lambda x: x)
        decode = staticmethod(lambda z: z.sqrt() ** 2)

    for explain in (ml.ma_gig, ml.enhanced_ig):
        with one_warning():
            found = explain(model, inputs, 0, vae=Root, baselines=0.5, n_steps=6)
        assert found[1].isnan().any() and found[[0, 2]].isfinite().all()


def test_guidance_that_is_nan_is_not_passed_over():
    def decode(z):
        lost = torch.where(z < 0.3, z * ((z - z).sqrt() + 1), z)  # right values, slopes of NaN
        return torch.where(z >= 0.3, z, lost)

    class Lost:
        encode = staticmethod(lambda x: x)

    Lost.decode = staticmethod(decode)
    with one_warning():
        found = ml.ma_gig(smooth_model((4,)), draw(2, 4).abs() + 1, 0, vae=Lost, baselines=0.1, n_steps=4)
    assert found.isnan().any(1).all()


@pytest.mark.parametrize("where", ["model", "vae"])
def test_a_cut_graph_is_named_even_where_parameters_ask_for_gradients(where):
    model, vae, inputs, _, _ = case()

    class Cut(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.detach())

    if where == "model":
        model = Cut(model)
    else:
        cut = Cut(nn.Linear(8, 16).double())
        vae.decode = lambda z: cut(z.flatten(1)).view(-1, 1, 4, 4)
    with pytest.raises(ValueError, match=f"{where}: .* not depend"):
        ml.ma_gig(model, inputs, 0, vae=vae, n_steps=2)


def test_a_baseline_that_all_share_is_encoded_once():
    model, vae, inputs, _, target = case()
    encoder = Counting(vae.encode)

    class Counted:
        encode = encoder
        decode = staticmethod(vae.decode)

    ml.ma_gig(model, inputs, target, vae=Counted, n_steps=2)
    assert sum(rows for rows, _ in encoder.calls) == 5 + 6, "and three pairs to see rows mix"


def test_a_decoder_larger_than_the_model_counts_in_the_size_of_a_pass():
    class Enough(Exception):
        pass

    class Wide(nn.Module):
        """64 latents, and activations of 4 MB an image."""

        def __init__(self):
            super().__init__()
            self.up = nn.Conv2d(1, 64, 3, padding=1)
            self.sizes = []

        def encode(self, x):
            return nn.functional.avg_pool2d(x, 16)

        def decode(self, z):
            self.sizes.append(len(z))
            if len(self.sizes) > 8:
                raise Enough
            z = nn.functional.interpolate(z, scale_factor=16)
            return self.up(z).tanh().exp().sin().mean(1, keepdim=True)

    model, vae = nn.Sequential(nn.Flatten(), nn.Linear(128 * 128, 2)), Wide().requires_grad_(False)
    with pytest.raises(Enough):
        ml.ma_gig(model, draw(24, 1, 128, 128, dtype=torch.float32), 0, vae=vae, bridge=False)
    assert max(vae.sizes) < 8


@pytest.mark.parametrize("probability", [False, True])
def test_on_the_zoo_it_adds_up_to_half_a_percent(probability):
    vae, model = zoo.load("fashion32-conv-vae"), zoo.load("lenet-fashion32")
    net = nn.Sequential(model, nn.Softmax(1)) if probability else model
    inputs = zoo.samples("fashion32", 8, seed=3).inputs
    target = model(inputs).argmax(1)
    found = ml.ma_gig(net, inputs, target, vae=vae)
    error = ml.completeness_error(net, inputs, found, target)
    assert error.median() < 5e-3 and error.max() < 5e-2


def test_a_score_full_of_noise_costs_no_more_than_twice_the_steps():
    counted, inputs = Counting(nn.Sequential(smooth_model(), nn.Dropout(0.5))), draw(3, 1, 4, 4)
    with pytest.warns(RuntimeWarning, match="train mode"):
        ml.ma_gig(counted, inputs, 0, vae=CurvedVAE(), n_steps=40, bridge=False, internal_batch_size=3)
    assert counted.gradient_rows <= 3 * (41 + 40) + 2 * PROBES and counted.largest <= 3
