from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.records import MappedFile
from clipcheck.errors import DamagedError, NotFiniteError
from clipcheck.writers.convert import write
from tests.samples import (
    FILE_FORMATS,
    MINUTE,
    contents_at,
    flipped,
    minute_bytes,
    minute_weights,
    saved,
)


def opened(data: bytes, folder: Path) -> Checkpoint:
    path = folder / "file"
    path.write_bytes(data)
    return open_checkpoint(path)


@pytest.fixture(params=FILE_FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """The smallest checkpoint in each format."""
    return opened(minute_bytes(request.param), tmp_path)


def test_the_digest_is_that_of_the_file(checkpoint: Checkpoint) -> None:
    assert checkpoint.sha256 == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()


def test_dtypes_are_those_of_the_weights_and_not_of_the_counters(tmp_path: Path) -> None:
    assert opened(minute_bytes(Format.STATE_DICT), tmp_path).dtypes == ["float16", "float32"]
    doubled = {k: t.double() if t.is_floating_point() else t for k, t in minute_weights().items()}
    assert opened(saved(doubled), tmp_path).dtypes == ["float64"]


# ------------------------------------------------------------------ verifying


def test_a_sound_file_is_verified(checkpoint: Checkpoint) -> None:
    checkpoint.verify()


@pytest.mark.parametrize("form", [Format.ARCHIVE, Format.STATE_DICT])
def test_altered_weights_are_found_when_verifying(tmp_path: Path, form: Format) -> None:
    data = minute_bytes(form)
    damaged = opened(flipped(data, contents_at(data, "data/9"), 0x01), tmp_path)
    with pytest.raises(DamagedError, match="data/9' was altered"):
        damaged.verify()


def test_a_file_without_checksums_is_verified_for_finite_weights(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        sound, bad = saved(minute_weights()), saved(_broken("visual.proj"))
    finally:
        torch.serialization.set_crc32_options(True)
    found = opened(sound, tmp_path)
    assert found.records is not None
    assert not found.records.has_checksums
    found.verify()
    with pytest.raises(NotFiniteError):
        opened(bad, tmp_path).verify()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FILE_FORMATS)
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, form: Format, value: float) -> None:
    key = "transformer.resblocks.0.ln_1.bias"
    path = tmp_path / "sound"
    write(MINUTE, minute_weights(), path, form)
    bad = _broken(key, value=value)
    path.write_bytes(_with_weight(path.read_bytes(), minute_weights()[key], bad[key]))
    with pytest.raises(NotFiniteError) as caught:
        _without_checksums(open_checkpoint(path)).verify()
    assert str(caught.value) == (
        f"{path}: NaN or infinite weights in {key}. Take a checkpoint from before the training "
        "diverged, or one that did not overflow when it was cast to half precision."
    )


def _with_weight(data: bytes, old: torch.Tensor, new: torch.Tensor) -> bytes:
    before, after = (tensor.numpy().tobytes() for tensor in (old, new))
    assert data.count(before) == 1
    return data.replace(before, after)


def _without_checksums(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights are found if the file's checksums do not count."""
    c = checkpoint
    return Checkpoint(path=c.path, format=c.format, model=c.architecture, tensors=c.tensors)


def _broken(*keys: str, value: float = float("nan")) -> dict[str, torch.Tensor]:
    weights = minute_weights()
    for key in keys:
        weights[key].view(-1)[-1] = value
    return weights


def test_five_of_many_such_weights_are_named_and_the_others_counted(tmp_path: Path) -> None:
    keys = [key for key, tensor in minute_weights().items() if tensor.is_floating_point()]
    with pytest.raises(NotFiniteError) as caught:
        opened(saved(_broken(*keys[:5])), tmp_path).verify()
    assert f"in {', '.join(keys[:5])}. Take" in str(caught.value)
    with pytest.raises(NotFiniteError) as caught:
        opened(saved(_broken(*keys)), tmp_path).verify()
    assert f"in {', '.join(keys[:5])} and {len(keys) - 5} more. Take" in str(caught.value)


# ------------------------------------------------------------------ mapped memory


def test_prefetching_and_releasing_memory_change_no_value(checkpoint: Checkpoint) -> None:
    expected = minute_weights()
    for _ in range(2):
        for key, tensor in expected.items():
            checkpoint.prefetch(key)
            assert same_bits(checkpoint.tensors[key], tensor)
            checkpoint.give_back(key)
            assert same_bits(checkpoint.tensors[key], tensor)
    checkpoint.verify()


def test_an_unknown_key_has_no_memory(checkpoint: Checkpoint) -> None:
    checkpoint.prefetch("gone")
    checkpoint.give_back("gone")


@pytest.mark.parametrize("method", ["prefetch", "give_back"])
def test_the_memory_of_a_mapped_weight_is_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = minute_bytes(Format.ARCHIVE)
    archive = opened(data, tmp_path)
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(MappedFile, method, lambda _, start, size: calls.append((start, size)))
    act: Callable[[str], None] = getattr(archive, method)
    act("visual.proj")
    ((start, size),) = calls
    assert data[start : start + size] == minute_weights()["visual.proj"].numpy().tobytes()


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_writing_to_a_weight_does_not_change_the_file(tmp_path: Path, form: Format) -> None:
    data = minute_bytes(form)
    weight = opened(data, tmp_path).tensors["visual.proj"]
    weight += 1
    assert same_bits(weight, minute_weights()["visual.proj"] + 1)
    assert (tmp_path / "file").read_bytes() == data


# ------------------------------------------------------------------ equality of bits

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_nan_equals_itself_and_zero_is_not_minus_zero(dtype: torch.dtype, count: int) -> None:
    nan = torch.full((count,), torch.nan, dtype=dtype)
    zero = torch.zeros(count, dtype=dtype)
    assert same_bits(nan, nan.clone())
    assert same_bits(zero, zero.clone())
    assert not same_bits(zero, -zero)


def test_another_dtype_or_shape_is_not_the_same() -> None:
    zeros = torch.zeros(4)
    assert not same_bits(zeros, zeros.to(torch.int32))
    assert not same_bits(zeros.double(), zeros.to(torch.int64))
    assert not same_bits(zeros.half(), zeros.bfloat16())
    assert not same_bits(zeros, zeros.view(2, 2))
    assert not same_bits(torch.zeros(0), torch.zeros(0, 1))
    assert same_bits(torch.zeros(0), torch.zeros(0))


@given(
    dtype=st.sampled_from(FLOATS),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    turned=st.booleans(),
    data=st.data(),
)
def test_weights_that_differ_in_one_bit_are_not_the_same(
    dtype: torch.dtype, shape: tuple[int, ...], turned: bool, data: st.DataObject
) -> None:
    bits = 8 * dtype.itemsize
    integer = INTEGERS[dtype.itemsize]
    one = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, shape, dtype=integer)
    other = one.clone()
    if turned:
        one = one.t() if one.ndim == 2 else one
        other = one.clone(memory_format=torch.contiguous_format)
    assert same_bits(one.view(dtype), other.view(dtype))
    assert same_bits(other.view(dtype), one.view(dtype))
    assert same_bits(one, other)
    index = data.draw(st.integers(0, other.numel() - 1))
    mask = 1 << data.draw(st.integers(0, bits - 2))
    other.view(-1)[index] ^= mask
    assert not same_bits(one.view(dtype), other.view(dtype))
    assert not same_bits(one, other)


def test_a_replaced_weight_has_no_pages_of_the_file(tmp_path: Path) -> None:
    found = opened(minute_bytes(Format.ARCHIVE), tmp_path)
    assert found.records is not None
    asked: list[tuple[int, int]] = []
    file = found.records.file
    key = "token_embedding.weight"
    cast = replace(found, tensors={**found.tensors, key: found.tensors[key].double()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "prefetch", lambda start, size: asked.append((start, size)))
        patch.setattr(file, "give_back", lambda start, size: asked.append((start, size)))
        for checkpoint in (cast, found):
            checkpoint.prefetch(key)
            checkpoint.give_back(key)
    tensor = found.tensors[key]
    assert asked == [(file.offset_of(tensor.data_ptr()), tensor.nbytes)] * 2
