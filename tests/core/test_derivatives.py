"""Derivatives of the user's functions: in forward mode, by kernels that have them, and where they are cut."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import close, draw
from torch import Tensor
from torch.autograd.functional import jvp as autograd_jvp

from manifold_lib.core import derivatives


def test_the_derivative_along_a_direction_comes_without_notices_of_deprecation() -> None:
    weights, point, direction = draw(3, 3), draw(3, seed=1), draw(3, seed=2)

    def function(x: Tensor) -> Tensor:
        return torch.tanh(x @ weights).cumprod(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, slope = derivatives.jvp(function, point, direction)
    expected = autograd_jvp(function, point, direction)
    close(value, expected[0], 1e-14)
    close(slope, expected[1], 1e-14)


class OnlyBackward(torch.autograd.Function):
    """x², without a rule for forward mode."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, pulled: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * pulled


@pytest.mark.parametrize("grad", [True, False])
def test_a_function_without_forward_mode_is_pushed_by_two_backward_passes(grad: bool) -> None:
    point, direction = draw(4), draw(4, seed=1)
    with torch.set_grad_enabled(grad):
        value, slope = derivatives.jvp(OnlyBackward.apply, point, direction)
    close(value, point**2, 1e-14)
    close(slope, 2 * point * direction, 1e-14)
    assert grad or not slope.requires_grad


def test_the_second_derivative_along_a_direction_takes_the_same_way() -> None:
    point, direction = draw(4), draw(4, seed=1)
    first = lambda x: derivatives.jvp(lambda y: OnlyBackward.apply(y) * y, x, direction)[1]  # noqa: E731
    close(derivatives.jvp(first, point, direction)[1], 6 * point * direction**2, 1e-14)


def test_the_users_choice_of_kernels_is_put_back_after_an_error() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pytest.raises(KeyError), derivatives.differentiable_kernels():
            assert not torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
            raise KeyError
        assert not torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_function_that_takes_gradients_inside_is_called_where_gradients_are_off() -> None:
    def slope(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]

    x = draw(3, 2)
    with torch.no_grad():
        found = derivatives.called(slope, x.clone(), name="model")
    close(found, 3 * x**2, 1e-14)
    assert not found.requires_grad and not x.requires_grad


def test_an_output_of_inference_mode_may_be_used_in_a_graph() -> None:
    x = draw(3, 2).requires_grad_()
    found = derivatives.called(torch.inference_mode()(lambda y: 2 * y), x.detach(), name="model")
    (x * found).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_values_are_close_to_a_thousandth_of_the_largest_and_nan_to_nan() -> None:
    a = torch.tensor([1000.0, 0.0, float("nan"), float("inf")])
    assert derivatives.close(a, a + torch.tensor([0.9, 0.9, 0.0, 0.0]))
    assert not derivatives.close(a[:2], a[:2] + 1.1)
    assert not derivatives.close(a, a.nan_to_num())
