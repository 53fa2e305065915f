"""Share one result among the tests of a run, across its workers."""

from __future__ import annotations

import hashlib
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.system.locks import locked_where_possible

if TYPE_CHECKING:
    from clipcheck.results.judgement import Judgement


@dataclass(frozen=True)
class Case:
    """A checkpoint, backend, device and dtype: one check.

    Attributes:
        model: the checkpoint, as the user gave it.
        backend: of the candidate.
        device: of the check.
        dtype: of the check.
    """

    model: str
    backend: str
    device: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.model}, {self.backend} on {self.device} in {self.dtype}"


@dataclass(frozen=True)
class Finding:
    """Result of a case.

    Attributes:
        case: of the check.
        judgement: the result.
        source: "the file given", "the released file" or seeded weights; empty if not found.
    """

    case: Case
    judgement: Judgement
    source: str = ""


class Findings:
    """The findings of a run, in a folder that only its workers write to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._held: dict[Case, Finding] = {}

    def find_or_judge(self, case: Case, judge: Callable[[], Finding]) -> Finding:
        """Return the finding on the case, from the folder or by calling ``judge``.

        Waits for another worker that judges the case. If that worker died, its death is the
        finding: a second try would die as well. Where the folder has no locks, there is no waiting,
        and two workers may judge the same case.
        """
        if case not in self._held:
            entry = _Entry(self.folder, case)
            with locked_where_possible(entry.lock) as alone:
                known = entry.known() if alone else entry.found()
                self._held[case] = known or entry.judge_and_store(judge)
        return self._held[case]

    def all(self) -> list[Finding]:
        """Return all findings of the run, in the order in which they were started."""
        return [found for entry in self._entries() if (found := entry.known())]

    def _entries(self) -> Iterator[_Entry]:
        started = sorted(self.folder.glob("*.started"), key=lambda path: path.stat().st_mtime_ns)
        for path in started:
            yield _Entry(self.folder, pickle.loads(path.read_bytes()))  # noqa: S301 - our own


class _Entry:
    """The files of one case: a lock, a mark that it was started, and the finding."""

    def __init__(self, folder: Path, case: Case) -> None:
        name = hashlib.sha256(repr(case).encode()).hexdigest()[:24]
        self.case = case
        self.lock = folder / f"{name}.lock"
        self._started = folder / f"{name}.started"
        self._found = folder / f"{name}.found"

    def known(self) -> Finding | None:
        """Return the finding, or one that says that its worker died.

        Call it with the lock held or after all workers have finished: otherwise a started case may
        still be running.
        """
        died = (
            Finding(self.case, _dead_worker_judgement(self.case))
            if self._started.exists()
            else None
        )
        return self.found() or died

    def found(self) -> Finding | None:
        """Read the finding, or return None if there is none."""
        if not self._found.exists():
            return None
        found: Finding = pickle.loads(self._found.read_bytes())  # noqa: S301 - our own
        return found

    def judge_and_store(self, judge: Callable[[], Finding]) -> Finding:
        """Call ``judge``, and store its finding for other workers."""
        _write_atomically(self._started, self.case)
        try:
            found = judge()
        except BaseException:
            # For example an interrupt: this process is alive, and may try again.
            self._started.unlink(missing_ok=True)
            raise
        _write_atomically(self._found, found)
        return found


def _write_atomically(path: Path, value: Case | Finding) -> None:
    """Write a pickle atomically: a worker may be killed at any time."""
    part = path.with_suffix(f".{uuid.uuid4().hex}")
    part.write_bytes(pickle.dumps(value))
    part.replace(path)


def _dead_worker_judgement(case: Case) -> Judgement:
    from clipcheck.results.judgement import Judgement

    error = (
        "expected a result, but the worker died: it crashed, or the machine ran out of memory. "
        "Judge it alone to see how: pytest --pyargs clipcheck.suite -n 0 "
        f"--clip-model {case.model} --clip-device {case.device} --clip-dtype {case.dtype}."
    )
    return Judgement(case.model, case.device, backend=case.backend, dtype=case.dtype, error=error)
