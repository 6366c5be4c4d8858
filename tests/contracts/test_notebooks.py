"""What every notebook must be, so that papermill, nbval, GitHub and a reader can work with it."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import nbformat
import pytest
import yaml

from manifold_lib.reproduction.execute import MAX_BYTES, PROFILES, absolute_paths

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
OF_PAPERS = [path for path in PATHS if 1 <= int(path.stem[:2]) <= 5]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _parameters(notebook: nbformat.NotebookNode) -> dict[str, object]:
    (cell,) = (cell for cell in _code(notebook) if "parameters" in _tags(cell))
    values: dict[str, object] = {}
    for line in filter(str.strip, cell.source.splitlines()):
        if line.startswith("#"):
            continue
        found = re.fullmatch(r"([a-z]\w*) = (.+?)  # \S.*", line)
        assert found, f"wants `name = literal  # explanation`: {line}"
        assert found[1] not in values, f"{found[1]} is set twice"
        values[found[1]] = ast.literal_eval(found[2])
    return values


def test_format_and_kernel(path: Path, notebook: nbformat.NotebookNode) -> None:
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size <= MAX_BYTES


def test_no_trace_of_a_machine(path: Path, notebook: nbformat.NotebookNode) -> None:
    assert not absolute_paths(path.read_text())
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    assert "version" not in notebook.metadata.get("language_info", {})
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert "injected-parameters" not in _tags(cell)


def test_parameters_cell(notebook: nbformat.NotebookNode) -> None:
    parameters = _parameters(notebook)
    assert parameters["profile"] == "smoke" and parameters["device"] in ("auto", "cpu")
    assert "seed" in parameters


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_profiles_set_known_parameters(path: Path, notebook: nbformat.NotebookNode, profile: str) -> None:
    settings = yaml.safe_load((NOTEBOOKS / "params" / f"{path.stem}.{profile}.yml").read_text()) or {}
    defaults = _parameters(notebook)
    assert settings.keys() <= defaults.keys() - {"profile", "device"}
    for name, value in settings.items():
        assert type(value) is type(defaults[name]), f"{name}: {value!r}, the default is {defaults[name]!r}"
        if isinstance(value, list) and value and defaults[name]:
            assert {type(entry) for entry in value} <= {type(entry) for entry in defaults[name]}, name


def test_params_belong_to_a_notebook() -> None:
    known = {f"{path.stem}.{profile}" for path in PATHS for profile in PROFILES}
    assert {path.stem for path in NOTEBOOKS.glob("params/*")} <= known


def test_cells(notebook: nbformat.NotebookNode) -> None:
    for cell in _code(notebook):
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert not [tag for tag in _tags(cell) if tag.endswith("raises-exception")]


def test_what_nbval_compares(notebook: nbformat.NotebookNode) -> None:
    for cell in _code(notebook):
        chosen = {"nbval-check-output", "nbval-ignore-output"} & set(_tags(cell))
        text = [output for output in cell.outputs if "image/png" not in output.get("data", {})]
        if text:
            assert len(chosen) == 1, (
                f"has words or numbers, wants a tag that says whether they are compared:\n{cell.source}"
            )
        if "results.judge()" in cell.source:
            assert chosen == {"nbval-check-output"}
        if chosen == {"nbval-check-output"}:
            assert cell.execution_count and text, f"nbval would compare nothing:\n{cell.source}"


@pytest.mark.parametrize("path", OF_PAPERS, ids=lambda path: path.stem)
def test_differences_from_the_paper(notebook: nbformat.NotebookNode) -> None:
    headings = [cell.source.splitlines()[0] for cell in notebook.cells if cell.cell_type == "markdown"]
    place = headings.index("## Where we differ from the paper")
    assert headings[place + 1].startswith("**What follows")
    (cell,) = (cell for cell in notebook.cells if cell.source.startswith("## Where we differ from the paper"))
    assert cell.source.count("\n- ") <= 8 and len(cell.source.split()) <= 150


@pytest.mark.parametrize(
    "found, stored, same",
    [
        ("0.0931 of the norm", "0.0925 of the  norm", True),  # on both sides of a border of rounding
        ("−3.2e-09", "1.1e-12", True),
        ("[1.02, 41.0]", "[1.00, 40.0]", True),
        ("[1.02, 48.0]", "[1.00, 40.0]", False),
        ("0.12", "-0.12", False),
        ("6 claims", "7 claims", False),
        ("0.3 undecided", "0.3 reproduced", False),
        ("nan", "0.3", False),
    ],
)
def test_nbval_takes_close_numbers_for_the_same(found: str, stored: str, same: bool) -> None:
    settle = runpy.run_path(str(NOTEBOOKS / "conftest.py"))["settle"]
    outputs = [[nbformat.v4.new_output("display_data", {"text/html": text})] for text in (found, stored)]
    assert (settle(*outputs) == outputs[1]) is same


@pytest.mark.parametrize(
    "found, stored, same",
    [("-0.333", "-0.111", True), ("0.5 held", "0.9 held", False), ("0.3 held", "0.3 fooled", False)],
)
def test_a_wide_tolerance_holds_words_and_large_differences(found: str, stored: str, same: bool) -> None:
    module = runpy.run_path(str(NOTEBOOKS / "conftest.py"))
    assert (module["settle"]([found], [stored], module["WIDELY"]) == [stored]) is same
    assert module["settle"]([found], [stored]) != [stored]


def test_outputs(notebook: nbformat.NotebookNode) -> None:
    allowed = ("text/plain", "text/html", "text/markdown", "text/latex", "image/png")
    for cell in _code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert set(output.get("data", {})) <= set(allowed)
