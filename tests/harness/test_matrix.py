"""Runs that share a reference: backends of one checkpoint, files with references, and programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import clipcheck
from clipcheck.audit.faults import fault_named
from clipcheck.backends import loading, registry
from clipcheck.backends.base import Missing
from clipcheck.backends.clip import Clip
from clipcheck.backends.known import Known, Pattern
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.reference import Reference
from clipcheck.backends.script import Script
from clipcheck.backends.trace import Trace
from clipcheck.backends.transformers import Transformers
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import RunError
from clipcheck.harness import checking, matrix
from clipcheck.harness.phases import SHARED
from clipcheck.harness.preprocessing import comparing
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.writers.archive import write_archive
from clipcheck.writers.convert import convert, write
from clipcheck.writers.directories import write_open_clip, write_transformers
from clipcheck.writers.programs import convert_to_program
from clipcheck.writers.synthesize import synthesize
from tests.checkpoints.test_artefacts import with_records
from tests.samples import MINUTE, MINUTE_RESNET, minute_bytes, minute_weights
from tests.thorough import parametrize

CHANGED = "transformer.resblocks.0.mlp.c_fc.weight"


def check(path: Path, *backends: str, **options: Any) -> Result:
    """Check with as few images as possible."""
    options = {"device": "cpu", "examples": 1, **options}
    return clipcheck.check(path, backend=backends or None, **options)


def only(result: Result) -> Judgement:
    (judgement,) = result.judgements
    return judgement


def failed(judgement: Judgement) -> list[str]:
    return [gate.name for gate in judgement.gates if not gate.passed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    """Write an archive in half and single precision, like the released ones."""
    path = folder / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


@pytest.fixture(scope="module")
def resnet(folder: Path) -> Path:
    path = folder / "resnet.pt"
    write(MINUTE_RESNET, synthesize(MINUTE_RESNET), path, Format.ARCHIVE)
    return path


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(minute_bytes(Format.SAFETENSORS))
    return path


@pytest.fixture(scope="module")
def changed(folder: Path) -> Path:
    """Change one number of one weight."""
    tensors = minute_weights()
    tensors[CHANGED][3, 4] += 0.5
    path = folder / "changed.safetensors"
    write(MINUTE, tensors, path, Format.SAFETENSORS)
    return path


class Programs(dict[str, Path]):
    """Programs by format, each made at its first use, beside the archive that it is made from."""

    def __init__(self, archive: Path) -> None:
        super().__init__()
        self._archive = archive

    def __missing__(self, form: str) -> Path:
        self[form] = self._archive.with_suffix(f".{form}")
        convert_to_program(open_checkpoint(self._archive), self[form], Format(form))
        return self[form]


@pytest.fixture(scope="module")
def programs(archive: Path) -> Programs:
    return Programs(archive)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make these the only backends."""
    return lambda *names: monkeypatch.setattr(registry, "BACKENDS", names)


@pytest.fixture
def negated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace a model that returns image features with the wrong sign."""
    build = Trace.build

    def negating(source: Any) -> Any:
        backend = build(source)
        outputs = backend.outputs
        backend.outputs = lambda *given: {
            name: -array if name == "image_features" else array
            for name, array in outputs(*given).items()
        }
        return backend

    monkeypatch.setattr(Trace, "build", negating)


# ------------------------------------------------------------------- several backends of one file


@pytest.mark.thorough
def test_backends_of_one_checkpoint_share_the_references(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    for name in ("outputs", "exact_outputs"):
        method = getattr(Reference, name)
        monkeypatch.setattr(
            Reference,
            name,
            lambda *given, of=method, as_=name, **more: ran.append(as_) or of(*given, **more),
        )
    result = check(archive, "trace", "script", "clip", "trace")
    assert ran == ["outputs", "exact_outputs"]
    assert [judgement.backend for judgement in result.judgements] == ["trace", "script", "clip"]
    assert [judgement.error for judgement in result.judgements] == [None] * 3
    assert (result.passed, result.exit_code, result.left_out) == (True, 0, ())
    assert len({judgement.sha256 for judgement in result.judgements}) == 1


@pytest.mark.thorough
def test_each_dtype_has_references_of_its_own(archive: Path) -> None:
    result = check(archive, "trace", "script", dtype=["float32", "float16"])
    assert [(judgement.backend, judgement.dtype) for judgement in result.judgements] == [
        ("trace", "float32"), ("script", "float32"), ("trace", "float16"), ("script", "float16")
    ]  # fmt: skip
    assert result.passed


@pytest.mark.thorough
def test_seconds_of_shared_work_are_reported_once(archive: Path) -> None:
    first, second = check(archive, "trace", "clip").judgements
    assert first.seconds.keys() >= {*SHARED, "build", "candidate", "run"}
    assert second.seconds.keys() >= {"build", "candidate", "run"}
    assert not second.seconds.keys() & SHARED.keys()
    for each in (first, second):
        parts = [spent for name, spent in each.seconds.items() if name not in ("load", "build")]
        assert each.seconds["run"] == pytest.approx(sum(parts) / 2)


@pytest.mark.thorough
def test_if_the_first_backend_cannot_be_built_the_next_reports_the_shared_seconds(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("1 of 3\nno such operator")

    monkeypatch.setattr(Script, "build", broken)
    first, second = check(archive, "script", "trace").judgements
    assert first.error == (
        "script: building failed (no such operator). Run it again with --debug to see the whole "
        "message."
    )
    assert first.gates == ()
    assert second.passed
    assert second.seconds.keys() >= SHARED.keys()


@pytest.mark.thorough
def test_all_leaves_out_what_does_not_fit_and_the_verdict_does_not_depend_on_it(
    archive: Path, everything: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything("jit", "eager", "trace", "clip")
    missing = Missing("the reference package is not installed", "Install it: pip install clip.")
    monkeypatch.setattr(Clip, "available", lambda: missing)
    result = check(archive, "all")
    assert [judgement.backend for judgement in result.judgements] == ["jit", "trace"]
    assert result.left_out == (
        LeftOut(str(archive), "eager", "cpu", "float32",
                "the eager model is the reference, and cannot be compared with itself"),
        LeftOut(str(archive), "clip", "cpu", "float32",
                "the reference package is not installed. Install it: pip install clip."),
    )  # fmt: skip
    assert result.exit_code == 0
    named = check(archive, "all", "clip", "trace")
    assert [each.backend for each in named.left_out] == ["eager"]
    (unjudged,) = (judgement for judgement in named.judgements if judgement.error)
    assert unjudged.error == "clip: the reference package is not installed. " + missing.remedy
    assert unjudged.remedy == missing.remedy
    assert named.exit_code == 2


def test_the_eager_model_is_not_compared_with_itself(archive: Path) -> None:
    judgement = only(check(archive, "eager"))
    assert "is the reference, and cannot" in str(judgement.error)
    assert "--reference CHECKPOINT" in str(judgement.remedy)


@pytest.mark.thorough
def test_transformers_is_left_out_for_a_resnet_and_cannot_be_asked_for(
    resnet: Path, everything: Callable[..., None]
) -> None:
    everything("trace", "transformers")
    result = check(resnet, "all")
    assert result.exit_code == 0
    variants = [str(registry.Choice("transformers", each)) for each in Transformers.variants]
    assert [each.backend for each in result.left_out] == variants
    assert "ResNet" in result.left_out[0].reason
    asked = check(resnet, "transformers")
    assert asked.exit_code == 2
    assert result.left_out[0].reason in str(only(asked).error)


def test_with_nothing_left_to_judge_there_is_no_pass(
    archive: Path, everything: Callable[..., None]
) -> None:
    everything("eager")
    result = check(archive, "all")
    assert result.judgements == ()
    assert len(result.left_out) == 1
    assert (result.passed, result.exit_code) == (False, 2)


def test_a_backend_that_changes_the_weights_does_not_spoil_the_next(folder: Path) -> None:
    path = folder / "drifts.pt"
    write_archive(MINUTE, synthesize(MINUTE), path, alter=fault_named("logit-scale-drifts").plant)
    drifting, sound = check(path, "jit", "trace").judgements
    assert "integrity" in failed(drifting)
    assert sound.passed


def test_an_error_of_the_shared_reference_fails_all_backends(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise RunError("no memory is left", remedy="Take a smaller one.")

    monkeypatch.setattr(Reference, "exact_outputs", none)
    judgements = check(archive, "trace", "script").judgements
    assert [judgement.backend for judgement in judgements] == ["trace", "script"]
    assert {judgement.error for judgement in judgements} == {
        "no memory is left. Take a smaller one."
    }


@pytest.mark.parametrize(
    ("asked", "named"),
    [((), "jit"), (("trace",), "trace"), (("trace", "script"), "trace, script"), (("all",), "all")],
)
def test_what_cannot_be_opened_is_reported_once_with_the_request(
    asked: tuple[str, ...], named: str
) -> None:
    judgement = only(check(Path("gone.pt"), *asked))
    assert judgement.backend == named
    assert judgement.error


@parametrize("error", [RunError("no", remedy="No."), ZeroDivisionError("no")], quick=1)
def test_a_candidate_is_closed_after_any_error(
    archive: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    closed: list[str] = []
    close = ModuleBackend.close
    monkeypatch.setattr(
        ModuleBackend, "close", lambda self: closed.append(self.name) or close(self)
    )
    assert check(archive, "trace").passed
    assert closed == ["trace"]

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(matrix, "judge_candidate", fails)
    if isinstance(error, RunError):
        assert only(check(archive, "trace")).error == "no. No."
    else:
        with pytest.raises(ZeroDivisionError):
            check(archive, "trace")
    assert closed == ["trace", "trace"]


@pytest.mark.thorough
def test_an_artefact_has_a_size(archive: Path, programs: Programs) -> None:
    jit, traced = check(archive, "jit", "trace").judgements
    assert jit.artefact_bytes == archive.stat().st_size
    assert traced.artefact_bytes is None
    assert only(check(programs["pt2"])).artefact_bytes == programs["pt2"].stat().st_size


# --------------------------------------------------------------------------- known, and
# preprocessing


def known(title: str) -> Known:
    return Known(title, "https://example.org/1", "Wait.", ("torch",), ">=1")


@pytest.mark.thorough
@pytest.mark.usefixtures("negated")
def test_a_known_failure_is_named_and_still_fails(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def found(*given: Any, vision: str) -> list[Known]:
        asked.append((*given, vision))
        return [known("a sign is lost")]

    monkeypatch.setattr(matrix, "matching", found)
    monkeypatch.setattr(
        matrix,
        "everything",
        lambda: [Pattern(known=known("x"), backends=(), symptom="x", example="x")],
    )
    result = check(archive, "trace", "clip")
    bad, good = result.judgements
    assert [each.title for each in bad.known] == ["a sign is lost"]
    assert failed(bad)
    assert result.exit_code == 1
    assert (good.passed, good.known) == (True, ())
    ((backend, device, dtype, text, versions, vision),) = asked
    assert (backend, device, dtype, vision) == ("trace", "cpu", "float32", "ViT")
    assert text.startswith("fidelity: worst error ")
    assert "image features of image 0" in text
    assert "integrity" not in text
    assert versions.keys() == {"torch"}


def test_a_known_error_is_named_and_is_still_one(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("it is x")

    monkeypatch.setattr(Trace, "build", broken)
    gone = Pattern(
        known=replace(known("x"), packages=("no-such-distribution",)),
        backends=(),
        symptom="x",
        example="x",
    )
    monkeypatch.setattr(matrix, "everything", lambda: [gone])
    seen: list[Any] = []
    monkeypatch.setattr(
        matrix, "matching", lambda *given, vision: seen.append(given) or [known("x")]
    )
    result = check(archive, "trace")
    assert result.exit_code == 2
    assert [each.title for each in only(result).known] == ["x"]
    assert (seen[0][3], seen[0][4]) == (only(result).error, {})


@pytest.mark.thorough
def test_a_librarys_own_preprocessing_is_compared_once_and_apart_from_the_verdict(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    compare = comparing.compare

    def counting(candidates: Any, *given: Any) -> Any:
        compared.append(len(candidates))
        return compare(candidates, *given)

    monkeypatch.setattr(comparing, "compare", counting)
    backends = ("transformers", "transformers:attention=eager")
    result = check(archive, *backends, dtype=["float32", "float16"], examples=3)
    first, *others = result.judgements
    assert {each.kind for each in first.preprocessing} == {"image"}  # its vocabulary is not CLIP's
    assert [bool(each.preprocessing) for each in others] == [False] * 3
    assert [number for number in compared if number] == [2]  # slow and fast
    assert result.passed
    assert {each.preprocessing_problem for each in result.judgements} == {None}


def test_a_preprocessing_that_cannot_be_compared_is_reported_without_effect_on_the_verdict(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RunError("clip: preprocessing failed (no)", remedy="Look.")

    monkeypatch.setattr(comparing, "compare", fails)
    judgement = only(check(archive, "clip"))
    assert judgement.passed
    assert judgement.preprocessing == ()
    assert judgement.preprocessing_problem == "clip: preprocessing failed (no). Look."


# -------------------------------------------------------------------------- files beside references


def single(folder: Path, form: Format) -> Path:
    path = folder / f"single-{form.value}"
    if not path.exists():
        half = open_checkpoint(folder / "minute.pt")
        convert(half, path, form, dtype=torch.float32)
    return path


def layout(folder: Path, write_folder: Callable[..., None]) -> Path:
    path = folder / write_folder.__name__
    write_folder(open_checkpoint(folder / "minute.pt"), path)
    return path


CONVERSIONS = {
    "safetensors": (lambda folder: folder / "weights.safetensors", "eager"),
    "a state dict in float32": (lambda folder: single(folder, Format.STATE_DICT), "eager"),
    "an archive in float32": (lambda folder: single(folder, Format.ARCHIVE), "jit"),
    "transformers": (lambda folder: layout(folder, write_transformers), "transformers"),
    "open_clip": (lambda folder: layout(folder, write_open_clip), "open_clip"),
}


@pytest.mark.usefixtures("weights")
@parametrize("what", CONVERSIONS, quick=2)
def test_a_right_conversion_is_consistent_with_what_it_was_made_of(
    folder: Path, archive: Path, what: str
) -> None:
    made, backend = CONVERSIONS[what]
    judgement = only(check(made(folder), reference=archive))
    assert judgement.error is None
    assert judgement.gates[0].name == "weights"
    assert failed(judgement) == []
    assert judgement.backend == backend
    assert judgement.reference == f"eager of {archive}"
    assert judgement.reference_checkpoint == str(archive)


@pytest.mark.thorough
@parametrize("form", [Format.ARCHIVE, Format.STATE_DICT], quick=1)
def test_a_conversion_to_half_is_consistent_with_its_source(tmp_path: Path, form: Format) -> None:
    """The reference computes with its weights rounded as well."""
    # Numbers that half precision does not have.
    tensors = {
        key: tensor.float() * 1.0001 if tensor.is_floating_point() else tensor
        for key, tensor in minute_weights().items()
    }
    reference, half = tmp_path / "single", tmp_path / "half"
    write(MINUTE, tensors, reference, form)
    assert open_checkpoint(reference).dtypes == ["float32"]
    convert(open_checkpoint(reference), half, Format.ARCHIVE, dtype=torch.float16)
    result = check(half, "jit", "trace", reference=reference)
    assert [failed(judgement) for judgement in result.judgements] == [[], []]
    assert result.passed


def test_a_different_weight_is_named_and_the_outputs_are_judged_as_well(
    changed: Path, archive: Path
) -> None:
    result = check(changed, "eager", "trace", reference=archive)
    assert result.exit_code == 1
    for judgement in result.judgements:
        gate = judgement.gates[0]
        assert (gate.name, gate.passed) == ("weights", False)
        assert f"weights differ in 1 tensor: {CHANGED}" in gate.message
        assert failed(judgement) == ["weights", "fidelity"]
        assert judgement.failing is not None


def test_a_reference_of_other_dimensions_cannot_be_compared_with(
    archive: Path, resnet: Path
) -> None:
    result = check(archive, reference=resnet)
    assert result.exit_code == 2
    error = str(only(result).error)
    assert error.startswith(f"{archive}: expected the dimensions of the reference")
    assert only(result).gates == ()


def test_weights_alone_need_a_backend_or_a_reference(weights: Path) -> None:
    judgement = only(check(weights))
    assert "has only weights and no code" in str(judgement.error)
    for way in ("--backend", "--reference", "clipcheck convert"):
        assert way in str(judgement.remedy)
    assert check(weights, "trace").passed


@pytest.mark.thorough
def test_a_program_is_no_reference(archive: Path, programs: Programs) -> None:
    error = str(only(check(archive, reference=programs["pt2"])).error)
    assert "expected a reference with weights, found a program (pt2)" in error


# ---------------------------------------------------------------------------------------- programs


@parametrize(
    ("form", "backend", "beside"), [("pt2", "export", True), ("onnx", "onnxruntime", False)]
)
def test_a_program_is_judged_against_the_checkpoint_that_it_was_made_of(
    programs: Programs,
    archive: Path,
    tmp_path: Path,
    form: str,
    backend: str,
    beside: bool,
) -> None:
    path = programs[form]
    if not beside:
        path = tmp_path / "elsewhere"
        path.write_bytes(programs[form].read_bytes())
    isolation = None if beside else "none"
    judgement = only(check(path, reference=None if beside else archive, isolation=isolation))
    assert judgement.error is None
    assert failed(judgement) == []
    assert (judgement.backend, judgement.reference) == (backend, f"eager of {archive}")
    assert judgement.description.startswith(f"{form}, a program of ")
    assert judgement.gates[0].name == "integrity"


def test_a_program_alone_says_what_it_needs(programs: Programs, tmp_path: Path) -> None:
    path = tmp_path / "alone.pt2"
    path.write_bytes(programs["pt2"].read_bytes())
    judgement = only(check(path))
    assert "the checkpoint that this program was made from beside it" in str(judgement.error)
    assert "--reference CHECKPOINT" in str(judgement.remedy)


@parametrize(("form", "other"), [("pt2", "onnxruntime"), ("onnx", "export")], quick=1)
def test_another_backend_does_not_run_a_program(
    programs: Programs, form: str, other: str, everything: Callable[..., None]
) -> None:
    judgement = only(check(programs[form], other))
    assert f"{other} does not run programs of the format {form}" in str(judgement.error)
    everything("eager", "trace", other)
    result = check(programs[form], "all")
    assert result.exit_code == 2
    assert [each.reason for each in result.left_out] == [
        f"{name} does not run programs of the format {form}" for name in ("eager", "trace", other)
    ]


@pytest.mark.thorough
@parametrize("form", ["pt2", "onnx"], quick=1)
def test_a_program_of_other_weights_is_inconsistent(
    programs: Programs, changed: Path, form: str
) -> None:
    result = check(programs[form], reference=changed, isolation="none")
    assert result.exit_code == 1
    assert "fidelity" in failed(only(result))


def test_native_code_is_not_loaded(programs: Programs, archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "package.pt2"
    contents = programs["pt2"].read_bytes()
    path.write_bytes(with_records(contents, {"data/aotinductor/model/x.so": b""}))
    result = check(path, reference=archive, isolation="none")
    assert result.exit_code == 2
    assert "it is native code, which runs as soon as it is loaded" in str(only(result).error)


# ------------------------------------------------------------------------------------------ options


@pytest.mark.thorough
@pytest.mark.parametrize("cache", [True, False])
def test_programs_are_cached_unless_the_cache_is_disabled(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: bool
) -> None:
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS", str(tmp_path))
    folders: list[Path | None] = []
    keep = loading.Artefacts

    def noting(folder: Path | None, scratch: Path) -> Any:
        folders.append(folder)
        return keep(folder, scratch)

    monkeypatch.setattr(loading, "Artefacts", noting)
    check(archive, "trace", cache=cache)
    assert folders == [tmp_path if cache else None]


def test_a_backend_that_there_is_not_is_refused_before_anything_is_read() -> None:
    with pytest.raises(clipcheck.errors.UsageError, match="nearest name is 'trace'"):
        checking.check("gone.pt", backend="tracer")
