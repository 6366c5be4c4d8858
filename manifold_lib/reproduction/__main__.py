"""``python manifold_lib/reproduction run SLUG``: what make calls. By its path, as the package would import torch."""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import execute


def _end_with(parent: int) -> None:
    """When make is killed nobody waits for this run any more: end it. Its kernel sees that and ends too."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Run notebooks where their results are not up to date, one by one or as a sweep, or refresh their sources."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("command", choices=("run", "refresh", "sweep"))
    parser.add_argument("slugs", nargs="*", metavar="SLUG")
    parser.add_argument("--profile", choices=execute.PROFILES, default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="say nothing of what is up to date")
    for name in "sets", "seeds", "scheduler", "workers", "threads":
        parser.add_argument(f"--{name}", default="", help="of a sweep")
    arguments = parser.parse_args()
    if data := os.environ.get("MANIFOLD_DATA", "").strip():
        os.environ["MANIFOLD_DATA"] = str(Path(data).expanduser().resolve())  # the kernel starts in another folder
        if not os.access(os.environ["MANIFOLD_DATA"], os.R_OK | os.X_OK):
            sys.exit(f"MANIFOLD_DATA={data}: there is no such folder, or it cannot be read")
    # tqdm would warn that it has no widgets
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    os.chdir(execute.ROOT)
    for number in signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    try:
        if arguments.command == "sweep":
            from sweeps import sweep  # takes Dask

            return sweep.main(arguments)
        for slug in arguments.slugs:
            if arguments.command == "refresh":
                execute.refresh(slug)
            else:
                execute.run(slug, arguments.profile, arguments.device, arguments.quiet)
    except execute.Failed as failure:
        sys.exit(f"{slug}: {failure}")
    except KeyboardInterrupt:
        print(f"\n{arguments.command} interrupted: nothing half-made is kept", file=sys.stderr, flush=True)
        os._exit(130)  # threads of the kernel's client would delay a normal exit


if __name__ == "__main__":
    main()
