from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.backends import weights as module
from clipcheck.backends.weights import compare_weights, compared
from clipcheck.checkpoints.architecture import ARCHITECTURES, BUFFERS
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.gates.result import GateResult
from clipcheck.gates.weights import weights
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, Weights, minute_bytes, minute_weights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def held(tensors: Weights) -> Checkpoint:
    return Checkpoint(path=Path("w.pt"), format=Format.STATE_DICT, model=MINUTE, tensors=tensors)


def in_dtype(dtype: torch.dtype) -> Weights:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in minute_weights().items()}


def gate(candidate: Checkpoint, reference: Checkpoint) -> GateResult:
    return weights(list(compare_weights(candidate, reference)), compared(candidate, reference))


@pytest.mark.parametrize("form", Format)
def test_a_file_in_any_format_has_the_weights_of_the_archive(form: Format, tmp_path: Path) -> None:
    reference, candidate = tmp_path / "reference.pt", tmp_path / "candidate"
    reference.write_bytes(minute_bytes(Format.ARCHIVE))
    candidate.write_bytes(minute_bytes(form))
    found = gate(open_checkpoint(candidate), open_checkpoint(reference))
    assert found.passed
    assert (
        found.message == f"all {len(minute_weights())} weights are the reference's, rounded at most"
    )


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_that_torch_cast_passes(dtype: torch.dtype, to: torch.dtype) -> None:
    reference = in_dtype(dtype)
    candidate = {k: t.to(to) if t.is_floating_point() else t for k, t in reference.items()}
    assert gate(held(candidate), held(reference)).passed


def test_a_file_that_lost_precision_on_the_way_fails() -> None:
    reference = in_dtype(torch.float32)
    candidate = {k: t.half().float() if t.is_floating_point() else t for k, t in reference.items()}
    found = gate(held(candidate), held(reference))
    assert not found.passed
    assert "ulps of float32" in found.message


@given(data=st.data())
def test_one_flipped_bit_is_found_in_its_weight(data: st.DataObject) -> None:
    tensors = minute_weights()
    key = data.draw(st.sampled_from([k for k, t in tensors.items() if t.is_floating_point()]))
    flat = tensors[key].reshape(-1)
    place = data.draw(st.integers(0, flat.numel() - 1))
    bits = flat.view(torch.int16 if flat.itemsize == 2 else torch.int32)
    bits[place] ^= 1 << data.draw(st.integers(0, 8))
    (found,) = compare_weights(held(tensors), held(minute_weights()))
    assert found.key == key
    assert found.differing == 1


def test_missing_buffers_are_reported_but_no_fault() -> None:
    tensors = {key: tensor for key, tensor in minute_weights().items() if key not in BUFFERS}
    for candidate, reference, side in [
        (tensors, minute_weights(), "candidate"),
        (minute_weights(), tensors, "reference"),
    ]:
        found = gate(held(candidate), held(reference))
        assert found.passed
        for name in BUFFERS:
            assert f"{name} is missing from the {side}" in found.message


def test_a_missing_batch_counter_of_batch_norm_is_no_fault() -> None:
    architecture = ARCHITECTURES["tiny-resnet"]
    whole = synthesize(architecture)
    less = {key: tensor for key, tensor in whole.items() if "num_batches" not in key}
    sides = (
        Checkpoint(path=Path("w"), format=Format.STATE_DICT, model=architecture, tensors=t)
        for t in (less, whole)
    )
    assert gate(*sides).passed


@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_weights_that_are_missing_are_a_fault(side: str) -> None:
    less = minute_weights()
    del less["visual.proj"]
    sides = (less, minute_weights()) if side == "candidate" else (minute_weights(), less)
    found = gate(*map(held, sides))
    assert not found.passed
    assert found.figures["weights"] == {"compared": len(less), "differing": 1}
    assert found.message == (f"weights differ in 1 tensor: visual.proj is missing from the {side}")


def test_a_logit_scale_with_an_extra_dimension_is_reported() -> None:
    tensors = minute_weights()
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    found = gate(held(tensors), held(minute_weights()))
    assert found.passed
    assert "logit_scale has shape [1] in place of []" in found.message


def test_a_wrong_buffer_is_a_fault_even_if_its_difference_overflows() -> None:
    tensors = minute_weights()
    tensors["context_length"] = torch.tensor(-24, dtype=torch.int8)
    reference = {**minute_weights(), "context_length": torch.tensor(1000)}
    found = gate(held(tensors), held(reference))
    assert found.message == "weights differ in 1 tensor: context_length is -24 in place of 1000"


def test_only_weights_that_differ_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others cost is why a whole model is compared in less than a second."""
    measured: list[str] = []
    real = module.difference
    monkeypatch.setattr(
        module, "difference", lambda key, *rest: (measured.append(key), real(key, *rest))[1]
    )
    tensors = in_dtype(torch.float16)
    tensors["visual.proj"][0, 0] += 1
    (found,) = compare_weights(held(tensors), held(in_dtype(torch.float32)))
    assert found.key == "visual.proj"
    assert set(measured) <= {"visual.proj", *BUFFERS}


def test_mapped_memory_is_released(tmp_path: Path) -> None:
    path = tmp_path / "reference.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    given: list[str] = []

    class Watched(Checkpoint):
        def give_back(self, key: str) -> None:
            given.append(key)
            super().give_back(key)

    reference = open_checkpoint(path)
    watched = Watched(
        path=path,
        format=reference.format,
        model=MINUTE,
        tensors=reference.tensors,
        records=reference.records,
    )
    assert list(compare_weights(watched, reference)) == []
    assert given == list(reference.tensors)
