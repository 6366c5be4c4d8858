"""The one refiner, on pieces whose error is known in closed form, and the rules that say which to cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import close, draw
from hypothesis import given, strategies as st
from torch import Tensor

from manifold_lib.paths import refine as r
from manifold_lib.paths.refine import Budget, Node, Pieces, by_share, refine, until_complete

Curve = Callable[[Tensor, Tensor], Tensor]


class Line:
    """The interval [0, 1] of several images, with a score and its slope at each place: points of one entry."""

    def __init__(self, score: Curve, slope: Curve, n_rows: int = 1) -> None:
        self.score, self.slope, self.n_rows, self.n_calls, self.largest = score, slope, n_rows, 0, 0

    def evaluate(self, t: Tensor, rows: Tensor) -> Node:
        self.n_calls += len(t)
        self.largest = max(self.largest, len(t))
        return Node(t, t[:, None], self.slope(t, rows)[:, None], self.score(t, rows))

    def pieces(self, n: int) -> Pieces:
        """n equal pieces of each image."""
        t = torch.arange(n, dtype=torch.float64) / n
        rows = torch.arange(self.n_rows).repeat_interleave(n)
        first = self.evaluate(t.repeat(self.n_rows), rows)
        last = self.evaluate((t + 1 / n).repeat(self.n_rows), rows)
        self.n_calls = 0
        return r.trapezoid(rows, torch.zeros_like(rows), first, last)

    def total(self, n: int, rule: r.Rule, size: int = 7) -> Tensor:
        total = torch.zeros(self.n_rows, 1, dtype=torch.float64)
        refine(total, self.pieces(n), r.halves(self.evaluate, size), rule)
        return total[:, 0]

    def change(self) -> Tensor:
        rows = torch.arange(self.n_rows)
        return self.score(torch.ones(self.n_rows).double(), rows) - self.score(torch.zeros(self.n_rows).double(), rows)


PLACES = torch.tensor([0.1234, 0.5678, 0.917, 0.333], dtype=torch.float64)


def kink(slope: float = 1.0) -> Line:
    """|t − place| of each image."""
    return Line(
        lambda t, rows: slope * (t - PLACES[rows]).abs(), lambda t, rows: slope * (t - PLACES[rows]).sign(), len(PLACES)
    )


def jump(height: float = 1.0) -> Line:
    return Line(
        lambda t, rows: t + height * (t > PLACES[rows]).double(), lambda t, rows: torch.ones_like(t), len(PLACES)
    )


def noise() -> Line:
    """A score and a slope that have nothing to do with each other, whatever the scale."""

    def wild(t: Tensor, rows: Tensor) -> Tensor:
        return torch.frac(1e4 * torch.sin(12345.678 * t + rows))

    return Line(wild, lambda t, rows: 10 * wild(t + 0.1, rows), len(PLACES))


def smooth() -> Line:
    return Line(lambda t, rows: torch.exp(rows * t), lambda t, rows: rows * torch.exp(rows * t), 4)


def to_depth(depth: int) -> r.Rule:
    """Cut whatever is off, up to some depth."""

    def rule(pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        now = (pieces.error.abs() > 1e-13) & (pieces.depth < depth)
        return now, torch.zeros_like(now)

    return rule


# --- the refiner ----


def test_the_error_of_a_kink_falls_by_half_with_each_cut_and_only_its_piece_is_cut() -> None:
    for depth in range(9):
        line = kink()
        found = line.total(3, to_depth(depth))
        # a piece of width h that holds the kink misses at most h
        assert ((found - line.change()).abs() <= 2.0**-depth / 3 + 1e-12).all()
        assert line.n_calls == 4 * depth


@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), size=st.integers(1, 20))
def test_nothing_is_lost_or_counted_twice_whatever_the_rule(seed: int, n: int, size: int) -> None:
    """Of a linear score every piece is exact, so that the sum is, if the pieces tile the path."""
    generator = torch.Generator().manual_seed(seed)
    line = Line(lambda t, rows: (rows + 1) * t, lambda t, rows: rows + 1.0, 3)

    def rule(pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        draws = torch.rand(2, len(pieces.rows), generator=generator)
        now = (draws[0] < 0.5) & (pieces.depth < 4)
        return now, ~now & (draws[1] < 0.5)

    close(line.total(n, rule, size), torch.tensor([1.0, 2.0, 3.0]).double(), 1e-12)
    assert line.largest <= max(size, 3 * n)


def test_the_newest_pieces_are_told_and_stand_last() -> None:
    line, told = kink(), []

    def rule(pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        new = slice(len(pieces.rows) - n_new, None)
        told.append(n_new)
        assert (pieces.depth[new] == len(told) - 1).all()
        now = (pieces.error.abs() > 1e-13) & (pieces.depth == len(told) - 1) & (pieces.depth < 3)
        return now, ~now

    line.total(3, rule)
    assert told == [0, 8, 8, 8]


def test_halves_of_a_piece_lie_side_by_side() -> None:
    line = smooth()
    halves = r.halves(line.evaluate, 3)(line.pieces(1))
    assert halves.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and (halves.depth == 1).all()
    assert halves.start.coordinates.tolist() == [0, 0.5] * 4 and halves.end.coordinates.tolist() == [0.5, 1.0] * 4


def test_a_piece_taken_again_keeps_its_place_and_knows_what_it_still_misses() -> None:
    rows, places = torch.tensor([1, 0]), torch.tensor([7, 5])
    pieces = r.gauss(rows, places, torch.tensor([3.0, -1.0]), torch.tensor([[1.0, 1.0], [0.0, -2.0]]))
    assert pieces.error.tolist() == [1.0, 1.0] and pieces.depth.tolist() == [0, 0]

    def integral(pieces: Pieces, n_times: int) -> Tensor:
        return torch.tensor([[2.0, 1.0 - 1 / n_times], [-1.0, 1 / n_times]])

    again = r.finer(integral)(pieces)
    assert again.depth.tolist() == [1, 1] and again.rows is rows and again.start.coordinates is places
    assert again.error.tolist() == [0.25, -0.25]
    assert r.finer(integral)(again).error.tolist() == [1 / 16, -1 / 16]


def test_a_piece_of_the_trapezoid_knows_what_it_misses() -> None:
    first, last = draw(3, 4, seed=1), draw(3, 4, seed=2)
    slopes, scores, rows = draw(2, 3, 4, seed=3), draw(2, 3, seed=4), torch.arange(3)
    ends = [
        Node(t.double(), x, g, f) for t, x, g, f in zip(torch.eye(2, 3), (first, last), slopes, scores, strict=True)
    ]
    piece = r.trapezoid(rows, 0 * rows, *ends)
    close(piece.sums, slopes.mean(0) * (last - first), 1e-14)
    close(piece.error, scores[1] - scores[0] - (slopes.mean(0) * (last - first)).sum(1), 1e-14)
    turned = ((slopes[1] - slopes[0]) * (last - first)).norm(dim=1)
    close(piece.urgency, turned**2 + piece.error**2, 1e-13)
    average = r.trapezoid(rows, 0 * rows, *ends, average=True)
    close(average.sums, slopes.mean(0) * torch.tensor([[-1.0], [1.0], [0.0]]).double(), 1e-14)
    close(average.error, piece.error, 1e-15)


def test_pieces_are_chosen_and_joined_with_what_they_hold_and_what_they_do_not() -> None:
    nodes = Node(draw(4), score=draw(4, seed=1))
    both = r.joined([r.chosen(nodes, torch.tensor([3])), r.chosen(nodes, torch.tensor([0, 1]))])
    assert torch.equal(both.coordinates, nodes.coordinates[[3, 0, 1]]) and torch.equal(
        both.score, nodes.score[[3, 0, 1]]
    )
    assert both.point is None and both.gradient is None


# --- the rule of tolerance= ----


def adaptive(line: Line, tolerance: float, n_first: int = 6, most: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    counts, converged = torch.full((line.n_rows,), n_first + 1), torch.zeros(line.n_rows, dtype=torch.bool)
    allowed = tolerance * line.change().abs().clamp_min(0.05)
    found = line.total(n_first, until_complete(allowed, n_first, most, counts, converged))
    return found, counts, converged


@pytest.mark.parametrize("make", [kink, smooth])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_segments_are_halved_until_the_errors_add_up_to_little(make: Callable[[], Line], tolerance: float) -> None:
    line = make()
    found, counts, converged = adaptive(line, tolerance)
    assert converged.all()
    assert ((found - line.change()).abs() <= tolerance * line.change().abs().clamp_min(0.05) * (1 + 1e-9)).all()
    assert line.n_calls == int((counts - 7).sum()), "counts are the gradients taken"


@pytest.mark.parametrize("make", [kink, jump, smooth, noise])
@pytest.mark.parametrize("most", [6, 7, 20, 33])
def test_no_image_has_more_segments_than_it_may(make: Callable[[], Line], most: int) -> None:
    line = make()
    found, counts, _ = adaptive(line, 1e-9, most=most)
    assert (counts <= most + 1).all() and found.isfinite().all()


def test_a_jump_ends_and_has_not_converged() -> None:
    found, counts, converged = adaptive(jump(), 1e-4, most=1000)
    assert not converged.any() and (counts <= 1001).all()
    close(found, torch.ones(4).double(), 1e-9)  # what is smooth is there, the step is not


def test_noise_takes_what_it_may_and_has_not_converged() -> None:
    _, counts, converged = adaptive(noise(), 1e-4, most=300)
    assert not converged.any() and (counts == 301).all()


# --- the rule of guided sums ----


def budgeted(line: Line, bound: float, steps: int, n: int = 8) -> tuple[Tensor, Budget]:
    rule = Budget(torch.full((line.n_rows,), bound, dtype=torch.float64))
    rule.grant(steps)
    return line.total(n, rule), rule


def test_kinks_are_halved_as_long_as_that_pays_and_smooth_segments_not_at_all() -> None:
    line = kink()
    found, _ = budgeted(line, 1e-9, 8)
    assert ((found - line.change()).abs() <= 2.0 ** -(3 + r.DEEPEST)).all()
    assert line.n_calls == 4 * r.DEEPEST
    line = smooth()
    found, _ = budgeted(line, 0.5, 100)
    assert line.n_calls == 0


@pytest.mark.parametrize("steps", [8, 40])
def test_noise_gets_no_more_halvings_than_steps(steps: int) -> None:
    line = noise()
    _, rule = budgeted(line, 1e-9, steps)
    assert line.n_calls <= 4 * steps and (rule.left >= 0).all()


@pytest.mark.parametrize("steps", [8, 24])
def test_whatever_pays_has_its_bound_too(steps: int) -> None:
    def away(t: Tensor) -> Tensor:
        return 9 * t + 0.137 - (9 * t + 0.137).round()

    waves = Line(lambda t, rows: away(t).abs(), lambda t, rows: 9 * away(t).sign(), 2)
    _, rule = budgeted(waves, 1e-9, steps, n=13)
    assert 2 * steps < waves.n_calls <= 2 * r.MORE * steps and (rule.left >= 0).all()


def test_the_largest_errors_are_halved_first() -> None:
    line, halved = kink(), []
    pieces = line.pieces(8)
    pieces = pieces._replace(error=torch.arange(32).double(), depth=torch.where(torch.arange(32) == 31, r.DEEPEST, 0))
    rule = Budget(torch.full((4,), 4.5, dtype=torch.float64))
    rule.grant(4)
    now, later = rule(pieces, 0)
    halved = now.nonzero().squeeze(1).tolist()
    assert halved == [6, 7, 14, 15, 22, 23, 29, 30], (
        "half of what is left, the deepest one not, nor what is below the bound"
    )
    assert not (now & later).any() and later[:5].any().logical_not() and later[5] and not later[31]


def test_rounding_and_nan_are_no_errors_that_halving_mends() -> None:
    line = kink()
    pieces = line.pieces(2)
    far = pieces._replace(
        start=pieces.start._replace(score=torch.full((8,), 1e6).double()),
        end=pieces.end._replace(score=torch.full((8,), 1e6).double()),
        error=torch.tensor([1e-9, 1e-10, math.nan, 0.0, 1e-6, 1.0, -1.0, -1e-9]).double(),
    )
    rule = Budget(torch.full((4,), 1e-12, dtype=torch.float64))
    assert rule.rough(far).tolist() == [False, False, False, False, True, True, True, False]


# --- the rule of bridges and edges ----


def gauss(line: Line, allowed: float, n: int = 1) -> tuple[Tensor, int]:
    """The integral by one midpoint a piece, then by 4, 16, 64 and 256."""
    rows, starts = torch.arange(line.n_rows).repeat_interleave(n), torch.arange(n).double().repeat(line.n_rows) / n

    def integral(rows: Tensor, starts: Tensor, n_times: int) -> Tensor:
        t = starts[:, None] + (torch.arange(n_times).double() + 0.5) / (n * n_times)
        slopes = line.evaluate(t.flatten(), rows.repeat_interleave(n_times)).gradient
        return slopes.view(-1, n_times).sum(1, keepdim=True) / (n * n_times)

    change = line.score(starts + 1 / n, rows) - line.score(starts, rows)
    pieces = r.gauss(rows, starts, change, integral(rows, starts, 1))
    line.n_calls, bound = 0, torch.full((line.n_rows,), allowed, dtype=torch.float64)
    total = torch.zeros(line.n_rows, 1, dtype=torch.float64)
    again = r.finer(lambda pieces, n_times: integral(pieces.rows, pieces.start.coordinates, n_times))
    refine(total, pieces, again, by_share(bound, lambda pieces: bound[pieces.rows] / n, r.DEEPEST_EDGE))
    return total[:, 0], line.n_calls


@pytest.mark.parametrize("n", [1, 3])
def test_pieces_over_kinks_get_more_nodes_where_they_miss_their_share(n: int) -> None:
    for allowed in (0.3, 0.1, 0.01):
        line = kink()
        found, n_calls = gauss(line, allowed, n)
        assert ((found - line.change()).abs() <= allowed).all()
        assert n_calls <= line.n_rows * n * (4 + 16 + 64 + 256)
    smooth_line = smooth()
    found, n_calls = gauss(smooth_line, 1e-2, n)
    assert ((found - smooth_line.change()).abs() <= 1e-2).all() and n_calls % 4 == 0


def test_errors_that_cancel_are_left_alone() -> None:
    """What climbs on one edge falls on another: a path that misses nothing is not taken again."""
    line = Line(lambda t, rows: (t - 0.5).abs() ** 3, lambda t, rows: 3 * (t - 0.5).abs() * (t - 0.5), 1)
    found, n_calls = gauss(line, 1e-6, 2)
    assert n_calls == 0 and found.abs() < 1e-12


def test_a_jump_is_taken_again_four_times_and_no_more() -> None:
    line = jump()
    _, n_calls = gauss(line, 1e-3)
    assert n_calls == line.n_rows * (4 + 16 + 64 + 256)


@pytest.mark.parametrize(("change", "allowed"), [(2.0, 2e-3), (-2.0, 2e-3), (0.0, 5e-5), (0.01, 5e-5)])
def test_errors_are_a_share_of_the_change_and_of_no_less_than_a_twentieth(change: float, allowed: float) -> None:
    assert r.share_of(torch.tensor([change], dtype=torch.float64)).item() == pytest.approx(allowed)


# --- what all rules keep ----

RULES: dict[str, Callable[[Line, int], Tensor]] = {
    "tolerance": lambda line, n: adaptive(line, 1e-3, n, 40)[0],
    "guided": lambda line, n: budgeted(line, 1e-6, 5, n)[0],
    "bridges": lambda line, n: gauss(line, 1e-3, n)[0],
}


def some_of(line: Line, rows: list[int]) -> Line:
    own = torch.tensor(rows)
    return Line(lambda t, i: line.score(t, own[i]), lambda t, i: line.slope(t, own[i]), len(rows))


@pytest.mark.parametrize("make", [kink, jump, noise, smooth])
@pytest.mark.parametrize("rule", RULES)
def test_neither_the_order_of_images_nor_the_batch_matters(rule: str, make: Callable[[], Line]) -> None:
    whole = RULES[rule](make(), 5)
    for rows in ([2], [3, 1], [1, 0, 3, 2], [0, 0, 1]):
        close(RULES[rule](some_of(make(), rows), 5), whole[rows], 1e-12)


def test_the_order_of_pieces_does_not_matter() -> None:
    for rule in (
        lambda: to_depth(5),
        lambda: by_share(torch.full((4,), 0.01).double(), lambda pieces: torch.full_like(pieces.error, 0.01), 4),
    ):
        line, totals = kink(), []
        for order in (torch.arange(20), torch.randperm(20, generator=torch.Generator().manual_seed(0))):
            total = torch.zeros(4, 1, dtype=torch.float64)
            refine(total, r.chosen(line.pieces(5), order), r.halves(line.evaluate, 3), rule())
            totals.append(total)
        close(totals[1], totals[0], 1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_ends_and_harms_its_image_only(rule: str, bad: float) -> None:
    base = kink()

    def broken(t: Tensor, rows: Tensor) -> Tensor:
        return torch.where((rows == 1) & (t > 0.55), bad, base.score(t, rows))

    def slope(t: Tensor, rows: Tensor) -> Tensor:
        return torch.where((rows == 1) & (t > 0.55), bad, base.slope(t, rows))

    line = Line(broken, slope, 4)
    found = RULES[rule](line, 5)
    assert not found[1].isfinite()
    close(found[[0, 2, 3]], RULES[rule](kink(), 5)[[0, 2, 3]], 1e-12)
    assert line.n_calls <= 4 * 340, "nothing is cut without end"


@given(
    values=st.lists(
        st.tuples(st.integers(0, 3), st.one_of(st.just(0.0), st.floats(1e-3, 100))), min_size=1, max_size=20
    ),
    most=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    share=st.sampled_from([1.0, 0.25, 0.5]),
)
def test_the_largest_of_each_row_are_those_of_a_loop(values: list, most: list[int], share: float) -> None:
    rows, sizes = torch.tensor([row for row, _ in values]), torch.tensor([size for _, size in values]).double()
    found = r.largest(sizes, rows, torch.tensor(most), share)
    for row in range(4):
        own = (rows == row).nonzero().squeeze(1)
        ranked = sorted(own.tolist(), key=lambda i: (-float(sizes[i]), i))
        wanted, summed, total = set(), 0.0, float(sizes[own].sum())
        for place in ranked[: most[row]]:
            if sizes[place] > 0 and (share == 1 or summed < share * total * (1 - 1e-12)):
                wanted.add(place)
            summed += float(sizes[place])
        assert set(own[found[own]].tolist()) == wanted
