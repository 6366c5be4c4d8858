"""``python -m manifold_lib.reproduction.site``: the notebooks, the gallery and the API as a static site."""

import argparse
import html
import inspect
import json
import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import nbformat
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

import manifold_lib

from ..core import files
from . import runtime
from .results import validate

INDEX, API = "index.html", "api.html"
# raw text holds neither < nor >: nbconvert escapes both
_LINK = re.compile(r'(<(?:a|img)\b[^<>]*?\b(?:href|src)=")([^"]*)')
_ID = re.compile(r'<[^<>]*?\bid="([^"]*)"')

Pages = dict[str, NotebookNode]  # by the file each is made from; INDEX and API are their own


def build(profile: str, target: Path) -> None:
    """Write the site of a profile, in one step: when a build fails, the folder is left as it was.

    Pages and the files that they link to keep their places in the repository: Markdown becomes a page, other files are
    copied.

    Parameters
    ----------
    profile : {"smoke", "small", "paper"}
        A notebook that has not run at this profile shows the outputs stored in its source, and says so.
    target : Path
        The folder of the site; replaced.

    Raises
    ------
    ValueError
        For a link that leads nowhere, naming page and link.
    """
    if profile not in runtime.PROFILES:
        raise ValueError(f"profile: got {profile!r}, wants one of {', '.join(runtime.PROFILES)}")
    with files.locked(target):
        for leftover in [*target.parent.glob(f"{target.name}.*.staging"), *target.parent.glob(f"{target.name}.*.old")]:
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".staging", dir=target.parent))
        staging.chmod(0o755)
        try:
            texts, copied = render(profile)
            for place, text in texts.items():
                (staging / place).parent.mkdir(parents=True, exist_ok=True)
                (staging / place).write_text(text, encoding="utf-8")
            for place in copied:
                (staging / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(runtime.ROOT / place, staging / place)
            files.replace_folder(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def render(profile: str) -> tuple[dict[str, str], list[str]]:
    """The pages of the site by their place, and the files of the repository that they show or link to."""
    notebooks = _notebooks(profile)
    readme = (runtime.ROOT / "README.md").read_text(encoding="utf-8")
    pages = {
        INDEX: _page(new_markdown_cell(_gallery(profile, _title(readme), notebooks))),
        **notebooks,
        API: _page(new_markdown_cell(render_api())),
    }
    exporter = HTMLExporter(
        template_name="site_template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    texts: dict[str, str] = {}
    copied: set[str] = set()
    waiting = list(pages)
    while waiting:
        page = waiting.pop(0)
        resources = {"page": _surroundings(page, pages[page], notebooks)}
        text, _ = exporter.from_notebook_node(pages[page], resources)
        for link in sorted({html.unescape(link) for _, link in _LINK.findall(text)}):
            file = _file(page, link)
            if file is None or file in pages or file in copied:
                continue
            if file.startswith(("/", "../")) or not (runtime.ROOT / file).is_file():
                raise ValueError(f"{page}: link {link!r} leads to {file}, which is no file of the repository")
            if file.endswith(".md"):
                pages[file] = _page(new_markdown_cell((runtime.ROOT / file).read_text(encoding="utf-8")))
                waiting.append(file)
            else:
                copied.add(file)
        texts[page] = text
    _check_anchors(texts)
    return {_place(page, pages): _relinked(page, text, pages) for page, text in texts.items()}, sorted(copied)


def _notebooks(profile: str) -> Pages:
    """The notebooks as they ran at the profile; one that did not run has its stored outputs and a line that says so."""
    pages = {}
    for source in sorted((runtime.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        slug = source.stem
        executed = runtime.FIGURES / profile / slug / f"{slug}.ipynb"
        notebook = nbformat.read(executed if executed.exists() else source, as_version=4)
        if not executed.exists():
            text = f"> Outputs of profile `smoke`; for those of `{profile}`: `make {slug[:2]} PROFILE={profile}`."
            notebook.cells.insert(0, new_markdown_cell(text, id="stored-outputs"))
        section = ""
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                section = _title(cell.source) or section
            cell.metadata["alt"] = f"Figure of the section {section}"
        pages[f"notebooks/{source.name}"] = notebook
    return pages


def _page(cell: NotebookNode) -> NotebookNode:
    """A page of one cell, which goes through the same template as the notebooks."""
    cell.id = "page"  # nbformat draws another each time
    return new_notebook(cells=[cell])


def _title(text: str) -> str:
    """The first heading of a Markdown text, or nothing."""
    found = re.search(r"^#+ (.+)$", text, flags=re.M)
    return found[1] if found else ""


def _heading(notebook: NotebookNode) -> str:
    return next(filter(None, (_title(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")), "")


def _gallery(profile: str, title: str, notebooks: Pages) -> str:
    """The index, as Markdown: what each notebook promises, its verdicts and its figures."""
    text, verdicts = "", []
    for file, notebook in notebooks.items():
        markdown = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        promise = next(iter(re.findall(r"(?:^|\n\n)(\*\*.+?\*\*)(?=\n\n|$)", markdown, flags=re.S)), "")
        text += f"## [{_heading(notebook)}]({file})\n\n{promise}\n\n"
        folder = f"figures/{profile}/{Path(file).stem}"
        results = runtime.ROOT / folder / "results.json"
        if not results.exists():
            text += f"No results at profile `{profile}` yet: `make {Path(file).name[:2]} PROFILE={profile}`.\n\n"
            continue
        document = json.loads(results.read_text(encoding="utf-8"))
        validate(document)
        found = [row["verdict"] for row in document["claims"]]
        verdicts += found
        text += f"{_counted(found)}.\n\n"
        for name in document["figures"]:
            alternative = f"{Path(name).stem.replace('_', ' ')}, profile {profile}"
            text += f"[![{alternative}]({folder}/{name})]({file})\n"
        text += "\n"
    return (
        f"# {title}\n\nProfile `{profile}`. {_counted(verdicts)}. Every claim with its source and its interval: "
        "[figures and claims](figures/README.md). What this is and how to run it: [README](README.md), "
        "[notebooks](notebooks/README.md), [data and models](data/README.md).\n\n" + text
    )


def _counted(verdicts: list[str]) -> str:
    """``27 claims: 20 reproduced, 7 inconclusive``, in the order of the verdicts' strength."""
    order = ("reproduced", "not reproduced", "inconclusive", "not attempted")
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in order if verdict in verdicts]
    return f"{len(verdicts)} claims" + (f": {', '.join(counts)}" if counts else "")


def _surroundings(page: str, content: NotebookNode, notebooks: Pages) -> dict[str, object]:
    """What the template needs around a page: its title, the bar at the top, the pages before and after it."""
    titles = {INDEX: "Index", **{file: _heading(notebook) for file, notebook in notebooks.items()}, API: "API"}
    links = {file: posixpath.relpath(file, posixpath.dirname(page) or ".") for file in titles}
    order = list(titles)
    at = order.index(page) if page in order else len(order)
    before, after = order[:at][-1:] if page in order else [], order[at + 1 :][:1]
    return {
        "title": titles[page] if page == API else _heading(content),
        "bar": [(Path(file).name[:2] if file in notebooks else titles[file], links[file]) for file in order],
        "previous": [(titles[file], links[file]) for file in before],
        "next": [(titles[file], links[file]) for file in after],
    }


def _file(page: str, link: str) -> str | None:
    """The file of the repository that a link leads to; None for this page and for what is elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path)))


def _place(file: str, pages: Pages) -> str:
    """Where a file of the repository lies on the site."""
    return str(Path(file).with_suffix(".html").as_posix()) if file in pages else file


def _relinked(page: str, text: str, pages: Pages) -> str:
    """The links to files of the repository turned into links to their places on the site."""

    def relink(found: re.Match) -> str:
        link = html.unescape(found[2])
        file = _file(page, link)
        if file is None:
            return found[0]
        place = quote(posixpath.relpath(_place(file, pages), posixpath.dirname(page) or "."))
        fragment = urlsplit(link).fragment
        return found[1] + html.escape(place + (f"#{fragment}" if fragment else ""))

    return _LINK.sub(relink, text)


def _check_anchors(texts: dict[str, str]) -> None:
    """Refuse a link to a heading that is not there."""
    ids = {page: set(map(html.unescape, _ID.findall(text))) for page, text in texts.items()}
    for page, text in texts.items():
        for link in (html.unescape(link) for _, link in _LINK.findall(text)):
            file, fragment = _file(page, link) or page, urlsplit(link).fragment
            if not urlsplit(link).scheme and fragment and file in ids and fragment not in ids[file]:
                raise ValueError(f"{page}: link {link!r} leads to a heading that {file} does not have")


# --- the API page --------------------------------------------------------------------------------

_ROOMS = ("paths", "geometry", "attribution", "evaluation", "models", "data")


def render_api() -> str:
    """Every public name with its signature and its docstring, by room and module, as Markdown."""
    text = "# API\n\nAll of it is in `import manifold_lib as ml`.\n"
    modules: dict[str, dict[str, Any]] = {}
    for name, value in _public_names():
        modules.setdefault(value.__module__, {})[name] = value
    known = {name for names in modules.values() for name in names}
    for module, names in modules.items():
        text += f"\n- **{module}**: " + ", ".join(f"[`{name}`](#{name})" for name in names)
    for module, names in modules.items():
        summary = inspect.getdoc(inspect.getmodule(next(iter(names.values()))))
        text += f"\n\n## {module}\n\n{markdown(summary or '', known)}"
        for name, value in names.items():
            text += _entry(name, value, known)
    return text


def _public_names() -> list[tuple[str, Any]]:
    """The names of each room's ``__all__``; for a module among them its functions, as ``module.name``."""
    found = []
    for room in (getattr(manifold_lib, name) for name in _ROOMS):
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.ismodule(value):
                functions = inspect.getmembers(value, inspect.isfunction)
                found += [(f"{name}.{f}", g) for f, g in functions if g.__module__ == value.__name__ and f[0] != "_"]
            else:
                place = name if hasattr(manifold_lib, name) else f"{room.__name__.rpartition('.')[2]}.{name}"
                found.append((place, value))
    return found


def _entry(name: str, value: Any, known: set[str]) -> str:
    """One name; below a class the methods that it, or a base class of ours, documents."""
    text = f'\n\n<h3 id="{name}"><code>{name}</code></h3>\n'
    text += f'<pre class="signature">{html.escape(signature(name, value), quote=False)}</pre>\n\n'
    text += markdown(inspect.getdoc(value) or "", known)
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            ours = function.__module__.startswith(manifold_lib.__name__) and function.__doc__
            if ours and not method.startswith("_"):
                text += _entry(f"{name}.{method}", function, known)
    return text


def signature(name: str, value: Any) -> str:
    """The call as it is written in the source, without ``self``; a long one has a line for each parameter."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return name
    found = inspect.signature(value)
    written: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(entry.startswith("*") for entry in written):
            written.append("*")
        text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            # the repr of a function holds an address
            text += f" = {getattr(parameter.default, '__name__', repr(parameter.default))}"
        written.append(text)
    result = ""
    if found.return_annotation is not found.empty and not inspect.isclass(value):
        result = f" -> {_annotation(found.return_annotation)}"
    line = f"{name}({', '.join(written)}){result}"
    return line if len(line) <= 88 else f"{name}(\n" + "".join(f"    {entry},\n" for entry in written) + f"){result}"


def _annotation(annotation: Any) -> str:
    """An annotation as the source has it; that of a named tuple is a forward reference."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def markdown(docstring: str, known: set[str]) -> str:
    """A numpydoc docstring as Markdown; roles such as ``:func:`` become links to the names that are known."""
    summary, *sections = re.split(r"^(\w[\w ]*)\n-{3,}\n", docstring, flags=re.M)
    text = _prose(summary, known)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        text += f"<h4>{title}</h4>\n\n"
        if title not in ("Parameters", "Returns", "Raises"):
            text += _prose(body, known)
            continue
        for head, what in re.findall(r"^(\S.*)\n?((?:(?: .*)?\n)*(?: .*)?)", body, flags=re.M):
            name, colon, kind = head.partition(" : ")
            item = f"`{name}`{colon}{_inline(kind, known)}\n\n{_prose(inspect.cleandoc(what), known)}"
            text += "- " + item.rstrip().replace("\n", "\n  ") + "\n"
        text += "\n"
    return text


def _prose(text: str, known: set[str]) -> str:
    """Paragraphs: examples become code, lines such as ``field : what it holds`` a list."""
    result = ""
    for paragraph in filter(None, re.split(r"\n\s*\n", text.strip())):
        if paragraph.startswith(">>>"):
            result += f"```pycon\n{paragraph}\n```\n\n"
        elif re.match(r"\w+(?:, \w+)* : ", paragraph):
            fields = re.findall(r"^(\w+(?:, \w+)*) : (.*(?:\n +.*)*)", paragraph, flags=re.M)
            result += "".join(f"- `{name}` : {_inline(what, known)}\n" for name, what in fields) + "\n"
        else:
            result += _inline(paragraph, known) + "\n\n"
    return result


def _inline(text: str, known: set[str]) -> str:
    """One run of text: literals and roles become code, and no other character is markup."""

    def code(found: re.Match) -> str:
        name, literal = (found[1] or "").removeprefix("manifold_lib."), found[2]
        return f"[`{name}`](#{name})" if name in known else f"`{name or literal}`"

    parts = re.split(r"(:\w+:`[^`]+`|``.+?``|`[^`]+`)", text)
    for index, part in enumerate(parts):
        pattern, new = (r":\w+:`([^`]+)`|`{1,2}(.+?)`{1,2}", code) if index % 2 else (r"[\\*_\[\]<>|#$~&]", r"\\\g<0>")
        parts[index] = re.sub(pattern, new, part)
    return "".join(parts)


def main() -> None:
    """Build the site in ``.build/site``; exit 1 and leave the earlier one if a link leads nowhere."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", choices=runtime.PROFILES, required=True)
    arguments = parser.parse_args()
    target = runtime.BUILD / "site"
    try:
        build(arguments.profile, target)
    except ValueError as error:
        raise SystemExit(f"site: {error}") from error
    print(f"{target.relative_to(runtime.ROOT)}/{INDEX} written")


if __name__ == "__main__":
    main()
