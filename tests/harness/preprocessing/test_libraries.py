"""The installed libraries, on all kinds of inputs: all differences are known."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from clipcheck.backends.transformers import Transformers
from clipcheck.errors import RunError
from clipcheck.harness.preprocessing import open_clip, transformers
from clipcheck.harness.preprocessing.base import Candidate
from clipcheck.harness.preprocessing.comparing import compare
from clipcheck.harness.preprocessing.differences import ON_WHITE
from clipcheck.inputs.strategies import images, prompts
from clipcheck.inputs.vocabulary_files import vocabulary_files
from tests.harness.preprocessing.conftest import Candidates
from tests.harness.preprocessing.samples import LENGTH, NOWHERE, SIDE, SMALL, checkpoint, told
from tests.thorough import parametrize


def striped(mode: str, width: int = 40, height: int = 50) -> Image.Image:
    levels = np.arange(width * height, dtype=np.uint32).reshape(height, width) * 7919 % 256
    grey = Image.fromarray(levels.astype(np.uint8))
    if mode == "P":
        grey.putpalette(np.random.default_rng(0).bytes(768))
        return grey
    if mode == "RGBA":
        colours = [grey, grey.transpose(Image.Transpose.ROTATE_180), grey, grey]
        return Image.merge("RGBA", colours)
    return grey.convert(mode)


def ramp(width: int, height: int) -> Image.Image:
    """Return an image of the model's height or width, so that nothing is resized."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = np.stack([x * 3, y * 5, (x + y) * 2], axis=-1)
    return Image.fromarray((planes % 256).astype(np.uint8))


@given(images(max_side=80))
def test_every_image_is_the_same_or_differs_as_known(
    candidates: Candidates, image: Image.Image
) -> None:
    assert told(compare(list(candidates.values()), [image], [], SMALL)) == []


@given(prompts(context_length=LENGTH))
def test_every_text_is_the_same_or_differs_as_known(candidates: Candidates, text: str) -> None:
    assert told(compare(list(candidates.values()), [], [text], SMALL)) == []


@given(images(max_side=80), prompts(context_length=LENGTH))
def test_the_reference_and_the_transform_of_open_clip_give_just_the_same(
    candidates: Candidates, image: Image.Image, text: str
) -> None:
    names = ("image clip", "text clip (truncate=True)", "image open_clip")
    for result in compare([candidates[name] for name in names], [image], [text], SMALL):
        assert result.same == result.compared
        assert result.rounding == 0


RGB = striped("RGB")
KNOWN = [
    ("image transformers (fast)", RGB, {"resized as a tensor"}),
    ("image transformers (slow)", RGB, set()),
    ("image transformers (slow)", striped("P"), {"RGB before resizing"}),
    ("image transformers (slow)", striped("RGBA"), {"RGB before resizing", "opacity on white"}),
    # 33 of 36: the crop begins at 1.5, which rounds to 2.
    ("image transformers (slow)", ramp(36, 33), {"crop rounded down"}),
    ("image transformers (fast)", ramp(33, 36), {"crop rounded down"}),
    # 33 of 34: it begins at 0.5, which rounds to 0 both ways.
    ("image transformers (slow)", ramp(34, 33), set()),
    ("image open_clip (tensors)", RGB, {"resized without rounding"}),
    ("image open_clip (tensors)", ramp(36, 33), set()),
    ("text transformers (truncation=True)", "a dog", {"padded with the end token"}),
    ("text transformers (truncation=True)", "dog " * 30, set()),
    ("text transformers (by default)", "dog " * 30, {"not truncated unless asked to"}),
    ("text transformers (truncation=True)", "dog\x07 " * 30, {"no repairs by ftfy"}),
    (
        "text transformers (truncation=True)",
        "&amp; " * 30,
        {"no repairs by ftfy", "HTML entities kept"},
    ),
    ("text transformers (truncation=True)", "<&amp; " * 30, {"HTML entities kept"}),
    (
        "text transformers (truncation=True)",
        "\u039f\u03a3 " * 30,
        {"lowercased letter by letter"},
    ),
    (
        "text transformers (truncation=True)",
        "'\u017f " * 30,
        {"contractions by their exact letters"},
    ),
    (
        "text transformers (truncation=True)",
        "<|EndOfText|> " * 30,
        {"special tokens by their exact names"},
    ),
    ("text transformers (truncation=True)", "<|endoftext|> " * 30, set()),
    ("text transformers (truncation=True)", "e\u0301 " * 30, set()),
    ("text transformers (truncation=True)", "e\u0301\x07 " * 30, {"no repairs by ftfy"}),
    ("text open_clip (HFTokenizer)", "<e&#769; " * 30, {"composed to NFC"}),
    ("text open_clip (HFTokenizer)", "\u039f\u03a3 " * 30, {"lowercased letter by letter"}),
    ("text open_clip (HFTokenizer)", "\x07&amp; " * 30, set()),
    ("text open_clip (SimpleTokenizer)", "A dog &amp; \x07", set()),
    ("text open_clip (SimpleTokenizer)", "<end_of_text>", {"special tokens by other names"}),
    ("text open_clip (SimpleTokenizer)", "<|endoftext|>", {"special tokens by other names"}),
    ("text clip (by default)", "dog " * 30, {"refused unless truncation is requested"}),
    ("text clip (by default)", "dog", set()),
]


@pytest.mark.parametrize(("name", "raw", "names"), KNOWN, ids=range(len(KNOWN)))
def test_what_is_known_is_named(
    candidates: Candidates, name: str, raw: Image.Image | str, names: set[str]
) -> None:
    images, texts = ([], [raw]) if isinstance(raw, str) else ([raw], [])
    (result,) = compare([candidates[name]], images, texts, SMALL)
    if ON_WHITE not in candidates["image transformers (slow)"].differences:  # before 5.21
        names = names - {ON_WHITE.name}
    assert result.known.keys() == names
    assert not result.unknown
    assert result.same == (0 if names else 1)


# --------------------------------------------------------------------------- files of their own


def folder_of(tmp_path: Path, **files: dict[str, object]) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


def processor(**changes: object) -> dict[str, object]:
    usual = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return {"image_processor_type": "CLIPImageProcessor", **usual, **changes}


def of(made: list[Candidate], kind: str) -> list[Candidate]:
    return [each for each in made if each.kind == kind]


@parametrize(
    "changes",
    [
        {"image_mean": [0.5, 0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.5]},
        {"resample": 2},
        {"do_rescale": False},
        {"do_center_crop": False},
        {"crop_size": {"height": 32, "width": 32}},
        {"size": {"height": SIDE, "width": SIDE}},
    ],
    quick=2,
)
def test_a_folder_with_other_preprocessing_gets_an_unknown_difference(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = folder_of(tmp_path, preprocessor_config=processor(**changes))
    made = of(transformers.candidates(checkpoint(folder), tmp_path), "image")
    for result in compare(made, [RGB], [], SMALL):
        assert len(result.unknown) == 1


def test_a_folder_that_says_the_usual_is_as_without(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, preprocessor_config=processor())
    made = of(transformers.candidates(checkpoint(folder), tmp_path), "image")
    assert [result.same for result in compare(made, [ramp(33, 33)], [], SMALL)] == [1, 1]


def test_a_tokenizer_of_a_folder_is_read_with_what_it_pads_with(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, tokenizer_config={"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}
    )
    vocabulary_files(folder)
    made = of(transformers.candidates(checkpoint(folder), tmp_path), "text")
    for result in compare(made, [], ["a dog", "&amp;"], SMALL):
        assert result.same == 1
        assert not result.unknown
    assert not (tmp_path / "tokenizer").exists()


def test_other_merges_in_a_folder_are_found_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    vocabulary_files(folder)
    merges = folder / "merges.txt"
    lines = merges.read_text(encoding="utf-8").split("\n")
    merges.write_text("\n".join([*lines[:40], *lines[60:]]), encoding="utf-8")
    made = of(transformers.candidates(checkpoint(folder), tmp_path), "text")
    for result in compare(made, [], ["a photo of the dog in the rain"], SMALL):
        assert len(result.unknown) == 1


@pytest.mark.parametrize(
    ("token", "known", "unknown"),
    [(49407, [], []), (2, ["legacy end token 2"], []), (49406, [], ["id 49406 in place of 49407"])],
)
def test_the_end_token_of_a_configuration_is_the_right_one_or_the_legacy_one(
    tmp_path: Path, token: int, known: list[str], unknown: list[str]
) -> None:
    config = {"model_type": "clip", "text_config": {"eos_token_id": token}}
    folder = folder_of(tmp_path, config=config)
    made = of(transformers.candidates(checkpoint(folder), tmp_path), "end token")
    (result,) = compare(made, [], [], SMALL)
    assert result.compared == 1
    assert list(result.known) == known
    found = [each.unlike.message for each in result.unknown]
    assert found == [f"{each} at position 0" for each in unknown]


def open_clip_config(**changes: object) -> dict[str, object]:
    preprocessing = {"mean": [0.48145466, 0.4578275, 0.40821073], **changes}
    return {"model_cfg": {"text_cfg": {}}, "preprocess_cfg": preprocessing}


@pytest.mark.parametrize(
    "changes", [{"mean": [0.5, 0.5, 0.5]}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}]
)
def test_an_open_clip_folder_with_other_preprocessing_gets_an_unknown_difference(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = folder_of(tmp_path, open_clip_config=open_clip_config(**changes))
    made = of(open_clip.candidates(checkpoint(folder), tmp_path), "image")
    for result in compare(made, [RGB], [], SMALL):
        assert len(result.unknown) == 1


def test_an_open_clip_folder_has_the_tokenizer_that_it_names(tmp_path: Path) -> None:
    config = open_clip_config()
    config["model_cfg"] = {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}
    folder = folder_of(tmp_path, open_clip_config=config)
    image, _, text = open_clip.candidates(checkpoint(folder), tmp_path)
    assert compare([image], [RGB], [], SMALL)[0].same == 1
    (result,) = compare([text], [], ["a dog", "a dog."], SMALL)
    assert [each.example for each in result.unknown] == ["'a dog.'"]


def test_a_tokenizer_of_transformers_in_an_open_clip_folder_is_known_as_such(
    tmp_path: Path,
) -> None:
    config = open_clip_config()
    config["model_cfg"] = {"text_cfg": {"hf_tokenizer_name": "itself"}}
    folder = folder_of(tmp_path, open_clip_config=config)
    transformers.tokenizer_files(folder)
    *_, text = open_clip.candidates(checkpoint(folder), tmp_path)
    (result,) = compare([text], [], ["a dog"], SMALL)
    assert result.name == "open_clip (HFTokenizer)"
    assert list(result.known) == ["padded with the end token"]


@pytest.mark.parametrize(
    ("library", "name"),
    [(transformers, "preprocessor_config.json"), (open_clip, "open_clip_config.json")],
)
def test_a_damaged_file_is_reported_with_the_message_of_the_library(
    tmp_path: Path, library: object, name: str
) -> None:
    (tmp_path / name).write_text("{")
    with pytest.raises(RunError, match="reading the files of preprocessing failed"):
        library.candidates(checkpoint(tmp_path), tmp_path)  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- what is installed


@pytest.mark.parametrize(("version", "white"), [("5.20.2", False), ("5.21.0", True)])
def test_opacities_are_on_white_from_a_version_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, white: bool
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    for each in of(transformers.candidates(checkpoint(NOWHERE), tmp_path), "image"):
        assert (ON_WHITE in each.differences) == white


def test_open_clip_has_no_tokenizer_of_transformers_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [each.name for each in open_clip.candidates(checkpoint(), tmp_path)]
    monkeypatch.setattr(Transformers, "available", lambda: "missing")
    fewer = [each.name for each in open_clip.candidates(checkpoint(), tmp_path)]
    assert names == [*fewer, "open_clip (HFTokenizer)"]


def test_nothing_is_said_beside_the_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    folder = folder_of(tmp_path, tokenizer_config=named, preprocessor_config=processor())
    vocabulary_files(folder)
    for path in (folder, NOWHERE):
        made = transformers.candidates(checkpoint(path), tmp_path)
        compare(made, [striped("P")], ["dog " * 200], SMALL)
    assert capfd.readouterr() == ("", "")
