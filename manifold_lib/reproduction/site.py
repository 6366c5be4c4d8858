"""``python -m manifold_lib.reproduction.site``: the notebooks, the gallery and the API as a static site."""

import argparse
import html
import inspect
import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import nbformat
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

import manifold_lib

from ..core import files
from . import report, runtime
from .report import docstring_markdown

INDEX, API = "index.html", "api.html"
# raw text holds neither < nor >: nbconvert escapes both
_LINK = re.compile(r'(<(?:a|img)\b[^<>]*?\b(?:href|src)=")([^"]*)')
_ID = re.compile(r'<[^<>]*?\bid="([^"]*)"')

Pages = dict[str, NotebookNode]  # by the file each is made from; INDEX and API are their own


def build(profile: str, target: Path) -> None:
    """Write the site of a profile, in one step: when a build fails, the folder is left as it was.

    Pages and the files that they link to keep their places in the repository: Markdown becomes a page, other files are
    copied. A link that leads nowhere raises a ValueError that names page and link.
    """
    if profile not in runtime.PROFILES:
        raise ValueError(f"profile: got {profile!r}, wants one of {', '.join(runtime.PROFILES)}")
    with files.locked(target):
        for leftover in [*target.parent.glob(f"{target.name}.*.staging"), *target.parent.glob(f"{target.name}.*.old")]:
            shutil.rmtree(leftover)
        staging = target.with_name(f"{target.name}.new.staging")
        staging.mkdir()
        try:
            texts, copied = render(profile)
            contents = {place: text.encode() for place, text in texts.items()}
            contents |= {place: (runtime.ROOT / place).read_bytes() for place in copied}
            for place, content in contents.items():
                (staging / place).parent.mkdir(parents=True, exist_ok=True)
                (staging / place).write_bytes(content)
            files.replace_folder(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def render(profile: str) -> tuple[dict[str, str], list[str]]:
    """The pages of the site by their place, and the files of the repository that they show or link to."""
    notebooks = _notebooks(profile)
    title = _title((runtime.ROOT / "README.md").read_text(encoding="utf-8"))
    index = report.render_index(profile, title, {file: _markdown(notebook) for file, notebook in notebooks.items()})
    pages = {INDEX: _page(index), **notebooks, API: _page(render_api())}
    bar = {INDEX: "Index", **{file: Path(file).name[:2] for file in notebooks}, API: "API"}
    folder, prompts = str(Path(__file__).parent), {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="site_template", extra_template_basedirs=[folder], **prompts)
    texts: dict[str, str] = {}
    copied: set[str] = set()
    waiting = list(pages)
    for page in waiting:  # which grows by the Markdown files that are linked
        links = [(title, _relative(file, page)) for file, title in bar.items()]
        around = {"title": _title(_markdown(pages[page])), "bar": links}
        texts[page], _ = exporter.from_notebook_node(pages[page], {"page": around})
        for link in sorted({html.unescape(link) for _, link in _LINK.findall(texts[page])}):
            file = _file(page, link)
            if file is None or file in pages or file in copied:
                continue
            if file.startswith(("/", "../")) or not (runtime.ROOT / file).is_file():
                raise ValueError(f"{page}: link {link!r} leads to {file}, which is no file of the repository")
            if file.endswith(".md"):
                pages[file] = _page((runtime.ROOT / file).read_text(encoding="utf-8"))
                waiting.append(file)
            else:
                copied.add(file)
    ids = {page: set(map(html.unescape, _ID.findall(text))) for page, text in texts.items()}
    return {_place(page, ids): _relinked(page, text, ids) for page, text in texts.items()}, sorted(copied)


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


def _page(text: str) -> NotebookNode:
    """A page of one Markdown cell, for the template of the notebooks; nbformat would draw another id each time."""
    return new_notebook(cells=[new_markdown_cell(text, id="page")])


def _markdown(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def _title(text: str) -> str:
    """The first heading of a Markdown text, or nothing."""
    found = re.search(r"^#+ (.+)$", text, flags=re.M)
    return found[1] if found else ""


def _relative(place: str, page: str) -> str:
    return posixpath.relpath(place, posixpath.dirname(page) or ".")


def _file(page: str, link: str) -> str | None:
    """The file of the repository that a link leads to; None for this page and for what is elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path)))


def _place(file: str, ids: dict[str, set[str]]) -> str:
    """Where a file of the repository lies on the site."""
    return Path(file).with_suffix(".html").as_posix() if file in ids else file


def _relinked(page: str, text: str, ids: dict[str, set[str]]) -> str:
    """Turn links to files into links to their places on the site; refuse one to a heading that is not there."""

    def relink(found: re.Match) -> str:
        link = html.unescape(found[2])
        file, parts = _file(page, link), urlsplit(link)
        target = file or page
        if parts.fragment and not parts.scheme and target in ids and parts.fragment not in ids[target]:
            raise ValueError(f"{page}: link {link!r} leads to a heading that {target} does not have")
        if file is None:
            return found[0]
        place = quote(_relative(_place(file, ids), page))
        return found[1] + html.escape(place + (f"#{parts.fragment}" if parts.fragment else ""))

    return _LINK.sub(relink, text)


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
        text += f"\n\n## {module}\n\n{docstring_markdown(inspect.getdoc(sys.modules[module]) or '', known)}"
        text += "".join(_entry(name, value, known) for name, value in names.items())
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
    text += docstring_markdown(inspect.getdoc(value) or "", known)
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
        text += _annotation(": ", parameter.annotation)
        if parameter.default is not parameter.empty:
            # the repr of a function holds an address
            text += f" = {getattr(parameter.default, '__name__', repr(parameter.default))}"
        written.append(text)
    result = "" if inspect.isclass(value) else _annotation(" -> ", found.return_annotation)
    line = f"{name}({', '.join(written)}){result}"
    return line if len(line) <= 88 else f"{name}(\n" + "".join(f"    {entry},\n" for entry in written) + f"){result}"


def _annotation(mark: str, annotation: Any) -> str:
    """An annotation after its mark, its names without their modules; nothing where there is none."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return mark + re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


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
