"""The user's own images and prompts, from files to a report and a replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import clipcheck
from clipcheck.audit.faults.conditional import for_images
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UsageError
from clipcheck.gates.result import GateResult
from clipcheck.harness import own
from clipcheck.harness.rejudging import rejudge
from clipcheck.harness.replaying import replay
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.report import evidence
from clipcheck.report.html.page import page
from clipcheck.report.text import render
from clipcheck.results import document
from clipcheck.results.judgement import Judgement, Result
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, minute_bytes

# CLIP's own vocabulary, so that prompts are texts.
WITH_WORDS = replace(MINUTE, context_length=77, vocab_size=49408)

ODD = (200, 10, 30)
"""Colour of the first pixel of an image that no other input has."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, one of them odd, and two files that cannot be read as images."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "2024").mkdir()
    generator = np.random.default_rng(0)
    for number in range(9):
        colours = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"{number}.jpg")
    odd = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    odd.putpixel((0, 0), ODD)
    odd.save(folder / "2024" / "odd.png")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden").write_text("none")
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:600])
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text(f"a dog\n\n{'very ' * 90}long\nein schöner Hund\n", encoding="utf-8")
    return path


def is_odd(image: Tensor) -> Tensor:
    levels = [(colour / 255 - mean) / std for colour, mean, std in zip(ODD, MEAN, STD, strict=True)]
    red, green, blue = (
        (image[:, channel, 0, 0] - level).abs() < 1e-2 for channel, level in enumerate(levels)
    )
    return red & green & blue


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a sound archive, and one with wrong features of the odd image."""
    folder = tmp_path_factory.mktemp("archives")
    weights = synthesize(WITH_WORDS)
    for name, alter in (("sound", None), ("faulty", for_images(is_odd))):
        write_archive(WITH_WORDS, weights, folder / f"{name}.pt", alter=alter)
    return {name: folder / f"{name}.pt" for name in ("sound", "faulty")}


def check(path: Path, **options: object) -> Result:
    fixed = {"device": "cpu", "isolation": "none", "examples": 0, "ignore": "modules"}
    return clipcheck.check(path, **{**fixed, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def found(archives: dict[str, Path], photos: Path, labels: Path, kept: Path) -> dict[str, Result]:
    return {
        name: check(path, images=photos, prompts=labels, keep_outputs=kept / name)
        for name, path in archives.items()
    }


def only(result: Result) -> Judgement:
    (judgement,) = result.judgements
    return judgement


def gate(result: Result, name: str) -> GateResult:
    return next(each for each in only(result).gates if each.name == name)


def test_all_that_can_be_read_is_compared(found: dict[str, Result], archives: object) -> None:
    result, judged = found["sound"], only(found["sound"])
    assert result.passed
    mine = judged.own
    assert mine is not None
    assert (judged.examples, mine.images, mine.prompts, mine.truncated) == (18, 10, 3, 1)
    assert mine.skipped == 2
    assert mine.skipped_files[0].startswith("cut.jpg (")
    assert mine.skipped_files[1] == "notes.txt (no image)"
    # The eight worst images, and all prompts.
    assert mine.exact == 8 + 3 == len(mine.worst)
    assert 1 < mine.at_most < 8
    assert "; 10 own images and 3 own prompts: worst error " in gate(result, "fidelity").message
    assert gate(result, "top1").figures["own"]["compared"] == 13
    assert gate(result, "allclose").figures["own"]["elements"] > 0
    assert gate(result, "repeatability").figures["own"]["moved"] < 1


def test_what_was_kept_gives_the_same_gates_again(found: dict[str, Result], kept: Path) -> None:
    for name, before in found.items():
        assert only(rejudge(kept / name)).gates == only(before).gates
    with pytest.raises(UsageError, match="expected the --atol and --rtol of the check"):
        rejudge(kept / "sound", atol=0.1)
    assert rejudge(kept / "sound", atol=0.1, ignore=["allclose", "modules"]).passed


def test_reports_show_the_worst_and_what_was_left_out(found: dict[str, Result]) -> None:
    result = found["sound"]
    told = " ".join(render(result).split())
    assert "2 files left out, as Pillow cannot read them as images: cut.jpg (" in told
    assert "1 prompt is longer than the model's context, and truncated" in told
    mine = only(result).own
    (record,) = document.read(document.render(result)).results
    assert record.own == mine
    assert mine is not None
    shown = page(result)
    for row in mine.worst:
        assert f"<bdi>{row.name}</bdi>" in shown.replace("&#39;", "'")
    assert shown.count('alt="The image ') == 8


def test_a_failing_image_is_named_saved_and_replayed(
    found: dict[str, Result], archives: dict[str, Path], tmp_path: Path
) -> None:
    result = found["faulty"]
    assert not result.passed
    name = str(Path("2024") / "odd.png")
    assert gate(result, "fidelity").message.startswith(f"image features of own image {name}: worst")
    kept = evidence.keep_inputs(result, tmp_path).judgements[0]
    assert kept.failing_example is not None
    assert kept.failing_example.own == name
    # Only its first pixel matters: the others have one colour, but for a sixteenth of the side.
    assert kept.failing is not None
    assert kept.failing.first is not None
    before, after = (
        each.images[0].getcolors() for each in (kept.failing.first, kept.failing.example)
    )
    assert max(after)[0] > 0.9 * sum(count for count, _ in after)
    assert len(after) < len(before)
    assert f"shrunk from {name}," in " ".join(render(result).split())
    assert kept.saved is not None
    assert not replay(Path(kept.saved), device="cpu", isolation="none").passed
    sound = str(archives["sound"])
    assert replay(Path(kept.saved), checkpoint=sound, device="cpu", isolation="none").passed


def test_the_same_data_gives_the_same_digest(
    found: dict[str, Result], archives: dict[str, Path], photos: Path, labels: Path
) -> None:
    first = only(found["sound"]).inputs
    assert only(found["faulty"]).inputs == first
    assert only(check(archives["sound"], images=photos)).inputs != first


@pytest.mark.thorough
def test_the_eager_model_runs_once_for_all_backends(
    archives: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    kept = own.EagerFeatures._kept

    def counted(self: own.EagerFeatures, what: str, array: object, compute: object) -> object:
        def call() -> object:
            computed.append(what)
            return compute()  # type: ignore[operator]

        return kept(self, what, array, call)  # type: ignore[arg-type]

    monkeypatch.setattr(own.EagerFeatures, "_kept", counted)
    result = check(archives["sound"], images=photos, backend=["jit", "trace"])
    assert result.passed
    assert computed.count("own encode_image") == 2  # batches


def test_what_cannot_be_compared_is_reported(
    minute_archive: Path, photos: Path, labels: Path, tmp_path: Path
) -> None:
    result = check(minute_archive, prompts=labels)
    assert result.exit_code == 2
    error = str(only(result).error)
    assert error.startswith("--prompts: expected a model with a tokenizer at hand")
    (tmp_path / "notes.txt").write_text("none")
    result = check(minute_archive, images=tmp_path)
    assert result.exit_code == 2
    error = str(only(result).error)
    assert "found no file that can be read as one: notes.txt (no image)" in error
    half = check(minute_archive, images=photos, dtype="bfloat16")
    assert half.passed, render(half)
    mine = only(half).own
    assert mine is not None
    assert mine.exact == mine.images == 10  # in half precision all run in float64


@pytest.mark.thorough
def test_a_budget_is_judged_over_own_data_if_there_is_enough(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    options = {"backend": "onnxruntime", "budget": "cosine=0.9,top1=0.5"}
    message = gate(check(path, images=photos, **options), "budget").message
    assert "over 100 rows of random inputs (10 own images not judged: it needs 100)" in message
    many = tmp_path / "many"
    many.mkdir()
    for number in range(101):
        Image.open(photos / "1.jpg").rotate(number).save(many / f"{number}.png")
    kept = tmp_path / "kept"
    message = gate(check(path, images=many, keep_outputs=kept, **options), "budget").message
    assert "over 101 own images and 100 rows of random inputs" in message
    again = gate(rejudge(kept, budget="cosine=0.99"), "budget").message
    assert "(limit 0.99); over 101 own images and 100 rows of random inputs" in again
