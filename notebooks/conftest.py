"""How `make nbval` compares outputs: words and counts exactly, measured numbers within a tolerance.

Another processor moves the last digits of a number, and rounding hides that only until a number lies on the border
between two roundings. So nothing is rounded: two numbers that are close count as the same.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

RELATIVE, ABSOLUTE = 0.15, 0.01
# the tag of a cell whose few images at smoke let rounding through, such as one greedy choice in two images
WIDE, WIDELY = "nbval-wide", 0.25
_NUMBER = re.compile(r"([-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let nbval see the new outputs with every number that is close to the stored one put as stored."""
    for cell in items:
        if hasattr(cell, "compare_outputs"):
            absolute = WIDELY if WIDE in cell.cell.metadata.get("tags", ()) else ABSOLUTE
            cell.compare_outputs = functools.partial(_compare, cell.compare_outputs, absolute)


def _compare(strictly: Callable[..., bool], absolute: float, found: list[Any], stored: list[Any], **more: Any) -> bool:
    return strictly(settle(found, stored, absolute), stored, **more)


def settle(found: Any, stored: Any, absolute: float = ABSOLUTE) -> Any:
    """The outputs found, with what is the same to a reader put as stored."""
    if isinstance(found, str) and isinstance(stored, str):
        new, old = found.splitlines(True), stored.splitlines(True)
        close = functools.partial(_settle_line, absolute=absolute)
        return "".join(map(close, new, old)) if len(new) == len(old) else found
    if isinstance(found, list) and isinstance(stored, list) and len(found) == len(stored):
        return [settle(*pair, absolute) for pair in zip(found, stored, strict=True)]
    if isinstance(found, dict) and isinstance(stored, dict):
        settled = type(found)({key: settle(value, stored.get(key), absolute) for key, value in found.items()})
        if {"text/html", "text/plain"} <= stored.keys() & found.keys():
            settled["text/plain"] = stored[
                "text/plain"
            ]  # the same table, broken into blocks by the width of its numbers
        return settled
    return found


def _settle_line(found: str, stored: str, absolute: float) -> str:
    """The stored line, with those numbers of the found one that are not close."""
    new, old = _NUMBER.split(found), _NUMBER.split(stored)
    if [part.split() for part in new[::2]] != [part.split() for part in old[::2]]:
        return found
    old[1::2] = [b if _close(a, b, absolute) else a for a, b in zip(new[1::2], old[1::2], strict=True)]
    return "".join(old)


def _close(found: str, stored: str, absolute: float) -> bool:
    """Whether two numbers are close; two whole ones have to be equal."""
    if found.lstrip("+-−").isdecimal() and stored.lstrip("+-−").isdecimal():
        return found == stored
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (found, stored))
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=absolute)
