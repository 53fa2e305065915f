"""Write weights in any format, and read them back before the file gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import Architecture, specs
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.told import METADATA, Told, encode
from clipcheck.errors import ClipcheckError, OutputError, first_line
from clipcheck.writers import archive
from clipcheck.writers.archive import buffers, write_archive
from clipcheck.writers.output import replacing

if TYPE_CHECKING:
    import torch

Judge = Callable[[Path], None]


def convert(
    checkpoint: Checkpoint,
    path: Path,
    form: Format,
    *,
    dtype: torch.dtype | None = None,
    judge: Judge | None = None,
) -> int:
    """Write the weights of ``checkpoint`` in another format.

    Args:
        checkpoint: its checksums are compared and its weights looked through first.
        path: the file to write; it is replaced when all has succeeded.
        dtype: for the weights that the released files have in half precision; by default all
            weights stay as they are, bit for bit.
        judge: called with the path of the written file before it gets its name; what it raises
            keeps the file from being kept.

    Returns:
        How many tensors came back from the written file bit for bit as they were meant to be.

    Raises:
        DamagedError, NotFiniteError: the checkpoint is not sound.
        OutputError: the file cannot be written, or it did not come back as it was written.
    """
    checkpoint.verify()
    tensors = dict(checkpoint.tensors)
    if dtype is not None:
        tensors = _in_dtype(checkpoint.architecture, tensors, dtype)
    return write(
        checkpoint.architecture, tensors, path, form, told=bool(checkpoint.told), judge=judge
    )


def write(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    form: Format,
    *,
    told: bool = True,
    judge: Judge | None = None,
) -> int:
    """Write a checkpoint, read it back, and compare all weights bit for bit.

    Args:
        architecture: the model's. A safetensors file says in its metadata how it computes, and an
            archive where it does not compute as the released models do.
        tensors: the weights by the released keys. Integer buffers that are missing are added.
        path: the file to write; it is replaced when all has succeeded.
        told: whether the architecture is known, and not assumed: then the file says it.

    Raises:
        OutputError: the file cannot be written, or it did not come back as it was written.
    """
    whole = {**buffers(architecture), **tensors}
    ordered = apart(
        {
            key: whole[key].detach().reshape(spec.shape)
            for key, spec in specs(architecture)
            if key in whole
        }
    )
    with replacing(path, room=_room(form, ordered)) as temporary:
        _write_as(form, architecture, ordered, temporary, path, told=told)
        written = open_checkpoint(temporary, told=Told(architecture, "what was written"))
        written.verify()
        require_equal(written, ordered, path)
        if judge is not None:
            judge(temporary)
    return len(ordered)


def _room(form: Format, tensors: Mapping[str, torch.Tensor]) -> int:
    if form is Format.ARCHIVE:
        return archive.room(tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, each contiguous and alone in its storage.

    A view would take all of its storage into a state dict, and safetensors refuses two tensors
    that share one. Training that keeps all weights in one flat tensor saves such views.
    """
    import torch

    apart: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for key, tensor in tensors.items():
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        if not whole or tensor.data_ptr() in taken:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        taken.add(tensor.data_ptr())
        apart[key] = tensor
    return apart


def _write_as(
    form: Format,
    architecture: Architecture,
    tensors: dict[str, torch.Tensor],
    temporary: Path,
    path: Path,
    *,
    told: bool,
) -> None:
    import torch

    computes = {METADATA: encode(architecture)} if told else {}
    with _translating(path):
        if form is Format.ARCHIVE:
            write_archive(architecture, tensors, temporary)
        elif form is Format.STATE_DICT:
            torch.save(tensors, temporary)
        else:
            save(tensors, temporary, path, computes)


def save(
    tensors: dict[str, torch.Tensor],
    temporary: Path,
    path: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write safetensors into ``temporary``; messages name ``path``.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors.torch import save_file

    with _translating(path):
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except ClipcheckError:
        raise
    # torch's and safetensors' writers do not say why a write failed but in their words.
    except (RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"cannot be written ({first_line(error)})",
            remedy="See that there is room on the disk, or give another output path.",
            path=path,
        ) from error


def _in_dtype(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    import torch

    def converted(key: str, released: str) -> torch.Tensor:
        if released == "float16":
            return tensors[key].to(dtype)
        if released == "float32":
            return tensors[key].to(torch.float32)
        return tensors[key]

    items = specs(architecture)
    return {key: converted(key, spec.released_dtype) for key, spec in items if key in tensors}


def require_equal(written: Checkpoint, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """See that all tensors came back bit for bit, under the keys that they have in a checkpoint.

    Raises:
        OutputError: one did not.
    """
    for key, tensor in tensors.items():
        if key not in written.tensors or not same_bits(written.tensors[key], tensor):
            raise OutputError(
                f"was written, but {key!r} did not come back as it was; it was not kept",
                remedy="Try again, and see whether the disk is sound.",
                path=path,
            )
        written.give_back(key)
