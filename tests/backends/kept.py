"""Sources of backends, and artefacts that are built once for all tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock

from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Named, Pixels, Tokens, to_numpy
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.families import eager
from tests.samples import MINUTE, minute_bytes

CPU = torch.device("cpu")


class Kept:
    """Builds an artefact once for each key, in a folder that several processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: list[Mapping[str, str]] = []
        self.path: Path | None = None

    def get(self, name: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        place = self.folder / hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            if not (place / name).exists():
                self.built.append(key)
                build(place / name)
        self.path = place / name
        return self.path


def minute(built: Path, form: Format, architecture: Architecture = MINUTE) -> Path:
    """Return the file of a smallest model, written once for all processes that share the folder."""
    kind = type(architecture.vision).__name__.lower()
    path = built / f"minute-{kind}-{form.name.lower()}.pt"
    built.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_bytes(minute_bytes(form, architecture))
    return path


def source(
    archive: Path,
    folder: Path,
    backend: type[Backend],
    dtype: str = "float32",
    options: Mapping[str, str] | None = None,
) -> Source:
    """Return the source of an archive, on the CPU, with artefacts in ``folder``."""
    checkpoint = open_checkpoint(archive)
    released = {key: spec.released_dtype for key, spec in specs(checkpoint.architecture)}
    weights = {
        key: tensor.to(getattr(torch, dtype) if released[key] == "float16" else torch.float32)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in checkpoint.tensors.items()
    }
    return Source(
        checkpoint=checkpoint,
        model=eager.build(checkpoint.architecture, weights),
        device=CPU,
        dtype=dtype,
        options={name: option.default for name, option in backend.options.items()}
        | dict(options or {}),
        scratch=folder,
        artefacts=cast(Artefacts, Kept(folder)),
    )


def batch(architecture: Architecture, images: int, texts: int) -> tuple[Pixels, Tokens]:
    """Return seeded pixels and ids that differ from row to row as much as possible."""
    a = architecture
    random = np.random.default_rng([images, texts])
    sides = (a.image_resolution, a.image_resolution)
    pixels = random.standard_normal((images, 3, *sides), dtype=np.float32)
    tokens = random.integers(0, a.vocab_size, (texts, a.context_length), dtype=np.int32)
    return pixels, tokens


def expected(model: eager.CLIP, pixels: Pixels, tokens: Tokens) -> Named:
    """Return the outputs of the eager model."""
    with torch.inference_mode():
        image = model.encode_image(torch.from_numpy(pixels))
        text = model.encode_text(torch.from_numpy(tokens))
        per_image, per_text = model(torch.from_numpy(pixels), torch.from_numpy(tokens))
    found: dict[str, Any] = {
        "image_features": image,
        "text_features": text,
        "logits_per_image": per_image,
        "logits_per_text": per_text,
    }
    return {name: to_numpy(tensor) for name, tensor in found.items()}


def assert_near(found: Named, wanted: Named, atol: float) -> None:
    """Compare all outputs, of one shape and dtype. ``atol`` is a share of each one's greatest
    value."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        limit = atol * float(np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=0, atol=limit, err_msg=name)


def assert_same(found: Named, wanted: Named) -> None:
    """Compare all outputs bit for bit."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def artefact(made: Source) -> Path:
    """Return the file that the backend built from this source."""
    path = cast(Kept, made.artefacts).path
    assert path is not None
    return path
