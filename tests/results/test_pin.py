"""The file of a pin: written, read, and refused if damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcheck.errors import PinError
from clipcheck.gates.fingerprints import fingerprints_of
from clipcheck.gates.metrics import row_rms
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS
from clipcheck.gates.weights import Stored
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import SAMPLE, Prompts, counts, edge_cases, sample
from clipcheck.inputs.rules import CLIP_IMAGES
from clipcheck.results.pin import (
    Header,
    Ids,
    Pin,
    PinnedLengths,
    judged_rows,
    read_pin,
    write_pin,
)

SIDE, WIDTH, LENGTH, VOCABULARY = 16, 8, 6, 50
IMAGES, PROMPTS = map(sum, zip(*counts(SAMPLE), strict=True))
JUDGED = judged_rows()
TWO = np.array([1e-6, 2e-6], dtype=np.float32)
WEIGHTS = fingerprints_of([("a.weight", Stored(np.eye(3, dtype=np.float32), "float32"))])


@pytest.fixture(scope="module")
def pin() -> Pin:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, (PROMPTS, LENGTH), dtype=np.int32)
    names = tuple(f"{n} tokens" for n in range(PROMPTS))
    drawn = Prompts(tokens, names)
    inputs = tuple(digest(draw(SIDE, CLIP_IMAGES, 0, drawn)) for draw in (edge_cases, sample))
    header = Header(
        environment={"torch": "2.9"},
        checkpoint="model.pt",
        sha256="0" * 64,
        description="archive",
        computes="QuickGELU",
        architecture={"width": WIDTH},
        image_resolution=SIDE,
        context_length=LENGTH,
        vocab_size=VOCABULARY,
        embed_dim=WIDTH,
        grid=2,
        images=CLIP_IMAGES,
        ids=Ids(48, 49, 0, 0, 47),
        sigmoid=False,
        outputs=tuple(OUTPUTS),
        scale=100.0,
        bias=-10.0,
        seed=0,
        inputs=(inputs[0], inputs[1]),
        prompts=names,
        lengths=("one token", "two tokens"),
        parameters=1000,
        keys=tuple(WEIGHTS.keys),
        shapes=tuple(WEIGHTS.shapes),
        missing={"float16": "it overflows"},
    )
    features = {
        name: generator.standard_normal((rows, WIDTH), dtype=np.float32)
        for name, rows in zip(FEATURES, (IMAGES, PROMPTS), strict=True)
    }
    errors = {
        name: generator.random(JUDGED[kinds[0]], dtype=np.float32) * np.float32(1e-6)
        for name, kinds in OUTPUTS.items()
    }
    lengths = PinnedLengths(
        tokens[:2], features["text_features"][:2], dict.fromkeys(("float32", "bfloat16"), TWO)
    )
    by_dtype = {"float32": errors, "bfloat16": errors}
    return Pin(
        header=header,
        tokens=tokens,
        features=features,
        errors=by_dtype,
        lengths=lengths,
        weights=WEIGHTS,
    )


@pytest.fixture(scope="module")
def written(pin: Pin, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pin") / "model.pin"
    write_pin(pin, path)
    return path.read_bytes()


def read(data: bytes, folder: Path) -> Pin:
    path = folder / "some.pin"
    path.write_bytes(data)
    return read_pin(path)


def test_a_pin_is_read_back_as_it_was_written(pin: Pin, written: bytes, tmp_path: Path) -> None:
    found = read(written, tmp_path)
    assert found.header == pin.header
    assert np.array_equal(found.tokens, pin.tokens)
    for name, kind in zip(FEATURES, ("image", "prompt"), strict=True):
        judged = slice(JUDGED[kind])
        assert np.array_equal(found.features[name][judged], pin.features[name][judged])
        # The others are rounded to 24 bits.
        apart = np.linalg.norm(found.features[name] - pin.features[name], axis=1)
        assert 0 < apart.max() < 1e-6
    assert np.array_equal(found.lengths.features, pin.lengths.features)
    assert np.array_equal(found.weights.digests, pin.weights.digests)
    assert found.errors.keys() == {"float32", "bfloat16"}
    assert found.header.sizes.texts.end == 49


def test_logits_are_those_of_the_features_with_the_bias(pin: Pin) -> None:
    batch = pin.batches()[-1]
    found = pin.exact(batch)
    images, texts = (
        found[name] / np.linalg.norm(found[name], axis=1)[:, None] for name in FEATURES
    )
    assert np.allclose(found[LOGITS[0]], 100 * images @ texts.T - 10)
    assert np.array_equal(found[LOGITS[1]], found[LOGITS[0]].T)
    first = batch.first_rows["prompt"]
    assert np.array_equal(found["text_features"][0], pin.features["text_features"][first])


def test_the_outputs_for_the_eager_model_have_its_recorded_error(pin: Pin) -> None:
    batch = pin.batches()[2]
    exact = pin.exact(batch)
    for name, array in pin.eager(batch, exact, "float32").items():
        first = batch.first_rows[OUTPUTS[name][0]]
        wanted = pin.errors["float32"][name][first : first + len(array)]
        assert np.allclose(row_rms(array - exact[name]), wanted, rtol=1e-4)


def test_other_inputs_than_those_of_the_pin_are_refused(pin: Pin) -> None:
    other = replace(pin, header=replace(pin.header, inputs=("0" * 32, pin.header.inputs[1])))
    with pytest.raises(PinError, match=r"expected the inputs of clipcheck .*Write the pin again"):
        other.batches()
    assert other.sample()


def header_with(data: bytes, **fields: Any) -> bytes:
    """Return the file with other fields in its header."""
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    head = {**json.loads(outer["__metadata__"]["clipcheck"]), **fields}
    outer["__metadata__"]["clipcheck"] = json.dumps(head)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


DAMAGED: Mapping[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it is no safetensors file"),
    "another file": (lambda _: b"PK\x03\x04" * 9, "it is no safetensors file"),
    "cut in its header": (lambda data: data[:100], "it is cut off, or no safetensors file"),
    "cut in its arrays": (lambda data: data[:-9], "it is cut off or damaged"),
    "one altered byte": (lambda data: data[:-9] + b"?" + data[-8:], "it was altered"),
    "a newer schema": (
        lambda data: header_with(data, schema=2),
        "it has schema 2; this clipcheck reads schema 1",
    ),
    "another kind": (lambda data: header_with(data, kind="x"), "it is another file of clipcheck"),
    "another seed": (lambda data: header_with(data, seed=1), "it was altered"),
    "weights": (
        lambda data: data.replace(b'"clipcheck"', b'"otherwise"', 1),
        "it has no header of clipcheck",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_pin_is_refused_in_one_line(written: bytes, name: str, tmp_path: Path) -> None:
    damage, problem = DAMAGED[name]
    with pytest.raises(PinError) as caught:
        read(damage(written), tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'some.pin'}: expected a pin, but {problem}")
    assert told.endswith("Give a file that `clipcheck pin` wrote, or write it again.")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"outputs": ("image_features",)}, "it does not have the arrays of its header"),
        ({"image_resolution": 10**6}, "its images have 1000000 pixels a side"),
        ({"vocab_size": 9}, "its prompts have numbers that are no ids"),
    ],
)
def test_a_header_that_does_not_fit_its_arrays_is_refused(
    pin: Pin, changed: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.pin"
    write_pin(replace(pin, header=replace(pin.header, **changed)), path)
    with pytest.raises(PinError, match=problem):
        read_pin(path)
