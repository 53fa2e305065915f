"""One judgement for all tests of a run that ask for it, whichever worker they are in."""

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
    """A case that is judged at once.

    Attributes:
        model: the checkpoint, as it was asked for.
        backend: the candidate.
        device: where it runs.
        dtype: what it computes in.
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
        case: what was judged.
        judgement: what was found.
        source: whether the weights are a file's or seeded ones; nothing where it got not so far.
    """

    case: Case
    judgement: Judgement
    source: str = ""


class Findings:
    """The findings of a run, in a folder that all its workers share and nobody else writes to.

    Args:
        folder: it is made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._held: dict[Case, Finding] = {}

    def once(self, case: Case, judge: Callable[[], Finding]) -> Finding:
        """Return the finding on the case; where there is none, ``judge`` makes it.

        Another worker that judges it already is waited for. If it died over it, that is what was
        found: whoever tried again would die as well. Where the folder has no locks, nobody can be
        waited for, and each judges what it does not find.
        """
        if case not in self._held:
            entry = _Entry(self.folder, case)
            with locked_where_possible(entry.lock) as alone:
                known = entry.known() if alone else entry.found()
                self._held[case] = known or entry.judged(judge)
        return self._held[case]

    def all(self) -> list[Finding]:
        """All that was found in the run, in the order in which it was begun."""
        return [found for entry in self._entries() if (found := entry.known())]

    def _entries(self) -> Iterator[_Entry]:
        started = sorted(self.folder.glob("*.started"), key=lambda path: path.stat().st_mtime_ns)
        for path in started:
            yield _Entry(self.folder, pickle.loads(path.read_bytes()))  # noqa: S301 - our own


class _Entry:
    """The files of one case: a lock, a mark that it was begun, and what was found."""

    def __init__(self, folder: Path, case: Case) -> None:
        name = hashlib.sha256(repr(case).encode()).hexdigest()[:24]
        self.case = case
        self.lock = folder / f"{name}.lock"
        self._started = folder / f"{name}.started"
        self._found = folder / f"{name}.found"

    def known(self) -> Finding | None:
        """Return the finding, or one that says that its worker died.

        Only to be asked by who holds the lock, or when all workers are done: the mark alone does
        not tell a dead worker from one that is at it.
        """
        died = Finding(self.case, _died(self.case)) if self._started.exists() else None
        return self.found() or died

    def found(self) -> Finding | None:
        """Read the finding, or return None where there is none."""
        if not self._found.exists():
            return None
        found: Finding = pickle.loads(self._found.read_bytes())  # noqa: S301 - our own
        return found

    def judged(self, judge: Callable[[], Finding]) -> Finding:
        """Call ``judge``, and keep its finding for the others."""
        _write(self._started, self.case)
        try:
            found = judge()
        except BaseException:
            # An interrupt, say: this process is well, and may try again.
            self._started.unlink(missing_ok=True)
            raise
        _write(self._found, found)
        return found


def _write(path: Path, value: Case | Finding) -> None:
    """Whole or not at all: a worker may be killed at any time."""
    part = path.with_suffix(f".{uuid.uuid4().hex}")
    part.write_bytes(pickle.dumps(value))
    part.replace(path)


def _died(case: Case) -> Judgement:
    from clipcheck.results.judgement import Judgement

    error = (
        "expected a judgement, but the worker that was judging it died: it crashed, or the machine "
        "ran out of memory. Judge it alone to see how: pytest --pyargs clipcheck.suite -n 0 "
        f"--clip-model {case.model} --clip-device {case.device} --clip-dtype {case.dtype}."
    )
    return Judgement(case.model, case.device, backend=case.backend, dtype=case.dtype, error=error)
