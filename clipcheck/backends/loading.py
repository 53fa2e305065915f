"""From a checkpoint that is open to what backends are made of, and to a backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend, Source, translating
from clipcheck.backends.registry import Choice, require_available, way
from clipcheck.errors import UnavailableError

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.artefacts import Artefacts
    from clipcheck.checkpoints.checkpoint import Checkpoint


def load_source(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str,
    scratch: Path,
    artefacts: Artefacts,
    *,
    archive: bool,
) -> Source:
    """Load a checkpoint, once for all backends that are made of it.

    Args:
        checkpoint: the file.
        device: where to.
        dtype: what to compute in, by name.
        scratch: a folder for what backends write.
        artefacts: what was built before.
        archive: whether the archive's own module is wanted as well.

    Raises:
        ClipcheckError: it cannot be loaded; the subclass tells why.
    """
    import torch

    from clipcheck.models.loader import load_checkpoint_both, load_eager

    wanted = getattr(torch, dtype)
    if archive:
        both = load_checkpoint_both(checkpoint, device, wanted)
        model = both.eager_model
    else:
        both, model = None, load_eager(checkpoint, device, wanted)
    return Source(checkpoint, model, device, dtype, {}, scratch, artefacts, both)


def build(choice: Choice, source: Source) -> Backend:
    """Make the backend that was chosen.

    Raises:
        UnavailableError: it cannot run on this machine, or not this checkpoint.
        RunError: its library failed.
    """
    require_available(choice)
    chosen = way(choice.name)
    unfit = chosen.unfit(source.checkpoint, source.device, source.dtype)
    if unfit is not None:
        raise UnavailableError(f"{choice.name}: {unfit}", remedy="Choose another backend.")
    with translating(choice.name, "building"):
        return chosen.build(replace(source, options=choice.settings))
