"""A fault above token id 40,000 is found, shrunk to one token, saved, and replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import clipcheck
from clipcheck.audit.faults import fault_named
from clipcheck.audit.faults.conditional import absent_from_the_vocabulary
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import (
    ArchitectureError,
    OutputError,
    ReplayError,
    UnknownModelError,
)
from clipcheck.harness.replaying import replay
from clipcheck.harness.search.saved import read
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.examples import Example, Preprocessing
from clipcheck.inputs.tokenizer import default_tokenizer
from clipcheck.report import evidence
from clipcheck.results.judgement import Judgement, Result
from clipcheck.writers.archive import write_archive
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import architecture_named, synthesize
from conftest import Run, SeededArchive, unfolded
from tests.samples import MINUTE, minute_weights

# CLIP's own vocabulary, so that prompts are texts.
WITH_WORDS = replace(MINUTE, context_length=77, vocab_size=49408)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive that does not embed ids from 40,000 on."""
    path = tmp_path_factory.mktemp("faulty") / "above-40000.pt"
    plant = absent_from_the_vocabulary(lambda text, most: (text >= 40_000) & (text < most - 2))
    write_archive(WITH_WORDS, synthesize(WITH_WORDS), path, alter=plant)
    return path


@pytest.fixture(scope="module")
def wrong_on_any_prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive whose smallest failing input is found soon."""
    path = tmp_path_factory.mktemp("wrong") / "scaled.pt"
    alter = fault_named("text-features-scaled-by-two").plant
    write_archive(WITH_WORDS, synthesize(WITH_WORDS), path, alter=alter)
    return path


@pytest.fixture(scope="module")
def result(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path_factory.mktemp("hypothesis")))
        return clipcheck.check(faulty, device="cpu", seed=5, examples=EDGE_CASES)


@pytest.fixture
def folder(result: Result, tmp_path: Path) -> Path:
    saved = evidence.keep_inputs(result, tmp_path).judgements[0].saved
    assert saved is not None
    return Path(saved)


@pytest.mark.thorough
def test_it_is_shrunk_to_a_prompt_of_one_token_and_found_again_in_another_process(
    folder: Path,
) -> None:
    (prompt,) = read(folder).example.prompts
    assert isinstance(prompt, str)
    (token,) = default_tokenizer().encode(prompt)
    assert token >= 40_000
    command = [sys.executable, "-W", "ignore", "-m", "clipcheck", "replay", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"the prompt '{prompt}'" in done.stdout
    assert done.stdout.endswith("STILL FAILS.\n")


@pytest.mark.thorough
def test_another_checkpoint_may_pass_on_the_saved_input(
    folder: Path, tmp_path: Path, faulty: Path, run: Run
) -> None:
    write_archive(WITH_WORDS, synthesize(WITH_WORDS), tmp_path / "sound.pt")
    done = run("replay", folder / "example.json", "--checkpoint", tmp_path / "sound.pt")
    assert done.code == 0, done.err
    # Without spaces: a long path is broken at the width of a line.
    told = f"a different file than the one that failed, {faulty}"
    assert "".join(told.split()) in "".join(done.out.split())
    assert "worst error " in done.out
    assert done.out.endswith("FIXED.\n")


def test_a_model_of_another_architecture_is_refused(
    folder: Path, minute_archive: Path, run: Run
) -> None:
    done = run("replay", folder, "--checkpoint", minute_archive)
    assert (done.code, done.out) == (2, "")
    assert "expected a model of the architecture that failed, found " in done.err
    assert "context length 8, not 77; vocabulary size 100, not 49408. Replay it with" in done.err


def test_an_input_saved_without_an_architecture_is_run_with_the_same_file_alone(
    folder: Path, seeded_archive: SeededArchive
) -> None:
    document = json.loads((folder / "example.json").read_text())
    del document["architecture"]
    (folder / "example.json").write_text(json.dumps(document))
    assert not replay(folder).passed
    with pytest.raises(ReplayError, match="does not record the architecture that failed"):
        replay(folder, checkpoint=str(seeded_archive()))


def test_it_is_run_as_the_architecture_that_was_given(folder: Path) -> None:
    document = json.loads((folder / "example.json").read_text())
    document["asked_architecture"] = "tiny-vit"
    (folder / "example.json").write_text(json.dumps(document))
    with pytest.raises(ArchitectureError, match="do not fit the model of --architecture tiny-vit"):
        replay(folder)
    with pytest.raises(
        ArchitectureError, match="do not fit the model of --architecture tiny-resnet"
    ):
        replay(folder, architecture="tiny-resnet")


def test_the_saved_input_is_enough_to_see_the_failure_again(folder: Path, result: Result) -> None:
    document = json.loads((folder / "example.json").read_text())
    judgement = result.judgements[0]
    assert document["sha256"] == judgement.sha256
    assert (document["seed"], document["shrunk"]) == (5, True)
    assert len(document["inputs"]) == 32
    assert document["run"]
    assert document["date"].endswith("Z")
    assert document["limits"] == {"atol": 0.01, "rtol": 0.1, "sigmoid": False}
    assert document["figures"]["output"] == "text_features"
    assert document["figures"]["rmse_ratio"] > document["figures"]["allowed"]
    assert document["environment"]["torch"]
    assert document["message"] in " ".join((folder / "report.txt").read_text().split())
    assert f"clipcheck replay {folder}" in unfolded((folder / "report.txt").read_text())


def test_the_dtype_and_the_device_may_be_others(folder: Path) -> None:
    replayed = replay(folder, dtype="bfloat16", device="cpu")
    assert (replayed.dtype, replayed.device, replayed.passed) == ("bfloat16", "cpu", False)


def test_the_image_is_run_as_it_was_saved(folder: Path, faulty: Path) -> None:
    """The fault is in texts; an image alone passes, and one that fails would be this one."""
    picture = Image.new("RGB", (2, 1), (9, 8, 7))
    picture.save(folder / "image-1.png")
    document = json.loads((folder / "example.json").read_text())
    (folder / "example.json").write_text(
        json.dumps({**document, "prompts": [], "images": ["image-1.png"]})
    )
    replayed = replay(folder)
    assert replayed.passed
    assert replayed.measure.output == "image_features"
    assert replayed.saved.example.images[0].getpixel((1, 0)) == (9, 8, 7)


def test_a_saved_input_is_run_three_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcheck.harness.search.probe import Probe

    calls: list[int] = []
    measure = Probe.measure
    monkeypatch.setattr(
        Probe,
        "measure",
        lambda self, given: calls.append(len(given.tokens)) or measure(self, given),
    )
    replay(folder)
    assert calls == [1, 1, 1]


def test_ids_that_the_model_does_not_take_are_an_error(folder: Path) -> None:
    document = json.loads((folder / "example.json").read_text())
    (folder / "example.json").write_text(json.dumps({**document, "prompts": [[1] * 78]}))
    with pytest.raises(ReplayError, match="78 ids up to 1, and the model takes 77 below 49408"):
        replay(folder)


@pytest.mark.parametrize("arguments", [["nothing"], ["."], []])
def test_a_file_that_is_no_failing_input_is_one_usage_error(
    run: Run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("replay", *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_missing_checkpoint_is_an_error(folder: Path) -> None:
    with pytest.raises(UnknownModelError):
        replay(folder, checkpoint="gone.pt")


def test_an_input_saved_before_other_backends_existed_is_run_as_an_archive(folder: Path) -> None:
    document = json.loads((folder / "example.json").read_text())
    assert document["backend"] == "jit"
    for name in ("backend", "reference", "reference_checkpoint"):
        del document[name]
    (folder / "example.json").write_text(json.dumps(document))
    replayed = replay(folder)
    assert (replayed.saved.backend, replayed.passed) == ("jit", False)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a checkpoint, and another that differs in one weight."""
    folder = tmp_path_factory.mktemp("beside")
    tensors = minute_weights()
    write(MINUTE, tensors, folder / "made-of.pt", Format.SAFETENSORS)
    tensors["transformer.resblocks.0.mlp.c_fc.weight"][3, 4] += 0.5
    write(MINUTE, tensors, folder / "weights.pt", Format.SAFETENSORS)
    return folder / "weights.pt", folder / "made-of.pt"


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["eager", "transformers:attention=eager"])
def test_it_is_run_by_the_backend_that_failed_against_the_same_reference(
    beside: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    backend: str,
) -> None:
    weights, made_of = beside
    monkeypatch.chdir(weights.parent)
    result = clipcheck.check(
        weights.name, backend=backend, reference=made_of.name, device="cpu", examples=1
    )
    saved = evidence.keep_inputs(result, tmp_path / "kept").judgements[0].saved
    assert saved is not None
    monkeypatch.chdir(tmp_path)  # paths are kept in full
    found = read(Path(saved))
    assert (found.backend, found.reference_checkpoint) == (backend, str(made_of))
    done = run("replay", saved)
    assert done.code == 1
    assert f"{backend} on cpu in float32: " in " ".join(done.out.split())
    assert run("replay", saved, "--checkpoint", made_of).code == 0


def test_backends_of_one_checkpoint_are_distinguished(result: Result, tmp_path: Path) -> None:
    one = result.judgements[0]
    both = replace(result, judgements=(one, replace(one, backend="compile:mode=default")))
    first, second = (
        judgement.saved for judgement in evidence.keep_inputs(both, tmp_path).judgements
    )
    assert first != second
    assert Path(str(second)).name.endswith("-compile-mode-default-cpu-float32")


# --------------------------------------------------------------------------- what a check leaves


def test_a_check_saves_everything_in_the_given_folder(
    wrong_on_any_prompt: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path / "hypothesis"))
    done = run(
        "check", wrong_on_any_prompt, "--report", tmp_path / "new" / "report", "--examples", 14
    )
    assert done.code == 1
    document = json.loads((tmp_path / "new" / "report" / "results.json").read_text())
    example = document["results"][0]["failing_example"]
    assert Path(example["saved"]).parent == tmp_path / "new" / "report" / "failing-inputs"
    assert (len(example["prompts"]), example["images"]) == (1, [])
    kept = (tmp_path / "new" / "report" / "report.txt").read_text()
    assert done.out == f"{kept}Page: {tmp_path / 'new' / 'report' / 'report.html'}\n"
    assert f"again: clipcheck replay {example['saved']}" in unfolded(done.out)


def test_a_check_without_a_folder_keeps_the_input_in_a_temporary_one(result: Result) -> None:
    saved = evidence.keep_inputs(result).judgements[0].saved
    assert saved is not None
    assert read(Path(saved)).example.prompts


def test_what_is_kept_already_is_not_written_again(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = evidence.keep_inputs(result, tmp_path / "once")
    monkeypatch.setattr(evidence, "write", None)
    assert evidence.keep_inputs(kept, tmp_path / "again") == kept
    assert not (tmp_path / "again").exists()


def unfailing(judgement: Judgement) -> Judgement:
    return replace(judgement, failing=None, failing_example=None)


def test_without_a_failure_no_folder_is_made(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence.tempfile, "mkdtemp", None)
    passing = replace(result, judgements=(unfailing(result.judgements[0]),))
    assert evidence.keep_inputs(passing) is passing


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_report_folder_that_cannot_be_written_is_reported_before_anything_runs(
    run: Run, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "below"
    done = run("check", "gone.pt", "--report", folder)
    assert done.code == 2
    assert done.err.startswith(f"clipcheck: {folder}: expected a writable folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that not even root writes to")
def test_an_existing_folder_that_cannot_be_written_to_is_reported(run: Run) -> None:
    done = run("check", "gone.pt", "--report", "/proc")
    assert done.code == 2
    assert done.err.startswith("clipcheck: /proc: expected a writable folder")


def test_a_report_that_cannot_be_written_at_the_end_is_an_output_error(
    result: Result, tmp_path: Path
) -> None:
    (tmp_path / evidence.INPUTS).write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        evidence.keep(result, tmp_path)


def test_texts_are_kept_without_the_inputs(result: Result, tmp_path: Path) -> None:
    evidence.keep_texts(result, tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {evidence.JSON, evidence.TEXT, evidence.HTML}


def test_a_folder_has_the_failing_inputs_of_its_run_alone(result: Result, tmp_path: Path) -> None:
    inputs = tmp_path / evidence.INPUTS
    (judgement,) = result.judgements
    evidence.keep(result, tmp_path)
    evidence.keep(replace(result, judgements=(replace(judgement, device="cuda"),)), tmp_path)
    (left,) = inputs.iterdir()
    assert left.name.endswith("-cuda-float32")
    (inputs / "mine").mkdir()
    (inputs / "mine" / "example.json").write_text("{}")
    (left / "notes.txt").write_text("of my own")
    evidence.keep(
        replace(result, judgements=(unfailing(judgement),)),
        tmp_path,
    )
    assert {each.name for each in inputs.iterdir()} == {left.name, "mine"}
    (left / "notes.txt").unlink()
    (inputs / "mine" / "example.json").unlink()
    (inputs / "mine").rmdir()
    evidence.keep(
        replace(result, judgements=(unfailing(judgement),)),
        tmp_path,
    )
    assert not inputs.exists()


def test_a_link_to_a_failing_input_is_left_alone(result: Result, tmp_path: Path) -> None:
    kept = evidence.keep_inputs(result, tmp_path / "elsewhere")
    link = tmp_path / evidence.INPUTS / "link"
    link.parent.mkdir()
    link.symlink_to(str(kept.judgements[0].saved))
    evidence.keep_texts(replace(result, judgements=()), tmp_path)
    assert read(link).example.prompts


def test_what_is_kept_before_the_texts_stays(result: Result, tmp_path: Path) -> None:
    """As in the suite, whose workers keep inputs long before the report is written."""
    kept = evidence.keep_inputs(result, tmp_path / evidence.INPUTS)
    evidence.keep(kept, tmp_path)
    assert read(Path(str(kept.judgements[0].saved))).example.prompts


def test_two_checkpoints_of_the_same_name_are_kept_apart(result: Result, tmp_path: Path) -> None:
    one = result.judgements[0]
    both = replace(result, judgements=(one, replace(one, sha256="0" * 64)))
    saved = {judgement.saved for judgement in evidence.keep_inputs(both, tmp_path).judgements}
    assert len(saved) == 2


def test_what_the_texts_say_of_a_failing_input(result: Result) -> None:
    from clipcheck.report.text import failing_lines

    judgement = result.judgements[0]
    assert judgement.failing is not None
    lines = failing_lines(judgement)
    assert lines[0].startswith("  smallest input that fails: the prompt '")
    as_it_was = replace(judgement.failing, shrunk=False, example=Example(prompts=("a", "b")))
    assert failing_lines(replace(judgement, failing=as_it_was))[0] == (
        "  a batch that fails: the prompt 'a', the prompt 'b'"
    )
    assert failing_lines(unfailing(judgement)) == []


def test_archives_with_other_dimensions_of_their_own_take_raw_inputs_otherwise() -> None:

    from clipcheck.backends.jit import _preprocessing_of
    from clipcheck.models.facts import Facts

    facts = Facts(scripted=True, used={}, input_resolution=40)
    assert _preprocessing_of(facts, architecture_named("tiny-vit")) == Preprocessing(40, 77)


@pytest.mark.thorough
def test_the_suite_prints_the_smallest_input_and_keeps_it(
    wrong_on_any_prompt: Path, tmp_path: Path
) -> None:
    lean = ["-p", "no:anyio", "-p", "no:hypothesispytest"]
    command = [sys.executable, "-m", "pytest", *lean, "--pyargs", "clipcheck.suite"]
    options = [
        "--clip-model",
        str(wrong_on_any_prompt),
        "--clip-report",
        "found",
        "--clip-examples",
        "14",
    ]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (folder,) = (tmp_path / "found" / "failing-inputs").iterdir()
    (prompt,) = read(folder).example.prompts
    assert f"smallest input that fails: the prompt '{prompt}'" in done.stdout
    assert f"again: clipcheck replay {folder}" in unfolded(done.stdout)
    assert "Traceback" not in done.stdout
    document = json.loads((tmp_path / "found" / "results.json").read_text())
    assert document["results"][0]["failing_example"]["saved"] == str(folder)


def test_a_program_is_not_taken_for_the_checkpoint_that_it_was_made_of(
    folder: Path, tmp_path: Path, faulty: Path
) -> None:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    program = tmp_path / "program.onnx"
    program.write_bytes(helper.make_model(graph).SerializeToString())
    document = json.loads((folder / "example.json").read_text())
    (folder / "example.json").write_text(
        json.dumps({**document, "backend": "trace", "reference_checkpoint": str(faulty)})
    )
    with pytest.raises(
        ReplayError, match=r"a checkpoint that trace runs, .*found a program"
    ) as caught:
        replay(folder, checkpoint=str(program))
    assert caught.value.remedy == f"Check the program: clipcheck check {program}."
