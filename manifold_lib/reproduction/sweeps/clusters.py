"""The Dask workers of a sweep: of this machine, of a scheduler with an address, or of Slurm and PBS by dask-jobqueue.

Imported by its path, as sweep.py is.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    from .. import execute
except ImportError:
    import execute  # type: ignore[no-redef]

CLUSTERS = {"slurm": ("SLURMCluster", "sbatch"), "pbs": ("PBSCluster", "qsub")}
CONNECT = 5  # seconds that a scheduler has to answer
HTTP = "127.0.0.1:0"  # Dask's pages, which nobody else needs


def cores() -> int:
    """The cores of this machine that this process may use, by the limits of a container too."""
    from distributed.deploy.local import CPU_COUNT

    return CPU_COUNT


def check(address: str) -> None:
    """Refuse at once an address where nothing listens."""
    try:
        place = urlsplit(address)
        socket.create_connection((place.hostname, place.port), CONNECT).close()
    except (OSError, ValueError, TypeError) as error:
        raise execute.Failed(f"SCHEDULER={address}: nothing answers there: {error}") from error


def _connected(client: Any, address: str) -> Any:
    """A client of the scheduler there. Its own timeout does not end a handshake that stays without an answer."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(client(address, timeout=CONNECT))
        except Exception as error:  # what answers there may be anything
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(2 * CONNECT)
    if not found or isinstance(found[0], Exception):
        why = f"{type(found[0]).__name__} {found[0]}" if found else f"no word from it in {2 * CONNECT} s"
        raise execute.Failed(f"SCHEDULER={address}: what answers there is no Dask scheduler: {why}")
    return found[0]


@contextlib.contextmanager
def workers(scheduler: str, n_workers: int, threads: int) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A Dask client, and what to call now and then while its workers work."""
    # the next unit goes to the worker that is free
    os.environ.setdefault("DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION", "1.0")
    from distributed import Client, LocalCluster

    if not scheduler:
        how: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": None, "silence_logs": logging.ERROR}
        with LocalCluster(n_workers=n_workers, dashboard_address=HTTP, **how) as local, Client(local) as client:
            client.run(lambda: bool(signal.signal(signal.SIGINT, signal.SIG_IGN)))  # Ctrl-C is for this process
            yield client, lambda: None
    elif "://" in scheduler:
        with _connected(Client, scheduler) as client:
            if not client.scheduler_info()["workers"]:
                print(f"{scheduler} has no workers yet: the units wait for them", flush=True)
            yield client, lambda: None
    else:
        cluster, jobs = job_cluster(Path(scheduler), threads)

        def tend() -> None:
            submitted = [job.job_id for job in cluster.workers.values()]
            if submitted and not any(submitted):
                raise execute.Failed(f"{scheduler}: no job could be submitted, for the reason above")
            cluster.scale(jobs=jobs)  # in the place of jobs that have ended

        try:
            with Client(cluster) as client:
                tend()
                yield client, tend
        finally:
            with contextlib.suppress(AssertionError):  # of jobs that could not be submitted
                cluster.close()


def job_cluster(file: Path, threads: int) -> tuple[Any, int]:
    """The dask-jobqueue cluster of a file, whose workers run one unit at a time each, and how many jobs it wants."""
    import dask_jobqueue
    import yaml

    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind, jobs, given = said["cluster"], said["jobs"], said.get("options") or {}
        name, command = CLUSTERS[kind]
        if type(jobs) is not int or jobs < 1:
            raise ValueError(f"jobs: got {jobs!r}")
        options = {"cores": threads, "processes": 1, "log_directory": str(execute.BUILD / "sweep" / "jobs"), **given}
        options["worker_extra_args"] = [*given.get("worker_extra_args", []), "--nthreads", "1"]
        options["scheduler_options"] = {"dashboard_address": HTTP, **given.get("scheduler_options", {})}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        wants = "an address such as tcp://host:8786, or a file with cluster (slurm or pbs), jobs (a number) and options"
        raise execute.Failed(f"SCHEDULER={file}: wants {wants}: {type(error).__name__}: {error}") from error
    if not shutil.which(command):
        raise execute.Failed(f"SCHEDULER={file}: there is no {command} here: start it where jobs are submitted")
    try:
        return getattr(dask_jobqueue, name)(**options), jobs
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise execute.Failed(f"{file}: options: {error}") from error
