from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import pytest
import torch

from clipcheck.backends import programs as built
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.export import Export
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import ArchitectureError, RunError
from clipcheck.families.registry import sizes_of
from clipcheck.writers import programs
from clipcheck.writers.synthesize import architecture_named
from tests.backends.kept import (
    CPU,
    Kept,
    artefact,
    assert_same,
    batch,
    source,
)
from tests.backends.libraries import source_of


@pytest.fixture(scope="module")
def made(small_archive: Path, built: Path) -> Source:
    return source(small_archive, built, Export)


@pytest.fixture(scope="module")
def backend(made: Source) -> Iterator[Backend]:
    found = Export.build(made)
    yield found
    found.close()


@pytest.fixture
def program(made: Source, backend: Backend) -> Path:
    return artefact(made)


def test_all_weights_are_compared(backend: Backend, made: Source) -> None:
    found = backend.evidence()
    assert found.weights == len(made.model.state_dict())
    assert not found.differing
    assert not found.doubts


def test_a_weight_with_other_bits_is_named(made: Source, program: Path) -> None:
    weights = dict(made.model.state_dict())
    weights["ln_final.bias"] = weights["ln_final.bias"] + 1
    found = Export.open_program(
        ProgramFile(
            path=program, device=CPU, dtype=None, sizes=made.sizes, weights=weights, options={}
        )
    ).evidence()
    assert found.differing == {"ln_final.bias": "the program has other bits than the file"}


@pytest.mark.thorough
def test_a_missing_weight_is_named(made: Source, program: Path) -> None:
    weights = {**made.model.state_dict(), "more": torch.zeros(1)}
    found = Export.open_program(
        ProgramFile(
            path=program, device=CPU, dtype=None, sizes=made.sizes, weights=weights, options={}
        )
    ).evidence()
    assert found.differing == {"more": "the program does not have it"}


@pytest.mark.thorough
def test_weights_with_other_names_are_not_compared(made: Source, program: Path) -> None:
    weights = {"theirs": torch.zeros(1)}
    found = Export.open_program(
        ProgramFile(
            path=program, device=CPU, dtype=None, sizes=made.sizes, weights=weights, options={}
        )
    )
    assert found.evidence().weights is None


def test_a_cached_program_is_loaded(
    made: Source, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(programs, "write_pt2", write)
    again = Export.build(made)
    pixels, tokens = batch(made.checkpoint.architecture, 1, 2)
    assert_same(again.outputs(pixels, tokens), backend.outputs(pixels, tokens))


@pytest.mark.thorough
def test_the_artefact_depends_on_weights_versions_and_dtype(
    made: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    monkeypatch.setattr(programs, "write_pt2", lambda _model, path, _program: path.write_bytes(b""))
    for dtype in ("float32", "float16"):
        with pytest.raises(RunError, match="loading failed"):
            Export.build(dataclasses.replace(made, dtype=dtype, artefacts=cast(Artefacts, kept)))
    one, other = kept.built
    assert one["checkpoint"] == made.checkpoint.sha256
    assert one["torch"] == torch.__version__
    assert (one["dtype"], other["dtype"]) == ("float32", "float16")


def test_a_model_is_exported_once_for_all_backends(made: Source) -> None:
    made = dataclasses.replace(made, exports=WeakKeyDictionary())
    program = made.exported()
    assert dataclasses.replace(made, options={}).exported(checked=False) is program
    other = dataclasses.replace(made, model=copy.deepcopy(made.model))
    assert other.exported() is not program


def test_its_size_is_that_of_the_file(backend: Backend, program: Path) -> None:
    assert backend.size == program.stat().st_size


def test_an_error_of_torch_is_translated(
    made: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    kept = cast(Artefacts, Kept(tmp_path))
    fresh = dataclasses.replace(made, artefacts=kept, exports=WeakKeyDictionary())
    with pytest.raises(RunError, match=r"^export: exporting failed \(no such operator\)\."):
        Export.build(fresh)


@pytest.mark.thorough
def test_a_program_of_another_architecture_is_refused(program: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"its input 'pixels' has shape \[any, 3, "):
        Export.open_program(
            ProgramFile(
                path=program,
                device=CPU,
                dtype=None,
                sizes=sizes_of(architecture_named("ViT-B/32")),
                weights={},
                options={},
            )
        )


def test_a_program_is_kept_for_an_architecture(minute_archive: Path, tmp_path: Path) -> None:
    """The same weights may be of several: they do not tell."""
    source = source_of(open_checkpoint(minute_archive), tmp_path)
    gelu = source.checkpoint.architecture.with_blocks(activation=Activation.GELU)
    checkpoint = dataclasses.replace(source.checkpoint, model=gelu)
    other = dataclasses.replace(source, checkpoint=checkpoint)
    assert built.key_of(source) != built.key_of(other)
    assert built.key_of(source) == built.key_of(dataclasses.replace(source))
