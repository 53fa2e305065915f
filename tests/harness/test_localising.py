"""From a file to a place in each tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.audit.faults import fault_named
from clipcheck.backends.loading import opened_sides
from clipcheck.checkpoints.architecture import Architecture, ViT
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import CheckpointError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.localisation import Localisation
from clipcheck.harness import localising
from clipcheck.harness.localising import Suspect, first_departures, localize
from clipcheck.harness.modules import walk as walking
from clipcheck.harness.phases import Stopwatch
from clipcheck.inputs.batches import for_modules
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import synthesize
from tests.models import small
from tests.samples import CRC32, MINUTE, with_field
from tests.thorough import parametrize

VIT, RESNET = small("tiny-vit"), small("tiny-resnet")
CPU = torch.device("cpu")

Planted = Callable[..., Path]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    def plant(fault: str, a: Architecture = MINUTE) -> Path:
        path = tmp_path / "model.pt"
        write_archive(a, synthesize(a), path, alter=fault_named(fault).plant)
        return path

    return plant


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model.pt"
    a = replace(VIT, vision=ViT(1, 64, 8), text_layers=1, text_width=64)
    write_archive(a, synthesize(a), path)
    return path


def test_a_sound_archive_departs_nowhere(sound: Path) -> None:
    said: list[str] = []
    found = localize(sound, progress=said.append)
    assert found.passed
    assert [place.reason for place in found.localisation.places] == ["nothing departs"] * 3
    assert found.sha256 == open_checkpoint(found.path).sha256
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert found.seconds.keys() == {"load", "localisation"}
    assert len(said) == 3


def test_a_fault_that_shows_on_any_input_is_found_on_the_first(planted: Planted) -> None:
    found = localize(planted("activation-clipped"))
    (place,) = found.localisation.found
    assert place.module == "transformer.resblocks.0.mlp.gelu"
    assert place.given == "the fixed batch of the gate `modules`"
    assert not found.passed


@pytest.mark.thorough
def test_a_fault_that_shows_on_few_inputs_is_found_on_the_edge_cases(planted: Planted) -> None:
    (place,) = localize(planted("empty-prompts", VIT)).localisation.found
    assert place.module == "text_projection"
    assert place.given.endswith("of the edge cases")


@pytest.mark.thorough
@parametrize("dtype", ["float16", "bfloat16"])
def test_a_fault_is_found_in_lower_precision_too(planted: Planted, dtype: str) -> None:
    found = localize(planted("output-projection-transposed"), dtype=dtype)
    assert [place.module for place in found.localisation.found] == ["transformer.resblocks.0.attn"]


@pytest.mark.thorough
@parametrize("dtype", ["float16", "bfloat16"])
def test_a_sound_archive_departs_nowhere_in_lower_precision(sound: Path, dtype: str) -> None:
    assert localize(sound, dtype=dtype).passed


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        localize(path)


def test_a_damaged_file_is_refused_before_it_is_loaded(
    minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(with_field(minute_archive.read_bytes(), "data/0", CRC32, 0))
    said: list[str] = []
    with pytest.raises(CheckpointError):
        localize(path, progress=said.append)
    assert said == [f"{path}: reading"]


def test_the_arguments_are_passed_on(
    minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[object] = []
    architectures: list[object] = []
    keys: list[object] = []
    seeds: list[int] = []

    def opened(name: str, _: None, folder: object, *, key: str, architecture: str) -> Any:
        folders.append(folder)
        architectures.append(architecture)
        keys.append(key)
        return open_checkpoint(name), None

    def small_batch(inputs: Any, seed: int) -> Any:
        seeds.append(seed)
        return for_modules(inputs, seed)

    def corners(_: int, inputs: Any, seed: int) -> list[Any]:
        seeds.append(seed)
        return []

    monkeypatch.setattr(localising, "open_pair", opened)
    monkeypatch.setattr(localising, "for_modules", small_batch)
    monkeypatch.setattr(localising, "batches", corners)
    found = localize(
        minute_archive, key="model", architecture="tiny-vit", seed=7, download_root=tmp_path
    )
    assert (folders, architectures, keys) == ([tmp_path], ["tiny-vit"], ["model"])
    assert seeds == [7, 7, 7]
    assert (found.key, found.asked_architecture) == ("model", "tiny-vit")


def test_the_batches_of_the_edge_cases_are_counted_from_one() -> None:
    names = [what for what, _, _ in localising._inputs(inputs_of(MINUTE), 0, None)]
    assert names[:2] == ["the fixed batch of the gate `modules`", "batch 1 of the edge cases"]


@pytest.mark.thorough
def test_of_as_many_rows_as_positions_one_comes_twice(minute_archive: Path) -> None:
    inputs = inputs_of(open_checkpoint(minute_archive).architecture)
    positions = inputs.grid**2 + 1
    given = list(localising._inputs(inputs, 0, None))
    assert positions == 5
    assert [len(batch.pixels) for _, batch, _ in given] == [2, 2, 1, 6, 7, 3]
    (_, one, _) = given[3]
    assert (one.pixels[-1] == one.pixels[0]).all()
    assert localize(minute_archive).passed


@pytest.mark.thorough
def test_weights_that_running_changes_are_a_place_where_nothing_else_departs(
    planted: Planted,
) -> None:
    (place,) = localize(planted("running-mean-updated", RESNET)).localisation.found
    assert place.part == "its running_mean, which running changes"
    (place,) = localize(planted("logit-scale-drifts")).localisation.found
    assert (place.module, place.part) == ("forward", walking.HEAD)


def given(path: Path, suspect: Suspect | None) -> list[str]:
    with opened_sides(open_checkpoint(path), None, CPU, "float32", archive=True) as sides:
        found = first_departures(sides.source, Stopwatch(), suspect=suspect)
    return [place.given for place in found.found]


def test_the_input_that_fails_is_tried_where_its_tower_has_no_place_yet(planted: Planted) -> None:
    path = planted("empty-prompts")
    inputs = inputs_of(MINUTE)
    row = for_modules(inputs, 0).select([], [0])
    row.tokens[0] = 0
    row.tokens[0, :2] = inputs.texts.start, inputs.texts.end
    assert given(path, Suspect(row, "text_features")) == ["the input that fails"]


def test_the_input_that_fails_is_left_where_its_tower_has_a_place(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planted("activation-clipped")
    walked: list[str] = []
    original = walking.walk

    def watched(*arguments: Any, alone: bool) -> Localisation:
        walked.append(arguments[-1])
        return original(*arguments, alone=alone)

    monkeypatch.setattr(walking, "walk", watched)
    row = for_modules(inputs_of(MINUTE), 0).select([], [0])
    for output in ("text_features", "logits_per_text"):
        assert given(path, Suspect(row, output)) == ["the fixed batch of the gate `modules`"]
    assert walked == ["the fixed batch of the gate `modules`"] * 2
    # The image tower has none, and what it is given shows none either.
    image = for_modules(inputs_of(MINUTE), 0).select([0], [])
    given(path, Suspect(image, "image_features"))
    assert walked[2:] == ["the fixed batch of the gate `modules`", "the input that fails"]
