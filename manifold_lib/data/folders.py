"""Where data sets are looked for: the folder that ``MANIFOLD_DATA`` names, and ``data/cache``.

``data`` is the repository's; an installed package leaves its own folder alone and uses ``~/.cache/manifold_lib``.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..core import files
from ..core.files import DataNotFound

DATA = Path(__file__).resolve().parents[2] / "data"
if not (DATA / "models").is_dir():
    DATA = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "manifold_lib")
CACHE = DATA / "cache"


def data_folder() -> Path | None:
    """The folder named by ``MANIFOLD_DATA``, which is only ever read; None when unset."""
    value = os.environ.get("MANIFOLD_DATA", "").strip()
    return Path(value).expanduser().resolve() if value else None


def find(relative: str, *, bare: bool = False) -> Path | None:
    """A file or folder under ``MANIFOLD_DATA`` or in the cache; ``bare`` also takes a file outside its own folder.

    MNIST and Fashion-MNIST share their file names, so theirs need the folder. Raises ``DataNotFound`` when the folder
    that is named does not exist or cannot be read.
    """
    names = [relative, Path(relative).name] if bare else [relative]
    places = [folder for folder in (data_folder(), CACHE) if folder is not None]
    try:
        if places[0] != CACHE:
            os.scandir(places[0]).close()
        return next((path for folder in places for name in names if (path := folder / name).exists()), None)
    except OSError as error:
        why = f"{error.filename} cannot be read: {error.strerror}"
        raise DataNotFound(f"{relative}: {why}. Correct MANIFOLD_DATA, or unset it to use data/cache.") from error


def missing(what: str, relatives: list[str], *, other_way: str = "", cause: object = "") -> DataNotFound:
    """The error to raise for a set that is not there, and that could not be downloaded for some cause."""
    failed = f"The download failed: {' '.join(str(cause).split())}. " if cause else ""
    place, cache = data_folder() or "MANIFOLD_DATA (not set)", "data/cache" if DATA.name == "data" else CACHE
    other_way = other_way or "run `make data` on a machine with a network, which downloads it into data/cache"
    return DataNotFound(
        f"{what}: looked for {', '.join(relatives)} in {place} and in {cache}. {failed}"
        f"Provide it in one of two ways: set MANIFOLD_DATA to a folder that holds {relatives[0]}, or {other_way}."
    )


@contextlib.contextmanager
def download(what: str, relatives: list[str]) -> Iterator[None]:
    """Run a torchvision download, whose bar a notebook does not show; a failure becomes :class:`DataNotFound`."""
    bar = io.StringIO() if "ipykernel" in sys.modules else sys.stderr
    try:
        with files.impatient(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bar):
            yield
    except (OSError, RuntimeError) as error:
        raise missing(what, relatives, cause=error) from error
