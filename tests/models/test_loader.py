from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clipcheck
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import DamagedError, UnavailableError, UnknownModelError, UsageError
from clipcheck.families import eager
from clipcheck.models import loader, taps
from clipcheck.models.weights import WeightWatch
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import write_archive
from clipcheck.writers.convert import convert, write
from clipcheck.writers.synthesize import synthesize
from tests.models import assert_near, inputs, outputs
from tests.oracles import reference_clip
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import parametrize

InFormat = Callable[..., Path]

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def in_format(tmp_path_factory: pytest.TempPathFactory) -> InFormat:
    """Write small weights in a format and a dtype. Tests must not change the file."""
    folder = tmp_path_factory.mktemp("formats")
    weights = synthesize(MINUTE)

    def written(form: str, dtype: torch.dtype | None = None) -> Path:
        path = folder / f"{form}-{dtype}.bin"
        if not path.exists():
            write(MINUTE, weights, folder / "released", Format.STATE_DICT)
            convert(open_checkpoint(folder / "released"), path, Format(form), dtype=dtype)
        return path

    return written


@pytest.fixture
def batch(tiny_archive: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs(open_checkpoint(tiny_archive).architecture)


# --------------------------------------------------------------------------- the classic interface


def test_the_arguments_are_those_of_the_reference() -> None:
    ours = inspect.signature(clipcheck.load).parameters
    theirs = inspect.signature(reference_clip().load).parameters
    assert list(ours) == list(theirs) == ["name", "device", "jit", "download_root"]
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]
    for name in ("name", "jit", "download_root"):
        assert ours[name].default == theirs[name].default
    # Theirs is decided when it is imported, ours when it is called.
    assert str(loader.resolve_device(ours["device"].default)) == theirs["device"].default


def test_the_models_are_those_of_the_reference() -> None:
    assert clipcheck.available_models() == reference_clip().available_models()


def test_load_both_takes_the_same_arguments_except_jit() -> None:
    names = list(inspect.signature(clipcheck.load_both).parameters)
    assert names == ["name", "device", "download_root"]


@pytest.mark.parametrize("jit", [False, True])
def test_the_results_are_those_of_the_reference(
    tiny_archive: Path, batch: tuple[torch.Tensor, torch.Tensor], jit: bool
) -> None:
    model, preprocess = clipcheck.load(str(tiny_archive), "cpu", jit)
    with torchscript_support.silenced():
        theirs, their_preprocess = reference_clip().load(str(tiny_archive), "cpu", jit)
    assert isinstance(model, torch.jit.ScriptModule) is jit
    assert isinstance(model, eager.CLIP) is not jit
    assert not any(module.training for module in model.modules())
    expected = {key: (t.dtype, t.device) for key, t in theirs.state_dict().items()}
    assert {key: (t.dtype, t.device) for key, t in model.state_dict().items()} == expected
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert_near(outputs(model, *batch), outputs(theirs, *batch), 1e-6)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    assert torch.equal(preprocess(image), their_preprocess(image))
    resolution = batch[0].shape[-1]
    assert preprocess(image).shape == (3, resolution, resolution)
    sized = model if jit else model.visual
    assert int(sized.input_resolution) == resolution


def test_the_reference_agrees_from_a_state_dict(in_format: InFormat) -> None:
    batch = inputs(MINUTE)
    path = in_format("state-dict")
    model, _ = clipcheck.load(path, device="cpu")
    theirs = reference_clip().model.build_model(torch.load(path, weights_only=True)).float()
    assert_near(outputs(model, *batch), outputs(theirs, *batch), 1e-6)


@pytest.mark.parametrize("form", ["state-dict", "safetensors"])
def test_jit_without_an_archive_warns_and_gives_the_eager_model(
    in_format: InFormat, form: str
) -> None:
    path = in_format(form)
    expected = f"File {path} is not a JIT archive. Loading as a state dict instead"
    with pytest.warns(UserWarning, match="JIT archive") as caught:
        model, _ = clipcheck.load(path, device="cpu", jit=True)
    (warning,) = caught
    assert str(warning.message) == expected
    assert warning.category is UserWarning
    assert warning.filename == __file__
    assert isinstance(model, eager.CLIP)


def test_an_archive_does_not_warn(minute_archive: Path) -> None:
    clipcheck.load(minute_archive, device="cpu", jit=True)
    clipcheck.load(minute_archive, device="cpu", jit=False)
    clipcheck.load_both(minute_archive, device="cpu")


def test_an_archive_that_is_damaged_is_never_taken_for_a_state_dict(
    minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(minute_archive.read_bytes()[:-50_000])
    for jit in (False, True):
        with pytest.raises(DamagedError):
            clipcheck.load(path, device="cpu", jit=jit)
    with pytest.raises(DamagedError):
        clipcheck.load_both(path, device="cpu")


def test_a_name_that_is_unknown_is_a_runtime_error_as_in_the_reference() -> None:
    with pytest.raises(UnknownModelError) as caught:
        clipcheck.load("ViT-B/31")
    assert isinstance(caught.value, RuntimeError)


# --------------------------------------------------------------------------- devices


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_by_any_name_computes_in_float32(
    minute_archive: Path,
    device: str | torch.device,
    jit: bool,
) -> None:
    model, _ = clipcheck.load(minute_archive, device=device, jit=jit)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {str(p.device) for p in model.parameters()} == {"cpu"}
    with torch.inference_mode(), torchscript_support.silenced():
        per_image, _ = model(*inputs(MINUTE))
    assert per_image.dtype == torch.float32


@no_cuda
def test_the_device_is_the_cpu_where_there_is_no_gpu(minute_archive: Path) -> None:
    model, _ = clipcheck.load(minute_archive)
    assert next(model.parameters()).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", 3.5, ["cpu"]])
def test_an_invalid_device_is_a_usage_error(minute_archive: Path, device: Any) -> None:
    for load in (clipcheck.load, clipcheck.load_both):
        with pytest.raises(UsageError) as caught:
            load(minute_archive, device=device)
        assert str(caught.value) == (
            f"expected a device, found {device!r}. Give cpu, cuda, cuda:1 or mps."
        )


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "xpu"])
def test_a_device_that_is_not_there_is_unavailable(minute_archive: Path, device: str) -> None:
    for load in (clipcheck.load, clipcheck.load_both):
        with pytest.raises(UnavailableError, match=f"the device '{device}' is not available here"):
            load(minute_archive, device=device)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has a GPU")
def test_the_reason_for_an_unavailable_device_is_one_sentence() -> None:
    with pytest.raises(UnavailableError) as caught:
        loader.resolve_device("mps")
    assert len(str(caught.value)) < 300


def test_on_other_devices_than_the_cpu_the_dtypes_are_the_released_ones(
    in_format: InFormat,
) -> None:
    # No GPU is needed to see which dtypes the weights get: the meta device stands for one.
    device = torch.device("meta")
    released = in_format("archive")
    expected = {key: tensor.dtype for key, tensor in open_checkpoint(released).tensors.items()}
    for path in (released, in_format("state-dict", torch.float32)):
        weights = loader._classic_weights(open_checkpoint(path), device)
        assert {key: tensor.dtype for key, tensor in weights.items()} == expected
        assert {tensor.device for tensor in weights.values()} == {device}


# --------------------------------------------------------------------------- both at once


def test_jit_and_eager_model_agree(
    tiny_archive: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    jit, model, preprocess = clipcheck.load_both(tiny_archive, device="cpu")
    assert isinstance(jit, torch.jit.ScriptModule)
    assert isinstance(model, eager.CLIP)
    assert not model.training
    assert callable(preprocess)
    assert_near(outputs(jit, *batch), outputs(model, *batch), 1e-5)
    alone, _ = clipcheck.load(tiny_archive, device="cpu")
    assert_near(outputs(model, *batch), outputs(alone, *batch), 0)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_jit_and_eager_model_share_their_weights(
    in_format: InFormat, dtype: torch.dtype | None
) -> None:
    path = in_format("archive", dtype)
    jit, model, _ = clipcheck.load_both(path, device="cpu")
    theirs = jit.state_dict()
    for key, tensor in model.state_dict().items():
        assert tensor.data_ptr() == theirs[key].data_ptr(), key
        assert tensor.dtype in (torch.float32, torch.int64)


def test_all_weights_are_compared(tiny_archive: Path) -> None:
    checkpoint = open_checkpoint(tiny_archive)
    both = loader.load_checkpoint_both(checkpoint, torch.device("cpu"))
    assert both.compared == len(checkpoint.tensors)
    assert both.differing == {}


def _changed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with the last bit of the last element flipped."""
    flipped = tensor.clone()
    bits = flipped.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
    bits[-1] ^= 1
    return flipped


CHANGES = {
    "bits": (_changed, "the interpreter has other bits than the record"),
    "dtype": (torch.Tensor.double, "the interpreter has torch.float64 ["),
    "smaller": (lambda tensor: tensor[..., :3], "the interpreter has torch.float"),
    "larger": (lambda tensor: tensor.repeat(9, 1), "the interpreter has torch.float"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("key", ["text_projection", "ln_final.weight"])
def test_a_weight_that_the_interpreter_has_otherwise_is_named(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch, key: str, change: str
) -> None:
    alter, reason = CHANGES[change]
    load_archive = loader.torchscript.load_archive

    def tampered(*args: Any) -> Any:
        module = load_archive(*args)
        held = module.state_dict(keep_vars=True)[key]
        held.data = alter(held.data)
        return module

    monkeypatch.setattr(loader.torchscript, "load_archive", tampered)
    with pytest.raises(DamagedError) as caught:
        clipcheck.load_both(minute_archive, device="cpu")
    assert f"the weight {key!r} differs" in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.path == str(minute_archive)
    assert caught.value.remedy.endswith(
        "--architecture ARCH -o fixed.pt, where ARCH is the architecture of its training: "
        "a released name, open_clip:NAME, or a configuration file."
    )
    both = loader.load_checkpoint_both(open_checkpoint(minute_archive), torch.device("cpu"))
    assert list(both.differing) == [key]
    assert both.compared == len(open_checkpoint(minute_archive).tensors)


def test_the_eager_model_has_the_weights_of_the_record(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the interpreter's, where the two differ: a comparison has to see it."""
    load_archive = loader.torchscript.load_archive

    def tampered(*args: Any) -> Any:
        module = load_archive(*args)
        module.ln_final.bias.data.add_(1)
        return module

    monkeypatch.setattr(loader.torchscript, "load_archive", tampered)
    checkpoint = open_checkpoint(minute_archive)
    both = loader.load_checkpoint_both(checkpoint, torch.device("cpu"))
    assert torch.equal(both.eager_model.ln_final.bias, checkpoint.tensors["ln_final.bias"])
    assert not torch.equal(both.eager_model.ln_final.bias, both.jit_model.ln_final.bias)


def test_a_weight_that_only_one_reading_has_is_named(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(minute_archive)
    some = dict(checkpoint.tensors)
    del some["context_length"]
    short = replace(checkpoint, tensors=some)
    both = loader.load_checkpoint_both(short, torch.device("cpu"))
    assert both.differing == {"context_length": "the file's records do not have it"}
    weights = loader.LoadedArchive.weights
    monkeypatch.setattr(
        loader.LoadedArchive,
        "weights",
        lambda archive: (kv for kv in weights(archive) if kv[0] != "logit_scale"),
    )
    both = loader.load_checkpoint_both(checkpoint, torch.device("cpu"))
    assert both.differing == {"logit_scale": "the interpreter does not have it"}
    assert both.eager_model.logit_scale == checkpoint.tensors["logit_scale"]


@pytest.mark.parametrize("form", ["state-dict", "safetensors"])
def test_weights_alone_cannot_be_loaded_as_jit(in_format: InFormat, form: str) -> None:
    path = in_format(form)
    with pytest.raises(UnavailableError) as caught:
        clipcheck.load_both(path, device="cpu")
    assert str(caught.value) == (
        f"{path}: this {form} has only weights and no code, so there is nothing to compare with "
        "the eager model. Make an archive of it: clipcheck convert WEIGHTS -o model.pt, with "
        "--architecture ARCH and --key NAME if it needs them."
    )


# --------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", ["state-dict", "safetensors"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_other_formats_give_the_same_model_bit_for_bit(
    in_format: InFormat, form: str, dtype: torch.dtype | None
) -> None:
    expected, _ = clipcheck.load(in_format("archive", dtype), device="cpu")
    found, _ = clipcheck.load(in_format(form, dtype), device="cpu")
    assert list(found.state_dict()) == list(expected.state_dict())
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key]), key
        assert tensor.dtype == expected.state_dict()[key].dtype


def _both_eager(path: Path) -> torch.nn.Module:
    return clipcheck.load_both(path, device="cpu")[1]


def _eager(path: Path) -> torch.nn.Module:
    return clipcheck.load(path, device="cpu")[0]


WAYS = {
    "both": ("archive", None, _both_eager),
    "both-float32": ("archive", torch.float32, _both_eager),
    "eager": ("archive", None, _eager),
    "mapped-archive": ("archive", torch.float32, _eager),
    "mapped-state-dict": ("state-dict", torch.float32, _eager),
    "mapped-safetensors": ("safetensors", torch.float32, _eager),
}


@pytest.fixture(params=WAYS)
def loaded(request: pytest.FixtureRequest, in_format: InFormat) -> tuple[torch.nn.Module, Path]:
    """Return a model whose weights are in an arena or a mapped file, and the file."""
    form, dtype, load = WAYS[request.param]
    path = in_format(form, dtype)
    return load(path), path


def test_a_training_step_changes_the_model_and_not_the_file(
    loaded: tuple[torch.nn.Module, Path],
) -> None:
    model, path = loaded
    content = path.read_bytes()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    per_image, _ = model(*inputs(MINUTE))
    per_image.sum().backward()
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.grad.any():
            assert not torch.equal(parameter, before[key]), key
    assert path.read_bytes() == content
    again, _ = clipcheck.load(path, device="cpu")
    for key, parameter in again.named_parameters():
        assert torch.equal(parameter, before[key]), key


def test_a_model_can_be_saved_and_takes_no_more_than_its_weights(
    loaded: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    model, _ = loaded
    state = model.state_dict()
    size = sum(tensor.nbytes for tensor in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert len(buffer.getvalue()) < size + 1000 * len(state)
    buffer.seek(0)
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    assert path.stat().st_size < size + 1000 * len(state)
    for again in (torch.load(buffer, weights_only=True), load_file(path)):
        assert again.keys() == state.keys()
        for key, tensor in again.items():
            assert torch.equal(tensor, state[key]), key


def test_a_model_can_be_copied_and_moved(loaded: tuple[torch.nn.Module, Path]) -> None:
    model, _ = loaded
    batch = inputs(MINUTE)
    expected = outputs(model, *batch)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert_near(outputs(model, *batch), expected, 0)
    moved = copy.deepcopy(model).double()
    found = {name: value.float() for name, value in outputs(moved, *batch).items()}
    assert_near(found, expected, 1e-5)


def test_a_model_outlives_its_file(in_format: InFormat, tmp_path: Path) -> None:
    batch = inputs(MINUTE)
    path = tmp_path / "model.pt"
    path.write_bytes(in_format("archive", torch.float32).read_bytes())
    model, _ = clipcheck.load(path, device="cpu")
    jit, both, _ = clipcheck.load_both(path, device="cpu")
    expected = outputs(model, *batch)
    path.unlink()
    assert_near(outputs(model, *batch), expected, 0)
    assert_near(outputs(both, *batch), expected, 0)
    assert_near(outputs(jit, *batch), expected, 1e-5)


def test_an_archive_can_be_copied(
    tiny_archive: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model, _ = clipcheck.load(tiny_archive, device="cpu", jit=True)
    expected = outputs(model, *batch)
    with torchscript_support.silenced():
        twin = copy.deepcopy(model)
    assert_near(outputs(twin, *batch), expected, 0)


# --------------------------------------------------------------------------- in another dtype


@pytest.mark.parametrize("stored", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_released_halves_get_the_dtype_that_is_asked_for_and_the_others_are_float32(
    in_format: InFormat, dtype: torch.dtype, stored: torch.dtype | None
) -> None:
    checkpoint = open_checkpoint(in_format("archive", stored))
    released = open_checkpoint(in_format("archive")).tensors
    both = loader.load_checkpoint_both(checkpoint, torch.device("cpu"), dtype)
    assert both.differing == {}
    assert both.eager_model.dtype == dtype
    wanted = {torch.float16: dtype, torch.float32: torch.float32}
    for model in (both.jit_model, both.eager_model):
        found = {key: tensor.dtype for key, tensor in model.state_dict().items()}
        assert {found[key] for key in found if released[key].dtype == torch.int64} <= {torch.int64}
        for key, found_dtype in found.items():
            assert found_dtype == wanted.get(released[key].dtype, torch.int64), key
        assert found["visual.conv1.weight"] == dtype
        assert found["ln_final.weight"] == torch.float32


@pytest.mark.thorough
@pytest.mark.parametrize("a", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
@parametrize("dtype", [torch.float16, torch.bfloat16], quick=1)
def test_jit_and_eager_model_agree_on_the_cpu_in_half(
    tmp_path: Path, a: Architecture, dtype: torch.dtype
) -> None:
    write(a, synthesize(a), tmp_path / "model.pt", Format.ARCHIVE)
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    both = loader.load_checkpoint_both(checkpoint, torch.device("cpu"), dtype)
    found, expected = (outputs(m, *inputs(a)) for m in (both.jit_model, both.eager_model))
    for value in found.values():
        assert value.dtype == dtype
    assert_near(found, expected, 30 * torch.finfo(dtype).eps)
    # It is not float32 that was rounded in the end.
    single = loader.load_checkpoint_both(checkpoint, torch.device("cpu"))
    exact = outputs(single.eager_model, *inputs(a))["text_features"]
    apart = (found["text_features"].float() - exact).abs().max() / exact.abs().max()
    assert apart > torch.finfo(dtype).eps / 4


# --------------------------------------------------------------------------- weights that change


class Drifting(torch.nn.Module):
    """Adds to a weight when asked to; its statistics follow the batch in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.other = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor, by: float) -> torch.Tensor:
        if by != 0:
            self.weight.add_(by)
        return self.norm(x * self.weight * self.other)


def drifting(training: bool) -> torch.jit.ScriptModule:
    with torchscript_support.silenced():
        script: torch.jit.ScriptModule = torch.jit.script(Drifting().train(training))
    return script


STATISTICS = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


@pytest.mark.parametrize(
    ("training", "by", "changed"),
    [
        (False, 0.0, []),
        (False, 0.5, ["weight"]),
        (True, 0.0, STATISTICS),
        (True, 0.5, ["weight", *STATISTICS]),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_weights_that_running_a_model_changes_are_reported(
    training: bool, by: float, changed: list[str], inference: bool
) -> None:
    module = drifting(training)
    with torchscript_support.silenced(), torch.inference_mode(inference):
        module(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), by)
        watch = WeightWatch(module)
        assert watch.changed() == []  # What was before does not count.
        for seed in range(2):
            module(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), by)
            assert sorted(watch.changed()) == sorted(changed)


def test_a_weight_that_was_changed_and_changed_back_is_reported() -> None:
    module = drifting(False)
    watch = WeightWatch(module)
    with torchscript_support.silenced():
        for by in (0.5, -0.5):
            module(torch.ones(4, 3), by)
    assert torch.equal(module.weight, torch.ones(3))
    assert watch.changed() == ["weight"]


def test_a_sound_archive_changes_no_weight(
    tiny_archive: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    jit, model, _ = clipcheck.load_both(tiny_archive, device="cpu")
    watch = WeightWatch(jit)
    outputs(jit, *batch)
    outputs(model, *batch)
    assert watch.changed() == []


def follow_the_batch(model: Any) -> None:
    """Let the statistics of a normalisation follow its inputs, as in training."""
    norm = model.visual.bn2

    def forward(x: torch.Tensor) -> torch.Tensor:
        # One row more: the archive's writer traces over none, and of none there are no statistics.
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        statistics = norm.running_mean, norm.running_var
        return torch.batch_norm(x, norm.weight, norm.bias, *statistics, True, 0.1, 1e-5, False)[:-1]

    norm.forward = forward


def drift(model: Any) -> None:
    norm = model.ln_final
    forward = norm.forward

    def drifting(x: torch.Tensor) -> torch.Tensor:
        norm.weight.detach().add_(0.001)
        return forward(x)

    norm.forward = drifting


@parametrize(
    ("alter", "changed"),
    [
        (follow_the_batch, ["visual.bn2.running_mean", "visual.bn2.running_var"]),
        (drift, ["ln_final.weight"]),
    ],
)
def test_what_the_code_of_an_archive_changes_is_reported(
    tmp_path: Path, alter: Callable[[Any], None], changed: list[str]
) -> None:
    a = MINUTE_RESNET
    write_archive(a, synthesize(a), tmp_path / "model.pt", alter=alter)
    jit, _, _ = clipcheck.load_both(tmp_path / "model.pt", device="cpu")
    watch = WeightWatch(jit)
    outputs(jit, *inputs(a))
    assert watch.changed() == changed


# --------------------------------------------------------------------------- with taps


def test_an_archive_with_taps_has_the_same_weights_and_gives_the_same(
    tiny_archive: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    checkpoint = open_checkpoint(tiny_archive)
    device = torch.device("cpu")
    both = loader.load_checkpoint_both(checkpoint, device)
    tapped = both.archive.tapped()
    shared = both.jit_model.state_dict()
    for key, tensor in tapped.state_dict().items():
        assert tensor.data_ptr() == shared[key].data_ptr(), key
    heard: list[str] = []
    with taps.listening(lambda site, entering, tensors: heard.append(site.module)):
        found = outputs(tapped, *batch)
    assert "visual.conv1" in heard
    # Without taps the interpreter fuses: the sums are in another order.
    assert_near(found, outputs(both.jit_model, *batch), 1e-5)
