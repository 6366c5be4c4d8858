"""Pieces of paths whose error is known, and the one refiner that cuts them where the error is large.

The integral of a gradient over a piece should be the change Δf of the score over it: the difference is its error. One
of three rules chooses what :func:`refine` cuts: for ``tolerance=``, for guided sums, and for bridges and graph edges.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.scorer import LEAST_CHANGE

# tolerance=: an image begins with FIRST segments (with fewer the map is less exact, with more there is less to choose)
# and ends with at most MOST. Each round halves those with a QUARTER of the change of the gradient. After
# DEEPEST_TOLERANCE halvings neighbouring points round to the same one in single precision.
FIRST, MOST, QUARTER, DEEPEST_TOLERANCE = 12, 1024, 0.25, 16
# Guided sums: the errors of smooth segments fall faster than 1 / n², so an error above ROUGH / n² of the change of the
# score is a kink or a jump; DEEPEST halvings narrow it to 1/64. An image has a halving a step, granted BLOCK steps at a
# time, and MORE where the errors of the halves fall below PAYS of those of their wholes (kinks: 0.4 to 0.8; noise: 1).
ROUGH, DEEPEST, BLOCK, PAYS, MORE = 20.0, 6, 8, 0.9, 32
# Bridges and edges: what their sum may miss of the change of the score, the nodes of a bridge, and how often each is
# taken again by four times as many nodes. A bridge ends with 256; an edge may have begun with few.
ALLOWED, BRIDGE_NODES, DEEPEST_BRIDGE, DEEPEST_EDGE = 1e-3, 16, 2, 4


class Node(NamedTuple):
    """Points of paths, one a row: the coordinates (the time t, or what a guided path moves), the point (n, *shape),
    ∂f/∂x there (n, *shape) and f (n,), each None where it is not wanted."""

    coordinates: Tensor
    point: Any = None
    gradient: Any = None
    score: Any = None


class Pieces(NamedTuple):
    """Pieces of paths: the image, how often cut, ends, the integral, what it misses of Δf, and the claim to be cut.

    A piece that is taken again whole, by :func:`finer`, has its place in ``start`` and neither an end nor a claim.
    """

    rows: Tensor
    depth: Tensor
    start: Node
    end: Any
    sums: Tensor
    error: Tensor
    urgency: Any


Evaluate = Callable[[Tensor, Tensor], Node]
Rule = Callable[[Pieces, int], tuple[Tensor, Tensor]]


def refine(total: Tensor, pieces: Pieces, cut: Callable[[Pieces], Pieces], rule: Rule) -> None:
    """Cut pieces and add up their integrals, image by image, in ``total`` (B, *shape).

    ``rule(pieces, n_new)`` gives which to cut now and which may be cut later; the last ``n_new`` pieces are the newest.
    """
    n_new = 0
    while True:
        now, later = rule(pieces, n_new)
        if not now.any():
            total.index_add_(0, pieces.rows, pieces.sums.to(total.dtype))
            return
        final = ~now & ~later
        total.index_add_(0, pieces.rows[final], pieces.sums[final].to(total.dtype))
        new = cut(chosen(pieces, now))
        n_new = len(new.rows)
        pieces = joined([chosen(pieces, later), new])


def until_complete(allowed: Tensor, n_first: int, most: int, counts: Tensor, converged: Tensor) -> Rule:
    """The rule of ``tolerance=``: halve where the gradient changes most, until the errors add up to ``allowed`` (B,).

    Errors are added up over stretches of two first segments each, then without signs, which could cancel by chance.
    Writes the gradients spent to ``counts`` and the success to ``converged``.
    """
    n_stretches = -(-n_first // 2)

    def rule(pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        counts.add_(torch.bincount(pieces.rows[len(pieces.rows) - n_new :], minlength=len(counts)) // 2)
        middle = (pieces.start.coordinates + pieces.end.coordinates) / 2
        stretch = pieces.rows * n_stretches + (middle * n_first / 2).long()
        by_stretch = allowed.new_zeros(len(allowed) * n_stretches).index_add(0, stretch, pieces.error).abs()
        summed = by_stretch.view(len(allowed), -1).sum(1)
        present = torch.bincount(pieces.rows, minlength=len(allowed)) > 0
        converged[present] = (summed <= allowed)[present]
        room = most + 1 - counts
        open_ = present & (summed > allowed) & torch.isfinite(summed) & (room > 0)
        may = open_[pieces.rows] & (pieces.depth < DEEPEST_TOLERANCE) & (pieces.urgency > 0)
        now = largest(pieces.urgency.where(may, 0), pieces.rows, room, QUARTER) & may
        going_on = torch.bincount(pieces.rows[now], minlength=len(allowed)) > 0
        return now, ~now & going_on[pieces.rows]

    return rule


class Budget:
    """The rule of guided sums: halve the segments whose error is above ``bound`` (B,), the largest first.

    What :meth:`grant` gave is not taken back, since the first halves of a jump have larger errors than the whole.
    """

    def __init__(self, bound: Tensor) -> None:
        self.bound, self.left = bound, torch.zeros_like(bound, dtype=torch.int64)
        self.before, self.after, self.more = torch.zeros_like(bound), torch.zeros_like(bound), self.left

    def grant(self, steps: int) -> None:
        """Halvings for some more steps."""
        self.left, self.more = self.left + steps, torch.full_like(self.left, (MORE - 1) * steps)

    def rough(self, pieces: Pieces) -> Tensor:
        """Whether halving may lessen the error of a piece, as it does not that of NaN and rounding."""
        scores = pieces.start.score.abs() + pieces.end.score.abs()
        rounding = 8 * torch.finfo(scores.dtype).eps * scores
        return (pieces.error.abs() > self.bound[pieces.rows] + rounding) & (pieces.depth < DEEPEST)

    def __call__(self, pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        errors, new = pieces.error.abs(), slice(len(pieces.rows) - n_new, None)
        self.after.index_add_(0, pieces.rows[new], errors[new])
        rough = self.rough(pieces)
        pays = self.after < PAYS * self.before
        self.left += torch.where(pays, self.more, 0)
        self.more = torch.where(pays, 0, self.more)
        # half of what is left at a time, so that the halves of a jump come before lesser errors
        now = largest(errors.where(rough, 0), pieces.rows, (self.left + 1) // 2) & rough
        self.left.index_add_(0, pieces.rows[now], -torch.ones_like(pieces.rows[now]))
        self.before.index_add_(0, pieces.rows[now], errors[now])
        return now, rough & ~now


def by_share(allowed: Tensor, share: Callable[[Pieces], Tensor], deepest: int) -> Rule:
    """The rule of bridges and edges: where a path misses ``allowed`` (B,), its pieces that miss more than their share.

    Such a piece is taken again by four times as many nodes, ``deepest`` times at most.
    """

    def rule(pieces: Pieces, n_new: int) -> tuple[Tensor, Tensor]:
        missed = torch.zeros_like(allowed).index_add_(0, pieces.rows, pieces.error).abs() > allowed
        large = pieces.error.abs() > share(pieces)
        now = missed[pieces.rows] & large & (pieces.depth < deepest)
        return now, missed[pieces.rows] & ~now

    return rule


def share_of(change: Tensor, allowed: float = ALLOWED) -> Tensor:
    """What a sum may miss: a share of |Δf|, which counts as at least 0.05."""
    return allowed * change.abs().clamp_min(LEAST_CHANGE)


def trapezoid(rows: Tensor, depth: Tensor, start: Node, end: Node, *, average: bool = False) -> Pieces:
    """Pieces with ½ (∇f + ∇f) ⊙ Δp as their integral, or with ``average`` ½ (∇f + ∇f) Δt."""
    dtype = torch.promote_types(start.point.dtype, torch.float32)
    chord, mean = end.point.to(dtype) - start.point, 0.5 * (start.gradient + end.gradient)
    products = mean * chord
    error = (end.score - start.score).to(dtype) - products.flatten(1).sum(1)
    change = ((end.gradient - start.gradient) * chord).flatten(1).norm(dim=1)
    urgency = change.double().square() + error.double().square()
    if average:
        products = mean * (end.coordinates - start.coordinates).to(dtype).view(-1, *(1,) * (mean.ndim - 1))
    return Pieces(rows, depth, start, end, products, error, urgency)


def halves(evaluate: Evaluate, size: int, *, average: bool = False) -> Callable[[Pieces], Pieces]:
    """Cut a piece of the trapezoid at the middle of its coordinates, where ``evaluate`` looks."""

    def cut(pieces: Pieces) -> Pieces:
        coordinates = (pieces.start.coordinates + pieces.end.coordinates) / 2
        found = zip(coordinates.split(size), pieces.rows.split(size), strict=True)
        middle = joined([evaluate(places, rows) for places, rows in found])
        ends = (joined([pieces.start, middle]), joined([middle, pieces.end]))
        # first half and second half of a piece lie side by side
        order = torch.arange(2 * len(pieces.rows), device=pieces.rows.device).view(2, -1).T.flatten()
        return chosen(trapezoid(pieces.rows.repeat(2), pieces.depth.repeat(2) + 1, *ends, average=average), order)

    return cut


def finer(integral: Callable[[Pieces, int], Tensor]) -> Callable[[Pieces], Pieces]:
    """Take pieces again, whole: ``integral(pieces, n_times)`` has ``n_times`` as many nodes as at first.

    The nodes are spread over the whole piece, since its map is uncertain wherever the gradient changes, of which the
    error of its sum shows one number only.
    """

    def again(pieces: Pieces) -> Pieces:
        depth = pieces.depth + 1
        sums = integral(pieces, 4 ** int(depth[0]))  # one round after the other: all are equally deep
        gain = (sums - pieces.sums).flatten(1).sum(1, dtype=torch.float64)
        return pieces._replace(depth=depth, sums=sums, error=pieces.error - gain)

    return again


def gauss(rows: Tensor, coordinates: Tensor, change: Tensor, sums: Tensor) -> Pieces:
    """Pieces whose integrals by a rule of Gauss and Legendre are known, and the change of the score over them."""
    error = change.double() - sums.flatten(1).sum(1, dtype=torch.float64)
    return Pieces(rows, torch.zeros_like(rows), Node(coordinates), None, sums, error, None)


def largest(values: Tensor, rows: Tensor, most: Tensor, share: float = 1.0) -> Tensor:
    """True for the largest values of each row that hold a ``share`` of its sum, at most ``most`` (B,) of them.

    At least one of a row where any is above 0. Each row is added up on its own, so that no large one rounds it away.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    owner, length = rows[order], torch.bincount(rows, minlength=len(most))
    place = torch.arange(len(rows), device=rows.device) - (length.cumsum(0) - length)[owner]
    kept = (values[order] > 0) & (place < most[owner])
    if share < 1:
        ranked = values.new_zeros(len(most), int(length.max()) if len(rows) else 1)
        ranked[owner, place] = values[order]
        sums = ranked.cumsum(1)
        kept &= (sums - ranked < share * sums[:, -1:])[owner, place]
    return torch.zeros_like(kept).index_put_((order,), kept)


def chosen(tree: Any, which: Tensor) -> Any:
    """Some rows of pieces or nodes."""
    return _each(lambda value: value[which], tree)


def joined(trees: list[Any]) -> Any:
    """Pieces or nodes, one below the other."""
    return _each(lambda *values: torch.cat(values), *trees)


def _each(function: Callable[..., Tensor], *trees: Any) -> Any:
    if trees[0] is None:
        return None
    if isinstance(trees[0], Tensor):
        return function(*trees)
    return type(trees[0])(*(_each(function, *parts) for parts in zip(*trees, strict=True)))
