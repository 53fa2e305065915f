"""The text of a demo before and after the report."""

from __future__ import annotations

import math
from dataclasses import replace

from rich.cells import cell_len

from clipcheck.audit.faults import fault_named
from clipcheck.gates.localisation import Deviation, Localisation, Place
from clipcheck.gates.result import GateResult
from clipcheck.inputs.examples import Example
from clipcheck.report.demo import planted, tour
from clipcheck.results.failing import Failing, Measure
from clipcheck.results.judgement import Judgement
from clipcheck.system.width import WIDTH
from tests.report import saved_in

GELU = Place(tower="text", module="transformer.resblocks.0.mlp.gelu", figures=Deviation(43.0, 10.0))

FAILED = Judgement(
    "clipcheck-demo/tiny-vit.pt",
    "cpu",
    gates=(
        GateResult(name="integrity", passed=True, message="the same"),
        GateResult(name="fidelity", passed=False, message="far off"),
        GateResult(name="modules", passed=False, message="far off"),
    ),
    failing=Failing(
        example=Example((), ("a",)),
        measure=Measure("text_features", 40.0, 8.0, 1e-4, "far off"),
        shrunk=True,
        saved="clipcheck-demo/failing-inputs/one",
    ),
    localisation=[Place(tower="image"), GELU, Place(tower="logits")],
)


def lines(judgement: Judgement, folder: str = "clipcheck-demo") -> list[str]:
    return tour(judgement, folder, f"{folder}/report.html").plain.splitlines()


def test_a_tour_leads_from_the_verdict_to_the_page_and_deletes_everything() -> None:
    assert lines(FAILED) == [
        "What to look at:",
        "  1. the verdict  not passed: fidelity, modules",
        "  2. the module   transformer.resblocks.0.mlp.gelu",
        "  3. the input    the prompt 'a', the smallest failing input",
        "  4. the page     open clipcheck-demo/report.html in a browser",
        "Next: clipcheck replay clipcheck-demo/failing-inputs/one",
        "      runs this input again, and exits with 1 while it fails.",
        "Last: rm -r clipcheck-demo",
        "      deletes the demo's files.",
    ]


def test_without_a_failing_input_there_is_none_to_run_again() -> None:
    found = lines(replace(FAILED, failing=None, failing_example=None))
    assert found[3:] == [
        "  3. the input    no single input fails: only the module shows the fault",
        "  4. the page     open clipcheck-demo/report.html in a browser",
        "Last: rm -r clipcheck-demo",
        "      deletes the demo's files.",
    ]


def test_an_input_that_was_not_kept_cannot_be_run_again() -> None:
    assert not any("replay" in line for line in lines(saved_in(None, FAILED)))


def test_every_tower_that_departs_has_its_module_and_without_a_place_there_is_none() -> None:
    conv1 = Place(
        tower="image", module="visual.conv1", part="what it is given", figures=Deviation(math.inf)
    )
    both = replace(FAILED, localisation=[conv1, GELU, Place(tower="logits")])
    assert [line for line in lines(both) if "2. the module" in line] == [
        "  2. the module   visual.conv1, what it is given",
        "  2. the module   transformer.resblocks.0.mlp.gelu",
    ]
    for nothing in (None, Localisation.nowhere("could not be looked for").places):
        without = lines(replace(FAILED, localisation=nothing))
        assert not any("2. the module" in line for line in without)


def test_no_line_is_wider_than_a_terminal_whatever_the_names() -> None:
    long = replace(GELU, module="transformer." * 20 + "0", part="itself, or what it is given")
    found = saved_in("/tmp/" + "s" * 120, FAILED)
    found = replace(found, localisation=[long], gates=FAILED.gates * 9)
    assert max(map(cell_len, lines(found, "語" * 70))) <= WIDTH
    variant = fault_named("gelu-for-quickgelu")
    told = planted(replace(variant, reason=" because" * 40), "語" * 60)
    assert max(map(cell_len, told.splitlines())) <= WIDTH


def test_the_planted_fault_is_described_before_the_check() -> None:
    variant = replace(fault_named("gelu-for-quickgelu"), reason="one for the other")
    assert planted(variant, "tiny-vit").splitlines() == [
        "Planted into a tiny-vit archive, with seeded weights:",
        "  gelu-for-quickgelu: one for the other.",
    ]
