"""``make portable``: do the verdicts hold on another processor?

The notebooks run in a copy of the repository with one thread and without the wide vector instructions, which stands in
for another machine: sums are rounded elsewhere. Every claim is then held against the one in ``figures/``.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from ..core import files
from . import execute, runtime

# what torch and oneDNN read when they choose their kernels
OTHER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
SHARE = 0.1  # of its margin that a value may move without being named
_LEFT = ("figures/", ".ci/", ".github/")


def copy_repository(target: Path) -> None:
    """Bring the files that git knows, and new ones that it does not ignore, into a folder; its results stay there."""
    command = ["git", "-C", str(runtime.ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split("\0")
    wanted = {name for name in filter(None, names) if not name.startswith(_LEFT) and (runtime.ROOT / name).is_file()}
    for folder in ("notebooks", "manifold_lib", "data/models"):
        for path in (target / folder).rglob("*"):
            if path.is_file() and str(path.relative_to(target)) not in wanted:
                path.unlink()
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(runtime.ROOT / name, target / name)


def compare(ours: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of two results of one notebook: how far each value moved, as a share of its margin, and if its
    interval holds that."""
    rows = {row["id"]: row for row in other["claims"]}
    found = []
    for row in ours["claims"]:
        twin = rows.get(row["id"], {"value": None, "verdict": "missing"})
        values = (row["value"], twin["value"])
        moved = None if None in values else abs(values[0] - values[1]) / row["margin"]
        if row["kind"] == "identity":
            moved = None  # rounding is what it measures
        entry = {"notebook": ours["slug"], "claim": row["id"], "value": values[0], "other": values[1], "moved": moved}
        holds = moved is None or row["ci95"] is None or row["ci95"][0] <= values[1] <= row["ci95"][1]
        entry |= {"margin": row["margin"], "in the interval": holds, "verdict": row["verdict"]}
        found.append(entry | {"other verdict": twin["verdict"], "note": row["note"]})
    return found


def run(profile: str) -> pd.DataFrame:
    """Run every notebook in the copy, where its results are not up to date, and compare."""
    found = sorted((runtime.FIGURES / profile).glob("*/results.json"))
    os.chdir(runtime.ROOT)
    for results in found:
        slug = results.parent.name
        stamp = runtime.BUILD / profile / f"{slug}.done"
        try:
            current = execute.up_to_date(stamp, results, execute.fingerprint(slug, profile), "cpu")
        except execute.Failed as error:
            raise SystemExit(f"portable: {slug}: {error}") from error
        if not current:
            command = f"make {slug[:2]} PROFILE={profile} DEVICE=cpu"
            raise SystemExit(
                f"portable: {slug} has no results of this code, from this machine's CPU: `{command}` first"
            )
    if not found:
        raise SystemExit(f"portable: there are no results to hold against: `make all PROFILE={profile}` first")
    target = runtime.BUILD / "portable"
    copy_repository(target)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | OTHER

    def compared(results: Path) -> list[dict[str, Any]]:
        slug = results.parent.name
        command = ["make", slug, f"PROFILE={profile}", "DEVICE=cpu", f"PYTHON={sys.executable}"]
        if subprocess.run(command, cwd=target, env=environment).returncode:
            raise SystemExit(f"portable: {slug} failed on the other processor; its log is in {target}/.build/{profile}")
        other = target / "figures" / profile / slug / "results.json"
        return compare(*(json.loads(path.read_text(encoding="utf-8")) for path in (results, other)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each notebook has one thread
        table = itertools.chain(*pool.map(compared, found))
    return pd.DataFrame(table)


def main() -> None:
    """Write figures/PROFILE/portable.csv, name what moved, and exit 1 where a verdict changed or an interval fails."""
    profile = sys.argv[1] if len(sys.argv) > 1 else "small"
    table = run(profile)
    file = runtime.FIGURES / profile / "portable.csv"
    files.write_bytes(file, table.to_csv(index=False, lineterminator="\n", float_format="%.4g").encode())
    changed = table[table["verdict"] != table["other verdict"]]
    moved = table[table["moved"] > SHARE]
    for title, part in (("verdicts that change", changed), (f"values that move by more than {SHARE:.0%}", moved)):
        print(f"{title}: {len(part)} of {len(table)}")
        for row in part.to_dict("records"):
            word = " → ".join(dict.fromkeys([row["verdict"], row["other verdict"]]))
            where = "" if row["in the interval"] else ", out of its interval"
            print(f"  {row['claim']}: {row['value']} → {row['other']} (margin {row['margin']}){where}, {word}")
    print(f"{file.relative_to(runtime.ROOT)} written")
    if len(changed) or not moved["in the interval"].all():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
