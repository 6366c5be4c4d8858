"""Checks of arguments: what passes, and that a refusal names the argument, what it got and what it wants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import draw, no_warning
from hypothesis import given, strategies as st
from torch import Tensor

from manifold_lib.core import checks

X = draw(3, 2, 2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1.0]], "got list, wants a tensor"),
        (draw(3), r"got shape \(3,\), wants \(B, \*shape\); for one item use x\[None\]"),
        (draw(0, 2), r"got shape \(0, 2\), wants a batch that is not empty"),
        (draw(2, 0), r"got shape \(2, 0\), wants a batch that is not empty"),
        (torch.ones(2, 2, dtype=torch.int32), "got torch.int32 of shape"),
        (torch.tensor([[1.0, math.nan]]), r"got NaN or infinity in shape \(1, 2\)"),
        (torch.tensor([[1.0, -math.inf]]), "got NaN or infinity"),
    ],
)
def test_what_is_no_batch_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"x: {says}"):
        checks.check_batch(value, "x")


def test_a_batch_passes_as_it_is_and_may_have_to_have_more_dimensions() -> None:
    assert checks.check_batch(X) is X
    with pytest.raises(ValueError, match=r"path: got shape .* wants at least 4 dimensions"):
        checks.check_batch(X, "path", min_dim=4)


@pytest.mark.parametrize("value", [0, 0.5, True, X[:1], X])
def test_what_expands_is_expanded(value: Any) -> None:
    found = checks.check_like(value, X, "x")
    assert found.shape == X.shape and found.dtype == X.dtype
    assert torch.equal(found, value.expand_as(X) if isinstance(value, Tensor) else torch.full_like(X, value))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("black", "got str, wants a number or a tensor"),
        (draw(2, 2, 2), r"got shape \(2, 2, 2\), wants \(3, 2, 2\) like inputs"),
        (draw(3, 4), r"got shape \(3, 4\), wants"),
        (draw(3, 1, 3), r"got shape \(3, 1, 3\), wants"),
        (X.float(), "got torch.float32, wants torch.float64 like inputs"),
        (math.nan, "got NaN or infinity"),
    ],
)
def test_what_is_not_like_the_inputs_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"x: {says}"):
        checks.check_like(value, X, "x")


def test_no_baselines_are_zeros() -> None:
    assert torch.equal(checks.check_baselines(None, X), torch.zeros_like(X))


def test_a_map_may_hold_nan_but_no_other_shape_or_precision() -> None:
    broken = X.clone()
    broken[0] = math.nan
    assert checks.check_map(broken, X) is broken
    for other, got in ((X[:2], r"\(2, 2, 2\)"), (X.float(), "torch.float32"), ([1], "list")):
        with pytest.raises(ValueError, match=f"attributions: got .*{got}.*, wants torch.float64 .* like inputs"):
            checks.check_map(other, X)


REFUSED: list[tuple[Callable[..., Any], list[Any], list[Any]]] = [
    (checks.check_count, [1, 7, torch.tensor(3).item()], [0, -1, 1.0, True, "3", None, math.nan]),
    (lambda v, n: checks.check_count(v, n, least=0), [0, 5], [-1, 0.0, False]),
    (lambda v, n: checks.check_choice(v, n, ("a", "b")), ["a", "b"], ["", "c", None, 1]),
    (checks.check_positive, [1, 0.5, 1e-300], [0, -1, math.inf, math.nan, True, "1", None]),
    (lambda v, n: checks.check_positive(v, n, zero=True), [0, 0.0, 2], [-1e-300, math.nan]),
    (checks.check_share, [1, 0.1], [0, 1.1, -1, math.nan, True]),
    (lambda v, n: checks.check_share(v, n, zero=True), [0, 1], [1.0001, -0.1]),
    (checks.check_range, [None, (0, 1), [-1.0, 2.5]], [(1, 0), (1, 1), (0,), 3, "01", (0, math.nan), ("0", "1")]),
]


@pytest.mark.parametrize(("check", "good", "bad"), REFUSED, ids=range(len(REFUSED)))
def test_numbers_words_and_ranges(check: Callable[..., Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check(value, "argument")
    for value in bad:
        with pytest.raises(ValueError, match=r"argument: got .*wants"):
            check(value, "argument")


def test_a_generator_draws_on_its_own_device() -> None:
    assert checks.check_generator(None, "meta") == "meta"
    assert checks.check_generator(torch.Generator(), "meta") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"generator: got int, wants a torch\.Generator or None"):
        checks.check_generator(5, "cpu")  # type: ignore[arg-type]


@given(count=st.integers(0, 10**5), total=st.integers(1, 10**5))
def test_a_share_of_a_whole_number_is_that_number_whatever_rounding_did(count: int, total: int) -> None:
    for share in (count / total, float(torch.tensor(count / total, dtype=torch.float32))):
        assert checks.floor_of(share * total) == count
    assert checks.floor_of(count + 0.5) == count


def test_images_that_failed_are_counted_in_one_warning() -> None:
    values = draw(4, 2, 2)
    with no_warning():
        checks.warn_non_finite(values, "method")
    values[1, 0, 0], values[3] = math.nan, math.inf
    with pytest.warns(RuntimeWarning, match="method: 2 of 4 images have NaN or infinite values") as caught:
        checks.warn_non_finite(values, "method")
    assert len(caught) == 1
