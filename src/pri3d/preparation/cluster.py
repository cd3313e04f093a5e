"""Scenes on the machines of a cluster: the only file that knows dask.

One scene is one task. The scheduler hands the tasks of a worker that dies to another one, several times
(``distributed.scheduler.allowed-failures``); what the dead one had not finished leaves a hidden folder and nothing
else. Recordings and store lie on a file system that all machines see under the same paths.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import remove_leftovers
from pri3d.preparation.scene import Job, prepare_scene
from pri3d.preparation.workers import Outcome, run_on
from pri3d.store import MANIFEST, read_scene_record

SUBMITTED = 2000  #: tasks that the scheduler knows of at a time; more workers than that would wait
_CONNECT = 30  # seconds to find the scheduler
_AGAIN = "Finished scenes stay: the same command makes the others."


def check_cluster(cluster: str, workers: int) -> None:
    """Raise ConfigError where ``cluster`` is neither ``slurm`` nor ``dask:ADDRESS``, or does not fit ``workers``."""
    kind, _, address = cluster.partition(":")
    if cluster != "slurm" and (kind != "dask" or "://" not in address):
        raise ConfigError(f"--cluster {cluster}: choose slurm, or dask: and the address of a scheduler, as it says it.")
    if cluster == "slurm" and workers < 1:
        raise ConfigError("--cluster slurm: state with --workers how many jobs to submit.")
    if kind == "dask" and workers:
        raise ConfigError(f"--cluster {cluster}: the scheduler has its own workers. Leave out --workers.")
    _dask(cluster)
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--cluster slurm: there is no sbatch here. Run this where jobs are submitted.")


def run_on_cluster(jobs: Sequence[Job], cluster: str, workers: int) -> Iterator[Outcome]:
    """Prepare the scenes on ``slurm`` with so many jobs, or by the workers of ``dask:ADDRESS``, as they are done.

    Raises ConfigError where the cluster cannot be used, DataError where its scheduler is lost on the way.
    """
    out = jobs[0].out
    with _client(cluster, workers) as client:
        _check_sight(client, out)
        pool = client.get_executor(pure=False)
        try:
            yield from run_on(pool, attempt, jobs, SUBMITTED)
            client.run(remove_leftovers, out / "scenes")  # of workers that died beside one that lives
        except CancelledError as error:
            raise DataError(f"--cluster {cluster}: lost the connection to the scheduler. {_AGAIN}") from error
        finally:
            if client.status == "running":
                pool.shutdown(wait=False)


def attempt(job: Job) -> None:
    """Prepare one scene on a worker, unless an earlier attempt finishes it: one taken for dead, or cancelled."""
    if read_scene_record(job.out, job.scene) is not None:
        return
    try:
        prepare_scene(job)
    except DataError:
        if read_scene_record(job.out, job.scene) is None:
            raise


@contextmanager
def _client(cluster: str, workers: int) -> Iterator[Any]:
    """Context that gives a connected client. Raises ConfigError where there is nothing to connect to."""
    distributed = _dask(cluster)
    if cluster == "slurm":
        with _slurm(workers) as jobs, distributed.Client(jobs) as client:
            yield client
        return
    address = cluster.removeprefix("dask:")
    try:
        client = distributed.Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise ConfigError(f"--cluster {cluster}: no scheduler answers there ({error}). Is it running?") from error
    with client:
        yield client


@contextmanager
def _slurm(workers: int) -> Iterator[Any]:
    """Slurm jobs with the options of dask's own configuration; one that ends before the work does is replaced."""
    from dask_jobqueue import SLURMCluster  # noqa: PLC0415 (an extra)

    fix = "Cores, memory, time and partition are those of ~/.config/dask/jobqueue.yaml, under jobqueue: slurm."
    try:
        cluster = SLURMCluster()
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"--cluster slurm: {error} {fix}") from error
    with cluster:
        script = cluster.job_script()
        tried = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
        if tried.returncode:
            raise ConfigError(f"--cluster slurm: sbatch refuses the job: {tried.stderr.strip()} {fix}")
        cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)
        yield cluster


def _check_sight(client: Any, out: Path) -> None:
    """Wait for the first worker. Raises ConfigError where it does not see the store."""
    host = client.submit(_blind, out, pure=False).result()
    if host:
        raise ConfigError(f"{out}: is not there on {host}. Recordings and OUT must lie where every worker sees them.")


def _blind(out: Path) -> str:
    return "" if (out / MANIFEST).is_file() else socket.gethostname()


def _dask(cluster: str) -> Any:
    """Return ``distributed``. Raises ConfigError where the extra is not installed."""
    try:
        import distributed  # noqa: PLC0415 (an extra)

        if cluster == "slurm":
            with _own_signals():
                import dask_jobqueue  # noqa: F401, PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(f'--cluster {cluster}: needs dask: pip install "pri3d[cluster]" ({error}).') from error
    return distributed


@contextmanager
def _own_signals() -> Iterator[None]:
    """Context after which CTRL-C does what it did: importing dask_jobqueue makes it exit without a word."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
