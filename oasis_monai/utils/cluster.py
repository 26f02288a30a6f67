"""Run trainings and whole cross-validations as jobs of a cluster, by submitit (extra ``submitit``).

The jobs are those of :mod:`.processes`: they receive only settings, and what they make goes to the cache, under locks. The
process that submits them waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oasis_monai.utils.config import require
from oasis_monai.utils.errors import ConfigError, OasisError
from oasis_monai.utils.processes import _raise_named, run_parallel

EXECUTORS = ("slurm", "local")
LOOK = 1.0
"""Seconds between two looks at the jobs. Of SLURM submitit itself asks less often."""
Jobs = Sequence[tuple[str, tuple[Any, ...]]]
Ended = Callable[[str, float], None]


@dataclass(frozen=True)
class Cluster:
    """Where the jobs of a study run. The fields are the keys of ``cluster`` in ``conf/config.yaml``.

    Args:
        executor: ``slurm``, or ``local``: processes of this machine, to try it out.
        jobs: most jobs at a time, 1 or more.
        timeout_min: minutes after which SLURM ends a job, 1 or more.
        cpus_per_task, gpus_per_node: of a job. Its computation has so many threads.
        mem_gb: memory of a job; None: what the cluster gives.
        slurm_partition: None: the cluster's own.
        options: further ones of submitit's ``update_parameters``, such as ``slurm_account``.
        folder: where submitit keeps its files; on a cluster on a file system that all nodes see.

    Raises:
        ConfigError: naming ``cluster.<key>``; submitit is not installed.
    """

    executor: str = "slurm"
    jobs: int = 20
    timeout_min: int = 240
    cpus_per_task: int = 4
    gpus_per_node: int = 0
    mem_gb: float | None = None
    slurm_partition: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path(".submitit")

    def __post_init__(self) -> None:
        require(
            self,
            "cluster",
            ("executor", self.executor in EXECUTORS, f"one of {list(EXECUTORS)}"),
            ("jobs", self.jobs >= 1, "1 or more"),
            ("timeout_min", self.timeout_min >= 1, "1 or more minutes"),
            ("cpus_per_task", self.cpus_per_task >= 1, "1 or more"),
            ("gpus_per_node", self.gpus_per_node >= 0, "0 or more"),
        )
        if find_spec("submitit") is None:
            raise ConfigError("cluster", "null, as submitit is not installed", self.executor, "pip install '.[submitit]'")


def run_jobs(
    function: Callable[..., Any],
    jobs: Jobs,
    workers: int,
    ended: Ended,
    needs: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> None:
    """Call ``function(*arguments)`` for every job: on a cluster, or as :func:`.processes.run_parallel`.

    Args:
        jobs: (name, arguments) each.
        workers, needs: of the processes of this machine, where there is no cluster.
        ended: called with the name and the minutes of every finished job.

    Raises:
        OasisError: the first failure of a job, naming it; faults of input and settings unchanged. Running jobs finish first,
            jobs that have not been submitted are dropped.
        KeyboardInterrupt: at once; all jobs are cancelled.
    """
    if cluster is None:
        run_parallel(function, jobs, workers, ended, needs)
    elif jobs:
        _submit(function, jobs, ended, cluster)


def _submit(function: Callable[..., Any], jobs: Jobs, ended: Ended, cluster: Cluster) -> None:
    executor = _executor(cluster)
    waiting, running = list(jobs), dict[str, Any]()
    failed: tuple[str, BaseException] | None = None
    try:
        while running or (waiting and failed is None):
            while waiting and failed is None and len(running) < cluster.jobs:
                name, arguments = waiting.pop(0)
                running[name] = executor.submit(_told, function, arguments, cluster.cpus_per_task)
            for name, job in list(running.items()):
                if job.done():
                    del running[name]
                    minutes, error = _result(job)
                    if error is None:
                        ended(name, minutes)
                    failed = failed or (None if error is None else (name, error))
            time.sleep(LOOK)
    except KeyboardInterrupt:
        for job in running.values():
            job.cancel()
        raise
    if failed is not None:
        _raise_named(failed[0], [failed[0]], failed[1])


def _executor(cluster: Cluster) -> Any:
    import submitit

    executor = submitit.AutoExecutor(cluster.folder, cluster.executor)
    own = {"slurm_partition": cluster.slurm_partition, "mem_gb": cluster.mem_gb}
    values = {**{key: value for key, value in own.items() if value is not None}, **cluster.options}
    try:
        executor.update_parameters(
            name="oasis",
            timeout_min=cluster.timeout_min,
            cpus_per_task=cluster.cpus_per_task,
            gpus_per_node=cluster.gpus_per_node,
            tasks_per_node=1,
            **values,
        )
    except (NameError, TypeError, ValueError) as error:  # what submitit says of an option that it does not know
        raise ConfigError("cluster.options", "options of submitit", dict(cluster.options), str(error).splitlines()[0]) from None
    return executor


def _result(job: Any) -> tuple[float, BaseException | None]:
    """Minutes of a job that has ended, and its error; of one that was killed, the last line that submitit has."""
    try:
        minutes, error = job.result()
    except Exception as lost:
        last = (str(lost).strip().splitlines() or [type(lost).__name__])[-1]
        return 0.0, OasisError(f"the job ended without a result ({last}); see {job.paths.stderr}")
    return minutes, error


def _told(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> tuple[float, BaseException | None]:
    """In the job: call the function; -> minutes, and the error."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    began = time.monotonic()
    try:
        function(*arguments)
    except Exception as error:  # its class is what the submitting process goes by; its traceback cannot be sent
        print(f"error: {error}", flush=True)
        return (time.monotonic() - began) / 60, error.with_traceback(None)
    return (time.monotonic() - began) / 60, None
