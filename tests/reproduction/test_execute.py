"""The executor's own functions; what make does with them is in tests/contracts/test_make.py."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from manifold_lib.reproduction import execute, runtime


def with_output(text, **more):
    return new_notebook(cells=[new_code_cell("1", outputs=[new_output("stream", name="stdout", text=text)], **more)])


def test_it_imports_nothing_of_the_package_and_no_torch():
    tree = ast.parse(Path(execute.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(getattr(node, "level", 0) for node in nodes)
    named = {alias.name for node in nodes for alias in node.names} | {getattr(node, "module", "") for node in nodes}
    assert not [name for name in named if re.match(r"(manifold_lib|torch)\b", name)]


def test_profiles_and_root_are_those_of_the_runtime_and_of_the_makefile():
    assert execute.PROFILES == runtime.PROFILES and execute.ROOT == runtime.ROOT
    made = re.search(r"^PROFILES +:= (.+)$", (runtime.ROOT / "Makefile").read_text(), flags=re.M)
    assert tuple(made[1].split()) == runtime.PROFILES


def test_absolute_paths_are_found_and_addresses_and_relative_ones_are_not():
    text = "see /home/me/x and /tmp/y, not data/tmp/z, https://example.org/home/a or ~/opt/b"
    assert execute.absolute_paths(text) == ["/home/me/x", "/tmp/y,"]


def test_a_stripped_notebook_keeps_code_and_tags_alone(tmp_path):
    cells = [new_markdown_cell("# A"), new_code_cell("n = 1", metadata={"tags": ["parameters"], "execution": {}})]
    notebook = new_notebook(cells=[*cells, *with_output("x", execution_count=3).cells], metadata={"widgets": {}})
    source, target = tmp_path / "source.ipynb", tmp_path / "folder" / "target.ipynb"
    nbformat.write(notebook, source)
    execute.strip(source, target)
    found = json.loads(target.read_text())
    assert [cell["metadata"] for cell in found["cells"]] == [{}, {"tags": ["parameters"]}, {}]
    assert found["cells"][2]["outputs"] == [] and found["cells"][2]["execution_count"] is None
    assert set(found["metadata"]) == {"kernelspec", "language_info"}
    before = target.stat().st_mtime_ns
    notebook.cells[2].outputs = []
    nbformat.write(notebook, source)
    execute.strip(source, target)
    assert target.stat().st_mtime_ns == before, "outputs alone do not make it newer"


def test_no_output_names_the_folder_of_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MANIFOLD_DATA", str(tmp_path / "sets"))
    text = execute.tidy(with_output(f"looked in {tmp_path / 'sets'} and {tmp_path}/sets/x\n"))
    assert str(tmp_path) not in text and "looked in $MANIFOLD_DATA/ and $MANIFOLD_DATA/x" in text


def test_folders_of_this_machine_get_short_names():
    text = execute.tidy(with_output(f"{execute.ROOT}/data and {Path.home()}/x\n"))
    assert '"data and ~/x' in text


@pytest.mark.parametrize(
    ("output", "message"),
    [("found /srv/here/file", "absolute paths.*/srv/here/file"), ("x" * (execute.MAX_BYTES + 1), "more than 1 MB")],
)
def test_what_cannot_be_kept_is_refused(output, message):
    with pytest.raises(execute.Failed, match=message):
        execute.tidy(with_output(output))


def test_a_file_is_replaced_in_one_step_and_can_be_given_a_time(tmp_path):
    path = tmp_path / "inner" / "stamp"
    execute.write_text(path, "one")
    execute.write_text(path, "two", modified=1_000_000_000)
    assert path.read_text() == "two" and path.stat().st_mtime == 1_000_000_000
    assert [entry.name for entry in path.parent.iterdir()] == ["stamp"]
