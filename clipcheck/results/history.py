"""Changes between two runs of a check, such as before and after an upgrade of torch.

Two results are of the same checkpoint if backend and device are the same, and

- the file's name is the same, in any folder, if only one in each run has this name;
- else the path is the same;
- else the SHA-256 is the same, if only one in each run has it.

Then dtypes are matched. A checkpoint that could not be opened has no dtype, and is compared with
all dtypes of the other run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from clipcheck.errors import ResultsError
from clipcheck.gates.registry import UNMEASURED, find_gate
from clipcheck.gates.result import GateResult
from clipcheck.results.document import Document, read
from clipcheck.results.judgement import Record

MOST_BYTES = 16 << 20
"""Size limit of a file of results; a check writes some kilobytes for each judgement."""

Outcome = Literal[
    "new failure",
    "newly unjudged",
    "fixed",
    "still failing",
    "still unjudged",
    "passes as before",
    "only in old",
    "only in new",
]
Change = Literal["failed", "fixed", "appeared", "disappeared", "shrunk", "grown"]

WORSE: tuple[Outcome, ...] = ("new failure", "newly unjudged")
"""Outcomes that make a run worse than the one before it."""

_SEEDED = " (seeded weights)"
_ASK = "Give a file that `clipcheck check --json` wrote, or the results.json of a report."


@dataclass(frozen=True)
class Run:
    """The results of a check.

    Attributes:
        source: path of the file.
        environment: versions and the machine.
        entries: at least one, no two of the same checkpoint, backend, device and dtype.
    """

    source: str
    environment: Mapping[str, str]
    entries: tuple[Record, ...]


@dataclass(frozen=True)
class GateChange:
    """Change of a gate.

    Attributes:
        name: of the gate.
        change: ``appeared`` and ``disappeared`` refer to being judged, ``shrunk`` and ``grown`` to
            the room between margin and limit.
        old: earlier result; None if there was none.
        new: later result; None if there was none.
    """

    name: str
    change: Change
    old: GateResult | None
    new: GateResult | None


@dataclass(frozen=True)
class Compared:
    """A checkpoint, backend, device and dtype in both runs or in one of them."""

    old: Record | None
    new: Record | None

    @property
    def title(self) -> str:
        """Title in the newer run, or in the older one if only that has a dtype."""
        if self.new is None or (self.old is not None and self.new.dtype is None):
            assert self.old is not None  # noqa: S101 - for mypy: at least one of the two exists
            return self.old.title
        return self.new.title

    @property
    def outcome(self) -> Outcome:
        """Outcome of the comparison. A failure that is only in the new run is a new failure."""
        old, new = (each and each.state for each in (self.old, self.new))
        if new is None:
            return "only in old"
        if new == "failed":
            worse = any(gate.change == "failed" for gate in self.gates)
            return "new failure" if old != "failed" or worse else "still failing"
        if new == "unjudged":
            return "still unjudged" if old == "unjudged" else "newly unjudged"
        if old is None:
            return "only in new"
        return "passes as before" if old == "passed" else "fixed"

    @property
    def gates(self) -> list[GateChange]:
        """Changes by gate; none if one of the two was not judged."""
        if self.old is None or self.new is None:
            return []
        if "unjudged" in (self.old.state, self.new.state):
            return []
        before = {gate.name: gate for gate in self.old.gates}
        after = {gate.name: gate for gate in self.new.gates}
        return [
            GateChange(name, change, before.get(name), after.get(name))
            for name in {**before, **after}
            if (change := _change(before.get(name), after.get(name))) is not None
        ]

    @property
    def conditions(self) -> list[tuple[str, str, str]]:
        """Other differences as name, old and new value, such as the SHA-256."""
        if self.old is None or self.new is None:
            return []
        pairs = [("SHA-256", self.old.sha256, self.new.sha256)]
        if "unjudged" not in (self.old.state, self.new.state):
            pairs += [
                (name, str(getattr(self.old, name)), str(getattr(self.new, name)))
                for name in ("seed", "examples")
            ]
            pairs += [("budget", self.old.budget or "none", self.new.budget or "none")]
            pairs += [("inputs", self.old.inputs, self.new.inputs)]
        return [(name, old, new) for name, old, new in pairs if old and new and old != new]


@dataclass(frozen=True)
class Difference:
    """Changes between two runs.

    Attributes:
        old: the run before.
        new: the run after.
        compared: all of both runs.
    """

    old: Run
    new: Run
    compared: tuple[Compared, ...]

    @property
    def versions(self) -> list[tuple[str, str | None, str | None]]:
        """Differences of the environment as name, old and new value."""
        old, new = self.old.environment, self.new.environment
        return [
            (name, old.get(name), new.get(name))
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]

    @property
    def worse(self) -> bool:
        """Whether anything fails or could not be judged that passed before."""
        return any(each.outcome in WORSE for each in self.compared)


def compare(old: Run, new: Run) -> Difference:
    """Match the results of both runs, and find the changes.

    Raises:
        ResultsError: the runs have no checkpoint in common.
    """
    compared = tuple(_compared(old.entries, new.entries))
    if not any(each.old and each.new for each in compared):
        raise ResultsError(
            f"expected a checkpoint that is also in {old.source}, on the same device; found none",
            remedy="Compare two runs of the same checkpoints.",
            path=new.source,
        )
    return Difference(old, new, compared)


def read_results(path: Path) -> Run:
    """Read results that `clipcheck check --json` wrote.

    Raises:
        ResultsError: it cannot be read, is cut off, has another schema, or is no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _results_error(path, f"it cannot be read ({error.strerror or error})") from error
    if len(data) > MOST_BYTES:
        raise _results_error(path, f"it has more than {MOST_BYTES:,} bytes")
    try:
        return _run(read(data), str(path))
    except ValueError as error:
        raise _results_error(path, str(error)) from error


def _results_error(path: Path, problem: str) -> ResultsError:
    return ResultsError(f"expected the results of a check, but {problem}", remedy=_ASK, path=path)


def _run(document: Document, source: str) -> Run:
    seen: set[tuple[str | None, ...]] = set()
    for each in document.results:
        key = each.checkpoint, each.backend, each.device, each.dtype
        if key in seen:
            raise ValueError(f"it has two results for {each.title}")
        seen.add(key)
    return Run(source, document.environment, document.results)


def _change(old: GateResult | None, new: GateResult | None) -> Change | None:
    before, after = (each is not None and each.judged for each in (old, new))
    if before != after:
        return "appeared" if after else "disappeared"
    if old is None or new is None or not after:
        return None
    if old.passed != new.passed:
        return "failed" if old.passed else "fixed"
    low, high = sorted((old.margin, new.margin))
    gate = find_gate(new.name)
    if high <= low * ((gate and gate.noise) or UNMEASURED):
        return None
    return "shrunk" if new.margin == high else "grown"


def _compared(old: Sequence[Record], new: Sequence[Record]) -> Iterator[Compared]:
    """Yield pairs in the order of the new run; those only in the old one come last."""
    olds, news = _subjects(old), _subjects(new)
    partners = _partners(olds, news)
    seen: set[_Subject] = set()
    for key, entries in news.items():
        partner = partners.get(key)
        before = olds[partner] if partner else []
        if partner:
            seen.add(partner)
        yield from _by_dtype(before, entries)
    for key, entries in olds.items():
        if key not in seen:
            yield from _by_dtype(entries, [])


class _Subject(NamedTuple):
    """A checkpoint as the user gave it, its backend and device."""

    checkpoint: str
    backend: str
    device: str


_Subjects = dict[_Subject, list[Record]]


def _subjects(entries: Sequence[Record]) -> _Subjects:
    found: _Subjects = defaultdict(list)
    for each in entries:
        found[_Subject(each.checkpoint, each.backend, each.device)].append(each)
    return found


def _partners(old: _Subjects, new: _Subjects) -> dict[_Subject, _Subject]:
    """Map each new subject to its counterpart in the old run."""
    found: dict[_Subject, _Subject] = {}
    keys: list[Callable[[_Subject, Sequence[Record]], object]] = [
        lambda subject, _: _file_name(subject.checkpoint),
        lambda subject, _: subject.checkpoint,
        lambda _, entries: entries[0].sha256,
    ]
    for key in keys:
        before = _alone(old, key, taken=set(found.values()))
        after = _alone(new, key, taken=set(found))
        found |= {subject: before[same] for same, subject in after.items() if same in before}
    return found


def _alone(
    subjects: _Subjects,
    key: Callable[[_Subject, Sequence[Record]], object],
    taken: set[_Subject],
) -> dict[tuple[object, str, str], _Subject]:
    """Return the subjects whose key is unique, by key, backend and device."""
    found: dict[tuple[object, str, str], list[_Subject]] = defaultdict(list)
    for subject, entries in subjects.items():
        value = key(subject, entries)
        if subject not in taken and value is not None:
            found[value, subject.backend, subject.device].append(subject)
    return {value: several[0] for value, several in found.items() if len(several) == 1}


def _file_name(checkpoint: str) -> str:
    """Return the name of the file, also for paths of other operating systems."""
    return re.split(r"[/\\]", checkpoint.removesuffix(_SEEDED))[-1]


def _by_dtype(old: Sequence[Record], new: Sequence[Record]) -> Iterator[Compared]:
    before = {each.dtype: each for each in old}
    after = {each.dtype: each for each in new}
    dtypes = {**after, **before}
    if before and after and len(dtypes) > 1:
        # The result without a dtype is compared with every dtype of the other run.
        dtypes.pop(None, None)
    for dtype in dtypes:
        one, other = (each.get(dtype, each.get(None)) for each in (before, after))
        yield Compared(one, other)
