"""Changes between two runs of a check, such as before and after an upgrade of torch.

A checkpoint is the same in both where backend and device are the same, and

- the file's name is, whatever the folder, if only one in each run has that name;
- else where it was asked for by the same path;
- else where the file has the same SHA-256, if only one in each run has that.

Then dtypes are matched. One that could not even be opened, and so has no dtype, stands for all of
the other run's.
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
"""Size limit of a file of results: those that a check writes have some kilobytes for each
judgement."""

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
_ASK = "Give a file that `clipcheck check --json` has written, or the results.json of a report."


@dataclass(frozen=True)
class Run:
    """The results of a check.

    Attributes:
        source: where they are from, for people.
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
        name: the gate's.
        change: ``shrunk`` and ``grown`` are of the room that its margin leaves.
        old: as it was; None where it was not judged.
        new: as it is.
    """

    name: str
    change: Change
    old: GateResult | None
    new: GateResult | None


@dataclass(frozen=True)
class Compared:
    """A checkpoint, backend, device and dtype in both runs, or in one; never in none."""

    old: Record | None
    new: Record | None

    @property
    def title(self) -> str:
        """Title of the pair, as the newer run has it, or the older where only that has a dtype."""
        if self.new is None or (self.old is not None and self.new.dtype is None):
            assert self.old is not None  # noqa: S101 - for the type: never is neither there
            return self.old.title
        return self.new.title

    @property
    def outcome(self) -> Outcome:
        """Outcome in a word or two. A judgement that is only in the new run and did not pass is a
        new failure."""
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
        """Return the changes, gate by gate; none where one of the two was not judged."""
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
        """Return the other differences: name, old and new; of a file's content, its SHA-256."""
        if self.old is None or self.new is None:
            return []
        pairs = [("SHA-256", self.old.sha256, self.new.sha256)]
        if "unjudged" not in (self.old.state, self.new.state):
            pairs += [
                (name, str(getattr(self.old, name)), str(getattr(self.new, name)))
                for name in ("seed", "examples")
            ]
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
        """Name, old and new of what is another in the environment."""
        old, new = self.old.environment, self.new.environment
        return [
            (name, old.get(name), new.get(name))
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]

    @property
    def worse(self) -> bool:
        """Whether anything fails, or could not be judged, that did not before."""
        return any(each.outcome in WORSE for each in self.compared)


def compare(old: Run, new: Run) -> Difference:
    """Match what is in both runs, and tell what changed.

    Raises:
        ResultsError: there is nothing that both have.
    """
    compared = tuple(_compared(old.entries, new.entries))
    if not any(each.old and each.new for each in compared):
        raise ResultsError(
            f"expected a checkpoint that {old.source} has on the same device, found none",
            remedy="Compare two runs of the same checkpoints.",
            path=new.source,
        )
    return Difference(old, new, compared)


def read_results(path: Path) -> Run:
    """Read what `clipcheck check --json` wrote.

    Raises:
        ResultsError: it cannot be read, is cut off, of another schema, or not such a file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"it cannot be read ({error.strerror or error})") from error
    if len(data) > MOST_BYTES:
        raise _refused(path, f"it has more than {MOST_BYTES:,} bytes")
    try:
        return _run(read(data), str(path))
    except ValueError as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, problem: str) -> ResultsError:
    return ResultsError(f"expected the results of a check, but {problem}", remedy=_ASK, path=path)


def _run(document: Document, source: str) -> Run:
    seen: set[tuple[str | None, ...]] = set()
    for each in document.results:
        key = each.checkpoint, each.backend, each.device, each.dtype
        if key in seen:
            raise ValueError(f"{each.title} is there twice, and which is meant cannot be told")
        seen.add(key)
    return Run(source, document.environment, document.results)


def _change(old: GateResult | None, new: GateResult | None) -> Change | None:
    if old is None or new is None:
        return "appeared" if old is None else "disappeared"
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
    """A checkpoint as it was asked for, and where it ran."""

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
    """Return the subjects that are the only one with their key, by the key and where they ran."""
    found: dict[tuple[object, str, str], list[_Subject]] = defaultdict(list)
    for subject, entries in subjects.items():
        value = key(subject, entries)
        if subject not in taken and value is not None:
            found[value, subject.backend, subject.device].append(subject)
    return {value: several[0] for value, several in found.items() if len(several) == 1}


def _file_name(checkpoint: str) -> str:
    """Return the name of the file, also of a path as another system writes it."""
    return re.split(r"[/\\]", checkpoint.removesuffix(_SEEDED))[-1]


def _by_dtype(old: Sequence[Record], new: Sequence[Record]) -> Iterator[Compared]:
    before = {each.dtype: each for each in old}
    after = {each.dtype: each for each in new}
    dtypes = {**after, **before}
    if before and after and len(dtypes) > 1:
        # It stands for each of the others.
        dtypes.pop(None, None)
    for dtype in dtypes:
        one, other = (each.get(dtype, each.get(None)) for each in (before, after))
        yield Compared(one, other)
