"""The API page: every public name with its signature and its numpydoc docstring, as HTML."""

from __future__ import annotations

import html
import inspect
import re
from typing import Any

import manifold_lib

_ITEMISED = ("Parameters", "Returns", "Raises")


def render_api(readme: str) -> str:
    """The HTML of all public names, by module in the order of the section ``## Layout`` of a README."""
    modules = _public_names()
    layout = re.findall(r"\w+", readme.partition("\n## Layout\n")[2])
    order = sorted(modules, key=lambda module: layout.index(module) if module in layout else len(layout))
    known = {name for names in modules.values() for name in names}
    text = "<h1>API</h1>\n<p>All of it is in <code>import manifold_lib as ml</code>.</p>\n<ul>\n"
    for module in order:
        links = ", ".join(f'<a href="#{name}"><code>{name}</code></a>' for name in modules[module])
        text += f'<li><a href="#module-{module}">{module}</a>: {links}</li>\n'
    text += "</ul>\n"
    for module in order:
        summary = inspect.getdoc(inspect.getmodule(next(iter(modules[module].values()))))
        text += f'<h2 id="module-{module}">manifold_lib.{module}</h2>\n{render_docstring(summary or "", known)}'
        for name, value in modules[module].items():
            text += _entry(name, value, known)
    return text


def _public_names() -> dict[str, dict[str, Any]]:
    """What ``manifold_lib.__all__`` offers, by module; the functions of a module it names are in ``module.name``."""
    found: dict[str, dict[str, Any]] = {}
    for name in manifold_lib.__all__:
        value = getattr(manifold_lib, name)
        if inspect.ismodule(value):
            found[name] = {
                f"{name}.{inner}": function
                for inner, function in inspect.getmembers(value, inspect.isfunction)
                if function.__module__ == value.__name__ and not inner.startswith("_")
            }
        else:
            found.setdefault(value.__module__.rpartition(".")[2], {})[name] = value
    return found


def _entry(name: str, value: Any, known: set[str]) -> str:
    """One name; below a class the methods that it, or a base class of ours, documents."""
    text = f'<section id="{name}">\n<h3><code>{name}</code></h3>\n'
    text += f'<pre class="signature">{html.escape(signature(name, value), quote=False)}</pre>\n'
    text += render_docstring(inspect.getdoc(value) or "", known) + "</section>\n"
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            ours = function.__module__.startswith(manifold_lib.__name__) and function.__doc__
            if ours and not method.startswith("_"):
                text += _entry(f"{name}.{method}", function, known)
    return text


def signature(name: str, value: Any) -> str:
    """The call as it is written in the source, ``self`` left out; a long one has a line for each parameter."""
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
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {entry},\n" for entry in written) + f"){result}"


def _annotation(annotation: Any) -> str:
    """An annotation as the source has it; that of a named tuple is a forward reference."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def render_docstring(text: str, known: set[str]) -> str:
    """A numpydoc docstring as HTML.

    Parameters
    ----------
    text : str
        The docstring, without indentation.
    known : set of str
        Names with an entry on the page, to which roles such as ``:func:`` become links.
    """
    summary, *sections = re.split(r"^(\w[\w ]*)\n-{3,}\n", text, flags=re.M)
    result = _prose(summary, known)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        result += f"<h4>{title}</h4>\n" + (_items if title in _ITEMISED else _prose)(body, known)
    return result


def _items(text: str, known: set[str]) -> str:
    """A section whose entries are a line such as ``name : type`` with an indented text below."""
    result = "<dl>\n"
    for head, body in re.findall(r"^(\S.*)\n?((?:(?: .*)?\n)*(?: .*)?)", text, flags=re.M):
        name, colon, kind = head.partition(" : ")
        result += f"<dt><code>{html.escape(name, quote=False)}</code>"
        result += f" : {_inline(kind, known)}</dt>\n" if colon else "</dt>\n"
        if body.strip():
            result += f"<dd>{_prose(inspect.cleandoc(body), known)}</dd>\n"
    return result + "</dl>\n"


def _prose(text: str, known: set[str]) -> str:
    """Paragraphs; one of lines such as ``field : what it holds`` becomes a list."""
    result = ""
    for paragraph in filter(None, re.split(r"\n\s*\n", text.strip())):
        fields = re.findall(r"^(\w+(?:, \w+)*) : (.*(?:\n +.*)*)", paragraph, flags=re.M)
        if fields and re.match(r"\w+(?:, \w+)* : ", paragraph):
            entries = "".join(
                f"<dt><code>{name}</code></dt>\n<dd>{_inline(what, known)}</dd>\n" for name, what in fields
            )
            result += f"<dl>\n{entries}</dl>\n"
        else:
            result += f"<p>{_inline(paragraph, known)}</p>\n"
    return result


def _inline(text: str, known: set[str]) -> str:
    """One run of text: literals and roles become code, and a role that names an entry a link to it."""

    def code(found: re.Match) -> str:
        role, literal = found.groups()
        name = (role or "").removeprefix("manifold_lib.")
        shown = f"<code>{html.escape(name or literal, quote=False)}</code>"
        return f'<a href="#{name}">{shown}</a>' if name in known else shown

    parts = re.split(r"(:\w+:`[^`]+`|``.+?``|`[^`]+`)", text)
    pattern = r":\w+:`([^`]+)`|`{1,2}(.+?)`{1,2}"
    return "".join(
        re.sub(pattern, code, part) if index % 2 else html.escape(part, quote=False) for index, part in enumerate(parts)
    )
