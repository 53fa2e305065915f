from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import clipcheck
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import ClipcheckError, DamagedError, NotFiniteError, OutputError, RunError
from clipcheck.writers import convert as convert_module
from clipcheck.writers.convert import convert, write
from clipcheck.writers.synthesize import synthesize
from tests.models import assert_near, inputs, outputs
from tests.samples import FILE_FORMATS, MINUTE, MINUTE_RESNET
from tests.thorough import parametrize, thorough

_A, _S, _T = FILE_FORMATS
TOUR = [_A, _S, _S, _T, _T, _A, _T, _S, _A]


@pytest.fixture(
    scope="module", params=[pytest.param(MINUTE, id="vit"), thorough(MINUTE_RESNET, id="resnet")]
)
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an archive. Tests must not change the file."""
    path = tmp_path_factory.mktemp("small") / "archive.pt"
    write(request.param, synthesize(request.param), path, Format.ARCHIVE)
    return path


@pytest.fixture(scope="module")
def checkpoint(archive: Path) -> Checkpoint:
    return open_checkpoint(archive)


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.architecture == expected.architecture
    assert found.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert same_bits(found.tensors[key], tensor), key


def test_from_any_format_to_any_other_all_is_equal_bit_for_bit(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    current = checkpoint
    for number, form in enumerate(TOUR):
        path = tmp_path / f"{number}.bin"
        convert(current, path, form)
        current = open_checkpoint(path)
        assert current.format is form
        assert_same(current, checkpoint)


def test_a_chain_of_conversions_reaches_every_format() -> None:
    assert set(itertools.pairwise([Format.ARCHIVE, *TOUR])) == set(
        itertools.product(FILE_FORMATS, repeat=2)
    )


@pytest.mark.parametrize("form", [Format.ARCHIVE, Format.STATE_DICT])
def test_the_keys_stay_in_the_released_order(
    checkpoint: Checkpoint, tmp_path: Path, form: Format
) -> None:
    shuffled = dict(sorted(checkpoint.tensors.items()))
    write(checkpoint.architecture, shuffled, tmp_path / "m.pt", form)
    found = open_checkpoint(tmp_path / "m.pt")
    assert list(found.tensors) == [key for key, _ in specs(checkpoint.architecture)]


@pytest.mark.parametrize("form", [Format.STATE_DICT, Format.SAFETENSORS])
def test_the_same_weights_give_the_same_bytes(
    checkpoint: Checkpoint, tmp_path: Path, form: Format
) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        convert(checkpoint, tmp_path / folder / "m.bin", form)
    assert (tmp_path / "one/m.bin").read_bytes() == (tmp_path / "other/m.bin").read_bytes()


# --------------------------------------------------------------------------- dtypes


@parametrize("form", FILE_FORMATS, quick=2)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_dtype_is_for_the_weights_that_are_half_in_the_released_files(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype, form: Format
) -> None:
    convert(checkpoint, tmp_path / "m.bin", form, dtype=dtype)
    found = open_checkpoint(tmp_path / "m.bin").tensors
    for key, spec in specs(checkpoint.architecture):
        half = spec.released_dtype == "float16"
        assert found[key].dtype == (dtype if half else getattr(torch, spec.released_dtype)), key
        assert torch.equal(found[key], checkpoint.tensors[key].to(found[key].dtype)), key


def test_a_dtype_makes_the_mix_of_the_released_files_of_a_single_dtype(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    double = {k: t.double() for k, t in checkpoint.tensors.items() if t.is_floating_point()}
    torch.save(double, tmp_path / "double.pt")
    convert(
        open_checkpoint(tmp_path / "double.pt"),
        tmp_path / "m.pt",
        Format.STATE_DICT,
        dtype=torch.float16,
    )
    found = open_checkpoint(tmp_path / "m.pt").tensors
    for key in double:
        assert same_bits(found[key], checkpoint.tensors[key]), key


@parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], quick=2)
def test_a_trained_state_dict_becomes_an_archive_that_computes_the_same(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {k: t.to(dtype) for k, t in checkpoint.tensors.items() if t.is_floating_point()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}}, tmp_path / "s.pt")
    convert(open_checkpoint(tmp_path / "s.pt"), tmp_path / "m.pt", Format.ARCHIVE)
    assert open_checkpoint(tmp_path / "m.pt").dtypes == [str(dtype).removeprefix("torch.")]
    batch = inputs(checkpoint.architecture)
    jit, eager, _ = clipcheck.load_both(tmp_path / "m.pt", device="cpu")
    trained, _ = clipcheck.load(tmp_path / "s.pt", device="cpu")
    expected = outputs(trained, *batch)
    assert_near(outputs(jit, *batch), expected, 1e-5)
    assert_near(outputs(eager, *batch), expected, 1e-6)


def test_back_in_half_a_float32_archive_is_the_released_one(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    convert(checkpoint, tmp_path / "float32.pt", Format.ARCHIVE, dtype=torch.float32)
    wide = open_checkpoint(tmp_path / "float32.pt")
    convert(wide, tmp_path / "half.pt", Format.ARCHIVE, dtype=torch.float16)
    assert_same(open_checkpoint(tmp_path / "half.pt"), checkpoint)


# --------------------------------------------------------------------------- odd storages


def flat_views(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all weights as views of one tensor, with as much again behind them; two are the
    same."""
    floats = {k: t.float() for k, t in checkpoint.tensors.items() if t.is_floating_point()}
    flat = torch.cat([t.reshape(-1) for t in floats.values()]).repeat(2)
    views, start = {}, 0
    for key, tensor in floats.items():
        views[key] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    block = "transformer.resblocks.0"
    views[f"{block}.ln_1.weight"] = views[f"{block}.ln_1.weight"].clone()
    views[f"{block}.ln_2.weight"] = views[f"{block}.ln_1.weight"]
    projection = views["text_projection"]
    views["text_projection"] = projection.t().contiguous().t()
    return views


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_views_and_shared_weights_are_written_apart(
    checkpoint: Checkpoint, tmp_path: Path, form: Format
) -> None:
    views = flat_views(checkpoint)
    write(checkpoint.architecture, views, tmp_path / "m.bin", form)
    found = open_checkpoint(tmp_path / "m.bin").tensors
    for key, tensor in views.items():
        assert torch.equal(found[key], tensor), key
    apart = {key: tensor.clone() for key, tensor in views.items()}
    write(checkpoint.architecture, apart, tmp_path / "apart.bin", form)
    size = (tmp_path / "apart.bin").stat().st_size
    assert (tmp_path / "m.bin").stat().st_size < 1.01 * size


# --------------------------------------------------------------------------- failures


class StopError(Exception):
    """Neither an error of clipcheck's nor of the system."""


@pytest.mark.parametrize(
    "error", [StopError("no"), RunError("no", remedy="None."), RuntimeError("no")]
)
@pytest.mark.parametrize("old", [None, b"what was there"])
def test_an_error_of_the_judge_prevents_the_file(
    checkpoint: Checkpoint, tmp_path: Path, error: Exception, old: bytes | None
) -> None:
    path = tmp_path / "m.pt"
    if old is not None:
        path.write_bytes(old)
    seen: list[Format] = []

    def judge(written: Path) -> None:
        assert written != path
        seen.append(open_checkpoint(written).format)
        raise error

    with pytest.raises(type(error)) as caught:
        convert(checkpoint, path, Format.STATE_DICT, judge=judge)
    assert caught.value is error
    assert seen == [Format.STATE_DICT]
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_file_that_the_judge_accepts_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    calls: list[Path] = []
    convert(checkpoint, tmp_path / "m.pt", Format.SAFETENSORS, judge=calls.append)
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_no_room_is_an_error_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, form: Format
) -> None:
    """Not the end of the process, which it is when `torch.jit.save` finds the disk full."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.pt"
    path.write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(.+\)\. .*room") as caught:
            convert(checkpoint, path, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.path == str(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"what was there"]


def test_a_file_that_does_not_come_back_as_it_was_is_not_kept(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def faulty(tensors: dict[str, torch.Tensor], path: Path) -> None:
        changed = tensors["ln_final.bias"].clone()
        changed[-1] = -changed[-1]
        save({**tensors, "ln_final.bias": changed}, path)

    monkeypatch.setattr(torch, "save", faulty)
    with pytest.raises(OutputError, match=r"'ln_final\.bias' differs when it is read back"):
        convert(checkpoint, tmp_path / "m.pt", Format.STATE_DICT)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_finite_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    weights["ln_final.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(NotFiniteError, match=r"ln_final\.bias"):
        convert(open_checkpoint(tmp_path / "nan.pt"), tmp_path / "m.pt", Format.ARCHIVE)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pt"]


def test_a_dtype_in_which_the_weights_overflow_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    weights = {key: tensor.float() for key, tensor in checkpoint.tensors.items()}
    weights["text_projection"][0, 0] = 70000.0
    torch.save(weights, tmp_path / "large.pt")
    large = open_checkpoint(tmp_path / "large.pt")
    with pytest.raises(ClipcheckError, match="text_projection"):
        convert(large, tmp_path / "m.pt", Format.STATE_DICT, dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["large.pt"]


def test_an_altered_weight_is_refused(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered.pt").write_bytes(content)
    with pytest.raises(DamagedError):
        convert(open_checkpoint(tmp_path / "altered.pt"), tmp_path / "m.pt", Format.STATE_DICT)


def test_a_failure_always_has_a_reason(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("\n  a reason on the second line\nand more")

    monkeypatch.setattr(convert_module, "write_archive", fail)
    with pytest.raises(OutputError, match=r"cannot be written \(a reason on the second line\)"):
        convert(checkpoint, tmp_path / "m.pt", Format.ARCHIVE)
