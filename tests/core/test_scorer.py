"""The scorer: whose row is whose, which class and arguments go with it, and a model that is left as found."""

from __future__ import annotations

import itertools
from typing import Any

import captum.attr
import pytest
import torch
from helpers import Counting, close, conv_model, draw, no_warning, one_warning, seeded, smooth_model, untouched
from hypothesis import given, strategies as st
from torch import Tensor, nn

import manifold_lib as ml
from manifold_lib.core import scorer as scorers
from manifold_lib.core.scorer import Scorer, scoring

B = 5
X, CONDITION, TABLE = draw(B, 4), draw(B, 2, seed=1), draw(3, seed=2)
CLASSES = torch.tensor([2, 0, 1, 0, 2])


class Conditional(nn.Module):
    """Scores of a point, a vector that goes with its image, a table shared by all, and a word."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Linear(4, 3), nn.Linear(2, 3)
        seeded(self).double()

    def forward(self, x: Tensor, condition: Tensor, table: Tensor, word: str) -> Tensor:
        assert condition.shape == (len(x), 2) and table.shape == (3,) and word == "word"
        return torch.tanh(self.body(x)) * self.gate(condition) + table


MODEL = Conditional()
ARGS = (CONDITION, TABLE, "word")
ROWS, POINTS = torch.tensor([3, 3, 0, 4, 1, 2, 0, 3]), draw(8, 4, seed=3)


def made(size: int = 16, classes: Tensor | None = CLASSES) -> Scorer:
    found = Scorer(MODEL, B, ARGS, size)
    found.classes, found.highest = classes, 2
    return found


def expected(points: Tensor, rows: Tensor) -> Tensor:
    """The score of each point, one after the other."""
    scores = [
        MODEL(point[None], CONDITION[row : row + 1], TABLE, "word") for point, row in zip(points, rows, strict=True)
    ]
    return torch.stack([score[0, CLASSES[row]] for score, row in zip(scores, rows, strict=True)])


# --- rows ----


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_a_point_is_scored_with_the_class_and_the_arguments_of_its_image(size: int) -> None:
    scorer = made(size)
    close(scorer.score(POINTS, ROWS), expected(POINTS, ROWS), 1e-14)
    close(scorer.score(X), expected(X, torch.arange(B)), 1e-14)
    close(scorer.change(X, 0 * X), expected(X, torch.arange(B)) - expected(0 * X, torch.arange(B)), 1e-14)
    close(scorer.values(POINTS, ROWS), expected(POINTS, ROWS), 1e-14)


def test_the_gradient_is_that_of_each_point_times_its_weight() -> None:
    leaf, weights = POINTS.clone().requires_grad_(), draw(8, seed=4)
    (wanted,) = torch.autograd.grad(expected(leaf, ROWS), leaf, torch.ones(8).double())
    with untouched(MODEL, POINTS):
        values, gradient = made().score_and_gradient(POINTS, ROWS)
        close(gradient, wanted, 1e-13)
        close(values, expected(POINTS, ROWS), 1e-14)
        close(made().gradient(POINTS, ROWS, weights=weights), weights[:, None] * wanted, 1e-13)
    assert not values.requires_grad and not gradient.requires_grad
    assert made().gradient(POINTS, ROWS, create_graph=True).requires_grad


@given(rows=st.lists(st.integers(0, B - 1), min_size=1, max_size=7), data=st.data())
def test_some_images_have_a_scorer_of_their_own(rows: list[int], data: st.DataObject) -> None:
    whole, chosen = made(), torch.tensor(rows)
    part = whole.of(chosen)
    own = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5)))
    points = draw(len(own), 4, seed=7)
    close(part.score(points, own), whole.score(points, chosen[own]), 1e-14)
    close(part.of(own).score(points), whole.score(points, chosen[own]), 1e-14)
    assert (part.size, part.forward, part.batch) == (whole.size, whole.forward, len(rows))


def test_no_more_points_go_at_once_than_there_may() -> None:
    counted = Counting(smooth_model((4,)))
    scorer = Scorer(counted, B, (), 3)
    scorer.resolve(X, None)
    scorer.score(POINTS, ROWS)
    assert counted.largest <= 3
    scorer.forward = 7
    scorer.score(POINTS, ROWS)
    assert counted.largest == 7 and counted.gradient_rows == 0


def test_an_argument_follows_its_image_if_its_first_dimension_is_the_batch() -> None:
    args = (draw(B), draw(B, 2), draw(2, B), torch.tensor(1.0), B, None, [1] * B)
    assert Scorer(MODEL, B, args).follows == (True, True, False, False, False, False, False)


def test_arguments_are_those_of_captum() -> None:
    saliency = captum.attr.Saliency(MODEL)
    given = {"additional_forward_args": ARGS, "abs": False}
    wanted = saliency.attribute(X.clone().requires_grad_(), target=CLASSES, **given)
    close(ml.gradient(MODEL, X, CLASSES, additional_forward_args=ARGS), wanted.detach(), 1e-14)


# --- groups and comparisons ----


@given(
    classes=st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=6, max_size=6)),
    values=st.lists(st.sampled_from([-1.0, 0.0, 2.5]), min_size=12, max_size=12),
    shared=st.booleans(),
)
def test_images_are_in_one_group_if_they_share_class_and_arguments(
    classes: list[int] | None, values: list[float], shared: bool
) -> None:
    conditions = torch.tensor(values).view(6, 2)
    scorer = Scorer(MODEL, 6, (TABLE,) if shared else (conditions, TABLE, conditions[:, 0] > 0))
    scorer.classes = None if classes is None else torch.tensor(classes)
    groups = scorer.groups()
    assert sorted(torch.cat(groups).tolist()) == list(range(6))
    owner = {int(row): index for index, group in enumerate(groups) for row in group}
    for a, b in itertools.combinations(range(6), 2):
        same = (classes is None or classes[a] == classes[b]) and (shared or torch.equal(conditions[a], conditions[b]))
        assert (owner[a] == owner[b]) == same


def test_empty_and_complex_arguments_group_images_too() -> None:
    phases = torch.complex(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 0.0, 1.0]))
    for argument, wanted in (
        (torch.ones(4, 0), [[0, 1, 2, 3]]),
        (phases, [[3], [0, 2], [1]]),
        (phases[:, None].conj(), [[3], [1], [0, 2]]),
    ):
        assert [group.tolist() for group in Scorer(MODEL, 4, (argument, torch.ones(4, 0, 2))).groups()] == wanted


OTHERS = {
    "the same": ((MODEL, B, ARGS, CLASSES), True),
    "a copy of the arguments": ((MODEL, B, (CONDITION.clone(), TABLE, "word"), CLASSES.clone()), True),
    "another class": ((MODEL, B, ARGS, CLASSES.roll(1)), False),
    "no classes": ((MODEL, B, ARGS, None), False),
    "another model": ((Conditional(), B, ARGS, CLASSES), False),
    "other arguments": ((MODEL, B, (CONDITION + 1, TABLE, "word"), CLASSES), False),
    "another word": ((MODEL, B, (CONDITION, TABLE, "words"), CLASSES), False),
    "fewer arguments": ((MODEL, B, (CONDITION, TABLE), CLASSES), False),
    "no arguments": ((MODEL, B, (), CLASSES), False),
    "an argument that is no tensor": ((MODEL, B, (CONDITION, None, "word"), CLASSES), False),
}


@pytest.mark.parametrize(("other", "same"), OTHERS.values(), ids=OTHERS)
def test_two_explain_the_same_if_model_classes_and_arguments_are_the_same(other: tuple, same: bool) -> None:
    model, batch, args, classes = other
    twin = Scorer(model, batch, args)
    twin.classes = classes
    assert made().explains(twin) == twin.explains(made()) == same


def test_methods_of_one_object_are_one_model() -> None:
    first, second = (Scorer(model.forward, B, ()) for model in (MODEL, MODEL))
    assert first.explains(second)


# --- classes ----


@pytest.mark.parametrize("target", [3, 10**9, -1, torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, -2, 0, 0])])
def test_a_class_that_the_model_does_not_have_is_refused_where_scores_come(target: Any) -> None:
    scorer = Scorer(MODEL, B, ARGS)
    scorer.resolve(X, target)
    for call in (scorer.score, scorer.gradient):
        with pytest.raises(ValueError, match=r"target: got classes .*, wants 0 to 2"):
            call(X)
    some = scorer.of(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="target: got classes"):
        some.score(X[:2])


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.tensor([0, 1]), r"got shape \(2,\), wants \(5,\)"),
        (torch.zeros(B, 1, dtype=torch.int64), r"got shape \(5, 1\)"),
        (torch.zeros(B), "got torch.float32, wants int or a LongTensor"),
        (True, "got bool, wants int"),
        ("cat", "got str, wants int"),
    ],
)
def test_what_is_no_class_is_refused_before_the_model_is_called(target: Any, says: str) -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=f"target: {says}"):
        Scorer(never, B).resolve(X, target)


@pytest.mark.parametrize("target", [-1, 7, torch.tensor([0, 1, -2, 0, 1])])
def test_the_first_scores_tell_which_classes_there_are(target: Any) -> None:
    with scoring(MODEL, X, target, 0, ARGS) as scorer, pytest.raises(ValueError, match=r"target: got .*, wants 0 to"):
        scorer.score(X)


@pytest.mark.parametrize("target", [1, torch.tensor(1), torch.full((B,), 1, dtype=torch.uint8)])
def test_one_class_stands_for_all(target: Any) -> None:
    assert torch.equal(scorers.check_target(target, B, 3, X.device), torch.full((B,), 1))


def test_without_a_target_it_is_the_predicted_class() -> None:
    scorer = Scorer(MODEL, B, ARGS, 2)
    scorer.resolve(X, None)
    assert scorer.classes is not None
    assert torch.equal(scorer.classes, MODEL(X, *ARGS).argmax(1)) and scorer.highest == scorer.classes.max()


def test_a_model_of_one_score_has_no_classes() -> None:
    model = lambda x: x.square().sum(1)  # noqa: E731
    scorer = Scorer(model, B)
    scorer.resolve(X, None)
    assert scorer.classes is None and len(scorer.groups()) == 1
    close(scorer.score(POINTS, ROWS), model(POINTS), 0)
    close(scorer.of(torch.tensor([1])).gradient(POINTS), 2 * POINTS, 1e-14)
    scorer.resolve(X, 0)
    with pytest.raises(ValueError, match=r"target: got classes, wants None for a model that returns scores \(B,\)"):
        scorer.score(X)


def test_a_model_that_changes_its_mind_about_classes_is_refused() -> None:
    scorer = Scorer(lambda x: x if len(x) == 8 else x.sum(1), B)
    scorer.resolve(X, None)
    with pytest.raises(ValueError, match=r"model: got scores \(8, 4\), wants \(B,\) as for the inputs"):
        scorer.score(POINTS, ROWS)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (lambda x: x[:, :, None], r"\(5, 4, 1\)"),
        (lambda x: x.sum(), r"\(\)"),
        (lambda x: x[:-1], r"\(4, 4\)"),
        (lambda x: (x,), "tuple"),
        (lambda x: None, "NoneType"),
    ],
)
def test_scores_of_another_form_are_refused(model: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"model: got scores {got}, wants .B, C. or .B,. with B = 5"):
        Scorer(model, B).resolve(X, None)


@pytest.mark.parametrize("model", [lambda x: x.detach(), lambda x: torch.ones(len(x), 3).requires_grad_()])
def test_scores_that_do_not_depend_on_the_points_are_refused(model: Any) -> None:
    scorer = Scorer(model, B)
    scorer.resolve(X, 0)
    with pytest.raises(ValueError, match="model: its scores do not depend on the inputs differentiably"):
        scorer.gradient(X)


# --- the model is left as found ----


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_restored_at_the_end_and_after_an_error(fails: bool) -> None:
    model, beside = conv_model().train(), nn.BatchNorm1d(2).train()
    inputs = draw(3, 2, 8, 8, dtype=torch.float32)
    scorer = Scorer(model, 3)
    scorer.classes = torch.zeros(3, dtype=torch.int64)
    with untouched(model, inputs), untouched(beside):
        try:
            with scorer.in_use([beside]):
                scorer.gradient(inputs)
                beside(inputs.flatten(2).mean(2))
                assert model[1].num_batches_tracked == 1 and beside.num_batches_tracked == 1
                if fails:
                    raise KeyError
        except KeyError:
            assert fails


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_allowed_and_the_mode_is_kept(mode: Any) -> None:
    scorer = made()
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with scorer.in_use():
            assert torch.is_grad_enabled() == before[0] and not torch.is_inference_mode_enabled()
            gradient = scorer.gradient(X.clone())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    close(gradient, made().gradient(X), 1e-14)


def test_a_scorer_in_the_place_of_a_model_is_passed_on() -> None:
    with scoring(MODEL, X, CLASSES, additional_forward_args=ARGS) as first, scoring(first, X) as second:
        assert second is first
        assert torch.equal(second.score(X), first.score(X))


def test_train_mode_is_warned_of_once_however_methods_call_each_other() -> None:
    model, inputs = conv_model().train(), draw(3, 2, 8, 8, dtype=torch.float32)
    with one_warning(), scoring(model, inputs, 0) as first, scoring(first, inputs):
        pass
    with no_warning(), scoring(model.eval(), inputs, 0):
        pass


def test_a_model_elsewhere_is_refused_with_both_devices() -> None:
    for model in (nn.Linear(4, 3, device="meta"), nn.BatchNorm1d(4, affine=False, device="meta")):
        with pytest.raises(ValueError, match="inputs: got device cpu, wants meta"), scoring(model, X):
            pass


def test_a_single_argument_need_not_be_a_tuple() -> None:
    condition = draw(B, 4, seed=8)
    with scoring(lambda x, c: (x * c).sum(1), X, additional_forward_args=condition) as scorer:
        close(scorer.gradient(POINTS, ROWS), condition[ROWS], 1e-14)


def test_a_model_may_change_its_input_in_place() -> None:
    body = smooth_model((4,))
    points, kept = POINTS.clone(), POINTS.clone()
    found = ml.gradient(nn.Sequential(nn.ReLU(inplace=True), body), points, 1)
    assert torch.equal(points, kept)
    close(found, ml.gradient(nn.Sequential(nn.ReLU(), body), points, 1), 1e-14)


# --- models of many kinds ----


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_and_a_scripted_model_go_through() -> None:
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 4))
    model, inputs = seeded(nn.Sequential(*layers)).eval(), draw(4, 1, 16, 16, dtype=torch.float32)
    expected = ml.integrated_gradients(model, inputs, 1)
    for other in (torch.compile(model, backend="eager"), torch.jit.trace(model, inputs), torch.jit.script(model)):
        close(ml.integrated_gradients(other, inputs, 1), expected, 1e-5)
