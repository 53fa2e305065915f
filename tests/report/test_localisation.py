"""The results of ``clipcheck localize``, as text and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len

from clipcheck.gates.localisation import Deviation, Localisation, Place
from clipcheck.gates.optimised import Optimised
from clipcheck.harness.localising import Localised
from clipcheck.report.lines import BAD, GOOD
from clipcheck.report.localisation import render_json, report, verdict
from clipcheck.system.width import WIDTH

SOUND = Localised(
    "model.pt",
    "cpu",
    path="/models/model.pt",
    sha256="ab" * 32,
    dtype="float32",
    seconds={"load": 9.0, "localisation": 1.25},
    localisation=Localisation(
        [
            Place(tower="image", given="a batch", reason="nothing departs"),
            Place(tower="text", given="a batch", reason="nothing departs"),
            Place(tower="logits", given="a batch", reason="not compared"),
        ]
    ),
)

GELU = Place(
    tower="text",
    module="transformer.resblocks.0.mlp.gelu",
    figures=Deviation(43.0, 10.0, 1e-4, "encode_text"),
    given="a batch",
)


def departing(*places: Place) -> Localised:
    """Return a localisation with these places, and none in the other towers."""
    by_tower = {place.tower: place for place in places}
    all_of_them = [by_tower.get(place.tower, place) for place in SOUND.localisation.places]
    return replace(SOUND, localisation=Localisation(all_of_them))


def lines(localised: Localised) -> list[str]:
    return report(localised).plain.splitlines()


def test_if_nothing_departs_each_tower_says_so_without_a_next_step() -> None:
    assert lines(SOUND) == [
        "model.pt",
        "  jit against eager on cpu in float32; compared in 1.2 s",
        "  image tower  nothing departs",
        "  text tower   nothing departs",
        "  logits       not compared",
        "NOTHING DEPARTS in the modules that were compared.",
    ]


def test_a_place_is_beside_its_tower_and_the_next_step_after_the_verdict() -> None:
    assert lines(departing(GELU))[2:] == [
        "  image tower  nothing departs",
        "  text tower   transformer.resblocks.0.mlp.gelu",
        "               error 1.0e-4, eager 2.3e-6 (43x, limit 10x); inputs: a batch",
        "  logits       not compared",
        "DEPARTS: text tower.",
        "Next: clipcheck check /models/model.pt --report clip-report",
        "      judges all outputs, and writes a report.",
    ]


def test_the_next_command_reads_what_this_one_read() -> None:
    found = replace(departing(GELU), options={"key": "model", "architecture": "ViT-B/32"})
    (line,) = (line for line in lines(found) if line.startswith("Next: "))
    assert line.startswith("Next: clipcheck check /models/model.pt --key model --architecture")


def test_what_only_the_optimiser_does_is_beside_the_towers() -> None:
    told = Optimised(
        level="all",
        below="basic",
        passes=("a",),
        reason="",
        line="set(1)",
        given="a batch",
        rewrites=None,
    )
    assert lines(replace(SOUND, optimised=told))[5:9] == [
        "  optimiser    only when optimised: it passes at the level basic, and fails from",
        "               all on; without a it passes there, too (inputs: a batch)",
        "  optimiser    to leave it out: set( 1)",
        "DEPARTS only when optimised.",
    ]
    assert lines(replace(departing(GELU), optimised=told))[-3] == (
        "DEPARTS only when optimised: text tower."
    )


def test_the_verdict_names_every_tower_that_departs() -> None:
    found = departing(
        Place(tower="image", module="visual.conv1"), Place(tower="logits", module="forward")
    )
    assert verdict(found).plain == "DEPARTS: image tower, logits."
    assert verdict(found).style == BAD
    assert verdict(SOUND).style == GOOD


def test_an_infinite_ratio_and_a_method_that_broke_off_are_given_in_words() -> None:
    found = departing(
        Place(
            tower="image",
            module="visual.conv1",
            part="",
            figures=Deviation(math.inf, 10.0, math.inf),
            given="a batch",
        ),
        Place(tower="text", module="ln_final", given="a batch", reason="encode_text failed"),
    )
    assert lines(found)[3:6] == [
        "               not finite, of a different shape, or changed; inputs: a batch",
        "  text tower   ln_final",
        "               encode_text failed; inputs: a batch",
    ]


LONG = "visual." + ".".join(["transformer.resblocks"] * 7) + ".0"


@pytest.mark.parametrize(
    "found",
    [
        departing(replace(GELU, module=LONG, part="itself, or " + ", or ".join(["sums"] * 30))),
        departing(replace(GELU, reason="of sizes " + "(1, 2, 3), " * 20 + "x" * 200)),
        departing(replace(GELU, given="語" * 90)),
        replace(departing(GELU), checkpoint="語" * 60, path="/models/" + "m" * 120 + ".pt"),
        replace(SOUND, localisation=Localisation.nowhere("could not be looked for " + "x" * 99)),
    ],
    ids=["module", "reason", "given", "checkpoint", "nowhere"],
)
def test_no_line_is_wider_than_a_terminal_whatever_the_names(found: Localised) -> None:
    assert max(map(cell_len, lines(found))) <= WIDTH


def test_a_long_name_of_a_module_is_there_to_its_end() -> None:
    found = departing(replace(GELU, module=LONG))
    assert LONG in "".join(line[15:] for line in lines(found))


def test_an_escape_sequence_in_a_name_or_a_reason_is_shown_and_not_sent() -> None:
    found = replace(departing(replace(GELU, reason="\x1b[31mred")), checkpoint="\x1b[2J.pt")
    assert "\x1b" not in report(found).plain
    assert r"\x1b[2J.pt" in report(found).plain


def test_the_document_has_all_of_it_and_infinity_as_a_word() -> None:
    found = departing(replace(GELU, figures=Deviation(math.inf, 10.0, math.nan)))
    written = render_json(found)
    assert written.endswith("}\n")
    document = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    towers = document.pop("towers")
    assert document == {
        "schema": 1,
        "passed": False,
        "checkpoint": "model.pt",
        "path": "/models/model.pt",
        "sha256": "ab" * 32,
        "reference": None,
        "device": "cpu",
        "dtype": "float32",
        "seconds": {"load": 9.0, "localisation": 1.25},
        "optimised": None,
    }
    assert [tower["module"] for tower in towers] == [None, GELU.module, None]
    assert json.loads(render_json(SOUND))["passed"] is True
