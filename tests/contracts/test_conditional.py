"""Models with other arguments, as in Captum: those of the batch follow their image through every method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import draw, seeded
from torch import Tensor, nn

import manifold_lib as ml

B, SHAPE = 5, (1, 4, 4)


class Conditional(nn.Module):
    """Scores that depend on a vector of each image, a table shared by all, and a word."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(16, 8), nn.Linear(3, 8), nn.Linear(8, 3)
        seeded(self)
        self.double().eval()

    def forward(self, x: Tensor, condition: Tensor, table: Tensor, word: str) -> Tensor:
        assert condition.shape == (len(x), 3) and table.shape == (3,) and word == "word"
        return self.head(torch.tanh(self.body(x.flatten(1)) + self.gate(condition)) * (1 + condition[:, :1])) * table


class Latents(nn.Module):
    """Encoder and decoder with four latents."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.back = nn.Linear(16, 4), nn.Linear(4, 12), nn.Linear(12, 16)
        seeded(self)
        self.double().eval()

    def encode(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.back(torch.tanh(self.outer(z)))).unflatten(1, SHAPE)


MODEL, VAE = Conditional(), Latents()
INPUTS, NODES = draw(B, *SHAPE, seed=1).abs(), draw(7, *SHAPE, seed=2).abs()
CONDITION, TABLE = draw(B, 3, seed=3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 2, 1, 0])
BASIS = ml.tangent_basis(VAE.decode, VAE.encode(INPUTS).detach())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "smoothgrad": lambda *a, **k: ml.smoothgrad(*a, n_samples=3, generator=generator(), **k),
    "integrated_gradients": ml.integrated_gradients,
    "ig trapezoid": lambda *a, **k: ml.integrated_gradients(*a, method="trapezoid", n_steps=7, **k),
    "ig adaptive": lambda *a, **k: ml.integrated_gradients(*a, tolerance=1e-3, **k),
    "ig average": lambda *a, **k: ml.integrated_gradients(*a, multiply_by_inputs=False, tolerance=1e-3, **k),
    "expected_gradients": lambda *a, **k: ml.expected_gradients(
        *a, references=NODES, n_samples=4, generator=generator(), **k
    ),
    "guided_ig": lambda *a, **k: ml.guided_ig(*a, n_steps=8, max_dist=1.0, **k),
    "guided_ig anchors": lambda *a, **k: ml.guided_ig(*a, n_steps=8, anchors=2, **k),
    "blur_ig": lambda *a, **k: ml.blur_ig(*a, n_steps=5, sigma=1.0, **k),
    "enhanced_ig": lambda *a, **k: ml.enhanced_ig(*a, vae=VAE, n_steps=6, **k),
    "manifold_ig": lambda *a, **k: ml.manifold_ig(*a, vae=VAE, n_steps=4, max_iter=0, **k),
    "manifold_ig published": lambda *a, **k: ml.manifold_ig(*a, vae=VAE, n_steps=4, max_iter=0, published=True, **k),
    "ma_gig": lambda *a, **k: ml.ma_gig(*a, vae=VAE, n_steps=6, **k),
    "ma_gig published": lambda *a, **k: ml.ma_gig(*a, vae=VAE, n_steps=6, published=True, **k),
    "geodesic_ig": lambda *a, **k: ml.geodesic_ig(*a, nodes=NODES, n_neighbors=2, n_nodes=4, **k),
    "geodesic_ig latent": lambda *a, **k: ml.geodesic_ig(*a, nodes=NODES, n_neighbors=2, n_nodes=4, space=VAE, **k),
    "energy_ig": lambda *a, **k: ml.energy_ig(*a, n_steps=4, max_iter=4, **k),
    "energy_ig potential": lambda *a, **k: ml.energy_ig(*a, n_steps=4, max_iter=4, energy="potential", **k),
    "energy_ig published": lambda *a, **k: ml.energy_ig(*a, n_steps=4, max_iter=4, published=True, **k),
    "shapley_values": lambda *a, **k: ml.shapley_values(*a, **k),
    "integrate": lambda m, x, t, **k: ml.integrate(m, ml.straight_path(x), t, n_steps=5, **k),
    "integrate guided": lambda m, x, t, **k: ml.integrate(m, ml.guided_path(m, x, t, n_steps=6, **k), t, **k),
    "integrate bridged": lambda m, x, t, **k: ml.integrate(
        m, ml.ma_gig_path(m, x, t, vae=VAE, n_steps=5, fraction=0.4, **k), t, **k
    ),
    "integrate adaptive": lambda m, x, t, **k: ml.integrate(
        m, ml.energy_path(m, x, t, n_steps=4, max_iter=3, **k), t, tolerance=1e-3, **k
    ),
    "idgi": lambda *a, **k: ml.idgi(*a, n_steps=7, **k),
    "idgi guided": lambda m, x, t, **k: ml.idgi(m, x, t, path=ml.guided_path(m, x, t, n_steps=6, **k), n_steps=7, **k),
    "integrate graph": lambda m, x, t, **k: ml.integrate(
        m, ml.geodesic_paths(m, x, t, nodes=NODES, n_neighbors=2, n_nodes=4, **k), t, **k
    ),
}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4, 7, None])
@pytest.mark.parametrize("name", METHODS)
def test_each_image_gets_what_it_gets_alone(name: str, size: int | None, given: bool) -> None:
    if name == "shapley_values" and size not in (None, 7):
        pytest.skip("65,536 subsets a image, in chunks of few")
    inputs = INPUTS[:2] if name == "shapley_values" else INPUTS
    n = len(inputs)
    target = CLASSES[:n] if given else None
    together = METHODS[name](
        MODEL, inputs, target, additional_forward_args=(CONDITION[:n], TABLE, "word"), internal_batch_size=size
    )
    for row in range(n):
        own = {"additional_forward_args": (CONDITION[row : row + 1], TABLE, "word")}
        alone = METHODS[name](MODEL, inputs[row : row + 1], None if target is None else target[row : row + 1], **own)
        assert (together[row] - alone[0]).abs().max() <= 1e-9 * max(1.0, float(alone.abs().max())), row


@pytest.mark.parametrize("constraint", ["none", "box", "change", "manifold"])
def test_tangential(constraint: str) -> None:
    options = {"constraint": constraint, "max_iter": 4, "n_starts": 2, "n_steps": 3}
    options |= {"vae": VAE} if constraint == "manifold" else {}
    args = (CONDITION, TABLE, "word")
    for size in (1, 3, 4, 7):
        together = ml.tangential_ig(
            *(MODEL, INPUTS, CLASSES),
            **options,
            basis=BASIS,
            generator=generator(),
            additional_forward_args=args,
            internal_batch_size=size,
        )
        for row in range(B):
            rows = slice(row, row + 1)
            alone = ml.tangential_ig(
                *(MODEL, INPUTS[rows], CLASSES[rows]),
                **options,
                basis=BASIS[rows],
                generator=generator(),
                additional_forward_args=(CONDITION[rows], TABLE, "word"),
            )
            assert (together[row] - alone[0]).abs().max() <= 1e-9


def test_a_single_argument_need_not_be_a_tuple() -> None:
    def scores(x: Tensor, c: Tensor) -> Tensor:
        return (x.flatten(1) * c).sum(1)

    c = draw(B, 16, seed=5)
    assert torch.allclose(ml.gradient(scores, INPUTS, additional_forward_args=c).flatten(1), c)
    shared = draw(16, seed=6)
    assert torch.allclose(ml.gradient(scores, INPUTS, additional_forward_args=shared).flatten(1), shared.expand(B, 16))


def test_arguments_are_refused_as_the_model_refuses_them() -> None:
    with pytest.raises(AssertionError):
        ml.gradient(MODEL, INPUTS, 0, additional_forward_args=(CONDITION[:2], TABLE, "word"))
