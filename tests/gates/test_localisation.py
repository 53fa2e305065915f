"""From the errors of modules to a place in each tower."""

from __future__ import annotations

import math

from clipcheck.gates.localisation import (
    FORWARD,
    TOWERS,
    Deviation,
    Failure,
    Localisation,
    Place,
    localise,
    tower_of,
)
from clipcheck.gates.modules import ModuleError
from clipcheck.gates.tolerances import LIMITS

FLOAT = LIMITS["float32"]


def error(module: str, ratio: float, block: str = "", part: str = "") -> ModuleError:
    return ModuleError(
        module=module,
        method="forward",
        candidate=ratio * 1e-6,
        reference=1e-6,
        size=1.0,
        block=block,
        part=part,
    )


def places(*errors: ModuleError, failures: tuple[Failure, ...] = ()) -> dict[str, Place]:
    found = localise(errors, failures, FLOAT, "two images")
    assert [place.tower for place in found.places] == list(TOWERS)
    return {place.tower: place for place in found.places}


def test_the_first_module_beyond_its_limit_is_the_place_of_its_tower() -> None:
    found = places(
        error("visual.conv1", 1),
        error("visual.ln_pre", 50, part="what it is given"),
        error("visual.ln_post", 900),
        error("token_embedding", 9.9),
        error("ln_final", 11),
    )
    assert found["image"].module == "visual.ln_pre"
    assert found["image"].part == "what it is given"
    assert math.isclose(found["image"].figures.rmse_ratio, 50)
    assert found["image"].figures.allowed == 10
    assert math.isclose(found["image"].figures.rmse, 5e-5)
    assert found["image"].figures.method == "forward"
    assert found["image"].given == "two images"
    assert found["text"].module == "ln_final"


def test_a_tower_without_departures_says_whether_it_was_looked_at() -> None:
    found = places(error("visual.conv1", 1))
    assert (found["image"].module, found["image"].reason) == (None, "nothing departs")
    assert (found["text"].module, found["text"].reason) == (None, "not compared")
    assert not localise([error("visual.conv1", 1)], [], FLOAT, "").found


def test_an_error_that_the_block_compensates_is_no_place() -> None:
    inner = error("transformer.resblocks.0.attn", 500, block="transformer.resblocks.0")
    assert places(inner, error("transformer.resblocks.0", 1.1))["text"].module is None
    assert places(inner, error("transformer.resblocks.0", 90))["text"].module == inner.module


def test_a_part_of_a_block_is_not_taken_for_the_block() -> None:
    """That a sum within it is right does not excuse what its modules do."""
    inner = error("transformer.resblocks.0.attn", 500, block="transformer.resblocks.0")
    after = error("transformer.resblocks.0", 1, part="residual sum behind mlp")
    assert places(inner, after)["text"].module == inner.module


def test_the_end_of_forward_is_a_place_of_its_own() -> None:
    found = places(error(FORWARD, 30, part="normalisation, scale and product"))
    assert found["logits"].module == FORWARD
    assert tower_of("logit_scale") == "logits"
    assert tower_of("visual.proj") == "image"
    assert tower_of("text_projection") == "text"


def test_a_method_that_fails_is_localised_to_the_module_where_it_failed() -> None:
    failures = (
        Failure("encode_image", "visual.layer1.0", "sizes do not match"),
        Failure("forward", "", "no such method"),
    )
    found = places(failures=failures)
    assert found["image"].module == "visual.layer1.0"
    assert found["image"].reason == "sizes do not match"
    assert found["image"].figures.rmse_ratio == float("inf")
    assert (found["logits"].module, found["logits"].part) == (FORWARD, "outside of its modules")


def test_a_method_that_breaks_off_says_which_it_was_on_what_and_is_beyond_any_limit() -> None:
    failure = Failure("encode_image", "visual.layer1.0", "sizes do not match")
    assert places(failures=(failure,))["image"] == Place(
        tower="image",
        module="visual.layer1.0",
        part="",
        figures=Deviation(float("inf"), 10, float("inf"), "encode_image"),
        given="two images",
        reason="sizes do not match",
    )


def test_an_error_equal_to_its_limit_is_no_departure() -> None:
    at = ModuleError(
        module="visual.conv1", method="forward", candidate=10.0, reference=1.0, size=1.0
    )
    assert places(at)["image"].module is None


def test_if_nothing_departs_the_report_names_the_inputs() -> None:
    found = places(error("visual.conv1", 1))
    assert [place.given for place in found.values()] == ["two images"] * 3


def test_what_departed_before_a_method_broke_off_comes_first() -> None:
    failure = Failure("encode_image", "visual.layer1.0", "sizes do not match")
    found = places(error("visual.conv1", 99), failures=(failure,))
    assert found["image"].module == "visual.conv1"


def test_a_place_that_was_found_on_other_inputs_completes_those_found_before() -> None:
    one = localise([error("visual.conv1", 99), error("ln_final", 1)], [], FLOAT, "first")
    two = localise([error("visual.ln_pre", 99), error("ln_final", 99)], [], FLOAT, "second")
    both = one.fill_from(two)
    assert [place.module for place in both.places] == ["visual.conv1", "ln_final", None]
    assert [place.given for place in both.found] == ["first", "second"]


def test_a_tower_that_ran_once_is_not_reported_as_not_run() -> None:
    sound = localise([error("visual.conv1", 1)], [], FLOAT, "")
    for both in (Localisation.nowhere().fill_from(sound), sound.fill_from(Localisation.nowhere())):
        assert [p.reason for p in both.places] == [
            "nothing departs",
            "not compared",
            "not compared",
        ]


def test_if_two_runs_find_no_place_the_first_is_reported() -> None:
    one, two = (localise([error("visual.conv1", 1)], [], FLOAT, given) for given in ("one", "two"))
    assert one.fill_from(two).places[0].given == "one"
    broken = Localisation.nowhere("could not be looked for")
    assert one.fill_from(broken).places[0].reason == "nothing departs"
    assert one.fill_from(broken).places[1].reason == "could not be looked for"


def test_a_module_that_changes_its_weights_is_named_once_with_the_weight() -> None:
    departed = localise(
        [error("visual.bn1", 99), error("ln_final", 99), error("transformer.a", 1)], [], FLOAT, ""
    )
    changed = Localisation.of_changed(["visual.bn1.running_mean", "transformer.b.bias"], "two")
    found = departed.with_changed_weights(changed)
    assert [(place.module, place.part) for place in found.found] == [
        ("visual.bn1", "its running_mean, which running changes"),
        ("ln_final", ""),
    ]
    sound = localise([error("visual.conv1", 1), error("ln_final", 1)], [], FLOAT, "")
    assert [
        place.reason for place in sound.with_changed_weights(Localisation.of_changed([], "")).places
    ] == [
        "nothing departs",
        "nothing departs",
        "not compared",
    ]


def test_weights_that_running_changes_are_places_of_their_modules() -> None:
    found = Localisation.of_changed(["visual.bn1.running_mean", "visual.bn2.x", "logit_scale"], "x")
    image, text, logits = found.places
    assert image.module == "visual.bn1"
    assert image.part == "its running_mean, which running changes"
    assert (image.figures.rmse_ratio, image.given) == (float("inf"), "x")
    assert text.module is None
    assert (logits.module, logits.part) == ("logit_scale", "which running changes")
