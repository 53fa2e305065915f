"""Where a checkpoint departs first, in words and for JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from clipcheck.gates.localisation import TOWERS as ALL
from clipcheck.gates.localisation import Deviation, Place
from clipcheck.report.places import TOWERS, measured, named
from clipcheck.results.document import to_json

GELU = Place(
    tower="text",
    module="transformer.resblocks.0.mlp.gelu",
    figures=Deviation(43.0, 10.0, 1e-4, "encode_text"),
    given="two prompts",
)


def test_every_tower_has_a_name_of_its_own() -> None:
    assert tuple(TOWERS) == ALL
    assert len(set(TOWERS.values())) == len(ALL)


@pytest.mark.parametrize(
    ("module", "part", "words"),
    [
        ("visual.conv1", "", "visual.conv1"),
        ("visual.conv1", "what it is given", "visual.conv1, what it is given"),
        ("ln_final", "itself, or pooling", "ln_final, itself, or pooling"),
    ],
)
def test_a_place_is_named_after_its_module_and_the_part_of_it(
    module: str, part: str, words: str
) -> None:
    assert named(Place(tower="image", module=module, part=part)) == words


def test_the_error_is_shown_beside_the_limit_and_the_inputs() -> None:
    assert measured(GELU) == ("error 1.0e-4, eager 2.3e-6 (43x, limit 10x); inputs: two prompts")


def test_an_infinite_ratio_is_given_in_words() -> None:
    place = replace(GELU, figures=Deviation(math.inf, 10.0, math.inf))
    assert measured(place) == "not finite, of a different shape, or changed; inputs: two prompts"


def test_the_error_of_a_failing_method_comes_before_any_number() -> None:
    place = replace(GELU, reason="encode_text failed: sizes")
    assert measured(place) == "encode_text failed: sizes; inputs: two prompts"


def test_every_tower_has_an_entry_whether_it_departs_or_not() -> None:
    found = [
        Place(tower="image", given="two images", reason="nothing departs"),
        GELU,
        Place(tower="logits"),
    ]
    image, text, logits = json.loads(to_json(found))
    assert image == {
        "tower": "image",
        "module": None,
        "part": "",
        "figures": {"rmse_ratio": 0.0, "allowed": 0.0, "rmse": 0.0, "method": ""},
        "given": "two images",
        "reason": "nothing departs",
    }
    assert text == {
        "tower": "text",
        "module": "transformer.resblocks.0.mlp.gelu",
        "part": "",
        "figures": {"rmse_ratio": 43.0, "allowed": 10.0, "rmse": 1e-4, "method": "encode_text"},
        "given": "two prompts",
        "reason": "",
    }
    assert logits["tower"] == "logits"


def test_a_part_has_an_entry_of_its_own() -> None:
    (entry,) = json.loads(to_json([Place(tower="text", module="text_projection", part="pooling")]))
    assert (entry["module"], entry["part"]) == ("text_projection", "pooling")
