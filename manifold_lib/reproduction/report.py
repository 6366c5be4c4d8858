"""``python -m manifold_lib.reproduction.report``: the gallery and the tables from the results on disk, as Markdown."""

import json
import re
from pathlib import Path
from typing import Any

from ..core import files
from . import runtime
from .claims import VERDICTS
from .results import bracket, number, validate

Document = dict[str, Any]

COMMITTED = runtime.PROFILES[1:]  # smoke is not kept
BEGIN, END = "<!-- reproduction:begin -->", "<!-- reproduction:end -->"
# What README.md says was found; the number in braces is the value of that claim, with its interval.
FINDINGS = (
    "**Gradients lean towards the data manifold, and maps that ignore the network lean further** (01). The share of a "
    "gradient inside the tangent space is {1.S1} above that of random vectors. The image times positive noise never "
    "sees the network, and it is {1.C2} above the best explainer.",
    "**A high tangent share can be had for the wrong image and the wrong network** (02). Optimised for the tangent "
    "space of another image the share is {2.C1-mnist32}, for an untrained network {2.C3-mnist32}. A random space of "
    "the same dimension is harder to reach: {2.C2-mnist32}.",
    "**Geodesics are a little shorter, and attacks can follow them** (03). A decoded geodesic has {3.E2} of the length "
    "of the straight latent line. An attacker who knows Manifold IG moves its map closer to the target: the "
    "correlation rises by {3.E6t} over an attack made for IG. Manifold IG still moves less than IG under its own "
    "attack ({3.E6u}).",
    "**The path of least resistance helps on half-moons** (04). It ranks the points better than IG (purity, {4.D1a}) "
    "and cancels less. On digits its log-odds are worse than IG's (area {4.D8l-mnist32}), on CIFAR-10 this is "
    "undecided ({4.D8l-cifar10}).",
    "**Guided latent paths are complete, but not more faithful here** (05). MA-GIG minus IG in DiffID, the accuracy "
    "with the marked pixels kept minus that without them, is {5.D1-lenet-mnist32} on digits and "
    "{5.D1-lenet-fashion32} on clothes.",
)
NO_RESULTS = "No results yet: `make all` runs the notebooks at profile `small`.\n"


def read(figures: Path) -> list[Document]:
    """Every ``results.json`` of the committed profiles, validated, with all of its figures present."""
    documents = []
    for profile in COMMITTED:
        for path in sorted((figures / profile).glob("*/results.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                validate(document)
                place = (document["profile"], document["slug"])
                if place != (profile, path.parent.name):
                    raise ValueError(f"slug: got {'/'.join(place)}, wants {profile}/{path.parent.name}")
                missing = [name for name in document["figures"] if not (path.parent / name).is_file()]
                if missing:
                    raise ValueError(f"figures: {', '.join(missing)} missing; run `{_command(*place)}` again")
            except ValueError as error:
                raise ValueError(f"{path.relative_to(figures.parent)}: {error}") from error
            documents.append(document)
    return documents


def _command(profile: str, slug: str) -> str:
    return f"make {slug[:2]} PROFILE={profile}"


def _rows(documents: list[Document]) -> list[tuple[str, Document, dict[str, Document]]]:
    """Each claim once: its notebook, its row as first met, and its row in each profile that holds it."""
    found: dict[tuple[str, str], dict[str, Document]] = {}
    for document in sorted(documents, key=lambda entry: (entry["slug"], COMMITTED.index(entry["profile"]))):
        for row in document["claims"]:
            found.setdefault((document["slug"], row["id"]), {})[document["profile"]] = row
    return [(slug, next(iter(rows.values())), rows) for (slug, _), rows in found.items()]


def _measured(row: Document) -> str:
    """Value, interval and unit."""
    if row["value"] is None:
        return ""
    return " ".join(filter(None, [number(row["value"]), bracket(row["ci95"]), row["unit"]]))


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def _header(*titles: str) -> str:
    return _line(*titles) + "|" + "---|" * len(titles) + "\n"


def render_summary(documents: list[Document]) -> str:
    """README.md between its markers: what was found, and each notebook's verdicts, for every profile in one cell."""
    if not documents:
        return NO_RESULTS
    rows = {claim["id"]: profiles for _, claim, profiles in _rows(documents)}
    # of the profile whose setting is nearer to the paper's
    values = {name: _in_words(found.get("paper") or found["small"]) for name, found in rows.items()}
    text = ""
    for finding in FINDINGS:
        if all(values.get(name) for name in re.findall(r"{(.*?)}", finding)):
            text += f"- {re.sub(r'{(.*?)}', lambda match: values[match[1]], finding)}\n"
    text += f"\nClaims by verdict, at profile {' / '.join(f'`{profile}`' for profile in COMMITTED)}:\n\n"
    text += _header("notebook", *VERDICTS, "time")
    for slug in sorted({document["slug"] for document in documents}):
        held = {document["profile"]: document for document in documents if document["slug"] == slug}
        columns = zip(*(_counts(held.get(profile)) for profile in COMMITTED), strict=True)
        text += _line(slug.replace("_", " "), *(" / ".join(column) for column in columns))
    return text


def _in_words(row: Document) -> str:
    """Value and interval for a sentence: two digits after the point, or three where two leave the interval no width."""
    if row["value"] is None:
        return ""
    ends = row["ci95"] or ()
    digits = 3 if len({f"{end:.2f}" for end in ends}) == 1 else 2
    value, interval = f"{row['value']:.{digits}f}", ", ".join(f"{end:.{digits}f}" for end in ends)
    return f"{value} [{interval}]" if interval else value


def _counts(document: Document | None) -> list[str]:
    """How many claims came to each verdict, and how many minutes it took."""
    if document is None:
        return ["–"] * (len(VERDICTS) + 1)
    verdicts = [row["verdict"] for row in document["claims"]]
    minutes = max(round(document["provenance"]["seconds"] / 60), 1)
    return [*(str(verdicts.count(verdict)) for verdict in VERDICTS), f"{minutes} min"]


def _timeless(text: str) -> str:
    """The text without times: a run that only took longer changes nothing."""
    return re.sub(r"\d+ min(?= [/|])", "", text)


def render_gallery(documents: list[Document]) -> str:
    """``figures/README.md``: claims × profile beside the paper's numbers, then all figures by profile."""
    text = "# Figures and claims\n\nGenerated by `make report` from the `results.json` files here; do not edit.\n\n"
    if not documents:
        return text + NO_RESULTS
    text += (
        "The paper's number was measured at the paper's own scale. Ours belongs to the profile named in its row: "
        "`small` is scaled down and does not measure the paper's number. Square brackets hold 95 % bootstrap "
        "intervals; n counts images, or training seeds where training is the claim.\n\n## Claims\n\n"
    )
    text += _header("id", "claim", "source", "paper's number", "profile", "ours", "n", "verdict", "command", "note")
    for slug, claim, rows in _rows(documents):
        for profile in COMMITTED:
            row = rows.get(profile, {"value": None, "n": 0, "verdict": "not attempted", "note": ""})
            statement = row.get("statement", claim["statement"])
            what = (claim["id"], statement, claim["source"], number(claim["paper"]), f"`{profile}`")
            command = f"`{_command(profile, slug)}`"
            text += _line(*what, _measured(row), row["n"], f"**{row['verdict']}**", command, row["note"])
    for profile in COMMITTED:
        held = sorted((entry for entry in documents if entry["profile"] == profile), key=lambda entry: entry["slug"])
        if held:
            text += f"\n## Profile `{profile}`\n" + "".join(map(_section, held))
    return text


def _section(document: Document) -> str:
    """The figures of one notebook."""
    profile, slug = document["profile"], document["slug"]
    text = f"\n### {slug}, profile `{profile}`\n\n"
    if document["paper"] is not None:
        text += f"{document['paper']['title']} (arXiv {document['paper']['arxiv']}). "
    text += f"[Notebook](../notebooks/{slug}.ipynb), [numbers]({profile}/{slug}/results.json), "
    text += f"`{_command(profile, slug)}`.\n"
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
            readme: insert(
                readme.read_text(encoding="utf-8") if readme.exists() else "",
                render_summary(documents),
            ),
        }
    except ValueError as error:
        raise SystemExit(f"report: {error}") from error
    for path, text in texts.items():
        if not path.exists() or _timeless(path.read_text(encoding="utf-8")) != _timeless(text):
            files.write_bytes(path, text.encode())
            print(f"{path.relative_to(runtime.ROOT)} written")


if __name__ == "__main__":
    main()
