"""``python -m manifold_lib.reproduction.report``: what was found, from the results on disk, as Markdown."""

from pathlib import Path
from typing import Any

from ..core import files
from . import claims, runtime
from .results import bracket, number, size
from .verdicts.committed import COMMITTED, command, read

Document = dict[str, Any]

_EXPLORATORY = " (exploratory)"
BEGIN, END = "<!-- reproduction:begin -->", "<!-- reproduction:end -->"
NO_RESULTS = "No results yet: `make all` runs the notebooks at profile `small`.\n"
WORDS = {
    "reproduced": "the direction holds, and the size is at least half of the paper's, in the paper's setting",
    "direction only": "the direction holds; the size or the setting is another",
    "equivalent": "the difference is too small to matter, within the margin on both sides",
    "not reproduced": "a difference as large as the margin is ruled out",
    "fooled": "a control that knows nothing of the model or the image does as well",
    "not fooled": "the method does better than the control",
    "held": "an expectation of ours, not the paper's, holds",
    "did not hold": "it does not",
    "undecided": "the interval holds both, or the correction for several claims of a family takes the word back",
    "not attempted": "with the reason, and the command that runs it",
}


def _by_slug(documents: list[Document]) -> dict[str, dict[str, Document]]:
    """Notebook -> profile -> its results."""
    found: dict[str, dict[str, Document]] = {}
    for document in sorted(documents, key=lambda entry: (entry["slug"], COMMITTED.index(entry["profile"]))):
        found.setdefault(document["slug"], {})[document["profile"]] = document
    return found


def _weight(row: Document) -> int:
    """2 for what is decided, 1 for what only explores, 0 for what was not attempted."""
    return 0 if row["verdict"] == "not attempted" else 1 if row["exploratory"] else 2


def _nearest(held: dict[str, Document]) -> list[tuple[Document, str]]:
    """Each claim once, with its profile: that nearer to the paper's setting where it came to a verdict there.

    What was decided on fresh images or networks goes before what only explores.
    """
    rows: dict[str, tuple[Document, str]] = {}
    for profile in COMMITTED:
        for row in held[profile]["claims"] if profile in held else []:
            old, _ = rows.get(row["id"], (None, ""))
            if old is None or 0 < _weight(row) >= _weight(old):
                rows[row["id"]] = (row, profile)
    return list(rows.values())


def _measured(row: Document) -> str:
    """Value, interval and unit."""
    if row["value"] is None:
        return ""
    return " ".join(filter(None, [number(row["value"]), bracket(row["ci95"]), row["unit"]]))


def _verdict(row: Document) -> str:
    return row["verdict"] + (_EXPLORATORY if row["exploratory"] else "")


def sentence(row: Document) -> str:
    """A claim and what came of it, in words."""
    verdict, statement = _verdict(row), row["statement"].rstrip(".")
    if row["value"] is None:
        return f"**{row['question']}** *{verdict}*: {statement}"
    more = [_measured(row), size(row["n"]), "" if row["paper"] is None else f"the paper has {number(row['paper'])}"]
    return f"**{row['question']}** *{verdict}*: {statement} ({'; '.join(filter(None, more))})"


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def header(*titles: str) -> str:
    """The head of a Markdown table."""
    return line(*titles) + "|" + "---|" * len(titles) + "\n"


def render_summary(documents: list[Document]) -> str:
    """README.md between its markers: a line a paper, which counts the paper's own claims and gives two verdicts."""
    if not documents:
        return NO_RESULTS
    text = ""
    for slug, held in _by_slug(documents).items():
        rows = _nearest(held)
        verdicts = [_verdict(row) for row, _ in rows if row["kind"] == "paper" and row["registered"]]
        if not verdicts:
            continue
        withdrawn = sum(row["kind"] == "paper" and not row["registered"] for row, _ in rows)
        words = [word + more for word in claims.VERDICTS["paper"] for more in ("", _EXPLORATORY)]
        counts = [f"{verdicts.count(word)} {word}" for word in words if word in verdicts]
        counts += [f"{withdrawn} withdrawn after a run"] if withdrawn else []
        text += f"- **{slug.replace('_', ' ')}**: of {len(verdicts)} claims of the paper {', '.join(counts)}."
        for kind in ("paper", "control"):
            told = [pair for pair in rows if pair[0]["kind"] == kind and pair[0]["registered"]]
            decided = [pair for pair in told if pair[0]["ci95"] is not None]
            for row, profile in decided[:1]:
                text += f" {row['statement'].rstrip('.')}: *{_verdict(row)}*, {_measured(row)}, at `{profile}`."
        text += "\n"
    return text


def render_gallery(documents: list[Document]) -> str:
    """``figures/README.md``: what was found, then the claims beside the paper's numbers, then all figures."""
    text = "# What was found\n\nGenerated by `make report` from the `results.json` files here; do not edit.\n\n"
    if not documents:
        return text + NO_RESULTS
    text += (
        "Each claim was registered before its run, with the smallest difference that would matter (its margin), in "
        "`notebooks/claims/`. Square brackets hold 95 % intervals. *Exploratory* marks what was in sight before it had "
        "its words, and is confirmed on no fresh images or networks yet. "
        + "; ".join(f"*{word}*: {meaning}" for word, meaning in WORDS.items())
        + ".\n"
    )
    found = _by_slug(documents)
    for slug, held in found.items():
        rows_of = [(row, profile) for row, profile in _nearest(held) if row["kind"] != "identity"]
        text += f"\n## {slug.replace('_', ' ')}\n\n{_title(held)}" if rows_of else ""
        text += "".join(f"- {row['id']} {sentence(row)}, at `{profile}`.\n" for row, profile in rows_of)
    text += "\n# Claims\n"
    for slug, held in found.items():
        rows = {profile: document["claims"] for profile, document in held.items()}
        again = " or ".join(f"`{command(profile, slug)}`" for profile in COMMITTED)
        text += f"\n## {slug}\n\n{table(rows)}\nRun again by {again}.\n"
    for profile in COMMITTED:
        of_profile = [held[profile] for held in found.values() if profile in held]
        if of_profile:
            text += f"\n# Figures at profile `{profile}`\n" + "".join(map(_section, of_profile))
    return text


def _title(held: dict[str, Document]) -> str:
    paper = next(iter(held.values()))["paper"]
    return f"{paper['title']} (arXiv {paper['arxiv']}).\n\n" if paper else ""


def table(rows: dict[str, list[Document]]) -> str:
    """The claims of a notebook, profile -> rows; identities apart, with their largest error and its tolerance."""
    text, exact = header("id", "claim", "of", "margin, and why", "ours", "other networks", "n", "verdict"), ""
    for profile, of_profile in rows.items():
        for row in of_profile:
            verdict = f"**{row['verdict']}**" + (_EXPLORATORY if row["exploratory"] else "")
            if row["kind"] == "identity":
                tried = (number(row["value"]), number(row["margin"]), row["unit"], row["n"]["images"])
                exact += line(row["id"], row["statement"], f"`{profile}`", *tried, verdict, row["note"])
                continue
            source = f"the paper, {row['source']}: {number(row['paper'])}" if row["kind"] == "paper" else row["kind"]
            i2 = "" if row["i2"] is None else f"I² {row['i2']:.0%}"
            spread = ", ".join(filter(None, [bracket(row["prediction95"]), i2]))
            margin, verdict = f"{number(row['margin'])}: {row['why']}", "; ".join(filter(None, [verdict, row["note"]]))
            ours = f"`{profile}` {_measured(row)}"
            text += line(row["id"], row["statement"], source, margin, ours, spread, size(row["n"]), verdict)
    if exact:
        titles = ("id", "identity", "profile", "largest error", "tolerance", "unit", "of", "verdict", "note")
        exact = f"\n{header(*titles)}{exact}"
    return text + exact


def _section(document: Document) -> str:
    """The figures of one notebook."""
    profile, slug = document["profile"], document["slug"]
    text = f"\n### {slug}, profile `{profile}`\n\n"
    if document["paper"] is not None:
        text += f"{document['paper']['title']} (arXiv {document['paper']['arxiv']}). "
    text += f"[Notebook]({profile}/{slug}/{slug}.ipynb), [numbers]({profile}/{slug}/results.json), "
    text += f"`{command(profile, slug)}`.\n"
    return text + "".join(f"\n{_image(document, name)}\n" for name in document["figures"])


def _image(document: Document, name: str) -> str:
    """A figure, in Markdown, with its name and profile as the text."""
    profile = document["profile"]
    return f"![{Path(name).stem.replace('_', ' ')}, profile {profile}]({profile}/{document['slug']}/{name})"


def insert(readme: str, table: str) -> str:
    """README.md with ``table`` between its two markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or END not in rest:
        raise ValueError(f"README.md: wants one {BEGIN} and after it one {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main() -> None:
    """Write figures/README.md and the tables of README.md where a number changed; exit 1 if a result is broken."""
    readme = runtime.ROOT / "README.md"
    try:
        documents = read(runtime.FIGURES)
        texts = {
            runtime.FIGURES / "README.md": render_gallery(documents),
            readme: insert(readme.read_text(encoding="utf-8") if readme.exists() else "", render_summary(documents)),
        }
    except ValueError as error:
        raise SystemExit(f"report: {error}") from error
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_bytes(path, text.encode())
            print(f"{path.relative_to(runtime.ROOT)} written")


if __name__ == "__main__":
    main()
