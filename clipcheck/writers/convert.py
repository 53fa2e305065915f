"""Write weights in any format, and read them back before the file gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
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
        checkpoint: first its checksums and weights are checked.
        path: the file to write; replaced only after success.
        dtype: for the weights that the released files have in half precision; by default no weight
            changes.
        judge: called with the written file before it gets its name; if it raises, the file is
            deleted.

    Returns:
        The number of tensors that were read back from the file, bit for bit equal.

    Raises:
        DamagedError, NotFiniteError: the checkpoint is damaged or has weights that are not finite.
        OutputError: the file cannot be written, or differs when it is read back.
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
        architecture: the model's. A safetensors file has it in its metadata; an archive only if it
            is not that of the released models.
        tensors: the weights by the released keys. Missing integer buffers are added.
        path: the file to write; replaced only after success.
        told: whether the architecture is known, not assumed: only then the file has it.

    Raises:
        OutputError: the file cannot be written, or differs when it is read back.
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
    """Return the tensors, each contiguous and with a storage of its own.

    A state dict stores the whole storage of a view, and safetensors refuses tensors that share one.
    Training code with all weights in one flat tensor saves such views.
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
    # torch's and safetensors' writers give the reason of a failure only in their message.
    except (RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"cannot be written ({first_line(error)})",
            remedy="Make room on the disk, or give another output path.",
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
    """Raise `OutputError` if a tensor of the written checkpoint is not equal bit for bit."""
    for key, tensor in tensors.items():
        if key not in written.tensors or not same_bits(written.tensors[key], tensor):
            raise OutputError(
                f"was written, but {key!r} differs when it is read back; the file was deleted",
                remedy="Try again, and check the disk.",
                path=path,
            )
        written.give_back(key)
