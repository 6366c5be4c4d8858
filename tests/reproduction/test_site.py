"""The site: every link and image leads somewhere, every notebook and every public name is there."""

from __future__ import annotations

import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from nbformat import write
from nbformat.v4 import new_markdown_cell, new_notebook

import manifold_lib as ml
from manifold_lib.reproduction import report, runtime, site
from manifold_lib.reproduction.execute import absolute_paths

ROOT = runtime.ROOT
SLUGS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Parsed(HTMLParser):
    """Links, ids and prose of a page; a tag that is not closed in its turn is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.prose = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, path

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        assert tag != "img" or dict(attributes).get("alt"), "an image without a text"

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"pre", "code", "script", "style"} & set(self.open):
            self.prose += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this repository at profile small."""
    target = tmp_path_factory.mktemp("built") / "site"
    site.build("small", target)
    return target


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Parsed]:
    return {path: Parsed(path) for path in sorted(built.rglob("*.html"))}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def notebook(folder: Path, slug: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(new_notebook(cells=[new_markdown_cell(text)]), folder / f"{slug}.ipynb")


@pytest.fixture
def repository(folders: Path) -> Path:
    """A repository of two notebooks that have not run."""
    for name in "README.md", "notebooks/README.md", "data/README.md", "figures/README.md":
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_text(f"# {name}\n")
    for slug in "01_first", "02_second":
        notebook(folders / "notebooks", slug, f"# {slug}\n\n**You will\nsee *it*.**\n\nMore.")
    return folders


def test_every_link_and_image_leads_somewhere(built, pages):
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("https", "data"):
                continue
            assert not parts.scheme and not parts.netloc, f"{path}: {link}"
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file() and target.is_relative_to(built), f"{path}: {link}"
            if parts.fragment:
                assert parts.fragment in pages[target].ids, f"{path}: {link}"


def test_every_notebook_is_there_and_in_the_bar_of_every_page(built, pages):
    assert SLUGS and {path.stem for path in (built / "notebooks").glob("[0-9]*.html")} == set(SLUGS)
    for path, page in pages.items():
        bar = [(path.parent / link).resolve().relative_to(built) for link in page.links if link.endswith(".html")]
        wanted = [Path("index.html"), *(Path(f"notebooks/{slug}.html") for slug in SLUGS), Path("api.html")]
        assert bar[: len(wanted)] == wanted


def test_the_index_shows_every_figure_of_the_profile(built, pages):
    links = pages[built / "index.html"].links
    for slug in SLUGS:
        results = runtime.FIGURES / "small" / slug / "results.json"
        if results.exists():
            for name in json.loads(results.read_text())["figures"]:
                assert f"figures/small/{slug}/{name}" in links


def test_the_readmes_are_pages(pages, built):
    for name in "README", "figures/README", "notebooks/README", "data/README", "data/models/README":
        assert built / f"{name}.html" in pages


def test_every_public_name_is_on_the_api_page(built, pages):
    functions = inspect.getmembers(ml.baselines, inspect.isfunction)
    own = {f"baselines.{name}" for name, f in functions if f.__module__ == ml.baselines.__name__ and name[0] != "_"}
    wanted = {name for name in ml.__all__ if not inspect.ismodule(getattr(ml, name))} | own | {"data.load"}
    assert wanted <= set(pages[built / "api.html"].ids)
    text = (built / "api.html").read_text()
    for name in wanted:
        assert f"<code>{name}</code></h3>" in text
    assert not re.search(r"0x[0-9a-f]{6}|ForwardRef|&lt;(class|function)", text)


def test_no_markup_is_left_in_the_prose(pages):
    for path, page in pages.items():
        left = re.search(r"\|-|\]\(|\*\*|``|:(func|class|mod):`|^#+ |-----", page.prose, flags=re.M)
        assert not left, f"{path}: {page.prose[left.start() - 40 : left.end() + 40]}"


def test_pages_name_no_machine_and_load_nothing_but_mathjax(built, pages):
    for path in pages:
        text = re.sub(r'"data:[^"]*"', '""', path.read_text())
        assert not absolute_paths(re.sub(r"<[^>]*>", " ", text))
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(\w+:[^"]*)"', text)
        assert all("/mathjax/" in address for address in loaded) and len(loaded) == 1


def test_ids_are_unique(pages):
    for path, page in pages.items():
        assert len(set(page.ids)) == len(page.ids), path


def test_the_same_input_gives_the_same_bytes(built, tmp_path):
    site.build("small", tmp_path / "site")
    assert files(tmp_path / "site") == files(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "site.lock"]
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o755


def test_a_notebook_that_has_not_run_says_so(repository, tmp_path):
    notebook(runtime.FIGURES / "paper" / "02_second", "02_second", "# Executed\n\n[first](01_first.ipynb)")
    texts, copied = site.render("paper")
    assert "<code>make 01 PROFILE=paper</code>" in texts["notebooks/01_first.html"]
    second = texts["notebooks/02_second.html"]
    assert "Outputs of profile" not in second and '<a href="01_first.html">first</a>' in second and not copied
    assert "<strong>You will\nsee <em>it</em>.</strong>" in texts["index.html"]
    assert "0 claims" in texts["index.html"] and "No results at profile" in texts["index.html"]


def test_what_is_linked_becomes_a_page_or_is_copied(repository):
    (repository / "data" / "more.md").write_text("# More\n\n[back](../README.md) [table](a%20table.csv)\n")
    (repository / "data" / "a table.csv").write_text("1\n")
    (repository / "README.md").write_text("# Top\n\n[more](data/more.md#More) [out](https://example.org/x.md)\n")
    site.build("small", repository / ".build" / "site")
    folder = repository / ".build" / "site"
    assert (folder / "data" / "a table.csv").read_text() == "1\n"
    assert {'href="data/more.html#More"', 'href="https://example.org/x.md"'} <= set(
        re.findall(r'href="[^"]*"', (folder / "README.html").read_text())
    )
    assert 'href="../README.html"' in (folder / "data" / "more.html").read_text()


@pytest.mark.parametrize(
    "link", ["03_third.ipynb", "../data/none.csv", "../..", "/etc/hosts", "README.md#nothing", "#nothing"]
)
def test_a_link_that_leads_nowhere_is_named(repository, link):
    notebook(repository / "notebooks", "02_second", f"# Two\n\n[there]({link})")
    with pytest.raises(ValueError, match=f"notebooks/02_second.*link '.*{re.escape(link.split('/')[-1])}' leads to"):
        site.build("small", repository / ".build" / "site")
    assert not (repository / ".build" / "site").exists()


def test_a_build_that_fails_leaves_the_earlier_site(repository, monkeypatch):
    target = repository / ".build" / "site"
    site.build("small", target)
    before = files(target)

    def fail(*_):
        raise KeyboardInterrupt

    for place in "render", "_relinked":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(site, place, fail)
            site.build("small", target)
        assert files(target) == before
        assert sorted(path.name for path in target.parent.iterdir()) == ["site", "site.lock"]


def test_what_a_killed_build_left_is_removed(repository):
    target = repository / ".build" / "site"
    for name in "site.abc.staging", "site.abc.old":
        (target.parent / name).mkdir(parents=True)
    site.build("small", target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["site", "site.lock"]


def test_formulas_reach_mathjax_as_they_are(repository):
    formulas = r"$a_1 * b_2 * c_{i}$", r"$$\sum_i \lVert x_i\rVert\,\text{(\texttt{ml.x})} \\ y$$", r"$\|A\|$"
    notebook(repository / "notebooks", "01_first", "# One\n\n" + "\n\n".join(formulas))
    text = site.render("small")[0]["notebooks/01_first.html"]
    assert all(formula in text for formula in formulas)


def test_a_docstring_becomes_markdown():
    text = "Sums *shape | of ``a < b``, by :func:`manifold_lib.integrate` or :func:`other`.\n\nTwo\nlines.\n\n"
    text += 'Parameters\n----------\na, b : {"x"}, optional\n    What.\n\n    More.\nc : int\n\n'
    text += "Returns\n-------\nTensor\n    It.\n\nExamples\n--------\n>>> 1 + 1\n2\n\nSo."
    shown = report.docstring_markdown(text, {"integrate"})
    assert shown.startswith(r"Sums \*shape \| of `a < b`, by [`integrate`](#integrate) or `other`.")
    assert "\n\nTwo\nlines.\n\n<h4>Parameters</h4>\n\n" in shown
    assert '- `a, b` : {"x"}, optional\n  \n  What.\n  \n  More.\n- `c` : int\n\n' in shown
    assert "<h4>Returns</h4>\n\n- `Tensor`\n  \n  It.\n" in shown
    assert shown.endswith("<h4>Examples</h4>\n\n```pycon\n>>> 1 + 1\n2\n```\n\nSo.\n\n")
    fields = report.docstring_markdown(
        "Summary.\n\nx : (B,), this\n    goes on.\ny : that.\n\nThe end : no field?", set()
    )
    assert "- `x` : (B,), this\n    goes on.\n- `y` : that.\n" in fields
    assert fields.endswith("\n\nThe end : no field?\n\n")


def test_a_signature_is_as_it_is_written():
    def call(self, a: int | None, *rest: str, b: str = "c", d=files) -> float: ...

    assert site.signature("call", call) == "call(a: int | None, *rest: str, b: str = 'c', d = files) -> float"
    assert site.signature("Info", ml.Info).startswith("Info(delta: Tensor")
    assert site.signature("integrate", ml.integrate).splitlines()[4] == "    *,"


def test_the_profile_is_checked(tmp_path):
    with pytest.raises(ValueError, match="profile: got 'large', wants one of smoke, small, paper"):
        site.build("large", tmp_path / "site")
