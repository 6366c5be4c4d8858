"""Blocks of a notebook's work: kept while the work is the same, computed anew when it is not."""

import functools
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from manifold_lib.core.files import CorruptFile
from manifold_lib.reproduction.sweeps import kept as module
from manifold_lib.reproduction.sweeps.kept import kept

NOTEBOOK = """
def helper(x):
    return STEPS * x

class Shift:
    by = staticmethod(lambda x: x + 1)

def sources(*given):
    return DATA

@kept(sources)
def block(name, k):
    '''Says what it does.'''
    calls((name, k))
    inner = lambda x: Shift.by(more(x))
    [].append(k)
    return {"name": name, "values": weights * helper(inner(k)) + bias(torch.ones(1, 2))}
"""


class Calls(list[Any]):
    """What was computed, in the order of the calls."""


def notebook(text: str = NOTEBOOK, **changes: Any) -> Any:
    """The names of a notebook whose cells were run, some of them changed."""
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "__name__": "__main__",
        "kept": kept,
        "torch": torch,
        "calls": Calls().append,
        "STEPS": 3,
        "DATA": ["sha"],
    }
    names |= {"weights": torch.arange(3.0), "bias": torch.nn.Linear(2, 1), "more": functools.partial(max, 0)}
    exec(text, names | {})
    found = types.ModuleType("__main__").__dict__ | names | changes
    exec(text, found)
    return types.SimpleNamespace(**found)


def blocks(folders: Path) -> list[Path]:
    return sorted((folders / "data/cache/blocks").glob("*.pt"))


def test_the_same_work_is_done_once_by_any_process(folders: Path) -> None:
    one, other = notebook(), notebook("\n\n# moved, and said otherwise\n" + NOTEBOOK.replace("Says what", "Knows what"))
    first, second = one.block("a", 2), other.block("a", 2)
    assert one.calls.__self__ == [("a", 2)] and not other.calls.__self__
    assert first["name"] == "a" and torch.equal(first["values"], second["values"])
    values = first["values"].detach()[0]
    torch.testing.assert_close(values - values[0], torch.tensor([0.0, 9.0, 18.0]))


@pytest.mark.parametrize(
    "change",
    [
        {"STEPS": 4},
        {"weights": torch.arange(3.0) + 1},
        {"bias": torch.nn.Linear(2, 1, bias=False)},
        {"more": functools.partial(max, 1)},
        {"DATA": ["another sha"]},
        ("STEPS * x", "STEPS * x + 1"),
        ("x + 1", "x + 2"),
        ("weights * helper", "weights + helper"),
        ("lambda x: Shift.by(more(x))", "lambda x: Shift.by(more(x)) + 0"),
    ],
    ids=str,
)
def test_other_work_is_done_anew(folders: Path, change: Any) -> None:
    notebook().block("a", 2)
    other = notebook(**change) if isinstance(change, dict) else notebook(NOTEBOOK.replace(*change))
    other.block("a", 2)
    assert other.calls.__self__ == [("a", 2)] and len(blocks(folders)) == 2


def test_other_arguments_and_another_library_are_other_work(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = notebook()
    found.block("a", 2)
    found.block("a", 3)
    found.block("b", 2)
    monkeypatch.setattr(module, "_LIBRARY", "another")
    found.block("a", 2)
    assert found.calls.__self__ == [("a", 2), ("a", 3), ("b", 2), ("a", 2)] and len(blocks(folders)) == 4


def test_work_that_fails_leaves_nothing_and_a_spoilt_block_is_named(folders: Path) -> None:
    broken = notebook(NOTEBOOK.replace("return {", "raise OSError('no disk')\n    return {"))
    with pytest.raises(OSError, match="no disk"):
        broken.block("a", 2)
    assert not blocks(folders)
    found = notebook()
    found.block("a", 2)
    (file,) = blocks(folders)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match=file.name):
        found.block("a", 2)


def test_an_attribute_of_the_same_name_is_no_global(folders: Path) -> None:
    one, other = notebook(append=1), notebook(append=2)  # the code has `.append` of something else, if at all
    one.block("a", 2)
    other.block("a", 2)
    assert not other.calls.__self__


def test_what_cannot_be_compared_is_refused(folders: Path) -> None:
    with pytest.raises(ValueError, match="STEPS: got object, wants code that names plain values"):
        notebook(STEPS=object()).block("a", 2)


def test_layers_without_weights_count(folders: Path) -> None:
    one = notebook(bias=torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU()))
    other = notebook(bias=torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh()))
    other.bias.load_state_dict(one.bias.state_dict())
    one.block("a", 2)
    other.block("a", 2)
    assert other.calls.__self__ == [("a", 2)]


def test_functions_that_call_kept_ones_depend_on_their_code(folders: Path) -> None:
    text = NOTEBOOK + "\n@kept(sources)\ndef outer(k):\n    return block('a', k)['values']\n"
    one, other = notebook(text), notebook(text.replace("x + 1", "x + 5"))
    assert not torch.equal(one.outer(1), other.outer(1))
    assert one.calls.__self__ == other.calls.__self__ == [("a", 1)]
