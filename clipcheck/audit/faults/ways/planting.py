"""How a fault comes into a way: into the eager model, the program, the weights, or the library.

Nothing that others use is changed: models are copied, files are written to a folder of their own,
and a library has its own functions again as soon as the backend is no longer used.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch import Tensor

from clipcheck.audit.faults.variant import PlantSource
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families import eager
from clipcheck.harness.judging import inputs_of
from clipcheck.inputs.batches import Inputs

if TYPE_CHECKING:
    import onnx

Alter = Callable[[Any], None]
Weights = dict[str, Tensor]
Swap = tuple[Any, str, Any]

_CONFIGS = {Format.TRANSFORMERS: "config.json", Format.OPEN_CLIP: "open_clip_config.json"}


def in_model(alter: Alter) -> PlantSource:
    """Alter a copy of the eager model, which the backend is then made of."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        model = copy.deepcopy(source.model)
        alter(model)
        # What was built before is of the unaltered model, and has the same key.
        yield replace(source, model=model, artefacts=Artefacts(None, source.scratch))

    return plant


def in_program(name: str, write: Callable[[eager.CLIP, Path], None]) -> PlantSource:
    """Have a program run that ``write`` makes of a copy of the eager model, in place of the one
    that the backend makes."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        path = _folder(source) / name
        write(copy.deepcopy(source.clip), path)
        yield replace(source, program=path)

    return plant


def in_graph(alter: Callable[[onnx.ModelProto], None]) -> PlantSource:
    """Alter the ONNX program that is made of the eager model."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        import onnx

        program = _exported(source)
        alter(program)
        path = _folder(source) / "altered.onnx"
        onnx.save(program, path)
        yield replace(source, program=path)

    return plant


def in_lossy_graph(
    recipe: Callable[[Path, Path, Inputs], None],
    before: Callable[[onnx.ModelProto, Source], None] | None = None,
    after: Callable[[onnx.ModelProto], None] | None = None,
) -> PlantSource:
    """Make a lossy program of the one that is made of the eager model, and alter it before or
    after that.

    Args:
        recipe: of `clipcheck.audit.faults.lossy`.
        before: given the program, and what it was made of.
        after: given the lossy program.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        import onnx

        program, folder = _exported(source), _folder(source)
        if before is not None:
            before(program, source)
        path, written = folder / "before.onnx", folder / "lossy.onnx"
        onnx.save(program, path)
        recipe(path, written, inputs_of(source.checkpoint.model))
        if after is not None:
            program = onnx.load(written)
            after(program)
            onnx.save(program, written)
        yield replace(source, program=written)

    return plant


def _exported(source: Source) -> onnx.ModelProto:
    """The program that the backend makes. One file for all that alter it, and for the backend
    itself, which has it by the same key: to export takes longer than all else."""
    import onnx

    from clipcheck.backends.programs import key_of
    from clipcheck.writers.programs import write_onnx

    wanted = key_of(source, "onnx", "onnxscript")
    return onnx.load(
        source.artefacts.get("program.onnx", wanted, lambda path: write_onnx(source.model, path))
    )


def in_weights(alter: Callable[[Weights], None]) -> PlantSource:
    """Alter the weights that a library gets, as a wrong map of keys would.

    `clipcheck check --reference` compares the weights first. Here the outputs alone are judged.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        weights = dict(source.checkpoint.tensors)
        alter(weights)
        yield replace(source, checkpoint=replace(source.checkpoint, tensors=weights))

    return plant


def in_config(form: Format, alter: Callable[[dict[str, Any]], None]) -> PlantSource:
    """Alter the configuration of a library's folder.

    clipcheck refuses to open such a folder. Here it is handed to the library all the same, as if
    the library took a sound one wrongly.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        from clipcheck.writers import directories

        folder = _folder(source) / "model"
        write = {
            Format.TRANSFORMERS: directories.write_transformers,
            Format.OPEN_CLIP: directories.write_open_clip,
        }
        write[form](source.checkpoint, folder)
        path = folder / _CONFIGS[form]
        config = json.loads(path.read_text(encoding="utf-8"))
        alter(config)
        path.write_text(json.dumps(config), encoding="utf-8")
        yield replace(source, checkpoint=replace(source.checkpoint, path=folder, format=form))

    return plant


def in_library(swaps: Callable[[], list[Swap]]) -> PlantSource:
    """Have a library's attributes be others.

    Args:
        swaps: what to set: the owner, the name and the value. It may import the library.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        with ExitStack() as stack:
            for owner, name, value in swaps():
                stack.enter_context(mock.patch.object(owner, name, value))
            yield source

    return plant


def with_options(options: Mapping[str, str], plant: PlantSource | None = None) -> PlantSource:
    """Choose options of the backend as well."""

    @contextmanager
    def chosen(source: Source) -> Iterator[Source]:
        changed = replace(source, options={**source.options, **options})
        with nothing(changed) if plant is None else plant(changed) as planted:
            yield planted

    return chosen


@contextmanager
def nothing(source: Source) -> Iterator[Source]:
    """Plant nothing: the backend as it is."""
    yield source


def _folder(source: Source) -> Path:
    return Path(tempfile.mkdtemp(prefix="planted-", dir=source.scratch))
