"""Render a result as text for a terminal or a log, in lines that fit.

Colours repeat what the words say: a file or a log has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from clipcheck.backends.known import Known
from clipcheck.harness.replaying import Replayed
from clipcheck.inputs.examples import describe, listed
from clipcheck.report import agreement, isolation, optimised, own, patched, preprocessing
from clipcheck.report.advice import doubts, next_steps
from clipcheck.report.cells import command, visible, wrapped
from clipcheck.report.gate_table import LABELS, conditions, table
from clipcheck.report.lines import (
    ASIDE,
    BAD,
    GOOD,
    INDENT,
    NEXT,
    UNKNOWN,
    Lines,
    indented,
    joined,
    row,
    step,
    texts,
)
from clipcheck.report.places import measured, named
from clipcheck.report.verdict import verdict, worst_first
from clipcheck.results import batches
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.system.figures import duration, percent

_MOST_LAYERS = 3
"""Most layers to list; the page has all."""

_VERDICTS = {"CONSISTENT": GOOD, "INCONSISTENT": BAD, "NOT JUDGED": UNKNOWN}


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
    return Text("\n\n").join(joined(block) for block in [*blocks, *end])


def brief(result: Result) -> Text:
    """Return only the table, the errors, what was assumed of models in memory, and the verdict."""
    why = _unjudged(result.judgements)
    for judgement in result.judgements:
        for each in judgement.mapping if judgement.in_memory else ():
            why += texts(wrapped(visible(each), rest=INDENT))
    return Text("\n\n").join(joined(block) for block in _end(result, [], why))


def verdict_alone(result: Result) -> Text:
    """Return only the verdict."""
    return joined(_verdict_lines(result))


def replayed_report(replayed: Replayed) -> Text:
    """Report the result of running a failing input again."""
    saved = replayed.saved
    lines = texts(wrapped(visible(replayed.checkpoint)))
    if replayed.sha256 != saved.sha256:
        lines += indented(f"a different file than the one that failed, {saved.checkpoint}")
    lines += indented(
        f"{saved.backend} on {replayed.device} in {replayed.dtype}: {describe(saved.example)}"
    )
    lines += indented(replayed.measure.message)
    return joined([*lines, replayed_verdict(replayed)])


def replayed_verdict(replayed: Replayed) -> Text:
    """Return the verdict of a replay, the last line."""
    return Text("FIXED.", GOOD) if replayed.passed else Text("STILL FAILS.", BAD)


def failing_lines(judgement: Judgement) -> list[str]:
    """Return lines with the failing input and its replay command; none without an input."""
    failing = judgement.failing_example
    if failing is None:
        return []
    what = "smallest input" if failing.shrunk else "a batch"
    if failing.own is not None:
        what = f"own data, {'shrunk from ' if failing.shrunk else ''}{failing.own},"
    lines = wrapped(f"{what} that fails: {listed(failing.images, failing.prompts)}", INDENT)
    lines += wrapped(failing.message, INDENT)
    if failing.saved is not None:
        lines += command(["clipcheck", "replay", failing.saved], f"{INDENT}again: ")
    return lines


def _preprocessing(judgements: Sequence[Judgement]) -> Lines:
    """Report how other libraries preprocess and tokenize; no part of the verdict."""
    told = []
    for each in judgements:
        told += preprocessing.lines(each.preprocessing)
        if each.preprocessing_problem is not None:
            problem = each.preprocessing_problem.removeprefix(f"{each.backend}: ")
            told += wrapped(f"not compared for {each.backend}: {problem}", rest=INDENT)
    return texts(["Raw inputs (not part of the verdict):", *told]) if told else []


def _end(result: Result, steps: Lines, apart: Lines) -> list[Lines]:
    """Return the table, the notes, and the verdict with the next steps."""
    told = str(result.configuration)
    configured = texts(wrapped(visible(told))) if told else []
    blocks = [table(result.judgements), apart, _left_out(result.left_out), configured]
    alike = agreement.describe(result.judgements)
    said = [*(texts(wrapped(alike)) if alike else []), *_verdict_lines(result)]
    return [*(block for block in blocks if block), [*said, *steps]]


def _verdict_lines(result: Result) -> Lines:
    said = texts(wrapped(verdict(result)))
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
        who = f"{those[0].checkpoint}, {' '.join(conditions(those[0]))}{more}: "
        rows.append(row("error", UNKNOWN, "", error if len(judgements) == 1 else who + error))
    return [line for row in rows for line in row]


def _left_out(left_out: Sequence[LeftOut]) -> Lines:
    """List the backends that were left out, each reason once."""
    found: dict[tuple[str, str], None] = dict.fromkeys((o.backend, o.reason) for o in left_out)
    rows = [row("left out", ASIDE, "", f"{backend}: {reason}") for backend, reason in found]
    return [line for row in rows for line in row]


def _judgement_with_remedy(result: Result) -> Judgement | None:
    """Return the judgement whose remedy is the next step: the only unjudged one, if none failed."""
    failed = any(j.error is None and not j.passed for j in result.judgements)
    unjudged = [judgement for judgement in result.judgements if judgement.remedy is not None]
    return unjudged[0] if len(unjudged) == 1 and not failed else None


def _next(result: Result, rerun: Sequence[str]) -> Lines:
    """Return the next steps for the worst judgement."""
    remedied = _judgement_with_remedy(result)
    if remedied is not None:
        return texts(wrapped(str(remedied.remedy), NEXT))
    if rerun and result.passed:
        return texts(step(NEXT, rerun, "writes a report to publish with the release."))
    failed = [j for j in worst_first(result.judgements) if j.error is None and not j.passed]
    return texts(next_steps(failed[0], rerun)) if failed else []


def _run_and_inputs(judgement: Judgement) -> Lines:
    """Return the id and date of the run, and the hash of its inputs."""
    if judgement.run is None:
        return []
    inputs = f"; inputs {judgement.inputs[:12]}, seed {judgement.seed}" if judgement.inputs else ""
    return indented(f"run {judgement.run}, {judgement.date}{inputs}")


def _block(judgement: Judgement, with_remedy: bool) -> Lines:
    """Return the details of a judgement."""
    lines = [Text(line, "bold") for line in wrapped(visible(judgement.checkpoint))]
    if judgement.description:
        lines += indented(judgement.description)
    if judgement.origin:
        lines += indented(visible(judgement.origin))
    if judgement.computes:
        lines += indented(visible(f"computes {judgement.computes}"))
    if judgement.sha256:
        source = judgement.released
        known = f"released as {source}" if source else "not a released file"
        lines += [Text(f"{INDENT}SHA-256 {judgement.sha256}"), *indented(known)]
    lines += _run_and_inputs(judgement)
    where = isolation.describe(judgement.isolation)
    lines += indented(where) if where else []
    if judgement.error is not None:
        remedy = judgement.remedy or ""
        error = judgement.error if with_remedy else judgement.error.removesuffix(remedy)
        if judgement.dtype is not None:  # without a dtype, no backend ran
            lines += indented(f"{judgement.backend} on {judgement.device} in {judgement.dtype}")
        return [*lines, *row("error", UNKNOWN, "", error), *_known_rows(judgement)]
    code = patched.describe(judgement.patched)
    lines += indented(code) if code else []
    for each in judgement.mapping:
        lines += indented(visible(each))
    if judgement.batches:
        lines += indented(f"{batches.told(judgement.batches)}. {batches.REMEDY}")
    if judgement.absent:
        what = "not in this file" if judgement.replayable else "not judged"
        lines += indented(f"{what}: {', '.join(judgement.absent)}")
    lines += indented(_circumstances(judgement))
    for gate in judgement.gates:
        label, style = LABELS[gate.state]
        lines += row(label, style, gate.name, gate.message)
    for label, doubt in doubts(judgement):
        lines += row(label, UNKNOWN, "", doubt)
    lines += _layers(judgement)
    lines += _own(judgement)
    for place in judgement.departures:
        lines += row("departs first", BAD, "", f"{named(place)}: {measured(place)}")
    for sentence in optimised.of_judgement(judgement):
        lines += row("optimiser", BAD, "", sentence)
    return [*lines, *_known_rows(judgement), *texts(failing_lines(judgement))]


def _layers(judgement: Judgement) -> Lines:
    """List the quantised weights that add most to the error."""
    first = [each for each in judgement.layers[:_MOST_LAYERS] if each.share > 0]
    told = [f"{each.weight} ({each.how}) {percent(each.share)}" for each in first]
    what = f"of the error, removed by leaving the layer in float: {', '.join(told)}"
    lines = row("costs most", ASIDE, "", what) if told else []
    if judgement.layers_problem is not None:
        lines += row("not measured", ASIDE, "", judgement.layers_problem)
    return lines


def _own(judgement: Judgement) -> Lines:
    """List the user's data: what ran, and the worst rows."""
    found = judgement.own
    if found is None:
        return []
    lines = row("own data", ASIDE, "", "; ".join(own.summary(found)))
    for each in own.worst(found, budget=judgement.budget is not None):
        lines += row("worst", ASIDE, "", each)
    return lines


def _known_rows(judgement: Judgement) -> Lines:
    """List known failures of the library; they do not change the verdict."""
    rows = [row("known", UNKNOWN, "", known_line(each)) for each in judgement.known]
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
