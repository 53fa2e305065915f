"""Run a sweep on an existing Ray cluster: each job is a task with its CPUs, GPUs and memory.

A cluster is never started here. All nodes need the same versions, which each task checks first.
Nodes read files by their paths, for example on a shared file system: sending a gigabyte with each
task would be slower. Nodes fetch URLs and released names themselves. Results are small texts, which
Ray stores in the leading process, so that they are not lost with a node.

Ray's own retries are off: the sweep restarts a lost job itself, and counts the losses.
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
"""CPUs and threads of a task: with many checkpoints, one for each gives the highest throughput."""

_HERE = "auto"
"""Ray's name for the cluster of this machine."""

_TIMEOUT = 10.0
"""Seconds to wait for a connection."""


class RayEngine:
    """Runs jobs as tasks of the connected cluster.

    Args:
        count: number of tasks at the same time; None for the cluster's number of CPUs.
        perform: does a job on a node. Its module must exist on the nodes: only its name is sent.
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
        """Number of workers as requested, or the present number of CPUs."""
        return self._count or max(1, int(self._ray.cluster_resources().get("CPU", 0)) // _CPUS)

    def threads(self) -> int:
        """Threads of a task: as many as its CPUs."""
        return _CPUS

    def default_device(self) -> str:
        """Return the GPU if a node has one."""
        return "cuda" if self._ray.cluster_resources().get("GPU", 0) else "cpu"

    def refusal(self, job: Job) -> str:
        """Say that no node has the resources of a job, or return an empty string: Ray would wait
        silently."""
        needs = self._needs(job)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(key, 0) >= needs[key] for key in needs) for node in nodes):
            return ""
        told = ", ".join(f"{key} {value:g}" for key, value in needs.items() if value)
        return f"expected a node of the cluster with {told}, found none. Add one, and sweep again."

    def has_room(self, job: Job) -> bool:  # noqa: ARG002 - Ray finds the node for it
        """Tell whether fewer jobs are running than allowed."""
        return len(self._running) < self.workers()

    def submit(self, job: Job) -> None:
        """Submit the job to Ray."""
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
        """Wait, and return the outcomes of jobs that ended or were lost."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [self._outcome(reference) for reference in ready]

    def close(self) -> None:
        """Cancel running jobs, and leave the cluster."""
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
            # The node or its result was lost, which says nothing about the checkpoint.
            return Outcome(job.number, "lost", reason=_told(error))
        return Outcome(job.number, "done", worker, zlib.decompress(found).decode())

    def _needs(self, job: Job) -> dict[str, float]:
        return {"CPU": _CPUS, "GPU": 1 if job.on_gpu else 0, "memory": job.memory}


def connected(address: str | None, count: int | None) -> RayEngine:
    """Return the engine for an existing cluster.

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
    """Raise if nothing answers at the address: Ray itself would try for minutes."""
    if address != _HERE and "://" not in address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), _TIMEOUT).close()


def perform_small(job: Job) -> tuple[str, bytes]:
    """Do a job, and return the worker's name and the compressed result."""
    import ray

    from clipcheck.sweep.worker import perform

    context = ray.get_runtime_context()
    worker = f"node {context.get_node_id()[:8]}, worker {context.get_worker_id()[:8]}"
    return worker, zlib.compress(perform(job).encode())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error).rstrip('.')}"
