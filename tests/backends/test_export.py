from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipcheck.backends import export
from clipcheck.backends.base import Backend, Source
from tests.backends.kept import assert_near, batch, expected, source

SIZES = [(1, 1), (1, 3), (3, 1), (2, 2), (5, 4)]


@pytest.fixture(scope="module")
def made(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source(tiny_archive, tmp_path_factory.mktemp("export"), export)


@pytest.fixture(scope="module")
def backend(made: Source) -> Iterator[Backend]:
    built = export.build(made)
    yield built
    built.close()


@pytest.mark.parametrize(("images", "texts"), SIZES)
def test_it_gives_the_eager_models_outputs_for_any_batch(
    backend: Backend, made: Source, images: int, texts: int
) -> None:
    pixels, tokens = batch(made.checkpoint.architecture, images, texts)
    found = backend.outputs(pixels, tokens)
    assert_near(found, expected(made.model, pixels, tokens), atol=1e-6)
    np.testing.assert_array_equal(backend.encode_image(pixels), found["image_features"])
