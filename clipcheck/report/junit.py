"""Render a result as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from clipcheck.report.phrases import commands, evidence, one_line
from clipcheck.results.judgement import Judgement, LeftOut, Result

UNJUDGED = "judged"
"""Name of the case, in place of a gate, if a checkpoint could not be judged."""


def render(result: Result) -> str:
    """Render a suite for each judgement, with a case for each gate. Ends with a newline.

    Cases have the names of the tests of `clipcheck.suite`. The first case has the time of the whole
    run. Characters that XML cannot hold become backslash escapes.
    """
    root = Element("testsuites", name="clipcheck")
    common = _common(result)
    suites = [_suite(judgement, common) for judgement in result.judgements]
    if result.left_out:
        suites.append(_skipped(result.left_out))
    root.extend(suites)
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, 0)) for suite in suites)))
    root.set("time", _seconds(*result.judgements))
    indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{tostring(root, encoding='unicode')}\n"


def properties(result: Result) -> dict[str, str]:
    """Return the properties of all judgements for a single suite, as pytest writes it."""
    each = {
        f"{judgement.title}: {name}": value
        for judgement in result.judgements
        for name, value in _facts(judgement).items()
    }
    return {one_line(name): one_line(value) for name, value in {**_common(result), **each}.items()}


def _common(result: Result) -> dict[str, str]:
    taken = {"configuration": str(result.configuration)} if result.configuration.options else {}
    return {**result.environment, **taken}


def _suite(judgement: Judgement, common: Mapping[str, str]) -> Element:
    cases = [*_cases(judgement)]
    cases[0].set("time", _seconds(judgement))
    suite = Element(
        "testsuite",
        name=one_line(judgement.title),
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=_seconds(judgement),
    )
    if judgement.date is not None:
        suite.set("timestamp", judgement.date)
    properties = SubElement(suite, "properties")
    for name, value in {**common, **_facts(judgement)}.items():
        SubElement(properties, "property", name=name, value=one_line(value))
    suite.extend(cases)
    return suite


def _skipped(left_out: Sequence[LeftOut]) -> Element:
    """Return a suite with a skipped case for each backend that was left out."""
    number = str(len(left_out))
    suite = Element("testsuite", name="left out", tests=number, failures="0", errors="0")
    suite.set("skipped", number)
    suite.set("time", "0.000")
    for each in left_out:
        parts = (UNJUDGED, each.checkpoint, each.backend, each.device, each.dtype)
        name = one_line("-".join(parts))
        case = SubElement(suite, "testcase", classname="clipcheck", name=name, time="0.000")
        SubElement(case, "skipped", message=one_line(each.reason), type="skipped")
    return suite


def _facts(judgement: Judgement) -> dict[str, str]:
    facts = {
        "path": judgement.path,
        "sha256": judgement.sha256,
        "reference": judgement.reference,
        "seed": str(judgement.seed),
        "budget": judgement.budget,
        "examples": str(judgement.examples),
        "inputs": judgement.inputs,
        "run": judgement.run,
        "date": judgement.date,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _cases(judgement: Judgement) -> list[Element]:
    """Return at least one case: a suite without cases would pass."""
    if judgement.error is not None or not judgement.gates:
        case = _case(judgement, UNJUDGED)
        problem = judgement.error or "it was judged by no gate"
        _add(case, "error", problem, problem, *evidence(judgement))
        return [case]
    cases = []
    for gate in judgement.gates:
        case = _case(judgement, gate.name)
        if not gate.passed:
            details = [gate.message, *evidence(judgement), *commands(judgement)]
            _add(case, "failure", gate.message, *details)
        elif not gate.judged:
            _add(case, "skipped", f"only measured: {gate.message}")
        cases.append(case)
    for name in judgement.ignored:
        cases.append(_case(judgement, name))
        _add(cases[-1], "skipped", "left out by --select or --ignore")
    return cases


def _case(judgement: Judgement, name: str) -> Element:
    parts = (name, judgement.checkpoint, judgement.backend, judgement.device, judgement.dtype)
    full = "-".join(part for part in parts if part is not None)
    return Element("testcase", classname="clipcheck", name=one_line(full), time="0.000")


def _add(case: Element, kind: str, message: str, *lines: str) -> None:
    found = SubElement(case, kind, message=one_line(message), type=kind)
    found.text = "\n".join(one_line(line) for line in lines)


def _seconds(*judgements: Judgement) -> str:
    spent = sum(j.seconds.get("load", 0.0) + j.seconds.get("run", 0.0) for j in judgements)
    return f"{spent:.3f}"
