"""Plant a fault into a backend: into the eager model, the program, the weights or the library.

Shared objects are not changed: models are copied, files are written to a separate folder, and the
functions of a library are restored as soon as the backend is no longer used.
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
from clipcheck.families.model_inputs import inputs_of
from clipcheck.inputs.batches import Inputs

if TYPE_CHECKING:
    import onnx

Alter = Callable[[Any], None]
Weights = dict[str, Tensor]
Swap = tuple[Any, str, Any]

_CONFIGS = {Format.TRANSFORMERS: "config.json", Format.OPEN_CLIP: "open_clip_config.json"}


def in_model(alter: Alter) -> PlantSource:
    """Alter a copy of the eager model, and build the backend from it."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        model = copy.deepcopy(source.model)
        alter(model)
        # The cache has a program of the unaltered model under the same key.
        yield replace(source, model=model, artefacts=Artefacts(None, source.scratch))

    return plant


def in_program(name: str, write: Callable[[eager.CLIP, Path], None]) -> PlantSource:
    """Run a program that ``write`` makes from a copy of the eager model, instead of the backend's
    own program."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        path = _folder(source) / name
        write(copy.deepcopy(source.clip), path)
        yield replace(source, program=path)

    return plant


def in_graph(alter: Callable[[onnx.ModelProto], None]) -> PlantSource:
    """Alter the ONNX program that is exported from the eager model."""

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
    """Make the ONNX program of the eager model lossy, and alter it before or after that step.

    Args:
        recipe: a recipe of `clipcheck.audit.faults.lossy`.
        before: alters the program before; takes it and its source.
        after: alters the lossy program.
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
    """Export the program as the backend does. All variants and the backend share one file, by its
    cache key: exporting takes longer than everything else."""
    import onnx

    from clipcheck.backends.programs import key_of
    from clipcheck.writers.programs import write_onnx

    wanted = key_of(source, "onnx", "onnxscript")

    def write(path: Path) -> None:
        write_onnx(source.model, path, source.exported(checked=False))

    return onnx.load(source.artefacts.get("program.onnx", wanted, write))


def in_weights(alter: Callable[[Weights], None]) -> PlantSource:
    """Alter the weights that a library gets, as a wrong key map would.

    `clipcheck check --reference` compares weights first. Here only outputs are judged.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        weights = dict(source.checkpoint.tensors)
        alter(weights)
        yield replace(source, checkpoint=replace(source.checkpoint, tensors=weights))

    return plant


def in_config(form: Format, alter: Callable[[dict[str, Any]], None]) -> PlantSource:
    """Alter the configuration of a library's folder.

    clipcheck refuses to open such a folder. Here the library gets it anyway, as if the library
    misread a sound one.
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
    """Replace attributes of a library.

    Args:
        swaps: returns the owner, name and value of each attribute; it may import the library.
    """

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        with ExitStack() as stack:
            for owner, name, value in swaps():
                stack.enter_context(mock.patch.object(owner, name, value))
            yield source

    return plant


def with_options(options: Mapping[str, str], plant: PlantSource | None = None) -> PlantSource:
    """Also set options of the backend."""

    @contextmanager
    def chosen(source: Source) -> Iterator[Source]:
        changed = replace(source, options={**source.options, **options})
        with nothing(changed) if plant is None else plant(changed) as planted:
            yield planted

    return chosen


@contextmanager
def nothing(source: Source) -> Iterator[Source]:
    """Plant nothing."""
    yield source


def _folder(source: Source) -> Path:
    return Path(tempfile.mkdtemp(prefix="planted-", dir=source.scratch))
