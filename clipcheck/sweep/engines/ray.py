"""An existing Ray cluster: each job is a task, by the CPUs, GPUs and memory that it needs.

A cluster is never started here. Its nodes have the same versions of what computes, which each task
looks at first. Files that are given by their path are read by the node that judges them: they have
to be there under the same path, as on a shared file system, for to send a gigabyte with each task
would be slower than that, and would be lost with the node. URLs and released names are fetched by
the node. What comes back is the text of what was found, so small that Ray keeps it with who leads
the sweep, and no node that is lost afterwards takes it along.

Ray's own retries are off: the sweep begins a lost job once more itself, and keeps count.
"""

from __future__ import annotations

import logging
import os
import socket
import zlib
from collections.abc import Callable
from typing import Any

from clipcheck.errors import UnavailableError, first_line
from clipcheck.sweep.jobs import Job
from clipcheck.system.processes import Outcome

_CPUS = 1
"""CPUs that a task takes, and threads that it has: of many checkpoints, most are done in a time
when each has one."""

_HERE = "auto"
"""Ray's name for the cluster of this machine."""

_TIMEOUT = 10.0
"""Seconds to wait for a connection."""


class RayEngine:
    """Runs jobs as tasks of the cluster that this process is connected to.

    Args:
        count: how many at a time; None for as many as the cluster has CPUs, at any time.
        perform: does a job on a node: of a module that the nodes have, for its name is sent and
            not its code.
    """

    name = "ray"

    def __init__(
        self, count: int | None, perform: Callable[[Job], tuple[str, bytes]] | None = None
    ) -> None:
        import ray

        self._ray = ray
        self._count = count
        self._perform = ray.remote(perform or perform_small)
        self._running: dict[Any, Job] = {}

    def workers(self) -> int:
        """Return the number of workers that were asked for, or as many as there are CPUs now."""
        return self._count or max(1, int(self._ray.cluster_resources().get("CPU", 0)) // _CPUS)

    def threads(self) -> int:
        """Ray gives a task as many as CPUs."""
        return _CPUS

    def default_device(self) -> str:
        """The GPU, where a node has one."""
        return "cuda" if self._ray.cluster_resources().get("GPU", 0) else "cpu"

    def refusal(self, job: Job) -> str:
        """Say that no node has the resources of a job, or nothing: Ray would wait for one without a
        word."""
        needs = self._needs(job)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(key, 0) >= needs[key] for key in needs) for node in nodes):
            return ""
        told = ", ".join(f"{key} {value:g}" for key, value in needs.items() if value)
        return f"expected a node of the cluster with {told}, found none. Add one, and sweep again."

    def has_room(self, job: Job) -> bool:  # noqa: ARG002 - Ray finds the node for it
        """Whether so many are not running yet."""
        return len(self._running) < self.workers()

    def submit(self, job: Job) -> None:
        """Give it to Ray."""
        needs = self._needs(job)
        task = self._perform.options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            memory=needs["memory"],
            max_retries=0,
            name=f"clipcheck {job.label}",
        )
        self._running[task.remote(job)] = job

    def wait(self) -> list[Outcome]:
        """Wait, and return the outcomes of jobs that came back or were lost."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [self._outcome(reference) for reference in ready]

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        errors = self._ray.exceptions
        job = self._running.pop(reference)
        try:
            worker, found = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return Outcome(job.number, "died", reason=_told(error))
        except errors.RayError as error:
            # The node is gone, or what it had found: that says nothing of the checkpoint.
            return Outcome(job.number, "lost", reason=_told(error))
        return Outcome(job.number, "done", worker, zlib.decompress(found).decode())

    def _needs(self, job: Job) -> dict[str, float]:
        return {"CPU": _CPUS, "GPU": 1 if job.on_gpu else 0, "memory": job.memory}


def connected(address: str | None, count: int | None) -> RayEngine:
    """The engine of a cluster that is there.

    Args:
        address: of the cluster; None for ``$RAY_ADDRESS``, or the one of this machine.
        count: as for `RayEngine`.

    Raises:
        UnavailableError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UnavailableError(
            "the engine ray needs Ray, which is not installed",
            remedy="Install it: pip install 'clipcheck[ray]'; or sweep with --engine local.",
        ) from error
    wanted = address or os.environ.get("RAY_ADDRESS") or _HERE
    try:
        _require_answer(wanted)
        ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"expected a Ray cluster at {address or 'this machine'}, found none ({_told(error)})",
            remedy="Start one (ray start --head), name one with --address HOST:PORT, or sweep with "
            "--engine local.",
        ) from error
    return RayEngine(count)


def _require_answer(address: str) -> None:
    """See that somebody is there: Ray itself would ask for minutes."""
    if address != _HERE and "://" not in address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _TIMEOUT).close()


def perform_small(job: Job) -> tuple[str, bytes]:
    """Do a job, and return who did it, and the result, as small as it gets."""
    import ray

    from clipcheck.sweep.worker import perform

    context = ray.get_runtime_context()
    worker = f"node {context.get_node_id()[:8]}, worker {context.get_worker_id()[:8]}"
    return worker, zlib.compress(perform(job).encode())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error).rstrip('.')}"
