"""The workers of a sweep: what Slurm and PBS are asked for, and which schedulers are refused."""

from __future__ import annotations

import contextlib
import os
import socket
from argparse import Namespace
from pathlib import Path

import pytest

from manifold_lib.reproduction import execute
from manifold_lib.reproduction.sweeps import clusters


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://127.0.0.1:none", "tcp://"])
def test_an_address_where_nothing_listens_is_refused(address: str) -> None:
    with pytest.raises(execute.Failed, match=f"SCHEDULER={address}: nothing answers there: "):
        clusters.check(address)


def test_an_address_where_something_listens_is_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        clusters.check(f"tcp://127.0.0.1:{server.getsockname()[1]}")


def test_a_scheduler_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT", 1)
    server = socket.create_server(("127.0.0.1", 0))  # accepts, as a port that is forwarded to nobody
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with server, pytest.raises(execute.Failed, match="no Dask scheduler: "), clusters.workers(address, 1, 1):
        pass


@pytest.mark.parametrize(
    ("kind", "name", "command"), [("slurm", "SLURMCluster", "sbatch"), ("pbs", "PBSCluster", "qsub")]
)
def test_jobs_of_a_file_run_one_unit_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, command: str
) -> None:
    import dask_jobqueue

    file = tmp_path / "jobs.yml"
    file.write_text(f"cluster: {kind}\njobs: 8\noptions: {{memory: 4GB, queue: day, worker_extra_args: [--x]}}")
    with pytest.raises(execute.Failed, match=f"there is no {command} here"):
        clusters.job_cluster(file, 2)
    (tmp_path / command).write_text("#!/bin/sh")
    (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(dask_jobqueue, name, lambda **options: options)
    options, jobs = clusters.job_cluster(file, 2)
    assert jobs == 8 and options["memory"] == "4GB" and options["queue"] == "day"
    assert options["cores"] == 2 and options["processes"] == 1
    assert options["worker_extra_args"] == ["--x", "--nthreads", "1"]
    assert options["scheduler_options"] == {"dashboard_address": "127.0.0.1:0"}


def test_jobs_that_end_are_replaced_and_none_that_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    asked: list[int] = []
    cluster = contextlib.nullcontext()
    cluster.workers, cluster.scale, cluster.close = {}, lambda jobs: asked.append(jobs), lambda: asked.append(0)
    monkeypatch.setattr(clusters, "job_cluster", lambda *_: (cluster, 3))
    monkeypatch.setattr(distributed, "Client", lambda _: contextlib.nullcontext("client"))
    with clusters.workers("jobs.yml", 1, 1) as (client, tend):
        cluster.workers = {0: Namespace(job_id="7"), 1: Namespace(job_id=None)}
        tend()
        assert client == "client" and asked == [3, 3]
        cluster.workers = {0: Namespace(job_id=None)}
        with pytest.raises(execute.Failed, match="no job could be submitted"):
            tend()


@pytest.mark.parametrize(
    "text", ["", "cluster: lsf\njobs: 1", "cluster: pbs\njobs: 0", "cluster: pbs", "- x", "jobs: ["]
)
def test_a_file_that_names_no_cluster_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "jobs.yml"
    file.write_text(text)
    with pytest.raises(execute.Failed, match=r"jobs\.yml: wants an address such as tcp://host:8786, or a file"):
        clusters.job_cluster(file, 1)
