"""Enhanced IG and expected gradients: closed forms, bridges, completeness, independence of the batch."""

import pytest
import torch
from helpers import Counting, close, draw, seeded, smooth_model, untouched
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


# --- expected gradients ---


def test_one_reference_gives_integrated_gradients_in_the_limit():
    model, inputs, reference = smooth_model(), draw(3, 1, 4, 4), draw(1, 1, 4, 4, seed=5)
    generator = torch.Generator().manual_seed(0)
    found = ml.expected_gradients(model, inputs, references=reference, n_samples=20_000, generator=generator)
    close(found, ml.integrated_gradients(model, inputs, baselines=reference), 0.03)


def test_a_linear_model_is_exact_up_to_the_references_drawn():
    weights = draw(3, 16)
    model = lambda x: x.flatten(1) @ weights.T  # noqa: E731
    inputs, references = draw(4, 1, 4, 4), draw(6, 1, 4, 4, seed=3)
    generator = torch.Generator().manual_seed(0)
    found, delta = ml.expected_gradients(
        model, inputs, 1, references=references, n_samples=50, generator=generator, return_convergence_delta=True
    )
    drawn = torch.randint(6, (50,), generator=torch.Generator().manual_seed(0))
    expected = (inputs - references[drawn].mean(0)) * weights[1].view(1, 4, 4)
    close(found, expected, 1e-12)
    assert delta.abs().max() < 1e-12


def test_samples_are_shared_by_the_images_and_counted():
    counting, inputs, references = Counting(smooth_model()), draw(4, 1, 4, 4), draw(6, 1, 4, 4, seed=3)

    def run(x, **more):
        generator = torch.Generator().manual_seed(0)
        return ml.expected_gradients(counting, x, 0, references=references, n_samples=9, generator=generator, **more)

    whole = run(inputs)
    counting.calls.clear()
    close(run(inputs, internal_batch_size=5), whole, 1e-12)
    assert counting.gradient_rows == 36 and counting.largest <= 5
    close(run(inputs[2:3]), whole[2:3], 1e-12)


def test_references_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"references.*\(6, 1, 4, 5\)"):
        ml.expected_gradients(smooth_model(), draw(2, 1, 4, 4), references=draw(6, 1, 4, 5))
