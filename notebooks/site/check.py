"""What is wrong with a built site: dead links, formulas left as text, and whatever would need a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links, the loaded files, the ids and the prose of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.prose = ""
        self._verbatim = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._verbatim += tag in ("pre", "code", "script", "style")
        for name, value in attributes:
            if name == "id":
                self.ids.add(value or "")
            elif name in ("href", "src"):
                (self.links if tag == "a" else self.loaded).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._verbatim -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._verbatim:
            self.prose += data


def problems(site: Path) -> list[str]:
    """One line for each problem of the pages below a folder."""
    written = [path.resolve() for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: _Page(path) for path in written}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {text!r} is left of a formula" for text in re.findall(r".{0,20}\$.{0,20}", page.prose)]
        found += [f"{name}: loads {link}" for link in page.loaded if urlsplit(link).netloc]
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name}: link {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: link {link} leads to no place of its page")
    for path in site.rglob("*.css"):
        elsewhere = re.findall(r"url\([\"']?(https?:[^)\"']+)", path.read_text(encoding="utf-8"))
        found += [f"{path.name}: loads {link}" for link in elsewhere]
    return found
