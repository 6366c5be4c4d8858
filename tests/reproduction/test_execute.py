"""The executor's own functions; what make does with them is in tests/contracts/test_make.py."""

import ast
import base64
import errno
import fcntl
import io
import os
import re
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from manifold_lib.reproduction import execute, runtime


def with_output(text, **more):
    return new_notebook(cells=[new_code_cell("1", outputs=[new_output("stream", name="stdout", text=text)], **more)])


@pytest.mark.parametrize("name", ["execute.py", "__main__.py"])
def test_it_imports_nothing_of_the_package_and_no_torch(name):
    tree = ast.parse(Path(execute.__file__).with_name(name).read_text(encoding="utf-8"))
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


def test_no_output_names_the_folder_of_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MANIFOLD_DATA", str(tmp_path / "sets"))
    text = execute.tidy(with_output(f"looked in {tmp_path / 'sets'} and {tmp_path}/sets/x\n"))
    assert str(tmp_path) not in text and "looked in $MANIFOLD_DATA/ and $MANIFOLD_DATA/x" in text


def test_folders_of_this_machine_get_short_names(monkeypatch):
    text = execute.tidy(with_output(f"{execute.ROOT}/data and {Path.home()}/x\n"))
    assert '"data and ~/x' in text
    monkeypatch.setattr("sys.base_prefix", "/opt/python")  # that of the standard library, beside the environment's
    text = execute.tidy(with_output(f"{warnings.__file__}: ! at /opt/python/lib/x.py, then\n/srv/here/<b>"))
    assert not execute.absolute_paths(text) and "python/lib/x.py" in text and "…/here<b>" in text


@pytest.mark.parametrize("home", ["/", "", "/x"])
def test_what_is_written_in_a_notebook_is_not_touched(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    source = "turn / 2  # https://example.org, /x or /tmp/y"
    notebook = with_output("1 / 2 of https://example.org/z\n")
    notebook.cells[0].source = source
    found = nbformat.reads(execute.tidy(notebook), as_version=4).cells[0]
    assert found.source == source and found.outputs[0].text == "1 / 2 of https://example.org/z\n"


def test_a_notebook_too_large_is_refused():
    with pytest.raises(execute.Failed, match="more than 1 MB"):
        execute.tidy(with_output("x" * (execute.MAX_BYTES + 1)))


@pytest.mark.parametrize(("alpha", "mode"), [(255, "RGB"), (254, "RGBA")])
def test_pictures_lose_an_alpha_channel_that_hides_nothing(alpha, mode):
    values = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    values[..., 3] = alpha
    Image.fromarray(values).save(file := io.BytesIO(), "PNG")
    given = base64.b64encode(file.getvalue()).decode()
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[new_output("display_data", {"image/png": given})])])
    found = nbformat.reads(execute.tidy(notebook), as_version=4).cells[0].outputs[0].data["image/png"]
    image = Image.open(io.BytesIO(base64.b64decode(found)))
    assert image.mode == mode and np.array_equal(np.asarray(image)[..., :3], values[..., :3])


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Notebook 01_x with the parameters ``profile``, ``device`` and ``n_shapes``, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("notebooks/params").mkdir(parents=True)
    path, text = Path("notebooks/01_x.ipynb"), 'profile = "smoke"\ndevice = "auto"\nn_shapes = 1  # how many'
    cells = [new_code_cell(text, metadata={"tags": ["parameters"]}), new_code_cell('slug = "01_x"')]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": execute.KERNEL}), path)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_shape: 3", "has no 'n_shape'; the nearest is n_shapes"),
        ("- n_shapes", "wants lines such as"),
        ("n_shapes: [", "wants lines such as"),
        ("n_shapes", "wants lines such as"),
        (None, "No such file"),
    ],
)
def test_settings_that_the_notebook_cannot_take_are_named(notebook, text, message):
    file = Path("notebooks/params/01_x.small.yml")
    file.write_text("# none\n", encoding="utf-8")
    assert execute.settings("01_x", "small") == {"profile": "small"}
    file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    with pytest.raises(execute.Failed, match=rf"^{file}: .*{message}"):
        execute.settings("01_x", "small")


def test_a_lost_tag_is_named(notebook):
    notebook.write_text(notebook.read_text(encoding="utf-8").replace('"parameters"', '"other"'), encoding="utf-8")
    with pytest.raises(execute.Failed, match=r"the parameters cell of notebooks/01_x\.ipynb has no 'profile'"):
        execute.settings("01_x", "smoke")


@pytest.mark.parametrize(("old", "new"), [("{", "<<<<<<< HEAD\n{"), ('"cells"', '"other"'), ("01_x", "01_y")])
def test_what_is_no_notebook_or_a_copy_of_another_is_named(notebook, old, new):
    assert execute.fingerprint("01_x", "small")
    notebook.write_text(notebook.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(execute.Failed, match=r"notebooks/01_x\.ipynb: "):
        execute.fingerprint("01_x", "small")


@pytest.mark.parametrize("path", sorted(execute.ROOT.glob("notebooks/params/*")), ids=lambda path: path.stem)
def test_every_file_of_settings_fits_its_notebook(path, monkeypatch):
    monkeypatch.chdir(execute.ROOT)
    slug, profile = path.stem.split(".")
    assert path.suffix == ".yml" and execute.settings(slug, profile)["profile"] == profile


def test_without_locks_it_says_so_and_runs(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "01_x.run.lock").touch()
    with execute.alone("01_x", tmp_path):
        assert "has no locks (No locks available)" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named_before_the_run(notebook, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: "figures" not in str(folder))
    with pytest.raises(execute.Failed, match=r"nothing can be written in .*/figures/small"):
        execute.run("01_x", "small", "auto")
