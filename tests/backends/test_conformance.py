"""Requirements of every backend.

Each is built, run, given inputs that it cannot run, and closed, once for all tests: some take a
minute to build. The tests check what was recorded on the way.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from clipcheck.backends import registry
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Named, reason
from clipcheck.backends.loading import Sides, build, load_sides
from clipcheck.backends.names import BACKENDS
from clipcheck.backends.reference import exact_floats
from clipcheck.backends.registry import Choice, find
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import PROGRAM_FORMATS, Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import ClipcheckError, RunError, UnavailableError
from clipcheck.families import eager
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.fidelity import fidelity, precision
from clipcheck.gates.integrity import Evidence, integrity
from clipcheck.gates.repeatability import Repeat, repeatability
from clipcheck.gates.result import OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.batches import Batch, batches
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.counts import SIZES as OF_BATCHES
from clipcheck.system import torchscript_support
from conftest import Run
from tests.backends.kept import CPU, Kept, assert_same, minute
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import quick_first

SMALL = {"vit": MINUTE, "resnet": MINUTE_RESNET}

SLOW = ("compile", "aotinductor", "executorch")
"""They take up to a minute to build, and are run with one architecture."""

SIZES = [*OF_BATCHES, (3, 3), (1, 1)]
"""Images and texts of each batch."""

LARGE = SIZES.index((7, 8))

DTYPES = ("float32", "float16", "bfloat16")

HERE = tuple(name for name in BACKENDS if name != "executorch" or find(name).available() is None)
"""All backends. executorch is no part of the extra `test`, for it asks for one version of some
packages that others need; where it is installed, it is tested as well."""


def everything() -> list[Choice]:
    return [Choice(name, variant) for name in HERE for variant in find(name).variants]


def unfit(choice: Choice, architecture: Architecture, dtype: str = "float32") -> str | None:
    checkpoint = Checkpoint(
        path=Path("archive.pt"), format=Format.ARCHIVE, model=architecture, tensors={}
    )
    return find(choice.name).unfit(checkpoint, CPU, dtype)


PAIRS = [
    (choice, name)
    for choice in everything()
    for name in (["vit"] if choice.name in SLOW else SMALL)
]
QUICK = {
    *((str(Choice(name, find(name).variants[0])), "vit") for name in HERE if name not in SLOW),
    ("jit", "resnet"),
}
"""Each backend once, with the smallest model, but for those that take most of a minute to build."""

FITTING = [
    pytest.param(
        pair,
        id=f"{pair[0]}-{pair[1]}",
        marks=() if (str(pair[0]), pair[1]) in QUICK else pytest.mark.thorough,
    )
    for pair in PAIRS
    if unfit(pair[0], SMALL[pair[1]]) is None
]
UNFIT = [
    pytest.param(choice, dtype, id=f"{choice}-{name}-{dtype}")
    for choice, name in PAIRS
    for dtype in DTYPES
    if unfit(choice, SMALL[name], dtype) is not None
]


@dataclass(frozen=True)
class Life:
    """Observations of a backend, from before it was built until after it was closed.

    Attributes:
        choice: which.
        model: the eager model of the source.
        before: its weights, before anything was built.
        name: the backend's.
        size: the same.
        cases: outputs of each batch, with those of the reference.
        untouched: by batch, whether pixels and ids are unchanged.
        scale: exp(logit_scale).
        twice: outputs of each batch in a second run.
        repeats: rows of the large batch, alone and in other batches.
        methods: the large batch, each output by its own method.
        error: the error for ids outside the vocabulary.
        evidence: of it, when it had run.
        closed: the error of each method after closing.
        evidence_of_closed: the evidence, afterwards.
        left: what it left behind in this process or on the disk, by what was looked at.
    """

    choice: Choice
    model: eager.CLIP
    before: dict[str, torch.Tensor]
    name: str
    size: int | None
    cases: list[Case]
    untouched: list[bool]
    scale: float
    twice: list[Named]
    repeats: list[Repeat]
    methods: Repeat
    error: BaseException
    evidence: Evidence
    closed: dict[str, BaseException]
    evidence_of_closed: Evidence
    left: dict[str, tuple[object, object]]


@pytest.fixture(scope="module", params=FITTING)
def life(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> Life:
    choice, name = request.param
    # When it is imported, torch chooses and makes the folder of its precompiled headers, which are
    # for all processes of a user; on first use it names the folder in the environment.
    importlib.import_module("torch._inductor.codecache").cache_dir()
    with pytest.MonkeyPatch.context() as patch:
        temporary = tmp_path_factory.mktemp("temporary")
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        scratch = tmp_path_factory.mktemp("scratch")
        # What is built of that file is built for other tests as well.
        form = Format.STATE_DICT if choice.name in SLOW else Format.ARCHIVE
        sides = sides_of(minute(built, form, SMALL[name]), built, scratch)
        with exact_floats():
            return lived(choice, sides, temporary)


def sides_of(file: Path, built: Path, scratch: Path, dtype: str = "float32") -> Sides:
    checkpoint = open_checkpoint(file)
    artefacts = cast(Artefacts, Kept(built))
    archive = checkpoint.format is Format.ARCHIVE
    return load_sides(checkpoint, None, CPU, dtype, scratch, artefacts, archive=archive)


def lived(choice: Choice, sides: Sides, temporary: Path) -> Life:
    source = sides.source
    before = {key: tensor.clone() for key, tensor in source.model.state_dict().items()}
    # What a library sets when it is first imported, it sets once for the process.
    if choice.name in ("onnxruntime", "openvino", "open_clip", "transformers"):
        importlib.import_module(choice.name)
    if choice.name == "executorch":
        importlib.import_module("executorch.exir")
        importlib.import_module("executorch.runtime").Runtime.get()
    given = inputs(source.checkpoint.architecture)
    pairs = [(batch.pixels, batch.tokens) for batch in given]
    own, exact = sides.reference.outputs(pairs), sides.reference.exact_outputs(pairs)
    standing = state(source.scratch, temporary)

    backend = build(choice, source)
    assert type(backend) is find(choice.name)
    found, untouched = [], []
    for batch in given:
        pixels, tokens = batch.pixels.copy(), batch.tokens.copy()
        found.append(backend.outputs(pixels, tokens))
        same = pixels.tobytes() == batch.pixels.tobytes()
        untouched.append(same and tokens.tobytes() == batch.tokens.tobytes())
    twice = [backend.outputs(batch.pixels, batch.tokens) for batch in given]
    repeats = [
        again(backend, given[LARGE], "alone", [4], [5]),
        again(backend, given[LARGE], "in other batches", [4, 0], [5, 1, 0]),
    ]
    methods = by_method(backend, given[LARGE])
    pixels, tokens = pairs[0]
    # OpenVINO takes ids outside of the vocabulary, and has zeros for them.
    wrong = tokens[:, 1:] if choice.name == "openvino" else np.full_like(tokens, 10**6)
    error = raised(backend.outputs, pixels, wrong)
    evidence, name, size = backend.evidence(), backend.name, backend.size
    with backend:
        pass
    closed = {
        "encode_image": raised(backend.encode_image, pixels),
        "encode_text": raised(backend.encode_text, tokens),
        "__call__": raised(backend, pixels, tokens),
        "outputs": raised(backend.outputs, pixels, tokens),
    }
    evidence_of_closed = backend.evidence()
    del backend
    gc.collect()
    after = state(source.scratch, temporary)

    cases = [
        Case(
            candidate=mine,
            reference=ours,
            exact=float64,
            rows=batch.rows,
            first_rows=batch.first_rows,
        )
        for mine, ours, float64, batch in zip(found, own, exact, given, strict=True)
    ]
    left = {what: (standing[what], after[what]) for what in standing}
    return Life(
        choice,
        source.model,
        before,
        name,
        size,
        cases,
        untouched,
        sides.reference.scale,
        twice,
        repeats,
        methods,
        error,
        evidence,
        closed,
        evidence_of_closed,
        left,
    )


@functools.cache
def inputs(architecture: Architecture) -> list[Batch]:
    """Return the edge cases, with as many images as texts, and one of each."""
    found = list(batches(EDGE_CASES, inputs_of(architecture), seed=0))
    found.append(found[LARGE].select([0, 1, 2], [0, 1, 2]))
    found.append(found[LARGE].select([3], [4]))
    assert [(len(batch.pixels), len(batch.tokens)) for batch in found] == SIZES
    return found


def again(
    backend: Backend, batch: Batch, what: str, images: list[int], prompts: list[int]
) -> Repeat:
    some = batch.select(images, prompts)
    rows = {"image": images, "prompt": prompts}
    return Repeat(what, LARGE, rows, backend.outputs(some.pixels, some.tokens))


def by_method(backend: Backend, batch: Batch) -> Repeat:
    per_image, per_text = backend(batch.pixels, batch.tokens)
    rows = {"image": list(range(len(batch.pixels))), "prompt": list(range(len(batch.tokens)))}
    found = {
        "image_features": backend.encode_image(batch.pixels),
        "text_features": backend.encode_text(batch.tokens),
        "logits_per_image": per_image,
        "logits_per_text": per_text,
    }
    return Repeat("by each method", LARGE, rows, found)


def raised(call: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises(ClipcheckError) as caught:
        call(*arguments)
    error: BaseException | None = caught.value
    while error is not None:  # else the tracebacks would hold the backend
        error.__traceback__ = None
        error = error.__cause__
    return caught.value


def state(scratch: Path, temporary: Path) -> dict[str, object]:
    """State of this process and of the disk that a backend must not change."""
    import torch._dynamo

    return {
        "environment variables": dict(os.environ),
        "working directory": Path.cwd(),
        "temporary files": sorted(path.name for path in temporary.iterdir()),
        "open files in its folder": sorted(_open_files(scratch)),
        "torch's threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's precision": torch.get_float32_matmul_precision(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "Dynamo's limits": (
            torch._dynamo.config.recompile_limit,
            torch._dynamo.config.accumulated_recompile_limit,
        ),
        "log filters": list(logging.getLogger("torch.utils.cpp_extension").filters),
    }


def _open_files(folder: Path) -> Iterator[str]:
    for path in Path("/proc/self/fd").glob("*"):
        # The one that lists the folder is gone by now.
        if path.exists() and folder in path.resolve().parents:
            yield str(path.resolve())


# ------------------------------------------------------------------ what it computes


def test_it_gives_all_outputs_by_name_in_the_eager_models_shapes_and_dtypes(life: Life) -> None:
    for case, (images, texts) in zip(life.cases, SIZES, strict=True):
        assert list(case.candidate) == list(OUTPUTS)
        assert case.candidate["logits_per_image"].shape == (images, texts)
        for name, array in case.candidate.items():
            assert type(array) is np.ndarray
            assert (name, array.shape) == (name, case.reference[name].shape)
            assert (name, array.dtype) == (name, case.reference[name].dtype)


def test_it_is_as_close_to_float64_as_the_eager_model(life: Life) -> None:
    found = fidelity(life.cases, LIMITS["float32"], life.scale)
    assert found.passed, found.message


def test_each_method_agrees_with_all_outputs(life: Life) -> None:
    found = repeatability(life.cases, [life.methods], LIMITS["float32"], life.scale)
    assert found.passed, found.message
    for name, array in life.methods.outputs.items():
        assert array.dtype == life.cases[LARGE].candidate[name].dtype


def test_a_row_does_not_depend_on_the_rest_of_the_batch(life: Life) -> None:
    found = repeatability(life.cases, life.repeats, LIMITS["float32"], life.scale)
    assert found.passed, found.message


def test_the_same_inputs_give_the_same_bits(life: Life) -> None:
    for case, found in zip(life.cases, life.twice, strict=True):
        assert_same(found, cast(Named, case.candidate))


# ------------------------------------------------------------------ what it is


def test_it_has_the_name_that_it_was_chosen_by(life: Life) -> None:
    assert life.name == str(life.choice)


def test_it_has_no_doubts_about_itself(life: Life) -> None:
    found = integrity(life.cases, life.evidence)
    assert found.passed, found.message
    # Of a ResNet, ONNX's convolutions have taken up what normalises.
    resnet = isinstance(life.model.visual, eager.ModifiedResNet)
    least = 20 if resnet and life.choice.name in ("onnxruntime", "openvino") else 30
    assert life.evidence.weights is None or life.evidence.weights > least


def test_its_artefact_has_a_size(life: Life) -> None:
    has_one = ("jit", "compile", "export", "aotinductor", "onnxruntime", "openvino", "executorch")
    assert (life.size is not None) == (life.choice.name in has_one)
    assert life.size is None or life.size > 10_000


# ------------------------------------------------------------------ what it leaves alone


def test_it_does_not_write_to_its_inputs(life: Life) -> None:
    assert life.untouched == [True] * len(SIZES)


def test_it_does_not_change_the_weights_of_its_source(life: Life) -> None:
    after = life.model.state_dict()
    assert after.keys() == life.before.keys()
    for key, tensor in life.before.items():
        assert same_bits(after[key], tensor), key


def test_closing_releases_all_it_opened(life: Life) -> None:
    for what, (before, after) in life.left.items():
        assert after == before, what


# ------------------------------------------------------------------ how it fails


def test_errors_of_its_library_are_translated_once_with_their_text(life: Life) -> None:
    assert type(life.error) is RunError
    cause = life.error.__cause__
    assert isinstance(cause, Exception)
    assert not isinstance(cause, ClipcheckError)
    assert life.error.problem.startswith(f"{life.choice}: ")
    assert life.error.problem.endswith(f" failed ({reason(cause)})")
    assert life.error.problem.count(" failed (") == 1


def test_a_closed_backend_raises_an_error(life: Life) -> None:
    for method, error in life.closed.items():
        assert type(error) is RunError, method
        assert str(error) == f"{life.choice}: it was closed. Build it anew."
    assert life.evidence_of_closed == Evidence(weights=None, doubts=["the candidate was closed"])


@pytest.mark.parametrize(("choice", "dtype"), UNFIT)
def test_unfit_checkpoints_are_refused_with_the_reason(
    choice: Choice, dtype: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sides_of(minute(built, Format.STATE_DICT), built, tmp_path).source
    monkeypatch.setattr(find(choice.name), "unfit", lambda *_: f"no {dtype}")
    monkeypatch.setattr(find(choice.name), "build", None)
    with pytest.raises(UnavailableError, match=f"^{choice.name}: no {dtype}. Choose another"):
        build(choice, source)


# ------------------------------------------------------------------ in other dtypes

HALF = [
    pytest.param(choice, dtype, id=f"{choice}-{dtype}")
    for choice in everything()
    for dtype in ("float16", "bfloat16")
    if choice.name not in SLOW and unfit(choice, MINUTE, dtype) is None
]


@pytest.mark.parametrize(("choice", "dtype"), quick_first(HALF, 2))
def test_in_half_it_is_as_close_to_float64_as_the_eager_model(
    choice: Choice, dtype: str, built: Path, tmp_path: Path
) -> None:
    sides = sides_of(minute(built, Format.ARCHIVE), built, tmp_path, dtype)
    batch = inputs(MINUTE)[LARGE]
    pair = (batch.pixels, batch.tokens)
    with exact_floats():
        backend = build(choice, sides.source)
        found = backend.outputs(*pair)
    (own,), (exact,) = sides.reference.outputs([pair]), sides.reference.exact_outputs([pair])
    case = Case(candidate=found, reference=own, exact=exact, rows=batch.rows)
    for gate in (
        precision([case], LIMITS[dtype], sides.reference.scale),
        integrity([case], backend.evidence()),
    ):
        assert gate.passed, gate.message
    backend.close()


# ------------------------------------------------------------------ what is not what it should be

KEY = "ln_final.bias"


def of_another_file(name: str, sides: Sides, scratch: Path) -> Backend:
    """The file has other weights than those stated for it."""
    checkpoint = sides.source.checkpoint
    tensors = {**checkpoint.tensors, KEY: checkpoint.tensors[KEY] + 1}
    other = load_sides(
        replace(checkpoint, tensors=tensors),
        None,
        CPU,
        "float32",
        scratch,
        sides.source.artefacts,
        archive=True,
    )
    return build(Choice(name), other.source)


def of_another_model(name: str, sides: Sides, scratch: Path) -> Backend:
    """The model has other weights than the file, or than the program that was made earlier."""
    source = sides.source
    build(Choice(name), source).close()
    weights = source.model.state_dict()
    weights[KEY] = weights[KEY] + 1
    model = eager.build(source.checkpoint.architecture, weights)
    return build(Choice(name), replace(source, model=model))


def altered(name: str, sides: Sides, scratch: Path) -> Backend:
    """The weights were changed after loading."""
    backend: Any = build(Choice(name), sides.source)
    module = getattr(backend._module, "_model", backend._module)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    return cast(Backend, backend)


def unlike_its_source(name: str, sides: Sides, scratch: Path) -> Backend:
    """The backend holds other tensors than the model that it was made from."""
    backend = build(Choice(name), sides.source)
    bias = sides.source.model.ln_final.bias
    sides.source.model.ln_final.bias = torch.nn.Parameter(bias + 1, requires_grad=False)
    return backend


WRONG = {
    "jit": of_another_file,
    "eager": of_another_model,
    "trace": unlike_its_source,
    "script": unlike_its_source,
    "export": of_another_model,
    "onnxruntime": of_another_model,
    "openvino": of_another_model,
    "open_clip": of_another_file,
    "transformers": altered,
    "clip": altered,
}


@pytest.mark.parametrize("name", HERE)
def test_changed_weights_are_reported_if_they_can_be_compared(
    name: str, built: Path, tmp_path: Path
) -> None:
    if name not in WRONG:
        assert name in SLOW  # whose weights are part of the code, or the eager model's own
        return
    sides = sides_of(minute(built, Format.ARCHIVE), built, tmp_path)
    backend = WRONG[name](name, sides, tmp_path)
    evidence = backend.evidence()
    backend.close()
    assert len(evidence.differing) == 1
    assert not integrity([], evidence).passed


# ------------------------------------------------------------------ what is not there


def without(module: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        find: Any = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == module else find(name, *rest),
        )

    return patch


def without_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscript_support, "unavailable", lambda: "this torch has none")


def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")


ABSENT = {
    "jit": (without_torchscript, "this torch has none", "with a torch that has torch.jit"),
    "trace": (without_torchscript, "this torch has none", "with a torch that has torch.jit"),
    "script": (without_torchscript, "this torch has none", "with a torch that has torch.jit"),
    "compile": (without_a_compiler, "there is no C++ compiler 'there-is-no", "set CXX to the path"),
    "aotinductor": (without_a_compiler, "there is no C++ compiler 'there-is-no", "set CXX to"),
    "onnxruntime": (without("onnxruntime"), "onnxruntime is not installed", "clipcheck[onnx]"),
    "openvino": (without("openvino"), "openvino is not installed", "clipcheck[openvino]"),
    "executorch": (without("executorch"), "executorch is not installed", "[executorch]"),
    "open_clip": (without("open_clip"), "open_clip is not installed", "open_clip_torch"),
    "transformers": (without("transformers"), "transformers is not installed", "[transformers]"),
    "clip": (without("clip"), "the reference package clip is not installed", "clip-anytorch"),
}


@pytest.mark.parametrize("name", HERE)
def test_a_missing_library_exits_2_with_reason_and_remedy(
    name: str, built: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in ABSENT:
        assert name in ("eager", "export")  # of torch, without which nothing runs
        return
    patch, why, remedy = ABSENT[name]
    archive = minute(built, Format.ARCHIVE)  # before TorchScript is gone, which writes it
    assert find(name).available() is None
    patch(monkeypatch)
    missing = find(name).available()
    assert missing is not None
    assert why in missing.reason
    assert remedy in missing.remedy
    done = run("check", archive, "--backend", name, "--no-cache", "--examples", 1)
    assert done.code == 2
    told = " ".join(done.out.split())
    assert why in told
    assert remedy in told


@pytest.mark.parametrize("name", HERE)
def test_the_class_has_its_attributes_and_imports_no_heavy_package(name: str) -> None:

    found = find(name)
    assert issubclass(found, Backend)
    assert found.summary
    assert found.variants
    for variant in found.variants:
        assert variant.keys() <= found.options.keys()
    # It runs what it is made for.
    assert found.default_for.intersection(PROGRAM_FORMATS) <= found.runs_programs
    for option in found.options.values():
        assert option.meaning
        assert not option.values or option.default in option.values
    assert found.version()
    assert registry.require_available(Choice(name)) is None
