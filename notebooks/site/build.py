"""``python notebooks/site/build.py small``: the site of a profile, written to ``.build/site``.

Pages keep their places in the repository. They are copied to ``.build/site-work``, where links are led to the pages of
the site, and Sphinx turns them into HTML. Notebooks are not executed. A warning, a dead link or a formula that is left
as text stops the build, and the site that was there before stays.
"""

import argparse
import base64
import inspect
import json
import os
import re
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from check import problems
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import build_main

import manifold_lib
from manifold_lib.core import files

SITE = Path(__file__).resolve().parent
ROOMS = ("paths", "geometry", "attribution", "evaluation", "models", "data")
PAGES = ("*.md", "notebooks/*.md", "figures/*.md", "data/*.md", "data/models/*.md")
WIDE = 1100  # pixels of a saved figure that fills a column; narrower ones keep their share of it
# code, a variable of the shell, and the links of Markdown: [text](link), the end of [![…](…)](link), <img src="link">
_LINK = re.compile(
    r"```.*?```|`[^`]*`|\$MANIFOLD_DATA\b"
    r'|\[([^\[\]]*)\]\(([^)\s]+)\)|\]\(([^)\s]+)\)|\bsrc="([^"]+)"',
    flags=re.S,
)


def build(root: Path, profile: str) -> Path:
    """Write the site of the repository at ``root``; return its folder."""
    work, target = root / ".build" / "site-work", root / ".build" / "site"
    source, new = work / "source", work / "html"
    with files.locked(target):
        shutil.rmtree(work, ignore_errors=True)
        gather(root, profile, source)
        options = ["-q", "-W", "--keep-going", "-j", str(min(4, os.cpu_count() or 1)), "-c", str(SITE)]
        if build_main([*options, "-d", str(work / "doctrees"), str(source), str(new)]):
            raise SystemExit("site: Sphinx reported the problems above")
        if found := problems(new):
            raise SystemExit("site: " + "\n".join(found))
        files.replace_folder(new, target)
    return target


def gather(root: Path, profile: str, source: Path) -> None:
    """Write the sources of all pages: Markdown, notebooks, the gallery and the API."""
    shutil.copytree(SITE, source, ignore=lambda *_: ["conf.py", "build.py", "check.py", "_static", "__pycache__"])
    for path in (path for pattern in PAGES for path in sorted(root.glob(pattern))):
        write(root, source, path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
    contents = f"The outputs here are those of profile `{profile}`.\n\n"
    gallery = f"# Gallery\n\nAll figures of profile `{profile}`.\n"
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        name = f"notebooks/{path.name}"
        executed = root / "figures" / profile / path.stem
        stored = not (executed / path.name).exists()
        notebook = nbformat.read(path if stored else executed / path.name, as_version=4)
        title = re.sub(r"^#+ ", "", notebook.cells[0].source.splitlines()[0])
        promise = re.search(r"^\*\*(.+?)\*\*$", notebook.cells[0].source, flags=re.M | re.S)
        contents += f"- [{title}]({name}): {' '.join(promise[1].split()) if promise else ''}\n"
        if stored:
            command = f"make {path.stem[:2]} PROFILE={profile}"
            note = f"> These outputs are those of profile `smoke`; for those of `{profile}`: `{command}`."
            notebook.cells.insert(1, new_markdown_cell(note))
        else:
            gallery += f"\n## [{title}]({name})\n\n" + show_figures(notebook, executed)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(root, source, name, cell.source)
            elif folded(cell):
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        nbformat.write(notebook, source / name)
    write(root, source, "gallery.md", gallery)
    (source / "contents.txt").write_text(contents, encoding="utf-8")
    (source / "api").mkdir()
    for name, text in api().items():
        (source / "api" / f"{name}.rst").write_text(text, encoding="utf-8")


def write(root: Path, source: Path, name: str, text: str) -> None:
    """Write a Markdown page at its place below ``source``."""
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text(relink(root, source, name, text), encoding="utf-8")


def relink(root: Path, source: Path, page: str, text: str) -> str:
    """Lead links to notebooks to their pages, copy the other files that are linked, unlink folders."""

    def replace(found: re.Match) -> str:
        if found[0] == "$MANIFOLD_DATA":
            return f"`{found[0]}`"  # a variable of the shell, no formula
        link = next(filter(None, found.groups()[1:]), "")
        path, _, fragment = link.partition("#")
        file = Path(os.path.normpath(root / Path(page).parent / path))
        if not path or ":" in path or not file.is_relative_to(root) or not file.exists():
            return found[0]  # code, an address, or a mistake, which Sphinx reports
        if file.is_dir():
            return found[1] if found[1] is not None else found[0]
        if file.suffix == ".ipynb" or file.parent == root / "notebooks" / "site":  # its pages are beside the index
            page_of = f"notebooks/{file.name}" if file.suffix == ".ipynb" else file.name
            place = os.path.relpath(page_of, Path(page).parent)
            return found[0].replace(link, place + (f"#{fragment}" if fragment else ""))
        if file.suffix != ".md":
            copy = source / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        return found[0]

    return _LINK.sub(replace, text)


def folded(cell: NotebookNode) -> bool:
    """Whether a cell only draws or registers: it shows a figure, or shows nothing and handles claims or axes."""
    if any("image/png" in output.get("data", {}) for output in cell.outputs):
        return True
    return not cell.outputs and bool(re.search(r"\bresults\.claim\(|\baxis\b", cell.source))


def show_figures(notebook: NotebookNode, folder: Path) -> str:
    """Show the saved figures, which are sharper, instead of those in the notebook; return its part of the gallery."""
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    verdicts = Counter(claim["verdict"] for claim in document["claims"])
    text = f"{verdicts.total()} claims: " + ", ".join(f"{n} {word}" for word, n in verdicts.most_common()) + ".\n\n"
    shown = [
        (cell, output)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if len(shown) != len(document["figures"]):
        raise SystemExit(f"site: {folder} has {len(document['figures'])} figures, its notebook shows {len(shown)}")
    text += "::::{container} gallery\n"
    for (cell, output), name in zip(shown, document["figures"], strict=True):
        saved = (folder / name).read_bytes()
        (width,) = struct.unpack(">I", saved[16:20])
        section = heading_above(notebook, cell)
        what, mark = Path(name).stem.replace("_", " "), f"{folder.name}-{Path(name).stem}"
        output.data["image/png"] = base64.b64encode(saved).decode()
        alt = f"{what}: figure of the section {section}"
        cell.metadata["mystnb"] = {"image": {"alt": alt, "width": f"{min(100, 100 * width // WIDE)}%"}}
        notebook.cells.insert(notebook.cells.index(cell), new_markdown_cell(f"({mark})="))
        picture = f"figures/{folder.parent.name}/{folder.name}/{name}"
        text += f":::{{container}}\n[![{alt}]({picture})](#{mark})\n\n{what}, in [{section}](#{mark})\n:::\n"
    return text + "::::\n"


def heading_above(notebook: NotebookNode, cell: NotebookNode) -> str:
    """The heading of the section that a cell is in."""
    above = notebook.cells[: notebook.cells.index(cell)]
    text = "\n".join(each.source for each in above if each.cell_type == "markdown")
    return re.findall(r"^#+ (.+)$", text, flags=re.M)[-1]


def api() -> dict[str, str]:
    """The pages of the API: an index, and each room with all of its public names."""
    pages = {"index": "API\n===\n\n.. automodule:: manifold_lib\n\n.. toctree::\n\n"}
    for room in ROOMS:
        pages["index"] += f"   {room}\n"
        names: dict[str, Any] = {}
        for name in getattr(manifold_lib, room).__all__:
            value = getattr(getattr(manifold_lib, room), name)
            place = name if hasattr(manifold_lib, name) else f"{room}.{name}"
            if inspect.ismodule(value):
                functions = inspect.getmembers(value, inspect.isfunction)
                own = {f: g for f, g in functions if g.__module__ == value.__name__ and f[0] != "_"}
                names |= {f"{place}.{f}": g for f, g in own.items()}
            else:
                names[place] = value
        text = f"{room}\n{'=' * len(room)}\n\n.. automodule:: manifold_lib.{room}\n\n"
        text += ".. currentmodule:: manifold_lib\n\n.. autosummary::\n\n" + "".join(f"   {name}\n" for name in names)
        for name, value in names.items():
            kind = "class" if inspect.isclass(value) else "function"
            text += f"\n.. auto{kind}:: manifold_lib.{name}\n"
            if kind == "class" and not hasattr(value, "_fields"):  # the docstring of a named tuple holds its fields
                text += "   :members:\n"
        pages[room] = text
    return pages


def main() -> None:
    """Build the site and say where it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile", choices=("smoke", "small", "paper"))
    root = SITE.parents[1]
    print(f"{build(root, parser.parse_args().profile).relative_to(root)}/index.html written")


if __name__ == "__main__":
    main()
