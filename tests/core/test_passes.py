"""The number of points that go through a model together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import conv_model, draw, seeded
from torch import Tensor, nn

import manifold_lib as ml
from manifold_lib.core.passes import (
    CPU_BYTES,
    CPU_NUMBERS,
    WORTH_A_TRIAL,
    channels_last,
    forward_points,
    plan_passes,
    tried,
)

Scores = Callable[[Tensor, Tensor], Tensor]


def pooled() -> nn.Module:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
    return seeded(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 4))).eval()


def of(model: nn.Module, seen: list[int] | None = None) -> Scores:
    def scores(points: Tensor, rows: Tensor) -> Tensor:
        assert len(rows) == len(points) and not rows.any(), "a trial is made of the first image"
        if seen is not None:
            seen.append(len(points))
        return model(points)

    return scores


def images(n: int = 4, size: int = 16) -> Tensor:
    return draw(n, 1, size, size, dtype=torch.float32)


def test_a_few_points_are_not_worth_a_trial() -> None:
    seen: list[int] = []
    assert plan_passes(of(pooled(), seen), images(), WORTH_A_TRIAL // 4 - 1) == 64
    assert not seen
    plan_passes(of(pooled(), seen), images(), WORTH_A_TRIAL // 4)
    assert sum(seen) <= 5


def test_the_chunk_follows_the_activations_not_the_weights() -> None:
    """Twice the channels, half the points; a head of half a million weights changes nothing."""
    sizes = []
    for width, n_out in ((32, 4), (64, 4), (32, 1000)):
        layers = (nn.Conv2d(1, width, 3, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        model = nn.Sequential(*layers, nn.Linear(16 * width, n_out)).eval()
        sizes.append(plan_passes(of(model), images(size=64), 10_000))
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.15)
    assert sizes[0] == pytest.approx(sizes[2], rel=0.15)
    activations = 32 * 64 * 64 * 4  # what the convolution gives, kept once by the sigmoid
    assert CPU_BYTES / (3 * activations) < sizes[0] <= CPU_BYTES / activations


def test_weights_larger_than_the_cache_are_read_for_more_points_at_once() -> None:
    """What reads 64 MiB of weights a pass takes as many activations as four times these."""
    first, second = nn.Linear(1024, 2048).requires_grad_(False), nn.Linear(2048, 8192).requires_grad_(False)
    small = nn.Linear(2048, 256).requires_grad_(False)
    inputs = draw(4, 1024, dtype=torch.float32)
    sizes = [
        plan_passes(of(nn.Sequential(first, nn.Tanh(), last, nn.Tanh())), inputs, 10**6) for last in (small, second)
    ]
    per_point = [4 * (2048 + n) + 20 * 1024 for n in (256, 8192)]
    budget = 4 * 4 * (1024 * 2048 + 2048 * 8192)
    assert sizes[0] <= min(CPU_BYTES // per_point[0], max(CPU_NUMBERS // 1024, 256))
    assert sizes[1] == min(budget // per_point[1], max(CPU_NUMBERS // 1024, 256))


def test_one_large_image_goes_alone() -> None:
    """An image whose activations fill the cache is not pushed sixteen at a time."""
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    assert plan_passes(of(nn.Sequential(*layers)), draw(1, 3, 768, 768, dtype=torch.float32), 1000) == 1
    assert plan_passes(of(nn.Sequential(*layers)), draw(1, 3, 768, 768, dtype=torch.float32), 50) == 1


@pytest.mark.parametrize("numel", [1, 64, 65, 1024, 2**20])
@pytest.mark.parametrize("n_points", [1, 10**7])
def test_any_size_of_a_point_gives_at_least_one(numel: int, n_points: int) -> None:
    size = plan_passes(lambda points, rows: points.sum(1), draw(1, numel), n_points)
    assert 1 <= size <= max(CPU_NUMBERS // numel, WORTH_A_TRIAL)
    assert forward_points(draw(1, numel), size) >= size


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_users_own_chunk_holds_in_the_trial_too(size: int) -> None:
    rows: list[int] = []
    model = pooled()
    model.register_forward_hook(lambda layer, got, out: rows.append(len(out)))
    assert plan_passes(of(model), images(), 1000, size) == size
    ml.integrated_gradients(model, images(), 1, n_steps=20, internal_batch_size=size)
    assert max(rows) <= size


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
def test_a_chunk_is_a_count(value: object) -> None:
    with pytest.raises(ValueError, match="internal_batch_size: got"):
        plan_passes(of(pooled()), images(), 1000, value)  # type: ignore[arg-type]


def test_a_trial_draws_no_random_numbers_and_leaves_no_gradient() -> None:
    model, inputs = nn.Sequential(nn.Dropout(), pooled()).train(), images().requires_grad_()
    state = torch.random.get_rng_state()
    plan_passes(of(model), inputs, 1000)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert inputs.grad is None and all(parameter.grad is None for parameter in model.parameters())


def test_the_size_depends_on_no_image() -> None:
    found = {plan_passes(of(pooled()), some, 1000) for some in (images(), 0 * images(), images() * torch.nan)}
    assert len(found) == 1


def test_a_models_own_error_is_shown() -> None:
    for n_steps in (50, 1000):  # without a trial and in it
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            ml.integrated_gradients(pooled(), images(size=20), 1, n_steps=n_steps)


def test_nothing_of_the_model_is_converted_or_hooked() -> None:
    model = conv_model()
    before = {name: (tensor.stride(), tensor.clone()) for name, tensor in model.state_dict().items()}
    ml.integrated_gradients(model, draw(4, 2, 16, 16, dtype=torch.float32), 1, n_steps=200)
    after = model.state_dict()
    assert all(
        after[name].stride() == stride and torch.equal(after[name], old) for name, (stride, old) in before.items()
    )
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the memory order ----


def convolutions(channels: int = 1) -> nn.Module:
    layers = (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Sigmoid())
    return seeded(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4))).eval()


class Viewing(nn.Module):
    """Relies on the usual order, as much code from tutorials does: in the other one ``view`` fails."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().view(len(x), -1))


class ByPosition(nn.Module):
    """Reads memory as it lies, so that the other order gives other scores and no error."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.as_strided((len(x), 192), (192, 1)))


class Asserting(Viewing):
    """Says what it wants by an assertion."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return self.head(self.body(x).relu().flatten(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_take_points_in_channels_last_order_and_give_the_same(channels: int) -> None:
    model, inputs = convolutions(channels), draw(4, channels, 16, 16, dtype=torch.float32)
    assert tried(of(model), inputs) == (True, True)
    strides: list[int] = []
    model[0].register_forward_pre_hook(lambda layer, got: strides.append(got[0].stride(1)))
    found = ml.integrated_gradients(model, inputs, 1)
    assert strides[-1] == 1, "channels are next to each other"
    assert found.is_contiguous()
    double = ml.integrated_gradients(convolutions(channels).double(), inputs.double(), 1)
    torch.testing.assert_close(found.double(), double, rtol=1e-4, atol=1e-6)
    strides.clear()
    ml.gradient(model, inputs, 1)
    assert 1 not in strides or channels == 1, "one gradient an image is not worth the question"


def test_a_copy_in_channels_last_order_is_a_copy() -> None:
    for channels in (1, 2):
        points = draw(2, channels, 3, 4)
        other = channels_last(points)
        assert torch.equal(other, points) and other.stride(1) == 1 and other.data_ptr() != points.data_ptr()


OTHERS = {
    "vectors": (lambda: nn.Linear(7, 3), draw(2, 7, dtype=torch.float32)),
    "float64": (lambda: convolutions().double(), draw(2, 1, 16, 16)),
    "maxima": (pooled, images(2)),
    "view": (lambda: seeded(Viewing()), draw(2, 3, 8, 8, dtype=torch.float32)),
    "position": (lambda: seeded(ByPosition()), draw(2, 3, 8, 8, dtype=torch.float32)),
    "position, blank images": (lambda: seeded(ByPosition()), torch.zeros(2, 3, 8, 8)),
}


@pytest.mark.parametrize(("make", "inputs"), OTHERS.values(), ids=OTHERS)
def test_what_the_other_order_would_change_keeps_the_usual_one(make: Callable[[], nn.Module], inputs: Tensor) -> None:
    assert tried(of(make()), inputs) == (False, True)


@pytest.mark.parametrize(
    "make",
    [
        Viewing,
        ByPosition,
        Asserting,
    ],
)
def test_a_model_that_relies_on_the_usual_order_gets_it(make: type[nn.Module]) -> None:
    model, inputs = seeded(make()).eval(), draw(3, 3, 8, 8, dtype=torch.float32)
    found = ml.integrated_gradients(model, inputs, 1, n_steps=20)
    wanted = ml.integrated_gradients(seeded(make()).double(), inputs.double(), 1, n_steps=20)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_order_depends_on_no_image() -> None:
    model, inputs = seeded(ByPosition()).eval(), draw(3, 3, 8, 8, dtype=torch.float32)
    inputs[0] = 0
    found = ml.integrated_gradients(model, inputs, 1)
    torch.testing.assert_close(found[1:], ml.integrated_gradients(model, inputs[1:], 1), rtol=1e-4, atol=1e-6)


def test_the_question_of_order_draws_no_random_numbers() -> None:
    model = nn.Sequential(nn.Dropout(), convolutions()).train()
    state = torch.random.get_rng_state()
    tried(of(model), images())
    assert torch.equal(torch.random.get_rng_state(), state)
