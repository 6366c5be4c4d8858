"""The site: built without a network from a small repository, and looked at link by link."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import zlib
from base64 import b64encode
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import manifold_lib as ml

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "notebooks" / "site"
PAGES = ("CONTRIBUTING", "CHANGELOG", "notebooks/README", "data/README", "data/models/README", "figures/README")
VARIABLES = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def png(width: int) -> bytes:
    """A black picture, one pixel high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0), zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def notebook(root: Path, slug: str, text: str, executed: bool) -> None:
    """A notebook that computes and draws; an executed one has a figure of 550 pixels, and 9 pixels as shown."""
    shown = new_output("display_data", {"image/png": b64encode(png(9)).decode(), "text/plain": "a figure"})
    cells = [
        new_markdown_cell(f"# {slug}\n\n**You will see\nmore.**\n\n## The part\n\n{text}"),
        new_code_cell("computed = 6 * 7", outputs=[new_output("stream", text="42")]),
        new_code_cell("axis.plot([1])", outputs=[shown]),
    ]
    folder = root / "figures" / "small" / slug if executed else root / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    write(new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / f"{slug}.ipynb")
    if executed:
        (folder / "line.png").write_bytes(png(550))
        claims = [{"verdict": verdict} for verdict in ("held", "broken", "held")]
        (folder / "results.json").write_text(json.dumps({"figures": ["line.png"], "claims": claims}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a repository of two notebooks, of which the first has run at profile small."""
    root = tmp_path_factory.mktemp("a folder") / "repository"
    shutil.copytree(SITE, root / "notebooks" / "site", ignore=shutil.ignore_patterns("__pycache__"))
    text = (
        r"Inline $\lVert P a\rVert_2 < \tfrac12$, and [the next](01_next.ipynb), [data](../data/README.md#data-readme)."
    )
    text += "\n\n$$\\underbrace{x}_{\\text{an image}}\\le 1$$\n\n[numbers](../data/a.csv), [a folder](../data)"
    for slug, executed in (("00_start_here", False), ("01_next", False), ("00_start_here", True)):
        notebook(root, slug, text if executed else "Text.", executed)
    for name in PAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).with_suffix(".md").write_text(f"# {name}\n\nSet $MANIFOLD_DATA.\n")
    (root / "data" / "a.csv").write_text("1\n")
    link = "[![a figure](figures/small/00_start_here/line.png)](figures/small/00_start_here/00_start_here.ipynb)"
    (root / "README.md").write_text(f"# Top\n\n{link}, and in code `d[x](data)`.\n")
    command = [sys.executable, str(root / "notebooks" / "site" / "build.py"), "small"]
    done = subprocess.run(command, env=os.environ | VARIABLES, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ".build/site/index.html written\n"
    return root / ".build" / "site"


def test_pages_hold_what_their_sources_do_and_need_no_network(site):
    assert runpy.run_path(str(SITE / "check.py"))["problems"](site) == []
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    first = pages["notebooks/00_start_here.html"]
    assert first.count("<math") == 2 and "mathjax" not in "".join(re.findall(r"<script[^>]*>", first)).lower()
    assert 'href="01_next.html"' in first and 'href="../data/README.html#data-readme"' in first
    assert "a folder" in first and re.search(r'href="../_downloads/\w+/a\.csv"', first)
    # the figure as it was saved, half as wide as the column, with its code folded
    (image,) = re.findall(r'<img alt="line: figure of the section The part" src="../([^"]*)" style="width: 50%;', first)
    assert (site / image).read_bytes() == png(550)
    folded = re.findall(r"<details class.*?</details>", first, flags=re.S)
    assert len(folded) == 1 and "plot" in folded[0] and "computed" not in folded[0] and "computed" in first
    assert "outputs are those of profile" in pages["notebooks/01_next.html"] and "outputs are" not in first
    assert "3 claims: 2 held, 1 broken." in pages["gallery.html"]
    assert 'href="notebooks/00_start_here.html#start-here-line"' in pages["gallery.html"]
    assert re.search(r'href="notebooks/00_start_here.html"><span[^>]*><img', pages["README.html"])
    assert pages["index.html"].count("</a>: You will see more.") == 2


def test_every_public_name_has_an_entry(site):
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    names = {name for name in ml.__all__ if not inspect.ismodule(getattr(ml, name))} | {
        "data.load",
        "baselines.blurred",
    }
    assert names <= set(re.findall(r'id="manifold_lib\.([\w.]+)"', text))
    prose = re.sub(r"<pre>.*?</pre>|<[^>]*>", "", text, flags=re.S)
    assert not re.search(r"``|:(func|class|mod):|\\\*|0x[0-9a-f]{6}|<lambda>", prose)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="none.html">', "link none.html leads nowhere"),
        ('<a href="CHANGELOG.html#none">', "link CHANGELOG.html#none leads to no place of its page"),
        ('<img src="_images/none.png">', "link _images/none.png leads nowhere"),
        ('<script src="https://cdn.example.org/a.js"></script>', "loads https://cdn.example.org/a.js"),
        ("<p>the norm $x$</p>", "'the norm $x$' is left of a formula"),
    ],
)
def test_a_problem_is_named(site, tmp_path, html, problem):
    for name in "CHANGELOG.html", "page.html":
        (tmp_path / name).write_text("<p id='a'></p>" if name == "CHANGELOG.html" else html)
    assert runpy.run_path(str(SITE / "check.py"))["problems"](tmp_path) == [f"page.html: {problem}"]
