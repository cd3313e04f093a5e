"""Where scenes are prepared: in this process, in several of this machine, or on the machines of a cluster.

One scene is one task. This is the only file that knows dask. Its scheduler hands the tasks of a worker that dies to
another one, several times (``distributed.scheduler.allowed-failures``); what the dead one had not finished leaves a
hidden folder and nothing else. Recordings and store lie on a file system that all machines see under the same paths.
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.files.atomic import is_full, remove_leftovers
from pri3d.preparation.pipeline import Report, SceneJob, prepare_scene
from pri3d.processes import KilledError, run_in_processes, run_on
from pri3d.store import MANIFEST, read_scene_record

SUBMITTED = 2000  #: tasks that the scheduler knows of at a time; more workers than that would wait
_CONNECT = 30  # seconds to find the scheduler
_AGAIN = "Finished scenes are kept: the same command prepares the others."
_log = logging.getLogger(__name__)
Done = tuple[SceneJob, str | None]  #: a scene that is done, and why it failed, None where it is in the store


def prepare_here(
    jobs: Sequence[SceneJob], processes: int, report: Callable[[SceneJob], Report]
) -> Generator[Done, None, None]:
    """Prepare the scenes on this machine in so many processes, and yield them as they are done.

    Where that is one it is this process, and ``report`` of a job is told what is done of it. Raises DataError where a
    process was killed; what it was at is left out, finished scenes stay.
    """
    if processes > 1:
        with closing(run_in_processes(prepare_scene, jobs, processes)) as outcomes:
            for outcome in outcomes:
                yield outcome.item, None if outcome.error is None else _reason(outcome.error)
        return
    for job in jobs:
        try:
            prepare_scene(job, report(job))
            yield job, None
        except Exception as error:
            yield job, _reason(error)


def _reason(error: BaseException) -> str:
    """Why a scene failed, or raise what must stop the whole run: a full disk, a killed worker, an interruption."""
    if isinstance(error, KilledError):
        raise DataError(f"{error} Give fewer --processes. {_AGAIN}") from error
    if is_full(error) or isinstance(error, CancelledError) or not isinstance(error, Exception):
        raise error
    if not isinstance(error, Pri3DError | OSError):
        _log.error("unexpected error", exc_info=error)  # a reader's bug must not cost the other scenes
        return f"{type(error).__name__}: {error}"
    return str(error)


def check_cluster(cluster: str, workers: int) -> None:
    """Raise ConfigError where ``cluster`` is neither ``slurm`` nor ``dask:ADDRESS``, or does not fit ``workers``."""
    kind, _, address = cluster.partition(":")
    if cluster != "slurm" and (kind != "dask" or "://" not in address):
        raise ConfigError(
            f"--cluster {cluster}: choose slurm, or dask: and the address of a scheduler, as it prints it."
        )
    if cluster == "slurm" and workers < 1:
        raise ConfigError("--cluster slurm: give the number of jobs with --processes.")
    if kind == "dask" and workers:
        raise ConfigError(f"--cluster {cluster}: the scheduler has its own workers. Leave out --processes.")
    _dask(cluster)
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--cluster slurm: sbatch was not found. Run this on a machine that can submit jobs.")


def prepare_on_cluster(jobs: Sequence[SceneJob], cluster: str, workers: int) -> Generator[Done, None, None]:
    """Prepare the scenes on ``slurm`` with so many jobs, or by the workers of ``dask:ADDRESS``, as they are done.

    Raises ConfigError where the cluster cannot be used, DataError where its scheduler is lost on the way.
    """
    out = jobs[0].out
    with _client(cluster, workers) as client:
        host = client.submit(_blind, out, pure=False).result()  # of the first worker
        if host:
            raise ConfigError(f"{out}: does not exist on {host}. Every worker must see the recordings and OUT.")
        pool = client.get_executor(pure=False)
        try:
            for outcome in run_on(pool, attempt, jobs, SUBMITTED):
                yield outcome.item, None if outcome.error is None else _reason(outcome.error)
            client.run(remove_leftovers, out / "scenes")  # of workers that died beside one that lives
        except CancelledError as error:
            raise DataError(f"--cluster {cluster}: lost the connection to the scheduler. {_AGAIN}") from error
        finally:
            if client.status == "running":
                pool.shutdown(wait=False)


def attempt(job: SceneJob) -> None:
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
    """Context that gives a connected client. Raises ConfigError where there is nothing to connect to.

    Slurm jobs have the options of dask's own configuration; one that ends before the work does is replaced.
    """
    distributed = _dask(cluster)
    if cluster == "slurm":
        from dask_jobqueue import SLURMCluster  # noqa: PLC0415 (an extra)

        fix = "Cores, memory, time and partition are those of ~/.config/dask/jobqueue.yaml, under jobqueue: slurm."
        try:
            jobs = SLURMCluster()
        except (ValueError, RuntimeError, OSError) as error:
            raise ConfigError(f"--cluster slurm: {error} {fix}") from error
        with jobs:
            tried = subprocess.run(
                ["sbatch", "--test-only"], input=jobs.job_script(), capture_output=True, text=True, check=False
            )
            if tried.returncode:
                raise ConfigError(f"--cluster slurm: sbatch refuses the job: {tried.stderr.strip()} {fix}")
            jobs.adapt(minimum_jobs=workers, maximum_jobs=workers)
            with distributed.Client(jobs) as client:
                yield client
        return
    address = cluster.removeprefix("dask:")
    try:
        client = distributed.Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise ConfigError(f"--cluster {cluster}: no scheduler answers ({error}). Is it running?") from error
    with client:
        yield client


def _blind(out: Path) -> str:
    return "" if (out / MANIFEST).is_file() else socket.gethostname()


def _dask(cluster: str) -> Any:
    """Return ``distributed``. Raises ConfigError where the extra is not installed."""
    try:
        import distributed  # noqa: PLC0415 (an extra)

        if cluster == "slurm":
            # Importing it makes CTRL-C exit without a word: afterwards it does what it did before.
            handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
            try:
                import dask_jobqueue  # noqa: F401, PLC0415 (an extra)
            finally:
                for kind, handler in handlers.items():
                    signal.signal(kind, handler)
    except ImportError as error:
        raise ConfigError(f'--cluster {cluster}: needs dask: pip install "pri3d[cluster]" ({error}).') from error
    return distributed
