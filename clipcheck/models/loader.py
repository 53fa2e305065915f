"""Load a checkpoint as a model: the classic interface, and as archive and eager model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast, overload

import torch
import torchvision.transforms  # noqa: F401 - here, so that no load is the one that pays for it

from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import DamagedError, UnavailableError, UnfitError, UsageError
from clipcheck.families import eager
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import over
from clipcheck.inputs.preprocess import transform
from clipcheck.models import torchscript
from clipcheck.models.archives import LoadedArchive
from clipcheck.models.arena import Arena
from clipcheck.models.weights import by_reference

if TYPE_CHECKING:
    from PIL.Image import Image

_SLACK = 64 << 20
"""Bytes of additional memory that save a twentieth of the time to load a ViT-B/32 both ways."""

Preprocess = Callable[["Image"], torch.Tensor]
Device = str | torch.device | None
DownloadRoot = str | os.PathLike[str] | None


class Model(Protocol):
    """A CLIP model, loaded in either way.

    N images of R pixels a side, M texts of L tokens, features of E components.
    """

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Encode preprocessed pixels [N, 3, R, R] as features [N, E], not normalised."""

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Encode ids [M, L] as features [M, E], not normalised."""

    def __call__(
        self, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits per image [N, M] and per text [M, N] for pixels and ids."""


@overload
def load(
    name: str | os.PathLike[str],
    device: Device = None,
    jit: Literal[False] = False,
    download_root: DownloadRoot = None,
) -> tuple[eager.CLIP, Preprocess]: ...


@overload
def load(
    name: str | os.PathLike[str],
    device: Device = None,
    jit: bool = ...,
    download_root: DownloadRoot = None,
) -> tuple[Model, Preprocess]: ...


def load(
    name: str | os.PathLike[str],
    device: Device = None,
    jit: bool = False,
    download_root: DownloadRoot = None,
) -> tuple[Model, Preprocess]:
    """Load a CLIP model.

    The checksums of code and pickles are compared first, but not those of the weights, as in torch:
    `clipcheck check` and `clipcheck inspect` compare all.

    Weights do not determine activation, heads and epsilon. If neither a configuration beside them
    nor metadata in their file tells these, this function assumes those of the released models, as
    the reference package does: QuickGELU, heads of 64 channels, epsilon 1e-5. `clipcheck.check`
    does not assume them.

    Args:
        name: a name from `clipcheck.available_models`, or the path of a checkpoint: a TorchScript
            archive, a state dict, or safetensors.
        device: default: ``cuda`` if there is a GPU, else ``cpu``.
        jit: whether to run the archive itself in place of an eager model with its weights.
        download_root: folder for released files; default: ``$CLIPCHECK_CACHE``, else
            ``~/.cache/clip``.

    Returns:
        The model in evaluation mode, and the transform from a Pillow image to its float32 tensor
        [3, R, R]. On the CPU the model is float32, elsewhere half like the released models.

    Raises:
        ClipcheckError: the file or the device cannot be used; the subclass tells why.

    Warns:
        UserWarning: ``jit`` is set, but the file is no archive and is loaded as a state dict.
    """
    target = resolve_device(device)
    checkpoint = open_checkpoint(name, download_root)
    if jit and checkpoint.format is not Format.ARCHIVE:
        warnings.warn(
            f"File {checkpoint.path} is not a JIT archive. Loading as a state dict instead",
            stacklevel=2,
        )
        jit = False
    model: torch.nn.Module
    if jit:
        dtype = _compute_dtype(target)
        arena = _arena(checkpoint, dtype)
        model = torchscript.load_archive(checkpoint.path, target)
        torchscript.patch(model, target, dtype, checkpoint.weight_dtypes)
        wanted = dtypes(checkpoint, dtype)
        for key, held in by_reference(model, checkpoint.naming):
            held.data = _cast(held.data, arena, wanted(key, held.data))
    else:
        model = eager.build(checkpoint.architecture, _classic_weights(checkpoint, target))
    return cast(Model, model), transform(checkpoint.architecture.image_resolution)


def load_both(
    name: str | os.PathLike[str], device: Device = None, download_root: DownloadRoot = None
) -> tuple[torch.jit.ScriptModule, eager.CLIP, Preprocess]:
    """Load an archive both ways: as the archive, and as an eager model with its weights.

    The eager model's weights are read from the file without the TorchScript interpreter. Each is
    compared bit for bit with the interpreter's, and then both models share one tensor, so it is
    cast to float32 only once.

    Args:
        name: as for `load`; the file must be an archive.
        device: as for `load`.
        download_root: as for `load`.

    Returns:
        The archive's module, the eager model, and the preprocessing.

    Raises:
        UnfitError: the file is no archive.
        UnavailableError: TorchScript is not available.
        DamagedError: the interpreter's weights differ from the file's.
        ClipcheckError: the file or the device cannot be used; the subclass tells why.
    """
    checkpoint = open_checkpoint(name, download_root)
    both = load_checkpoint_both(checkpoint, resolve_device(device))
    for key, reason in both.differing.items():
        raise DamagedError(
            f"the weight {key!r} differs between two readings of the archive: {reason}",
            remedy=f"Do not use this file: download it again, or {torchscript.ANEW}",
            path=checkpoint.path,
        )
    model = cast("eager.CLIP", both.eager_model)
    return both.jit_model, model, transform(checkpoint.architecture.image_resolution)


@dataclass(frozen=True)
class Both:
    """A checkpoint loaded both ways.

    Attributes:
        archive: the archive, patched.
        eager_model: built from the weights in the file's records.
        compared: number of compared weights and buffers.
        differing: by key, how the interpreter's weight differs from the record's.
    """

    archive: LoadedArchive
    eager_model: DualEncoder
    compared: int
    differing: Mapping[str, str]

    @property
    def jit_model(self) -> torch.jit.ScriptModule:
        """The archive's module."""
        return self.archive.module


def load_checkpoint_both(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None
) -> Both:
    """Load an open checkpoint both ways, as `load_both`; differing weights are returned.

    Args:
        dtype: in which both compute. Half or bfloat16 applies to the weights that released files
            have in half; others are float32. Default: float32 on the CPU, elsewhere the file's.

    Raises:
        UnfitError: the file is no archive.
        UnavailableError: TorchScript is not available.
        DamagedError: the interpreter cannot load the file.
    """
    require_archive(checkpoint)
    dtype = dtype or _compute_dtype(device)
    arena = _arena(checkpoint, dtype)
    archive = LoadedArchive(
        checkpoint.path, device, dtype, checkpoint.weight_dtypes, checkpoint.naming
    )
    weights, differing = _share(archive, checkpoint, device, dtype, arena)
    archive.watch()
    return Both(archive, over(checkpoint.model, weights), len(weights), differing)


def require_archive(checkpoint: Checkpoint) -> None:
    """Raise `UnfitError` if a checkpoint has no code of its own."""
    if checkpoint.format is not Format.ARCHIVE:
        raise UnfitError(
            f"this {checkpoint.format} has only weights and no code, so there is nothing to "
            "compare with the eager model",
            remedy="Make an archive of it: clipcheck convert WEIGHTS -o model.pt, with "
            "--architecture ARCH and --key NAME if it needs them.",
            path=checkpoint.path,
        )


def load_eager(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
    arena: Arena | None = None,
) -> DualEncoder:
    """Return an eager model of an open checkpoint, of any family.

    Args:
        arena: memory for the weights to cast, see `cast_room`; default: a new one.

    Raises:
        ArchitectureError: a library computes it, and the weights are not those of its model.
    """
    dtype = dtype or _compute_dtype(device)
    arena, wanted = arena or _arena(checkpoint, dtype), dtypes(checkpoint, dtype)
    weights = {}
    for key, stored in checkpoint.tensors.items():
        checkpoint.prefetch(key)
        weights[key] = _cast(stored.to(device), arena, wanted(key, stored))
        checkpoint.give_back(key)
    return over(checkpoint.model, weights)


def resolve_device(device: Device) -> torch.device:
    """Return the device, after a check that it is available.

    Raises:
        UnavailableError: it is not available.
        UsageError: it is no device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"expected a device, found {device!r}", remedy="Give cpu, cuda, cuda:1 or mps."
        ) from error
    if target.type == "cpu":
        # Index and all, "cpu:0" is the CPU; the constants of an archive name it without.
        return torch.device("cpu")
    try:
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # The first sentence: torch goes on with all the backends that it does have.
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise UnavailableError(
            f"the device {str(target)!r} is not available here ({reason})",
            remedy="Choose another with --device, or install a torch that supports this one.",
        ) from error
    return target


def _compute_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype of the reference: float32 on the CPU, elsewhere None for the file's."""
    return torch.float32 if device.type == "cpu" else None


def _classic_weights(checkpoint: Checkpoint, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the weights on ``device``, in the reference's dtypes there."""
    expected = dict(specs(checkpoint.architecture))
    weights = {}
    for key, tensor in checkpoint.tensors.items():
        dtype = tensor.dtype
        if dtype.is_floating_point:
            dtype = _compute_dtype(device) or getattr(torch, expected[key].released_dtype)
        if dtype != tensor.dtype or device.type != "cpu":
            checkpoint.prefetch(key)
            weights[key] = tensor.to(device, dtype)
            checkpoint.give_back(key)
        else:
            weights[key] = tensor
    return weights


def cast_room(checkpoint: Checkpoint, dtype: torch.dtype | None) -> int:
    """Return the number of bytes for weights to cast to float32; 0 for another dtype."""
    if dtype != torch.float32:
        return 0
    return Arena.room_for(_casts(checkpoint, dtype), dtype)


def _casts(checkpoint: Checkpoint, dtype: torch.dtype) -> list[torch.Tensor]:
    tensors = checkpoint.tensors.values()
    return [t for t in tensors if t.dtype.is_floating_point and t.dtype != dtype]


def _arena(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Arena | None:
    """Return memory for the weights to cast, or None if there are none.

    Prepare only so much of it that the peak hardly grows. The peak is at the end: all weights cast,
    and the largest still in both readings.
    """
    if dtype != torch.float32:
        return None
    room = cast_room(checkpoint, dtype)
    arena = Arena.of(room)
    held = sum(tensor.nbytes for tensor in _casts(checkpoint, dtype))
    largest = max(tensor.nbytes for tensor in checkpoint.tensors.values())
    arena.populate(room - held + largest + _SLACK)
    return arena


def _cast(tensor: torch.Tensor, arena: Arena | None, dtype: torch.dtype) -> torch.Tensor:
    if dtype == tensor.dtype:
        return tensor
    return tensor.to(dtype) if arena is None else arena.cast(tensor, dtype)


def dtypes(
    checkpoint: Checkpoint, dtype: torch.dtype | None
) -> Callable[[str, torch.Tensor], torch.dtype]:
    """Return a function from key and tensor to the dtype that the weight has in a model that
    computes in ``dtype``: a library's model has it throughout."""
    library = isinstance(checkpoint.model, LibraryArchitecture)
    released = {} if library else dict(specs(checkpoint.architecture))

    def wanted(key: str, tensor: torch.Tensor) -> torch.dtype:
        if dtype is None or not tensor.dtype.is_floating_point:
            return tensor.dtype
        if library or (key in released and released[key].released_dtype == "float16"):
            return dtype
        return torch.float32

    return wanted


def _share(
    archive: LoadedArchive,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None,
    arena: Arena | None,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Compare the weights, and share those that agree between archive and eager model.

    One at a time, so that memory never holds all weights in half and in float32.

    Returns:
        The eager model's weights, and by key how the interpreter's weights differ.
    """
    wanted = dtypes(checkpoint, dtype)
    weights: dict[str, torch.Tensor] = {}
    differing: dict[str, str] = {}
    for key, held in archive.weights():
        checkpoint.prefetch(key)
        reason = unlike(held.data, checkpoint.tensors.get(key))
        checkpoint.give_back(key)
        held.data = _cast(held.data, arena, wanted(key, held.data))
        if reason:
            differing[key] = reason
        else:
            weights[key] = held.data
    for key, stored in checkpoint.tensors.items():
        if key not in weights:
            differing.setdefault(key, "the interpreter does not have it")
            weights[key] = stored.to(device, wanted(key, stored))
    return weights, differing


def unlike(held: torch.Tensor, stored: torch.Tensor | None) -> str:
    """Return how the interpreter's weight differs from the file's record, or an empty string."""
    if stored is None:
        return "the file's records do not have it"
    if held.dtype != stored.dtype or held.shape != stored.shape:
        found = f"{held.dtype} {list(held.shape)}"
        return f"the interpreter has {found}, the record {stored.dtype} {list(stored.shape)}"
    if not same_bits(held, stored.to(held.device)):
        return "the interpreter has other bits than the record"
    return ""
