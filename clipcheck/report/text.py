"""Render a result as text for a terminal or a log, in lines that fit.

Colours repeat what the words say: a file or a log has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.text import Text

from clipcheck.backends.known import Known
from clipcheck.backends.registry import backend_named
from clipcheck.gates.alternative import equals
from clipcheck.gates.result import GateResult
from clipcheck.harness.replaying import Replayed
from clipcheck.inputs.examples import describe, listed
from clipcheck.report import (
    agreement,
    alternative,
    isolation,
    optimised,
    own,
    patched,
    preprocessing,
)
from clipcheck.report.cells import command, padded, shortened, visible, wrapped
from clipcheck.report.places import measured, named
from clipcheck.report.repeat import of_file, repeat
from clipcheck.report.verdict import verdict, worst_first
from clipcheck.results import batches
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.system.figures import duration, multiple, percent
from clipcheck.system.width import width

GOOD, BAD, UNKNOWN, ASIDE = "green", "bold red", "bold yellow", "dim"

KEPT = "clip-report"
"""Folder of a suggested report."""

_INDENT = "  "
_LABEL = 21
_SHOWS = "writes a report that shows what fails"
_ARCH = "ARCH"
_NAMES = "a released name, open_clip:NAME, or a configuration file"
_NEXT, _OR = "Next: ", "  or: "

# Cells of a gate's name, and the least of the first column beside the six gates of float32.
_COLUMN = 13
_FIRST = 20

_MOST_LAYERS = 3
"""Most layers to list; the page has all."""

_TOGETHER = {"precision": "fidelity"}
"""Gates that replace another in other dtypes: the two share a column."""

_VERDICTS = {"CONSISTENT": GOOD, "INCONSISTENT": BAD, "NOT JUDGED": UNKNOWN}
_NOT_JUDGED = "not judged"

_LABELS = {"passed": ("pass", GOOD), "failed": ("FAIL", BAD), "measured": ("measured", ASIDE)}
_STYLES = {"ok": GOOD, "FAIL": BAD, "not": UNKNOWN}

Lines = list[Text]


def render(result: Result, *, rerun: Sequence[str] = (), advise: bool = True) -> str:
    """Return `report` without colours. Ends without a newline."""
    return report(result, rerun=rerun, advise=advise).plain


def report(result: Result, *, rerun: Sequence[str] = (), advise: bool = True) -> Text:
    """Return the whole report: the failures, the worst first, or a single judgement of any verdict;
    a table; the verdict; the next step.

    Args:
        result: of any verdict.
        rerun: command that writes a report of the same check, if none was written.
        advise: whether to suggest a next step.
    """
    alone = len(result.judgements) == 1
    shown = [j for j in worst_first(result.judgements) if alone or not j.passed]
    steps = _next(result, rerun) if advise else []
    remedied = _judgement_with_remedy(result) if advise else None
    blocks = [_block(judgement, remedied is not judgement) for judgement in shown]
    end = _end(result, steps, _preprocessing(result.judgements))
    return Text("\n\n").join(_joined(block) for block in [*blocks, *end])


def brief(result: Result) -> Text:
    """Return only the table, the errors, what was assumed of models in memory, and the verdict."""
    why = _unjudged(result.judgements)
    for judgement in result.judgements:
        for each in judgement.mapping if judgement.in_memory else ():
            why += _texts(wrapped(visible(each), rest=_INDENT))
    return Text("\n\n").join(_joined(block) for block in _end(result, [], why))


def verdict_alone(result: Result) -> Text:
    """Return only the verdict."""
    return _joined(_verdict_lines(result))


def replayed_report(replayed: Replayed) -> Text:
    """Report the result of running a failing input again."""
    saved = replayed.saved
    lines = _texts(wrapped(visible(replayed.checkpoint)))
    if replayed.sha256 != saved.sha256:
        lines += _indented(f"a different file than the one that failed, {saved.checkpoint}")
    lines += _indented(
        f"{saved.backend} on {replayed.device} in {replayed.dtype}: {describe(saved.example)}"
    )
    lines += _indented(replayed.measure.message)
    return _joined([*lines, replayed_verdict(replayed)])


def replayed_verdict(replayed: Replayed) -> Text:
    """Return the verdict of a replay, the last line."""
    return Text("FIXED.", GOOD) if replayed.passed else Text("STILL FAILS.", BAD)


def next_steps(judgement: Judgement, rerun: Sequence[str] = ()) -> list[str]:
    """Return the most useful commands for a checkpoint that did not pass, and what they do."""
    if judgement.in_memory:
        return []
    named = judgement.path or judgement.checkpoint
    failed = {gate.name for gate in judgement.gates if not gate.passed}
    if judgement.pinned is not None:
        steps = _step(
            _NEXT,
            repeat(judgement, pinned=None, reference=_checkpoint_of_pin(judgement)),
            "compares it with the checkpoint itself: it finds the smallest failing input, and in "
            "an archive the module that departs first.",
        )
    elif judgement.alternative is not None:
        steps = _step(
            _NEXT,
            repeat(judgement, architecture=_ARCH),
            f"judges it with the architecture that it was trained with: {_NAMES}.",
        )
    elif _is_quantised(judgement) and judgement.budget is None:
        words = repeat(judgement, budget="int8")
        steps = _step(_NEXT, words, "judges it with the limits for int8.")
    elif "integrity" in failed:
        steps = _step(
            _NEXT,
            ["clipcheck", "inspect", named, *of_file(judgement)],
            "shows what the file is, without running it.",
        )
    elif _is_convertible(judgement) and "weights" not in failed:
        steps = _repair_step(named, judgement)
    else:
        steps = []
    if rerun:
        saving = ", and saves the failing input" if judgement.replayable else ""
        steps += _step(_OR if steps else _NEXT, rerun, f"{_SHOWS}{saving}.")
    return steps


def _checkpoint_of_pin(judgement: Judgement) -> str | None:
    """Return the checkpoint of a pin, or None if the judged file is that one."""
    pinned = judgement.pinned
    return None if pinned is None or pinned.sha256 == judgement.sha256 else pinned.checkpoint


def _is_quantised(judgement: Judgement) -> bool:
    return any("quantised" in gate.figures for gate in judgement.gates)


def _is_convertible(judgement: Judgement) -> bool:
    """Whether it is an archive of clipcheck's own modules: those of a library are not converted."""
    own = "library" not in (judgement.architecture or {})
    program = bool(judgement.mapping)  # whose weights have no names
    return own and not program and backend_named(judgement.backend).needs_archive


def _repair_step(named: str, judgement: Judgement) -> list[str]:
    """Return the command that writes the archive again. It needs --architecture if neither the file
    nor the check told the architecture."""
    told_elsewhere = judgement.reference_checkpoint is not None and not judgement.asked_architecture
    asks = judgement.assumed or told_elsewhere
    options = [*of_file(judgement), *(("--architecture", _ARCH) if asks else ())]
    trained = f" ARCH is the architecture that they were trained with: {_NAMES}."
    what = trained if asks else ""
    return _step(
        _NEXT,
        ["clipcheck", "convert", named, *options, "-o", "fixed.pt"],
        f"writes an archive with the same weights and correct code.{what}",
    )


def _doubts(judgement: Judgement) -> Iterator[tuple[str, str]]:
    """Yield reasons to doubt a failure, each with a label."""
    suspicion = "" if judgement.passed else patched.suspicion(judgement.patched)
    if suspicion:
        yield "casts", suspicion
    if judgement.alternative is not None:
        label = "equals" if equals(judgement.alternative) else "nearer to"
        yield label, alternative.describe(judgement)


def doubt_lines(judgement: Judgement) -> list[str]:
    """Return the reasons to doubt a failure as lines of text."""
    return [
        line for label, doubt in _doubts(judgement) for line in wrapped(doubt, f"  {label}: ", "  ")
    ]


def departure_lines(judgement: Judgement) -> list[str]:
    """Return lines that say where each tower departs first, and which part its optimiser has; none
    if that was not found."""
    return [
        line
        for told in (
            *(f"departs first: {named(p)}: {measured(p)}" for p in judgement.departures),
            *optimised.of_judgement(judgement),
        )
        for line in wrapped(told, _INDENT)
    ]


def failing_lines(judgement: Judgement) -> list[str]:
    """Return lines with the failing input and its replay command; none without an input."""
    failing = judgement.failing_example
    if failing is None:
        return []
    what = "smallest input" if failing.shrunk else "a batch"
    if failing.own is not None:
        what = f"own data, {'shrunk from ' if failing.shrunk else ''}{failing.own},"
    lines = wrapped(f"{what} that fails: {listed(failing.images, failing.prompts)}", _INDENT)
    lines += wrapped(failing.message, _INDENT)
    if failing.saved is not None:
        lines += command(["clipcheck", "replay", failing.saved], f"{_INDENT}again: ")
    return lines


def cell(gate: GateResult | None) -> str:
    """Write a gate's result for a table: ``ok 19%`` of the limit, ``FAIL 12x`` the limit, or
    ``measured 12x``."""
    if gate is None:
        return "-"
    word = {"passed": "ok", "failed": "FAIL", "measured": "measured"}[gate.state]
    return f"{word} {_used(gate)}".rstrip()


def _used(gate: GateResult) -> str:
    if gate.margin > 1:
        return multiple(gate.margin)
    if gate.margin == 0 or gate.state == "failed":
        return ""
    return "<1%" if gate.margin < 0.01 else percent(gate.margin, "")


def _preprocessing(judgements: Sequence[Judgement]) -> Lines:
    """Report how other libraries preprocess and tokenize; no part of the verdict."""
    told = []
    for each in judgements:
        told += preprocessing.lines(each.preprocessing)
        if each.preprocessing_problem is not None:
            problem = each.preprocessing_problem.removeprefix(f"{each.backend}: ")
            told += wrapped(f"not compared for {each.backend}: {problem}", rest=_INDENT)
    return _texts(["Raw inputs (not part of the verdict):", *told]) if told else []


def _end(result: Result, steps: Lines, apart: Lines) -> list[Lines]:
    """Return the table, the notes, and the verdict with the next steps."""
    told = str(result.configuration)
    configured = _texts(wrapped(visible(told))) if told else []
    blocks = [_table(result.judgements), apart, _left_out(result.left_out), configured]
    alike = agreement.describe(result.judgements)
    said = [*(_texts(wrapped(alike)) if alike else []), *_verdict_lines(result)]
    return [*(block for block in blocks if block), [*said, *steps]]


def _verdict_lines(result: Result) -> Lines:
    said = _texts(wrapped(verdict(result)))
    headline, style = next(each for each in _VERDICTS.items() if said[0].plain.startswith(each[0]))
    said[0].stylize(style, 0, len(headline))
    return said


def _unjudged(judgements: Sequence[Judgement]) -> Lines:
    """List each error once, with the first checkpoint that it is of."""
    found: dict[str, list[Judgement]] = {}
    for each in judgements:
        if each.error is not None:
            found.setdefault(each.error, []).append(each)
    rows = []
    for error, those in found.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        who = f"{those[0].checkpoint}, {' '.join(_conditions(those[0]))}{more}: "
        rows.append(_row("error", UNKNOWN, "", error if len(judgements) == 1 else who + error))
    return [line for row in rows for line in row]


def _left_out(left_out: Sequence[LeftOut]) -> Lines:
    """List the backends that were left out, each reason once."""
    found: dict[tuple[str, str], None] = dict.fromkeys((o.backend, o.reason) for o in left_out)
    rows = [_row("left out", ASIDE, "", f"{backend}: {reason}") for backend, reason in found]
    return [line for row in rows for line in row]


def _table(judgements: Sequence[Judgement]) -> Lines:
    """Return a table with a row for each judgement and a column for each gate."""
    names = dict.fromkeys(gate.name for each in judgements for gate in each.gates)
    columns: dict[str, list[str]] = {}
    for name in names:
        columns.setdefault(_TOGETHER.get(name, name), []).append(name)
    left = list(columns.values())
    if not left:
        return []
    room = width() - sum(1 + cells for cells in _widths(judgements, left))
    labels = _labels(judgements, max(_FIRST, room))
    lines: Lines = []
    while left:
        fitting = _fitting(_widths(judgements, left), labels)
        lines += _columns_side_by_side(judgements, left[:fitting], labels)
        left = left[fitting:]
    return lines


def _fitting(widths: Sequence[int], labels: _Labels) -> int:
    """Count how many of the first columns fit side by side."""
    ends = accumulate(widths, lambda end, cells: end + 1 + cells, initial=labels.width)
    return sum(end <= width() for end in ends) - 1


def _widths(judgements: Sequence[Judgement], columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the columns; rows that were not judged have no cells."""
    rows = [row for row in (_cells(judgement, columns) for judgement in judgements) if row]
    return [
        max(cell_len(text) for text in [*_heads(column), *(row[number] for row in rows)])
        for number, column in enumerate(columns)
    ]


def _columns_side_by_side(
    judgements: Sequence[Judgement], columns: Sequence[Sequence[str]], labels: _Labels
) -> Lines:
    """Render columns that fit side by side."""
    heads = [_heads(column) for column in columns]
    cells = [_cells(judgement, columns) for judgement in judgements]
    widths = _widths(judgements, columns)
    first = labels.width
    gap = 2 if first + sum(widths) + 2 * len(widths) <= width() else 1
    blank = " " * gap

    def row(label: str, texts: Sequence[str]) -> Text:
        filled = [padded(text, cells) for text, cells in zip(texts, widths, strict=False)]
        line = Text(blank.join([padded(label, first), *filled]).rstrip())
        at = first + gap - cell_len(label) + len(label)
        for text, cells in zip(texts, widths, strict=False):
            word = text.partition(" ")[0]
            line.stylize(_STYLES.get(word, ASIDE), at, at + len(word))
            line.stylize(ASIDE, at + len(word), at + len(text))
            at += cells + gap
        return line

    lines = [row(labels.title if last else "", each) for last, each in _head_lines(heads)]
    above = ""
    for judgement, label, texts in zip(judgements, labels.rows, cells, strict=True):
        if not labels.named and judgement.checkpoint != above:
            above = judgement.checkpoint
            lines.append(Text(shortened(visible(above), width()).rstrip()))
        lines.append(row(label, texts or [_NOT_JUDGED]))
    return lines


@dataclass(frozen=True)
class _Labels:
    """The first column of the table.

    Attributes:
        title: head of the column.
        rows: a label for each judgement.
        named: whether the labels are names of checkpoints.
    """

    title: str
    rows: Sequence[str]
    named: bool

    @property
    def width(self) -> int:
        """Cells of the column."""
        return max(cell_len(label) for label in [self.title, *self.rows])


def _labels(judgements: Sequence[Judgement], room: int) -> _Labels:
    """Return the labels of a table.

    If all runs share backend, device and dtype and the names are short, the labels are the names.
    Otherwise they are backend, device and dtype, below a line with the name.

    Args:
        judgements: one for each row.
        room: cells for the column.
    """
    ways = [_conditions(judgement) for judgement in judgements]
    # A file that could not be read has no dtype; it does not count as another kind of run.
    shared = {" ".join(way) for way, each in zip(ways, judgements, strict=True) if each.dtype}
    names = [visible(judgement.checkpoint) for judgement in judgements]
    if len(shared) == 1 and all(cell_len(text) <= _FIRST for text in [*names, *shared]):
        return _Labels(shared.pop(), names, True)
    rest = {" ".join(way[1:]) for way in ways}
    # If all ran on one device in one dtype, these are the title, and the labels the backends.
    fits = len(ways) == 1 and cell_len(" ".join(ways[0])) < _FIRST
    title = rest.pop() if len(rest) == 1 and not fits else ""
    told = [way[0] if title else " ".join(way) for way in ways]
    rows = [f" {shortened(way, room - 1)}" for way in told]
    return _Labels(shortened(title, room), rows, False)


def _conditions(judgement: Judgement) -> list[str]:
    """Return backend, device and dtype; the backend's options without their names."""
    backend = re.sub(r"\w+=", "", judgement.backend)
    parts = (backend, judgement.device, judgement.dtype)
    return [visible(part) for part in parts if part]


def _heads(column: Sequence[str]) -> list[str]:
    """Return the names of the gates of a column, to stand one below the other."""
    return [shortened(visible(name), _COLUMN) for name in column]


def _head_lines(heads: Sequence[Sequence[str]]) -> Iterator[tuple[bool, list[str]]]:
    """Yield the lines of the table's head, and whether each is the last."""
    most = max(len(head) for head in heads)
    for number in range(most):
        yield number == most - 1, [head[number] if number < len(head) else "" for head in heads]


def _cells(judgement: Judgement, columns: Sequence[Sequence[str]]) -> list[str]:
    found = {gate.name: gate for gate in judgement.gates}
    if not found:
        return []
    return [
        cell(next((found[name] for name in column if name in found), None)) for column in columns
    ]


def _judgement_with_remedy(result: Result) -> Judgement | None:
    """Return the judgement whose remedy is the next step: the only unjudged one, if none failed."""
    failed = any(j.error is None and not j.passed for j in result.judgements)
    unjudged = [judgement for judgement in result.judgements if judgement.remedy is not None]
    return unjudged[0] if len(unjudged) == 1 and not failed else None


def _next(result: Result, rerun: Sequence[str]) -> Lines:
    """Return the next steps for the worst judgement."""
    remedied = _judgement_with_remedy(result)
    if remedied is not None:
        return _texts(wrapped(str(remedied.remedy), _NEXT))
    if rerun and result.passed:
        return _texts(_step(_NEXT, rerun, "writes a report to publish with the release."))
    failed = [j for j in worst_first(result.judgements) if j.error is None and not j.passed]
    return _texts(next_steps(failed[0], rerun)) if failed else []


def _step(label: str, words: Sequence[str], what: str) -> list[str]:
    return [*command(words, label), *wrapped(what, " " * len(label))]


def _run_and_inputs(judgement: Judgement) -> Lines:
    """Return the id and date of the run, and the hash of its inputs."""
    if judgement.run is None:
        return []
    inputs = f"; inputs {judgement.inputs[:12]}, seed {judgement.seed}" if judgement.inputs else ""
    return _indented(f"run {judgement.run}, {judgement.date}{inputs}")


def _block(judgement: Judgement, with_remedy: bool) -> Lines:
    """Return the details of a judgement."""
    lines = [Text(line, "bold") for line in wrapped(visible(judgement.checkpoint))]
    if judgement.description:
        lines += _indented(judgement.description)
    if judgement.origin:
        lines += _indented(visible(judgement.origin))
    if judgement.computes:
        lines += _indented(visible(f"computes {judgement.computes}"))
    if judgement.sha256:
        source = judgement.released
        known = f"released as {source}" if source else "not a released file"
        lines += [Text(f"{_INDENT}SHA-256 {judgement.sha256}"), *_indented(known)]
    lines += _run_and_inputs(judgement)
    where = isolation.describe(judgement.isolation)
    lines += _indented(where) if where else []
    if judgement.error is not None:
        remedy = judgement.remedy or ""
        error = judgement.error if with_remedy else judgement.error.removesuffix(remedy)
        if judgement.dtype is not None:  # without a dtype, no backend ran
            lines += _indented(f"{judgement.backend} on {judgement.device} in {judgement.dtype}")
        return [*lines, *_row("error", UNKNOWN, "", error), *_known_rows(judgement)]
    code = patched.describe(judgement.patched)
    lines += _indented(code) if code else []
    for each in judgement.mapping:
        lines += _indented(visible(each))
    if judgement.batches:
        lines += _indented(f"{batches.told(judgement.batches)}. {batches.REMEDY}")
    if judgement.absent:
        what = "not in this file" if judgement.replayable else "not judged"
        lines += _indented(f"{what}: {', '.join(judgement.absent)}")
    lines += _indented(_circumstances(judgement))
    for gate in judgement.gates:
        label, style = _LABELS[gate.state]
        lines += _row(label, style, gate.name, gate.message)
    for label, doubt in _doubts(judgement):
        lines += _row(label, UNKNOWN, "", doubt)
    lines += _layers(judgement)
    lines += _own(judgement)
    for place in judgement.departures:
        lines += _row("departs first", BAD, "", f"{named(place)}: {measured(place)}")
    for sentence in optimised.of_judgement(judgement):
        lines += _row("optimiser", BAD, "", sentence)
    return [*lines, *_known_rows(judgement), *_texts(failing_lines(judgement))]


def _layers(judgement: Judgement) -> Lines:
    """List the quantised weights that add most to the error."""
    first = [each for each in judgement.layers[:_MOST_LAYERS] if each.share > 0]
    told = [f"{each.weight} ({each.how}) {percent(each.share)}" for each in first]
    what = f"of the error, removed by leaving the layer in float: {', '.join(told)}"
    lines = _row("costs most", ASIDE, "", what) if told else []
    if judgement.layers_problem is not None:
        lines += _row("not measured", ASIDE, "", judgement.layers_problem)
    return lines


def _own(judgement: Judgement) -> Lines:
    """List the user's data: what ran, and the worst rows."""
    found = judgement.own
    if found is None:
        return []
    lines = _row("own data", ASIDE, "", "; ".join(own.summary(found)))
    for each in own.worst(found, budget=judgement.budget is not None):
        lines += _row("worst", ASIDE, "", each)
    return lines


def _known_rows(judgement: Judgement) -> Lines:
    """List known failures of the library; they do not change the verdict."""
    rows = [_row("known", UNKNOWN, "", known_line(each)) for each in judgement.known]
    return [line for row in rows for line in row]


def known_line(known: Known) -> str:
    """Describe a known failure of a library, with its link and remedy."""
    return f"{str(known).removeprefix('known: ')}. {known.remedy}"


def _circumstances(judgement: Judgement) -> str:
    seconds = judgement.seconds
    return (
        f"{judgement.backend} against {judgement.reference} on {judgement.device} in "
        f"{judgement.dtype}; {judgement.examples} images; loaded in "
        f"{duration(seconds.get('load', 0.0) + seconds.get('build', 0.0))}, "
        f"ran in {duration(seconds['run'])}"
    )


def _indented(text: str) -> Lines:
    return _texts(wrapped(text, _INDENT))


def _row(label: str, style: str, name: str, text: str) -> Lines:
    """Return a label and a name in a column, and the text beside them."""
    title = shortened(visible(f"{label}  {name}".rstrip()), _LABEL - 1)
    lines = _texts(wrapped(text, _INDENT + padded(title, _LABEL)))
    lines[0].stylize(style, len(_INDENT), len(_INDENT) + len(label))
    return lines


def _texts(lines: Sequence[str]) -> Lines:
    return [Text(line) for line in lines]


def _joined(lines: Lines) -> Text:
    return Text("\n").join(lines)
