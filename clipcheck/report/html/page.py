"""Fill the template of the page from a result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipcheck.gates.preprocessing import PreprocessingResult
from clipcheck.gates.registry import NAMES, find_gate
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.examples import Example, Prompt
from clipcheck.report import agreement, alternative, isolation, optimised, own, patched
from clipcheck.report.advice import next_steps
from clipcheck.report.html import plots
from clipcheck.report.html.pictures import Picture, picture, side_for
from clipcheck.report.html.words import distance_text, figure, ratio, visible
from clipcheck.report.preprocessing import headline
from clipcheck.report.repeat import repeat_run
from clipcheck.report.verdict import failure, verdict, worst_first, worst_gate
from clipcheck.results import batches
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system.figures import size

PHASES = {
    "load": "loading both models",
    "inputs": "drawing images and prompts",
    "eager": "the eager model",
    "float64": "the eager model in float64",
    "build": "building the candidate",
    "candidate": "the candidate, all calls",
    "own": "your own data, both models",
    "modules": "modules one by one",
    "gates": "gates",
    "preprocessing": "comparing raw inputs",
    "search": "shrinking the failing input",
    "layers": "each layer in float in turn",
}
"""Text for each phase. ``run`` is the sum of all phases after ``load``."""

_UNKNOWN = 10
"""Inputs to show of those that a library preprocesses differently for no known reason."""


def page(result: Result) -> str:
    """Render the page.

    Args:
        result: of any verdict.
    """
    environment = Environment(
        loader=PackageLoader("clipcheck.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible_text,
    )
    environment.filters.update(distance_text=distance_text, figure=figure, ratio=ratio)
    side = side_for(sum(map(_count_pictures, result.judgements)))
    sections = [
        _Section.of(judgement, f"j{number}", side)
        for number, judgement in enumerate(worst_first(result.judgements), 1)
    ]
    gates = _gate_names(result)
    return environment.get_template("report.html.j2").render(
        verdict=verdict(result),
        agreement=agreement.describe(result.judgements),
        state=_state(result),
        steps=_next(result),
        sections=sections,
        masthead=_masthead(result),
        gates=gates,
        measured=any(each.measured for each in sections),
        apart=any(set(gates) - set(each.cells) for each in sections if not each.judgement.error),
        left_out=list(dict.fromkeys((each.backend, each.reason) for each in result.left_out)),
        environment=result.environment,
    )


def _visible_text(value: object) -> object:
    """Escape unprintable characters in every text that is not our own markup."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _state(result: Result | Judgement) -> str:
    if result.passed:
        return "pass"
    if isinstance(result, Result):
        return "fail" if any(_state(j) == "fail" for j in result.judgements) else "unjudged"
    return "fail" if result.error is None else "unjudged"


def _masthead(result: Result) -> list[str]:
    """Return the tool's version, each run with its date (a sweep may have several), and the options
    from a file."""
    version = result.environment.get("clipcheck", "")
    runs = dict.fromkeys((each.run, each.date) for each in result.judgements if each.run)
    return [
        f"clipcheck {version}".strip(),
        *(f"run {run}, {date or 'no date'}" for run, date in runs),
        *([str(result.configuration)] if result.configuration.options else []),
    ]


def _next(result: Result) -> list[str]:
    """Return the most useful command, and what it does."""
    failed = [j for j in worst_first(result.judgements) if _state(j) == "fail"]
    lines = next_steps(failed[0]) if failed else []
    return [line.removeprefix("Next:").strip() for line in lines]


def _gate_names(result: Result) -> list[str]:
    """Return the gates of all judgements, each once, in the order of the registry."""
    found = dict.fromkeys(gate.name for j in result.judgements for gate in j.gates)
    known = [name for name in NAMES if name in found]
    return [*known, *(name for name in found if name not in NAMES)]


@dataclass(frozen=True)
class _Cell:
    """Result of a gate, for a cell of the table."""

    gate: GateResult
    figure: str
    room: str
    used: float

    @property
    def state(self) -> str:
        return {"passed": "pass", "failed": "fail", "measured": "measured"}[self.gate.state]


@dataclass(frozen=True)
class _Input:
    title: str
    pictures: Sequence[Picture]
    prompts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class _Section:
    """The section of a judgement."""

    key: str
    judgement: Judgement
    name: str
    state: str
    cells: Mapping[str, _Cell]
    drifts: Sequence[plots.Plot]
    optimiser: Sequence[str]
    layers: Sequence[plots.Plot]
    spreads: Sequence[plots.Plot]
    inputs: Sequence[_Input]
    mismatched: Sequence[tuple[str, Picture]]
    own: Sequence[str]
    own_rows: Sequence[tuple[str, str, Picture | None]]
    figures: Sequence[tuple[str, str, str, str]]
    phases: Sequence[tuple[str, str, str]]
    preprocessing: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    command: str

    @classmethod
    def of(cls, judgement: Judgement, key: str, side: int) -> _Section:
        return cls(
            key=key,
            judgement=judgement,
            name=PurePath(judgement.path or judgement.checkpoint).name or judgement.checkpoint,
            state=_state(judgement),
            cells={gate.name: _cell(gate) for gate in judgement.gates},
            drifts=_drifts(judgement, key),
            optimiser=list(optimised.of_judgement(judgement)),
            layers=[plots.layers(judgement.layers, f"{key}-layers")] if judgement.layers else [],
            spreads=_spreads(judgement, key),
            inputs=_shown_inputs(judgement, side),
            mismatched=_mismatched(judgement, side),
            own=[] if judgement.own is None else own.summary(judgement.own),
            own_rows=_own_rows(judgement, side),
            figures=[row for gate in judgement.gates for row in _figures(gate)],
            phases=_phases(judgement.seconds),
            preprocessing=[_preprocessing(result) for result in judgement.preprocessing],
            command=shlex.join(repeat_run(judgement)),
        )

    @property
    def integrity(self) -> _Cell | None:
        return self.cells.get("integrity")

    @property
    def failed(self) -> Sequence[_Cell]:
        return [cell for cell in self.cells.values() if not cell.gate.passed]

    @property
    def passed(self) -> Sequence[_Cell]:
        return [cell for cell in self.cells.values() if cell.state == "pass"]

    @property
    def measured(self) -> Sequence[_Cell]:
        return [cell for cell in self.cells.values() if cell.state == "measured"]

    @property
    def failure(self) -> str:
        return failure(self.judgement)

    @property
    def message(self) -> str:
        gate = worst_gate(self.judgement)
        return "" if gate is None else gate.message

    @property
    def again(self) -> str:
        return f"clipcheck replay {shlex.quote(self.judgement.saved or '')}"

    @property
    def confined(self) -> str:
        """Where the file's own code ran, or an empty string."""
        return isolation.describe(self.judgement.isolation)

    @property
    def batches(self) -> str:
        told = batches.told(self.judgement.batches)
        return f"{told}. {batches.REMEDY}" if told else ""

    @property
    def patched(self) -> str:
        return patched.describe(self.judgement.patched)

    @property
    def alternative(self) -> str:
        return alternative.describe(self.judgement)

    @property
    def suspicion(self) -> str:
        return "" if self.judgement.passed else patched.suspicion(self.judgement.patched)

    @property
    def memory(self) -> str:
        peak = self.judgement.peak_memory
        return size(peak) if peak else "not known on this system"


def _cell(gate: GateResult) -> _Cell:
    used = gate.margin if 0 <= gate.margin <= 1 else 1.0
    known = find_gate(gate.name)
    headline = known.headline(gate, ratio) if known else ""
    return _Cell(gate, headline, _room(gate), used)


def _room(gate: GateResult) -> str:
    """Say how much of the limit is left, or how many times the limit was found."""
    if not gate.margin < float("inf"):
        return "beyond any limit"
    if gate.margin > 1:
        return f"{ratio(gate.margin)} its limit"
    if gate.margin == 0:
        return "no error" if gate.state == "passed" else ""
    left = 100 * (1 - gate.margin)
    return f"{left:.0f} % left" if left < 99.5 else "over 99 % left"


def _figures(gate: GateResult) -> list[tuple[str, str, str, str]]:
    return [
        (gate.name, of, what.replace("_", " "), value if isinstance(value, str) else figure(value))
        for of, row in gate.figures.items()
        for what, value in row.items()
    ]


def _drifts(judgement: Judgement, key: str) -> list[plots.Plot]:
    """Plot the drift of each tower whose modules were judged."""
    if judgement.coverage is None or judgement.dtype not in LIMITS:
        return []
    errors, limits = judgement.coverage.errors, LIMITS[judgement.dtype]
    found = [plots.drift(errors, which, limits, f"{key}-{which}") for which in plots.TOWERS]
    return [plot for plot in found if plot is not None]


def _spreads(judgement: Judgement, key: str) -> list[plots.Plot]:
    """Plot the errors of all rows, and the differences of the logits of a batch."""
    if judgement.measured is None:
        return []
    heat = judgement.measured.heat
    return [
        plots.distribution(judgement.measured, f"{key}-rows"),
        *([] if heat is None else [plots.heat(heat, f"{key}-heat")]),
    ]


def _count_pictures(judgement: Judgement) -> int:
    mismatched = 0 if judgement.mismatch is None else len(judgement.mismatch.pictures)
    mismatched += len(judgement.own_pictures)
    return mismatched + sum(len(example.images) for example in _inputs(judgement))


def _inputs(judgement: Judgement) -> list[Example]:
    failing = judgement.failing
    if failing is None:
        return []
    if failing.first is None or _are_same(failing.first, failing.example):
        return [failing.example]
    return [failing.first, failing.example]


def _are_same(one: Example, other: Example) -> bool:
    images = len(one.images) == len(other.images) and all(
        (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())
        for a, b in zip(one.images, other.images, strict=True)
    )
    return images and one.prompts == other.prompts


def _shown_inputs(judgement: Judgement, side: int) -> list[_Input]:
    failing = judgement.failing
    if failing is None:
        return []
    last = "The smallest failing input" if failing.shrunk else "A failing batch"
    first = "As drawn"
    if failing.own is not None:
        first, last = failing.own, "Shrunk" if failing.shrunk else failing.own
    titles = [first, last][-len(_inputs(judgement)) :]
    return [
        _Input(
            title,
            [picture(image, side) for image in example.images],
            [_prompt(prompt) for prompt in example.prompts],
        )
        for title, example in zip(titles, _inputs(judgement), strict=True)
    ]


def _mismatched(judgement: Judgement, side: int) -> list[tuple[str, Picture]]:
    """Return the images of the row that ``top1`` failed on, each with its name."""
    pictures = () if judgement.mismatch is None else judgement.mismatch.pictures
    return [(name, picture(image, side)) for name, image in pictures]


def _own_rows(judgement: Judgement, side: int) -> list[tuple[str, str, Picture | None]]:
    """Return the worst of the user's images and prompts: name, figure, and picture of an image."""
    pictures = dict(judgement.own_pictures)
    return [
        (
            row.name,
            own.figure(row, budget=judgement.budget is not None),
            picture(pictures[row.name], side)
            if row.kind == "image" and row.name in pictures
            else None,
        )
        for row in (judgement.own.worst if judgement.own else ())
    ]


def _prompt(prompt: Prompt) -> tuple[str, str]:
    """Return a prompt as text and with escapes; for token ids only the second."""
    if isinstance(prompt, str):
        return prompt, ascii(prompt)
    return "", f"ids {' '.join(map(str, prompt))}"


def _phases(seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return name, seconds and share of each phase."""
    parts = {name: spent for name, spent in seconds.items() if name != "run"}
    total = sum(parts.values())
    rows = [
        (PHASES.get(name, name), f"{spent:.2f}", f"{100 * spent / total:.0f} %" if total else "")
        for name, spent in parts.items()
    ]
    return [*rows, ("all", f"{total:.2f}", "")] if rows else []


def _preprocessing(result: PreprocessingResult) -> tuple[str, list[tuple[str, str]]]:
    """Return a line on how a library preprocesses or tokenizes, and each difference."""
    known = [(name, f"{each.count}: {each.meaning}") for name, each in result.known.items()]
    unknown = [(f"otherwise, {each.example}", each.unlike.message) for each in result.unknown]
    return headline(result), [*known, *unknown[:_UNKNOWN]]
