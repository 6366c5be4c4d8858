"""The order and the number of points that go through a model together."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import captum.attr
import pytest
import torch
from helpers import conv_model, draw, seeded, smooth_model
from torch import Tensor, nn

import manifold_lib as ml
from manifold_lib.core import passes
from manifold_lib.core.passes import plan_passes


def pooled(channels: int = 1) -> nn.Module:
    layers = (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
    return seeded(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 4))).eval()


def wide() -> nn.Module:
    layers = (nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))).eval()


class Viewing(nn.Module):
    """Relies on the usual memory order, as much code from tutorials does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().view(len(x), -1))


class ByPosition(nn.Module):
    """Reads memory as it lies, so that the other order gives other scores and no error."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.as_strided((len(x), 192), (192, 1)))


def images(n: int = 4, channels: int = 1, size: int = 16) -> Tensor:
    return draw(n, channels, size, size, dtype=torch.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_points_go_in_channels_last_order_and_scores_and_gradients_stay(channels: int) -> None:
    model, inputs = pooled(channels), images(channels=channels)
    orders = []
    handle = model[0].register_forward_hook(lambda layer, got, out: orders.append(out.stride()))
    ordered, _ = plan_passes(model, inputs, 1000)
    orders.clear()
    x = inputs.clone().requires_grad_()
    scores = ordered(x)
    handle.remove()
    assert orders[0][1] == 1  # channels are next to each other
    torch.testing.assert_close(scores, model(inputs), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(scores[:, 1].sum(), x)[0]
    y = inputs.clone().requires_grad_()
    expected = torch.autograd.grad(model(y)[:, 1].sum(), y)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ml.integrated_gradients(model, inputs, 1).is_contiguous()


@pytest.mark.parametrize("make", [Viewing, ByPosition])
def test_a_model_that_relies_on_the_usual_order_gets_it(make: type[nn.Module]) -> None:
    channels = 1 if make is Viewing else 3
    model, inputs = seeded(make()).eval(), images(channels=channels, size=8)
    ordered, size = plan_passes(model, inputs, 1000)
    assert ordered is model
    assert size >= 16
    whole = ml.integrated_gradients(model, inputs, 1, n_steps=64)
    single = torch.cat([ml.integrated_gradients(model, one, 1, n_steps=16) for one in inputs.split(1)])
    if make is ByPosition:  # linear: any number of steps is exact
        torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    change = model(inputs)[:, 1] - model(0 * inputs)[:, 1]
    torch.testing.assert_close(whole.flatten(1).sum(1), change, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (smooth_model(), draw(4, 1, 4, 4)),
        (pooled().double(), draw(4, 1, 16, 16)),
        (smooth_model((7,), dtype=torch.float32), draw(4, 7, dtype=torch.float32)),
    ],
    ids=["smooth float64", "float64", "vectors"],
)
def test_other_inputs_keep_their_order(model: nn.Module, inputs: Tensor) -> None:
    assert plan_passes(model, inputs, 1000)[0] is model


def test_a_few_points_are_not_worth_a_trial() -> None:
    calls = []
    model = pooled()
    model.register_forward_hook(lambda *_: calls.append(1))
    ordered, size = plan_passes(model, images(), 4)
    assert (ordered, size, calls) == (model, 16, [])


def test_a_module_is_tried_once_and_again_when_it_changes() -> None:
    counts = []
    model = pooled()
    model.register_forward_hook(lambda module, got, out: counts.append(len(out)))

    def n_tried(module: nn.Module, some: Tensor) -> int:
        counts.clear()
        plan_passes(module, some, 50)
        return sum(counts)

    assert n_tried(model, torch.full((1, 1, 16, 16), torch.nan)) > 0  # says nothing of the next image
    assert n_tried(model, images()) > 0
    assert n_tried(model, images(64)) == 0
    model[2] = nn.AvgPool2d(2)
    assert n_tried(model, images()) > 0
    n_modules = len(passes._FINDINGS)
    del model
    gc.collect()
    assert len(passes._FINDINGS) < n_modules


def test_the_order_depends_on_no_batch() -> None:
    """Rounding decides where max pooling's winners tie, so another order is another rounding."""
    model = pooled()
    for n_per_image in (1, 50):
        found = {n: plan_passes(model, images(n), n_per_image)[0] is model for n in (1, 64)}
        assert found[1] == found[64] == (n_per_image == 1)


def test_a_models_own_error_is_shown() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ml.integrated_gradients(pooled(), images(size=20), 1)


def test_nothing_of_the_model_is_converted_or_hooked() -> None:
    model = conv_model()
    before = copy.deepcopy(model.state_dict())
    strides = [tensor.stride() for tensor in model.state_dict().values()]
    ml.integrated_gradients(model, images(channels=2), 1)
    assert [tensor.stride() for tensor in model.state_dict().values()] == strides
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("make", [ml.lenet, pooled, wide], ids=["LeNet", "narrow", "5 x 5"])
@pytest.mark.parametrize("n_images", [1, 64])
def test_pooled_models_keep_captums_float32_to_the_last_digits(make: Callable[[], nn.Module], n_images: int) -> None:
    """In another order, windows that nearly tie would give their gradient to other pixels: 1e-5 and more."""
    size = 32 if make is ml.lenet else 16
    for seed in range(2 if make is ml.lenet else 8):
        model = seeded(make(), seed).eval()
        inputs = torch.rand(n_images, 1, size, size, generator=torch.Generator().manual_seed(seed))
        oracle = captum.attr.IntegratedGradients(model)
        expected = oracle.attribute(inputs, target=1, n_steps=20, internal_batch_size=max(64, n_images))
        found = ml.integrated_gradients(model, inputs, 1, n_steps=20)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
        along = ml.integrate(model, ml.straight_path(inputs, 0.0), 1, n_steps=20, method="gausslegendre")
        torch.testing.assert_close(along, found, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_the_gradient_of_a_narrow_convolution_takes_the_faster_order_and_the_scores_keep_every_bit() -> None:
    model, inputs = pooled(), images(16)
    ordered, _ = plan_passes(model, inputs, 1000, exact=True)
    x = inputs.clone().requires_grad_()
    scores = ordered(x)
    assert torch.equal(scores, model(inputs))
    first = next(node for node in passes._nodes(scores) if node.name() == "ConvolutionBackward0" and kept(node) == 1)
    assert first._saved_weight.stride()[1] == 1
    assert first._saved_input.stride() == (256, 1, 16, 1)
    assert plan_passes(pooled().double(), inputs.double(), 1000, exact=True)[0] is not ordered


def kept(node: torch.autograd.graph.Node) -> int:
    return node._saved_weight.shape[1]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_and_a_scripted_model_go_through() -> None:
    model, inputs = pooled(), images()
    expected = ml.integrated_gradients(model, inputs, 1)
    for other in (torch.compile(pooled(), backend="eager"), torch.jit.trace(pooled(), inputs)):
        torch.testing.assert_close(ml.integrated_gradients(other, inputs, 1), expected, rtol=1e-4, atol=1e-6)


def test_second_order_goes_through() -> None:
    layers = (nn.Conv2d(1, 6, 3), nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 3))
    model, inputs = seeded(nn.Sequential(*layers)).eval(), images()

    def objective(one: nn.Module, start: Tensor) -> Tensor:
        path = ml.straight_path(inputs.to(start), start)
        return ml.integrate(one, path, 1, n_steps=64, create_graph=True).square().sum()

    start = torch.zeros_like(inputs).requires_grad_()
    (found,) = torch.autograd.grad(objective(model, start), start)
    start = torch.zeros_like(inputs, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(objective(model.double(), start), start)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_chunk_follows_the_activations_not_the_weights() -> None:
    """Twice the channels, half the points; a head of a million weights changes nothing."""
    sizes = []
    for width, n_out in ((32, 4), (64, 4), (32, 1000)):
        layers = (nn.Conv2d(1, width, 3, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        model = nn.Sequential(*layers, nn.Linear(16 * width, n_out)).eval()
        sizes.append(plan_passes(model, images(size=64), 10_000)[1])
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.15)
    assert sizes[0] == pytest.approx(sizes[2], rel=0.15)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_users_own_chunk_holds_in_the_trial_too(size: int) -> None:
    rows = []
    model = pooled()
    model.register_forward_hook(lambda layer, got, out: rows.append(len(out)))
    assert plan_passes(model, images(), 1000, size)[1] == size
    assert max(rows) <= size
