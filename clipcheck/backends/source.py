"""The source that a backend is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.archives import OpenArchive
from clipcheck.backends.artefacts import Artefacts
from clipcheck.errors import UnfitError

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families import eager
    from clipcheck.families.base import DualEncoder
    from clipcheck.families.sizes import Sizes
    from clipcheck.sandbox.cell import Cell


@dataclass(frozen=True)
class Source:
    """Everything that a backend is made of.

    Attributes:
        checkpoint: the file; of a program the one that it was made of.
        model: the eager model of its weights, on ``device`` and in ``dtype``. Backends may share
            its weights; they must not change it.
        device: where to run.
        dtype: what to compute in, by name: float32, float16 or bfloat16.
        options: by name, one value for each of the backend's options.
        scratch: a folder of its own, which outlives the backend.
        artefacts: what was built before.
        archive: what runs the archive itself, where the checkpoint is one and that is wanted.
        program: a file that is to be run as it is, in place of one that is built.
        towers: such a file of each tower, in place of one of both.
        cell: what runs the code of such a file; None for this process.
        made_here: whether a program is the backend's own, and has to give all outputs.
        names: what the user said that a program's inputs and outputs are, by their names.
    """

    checkpoint: Checkpoint
    model: DualEncoder
    device: torch.device
    dtype: str
    options: Mapping[str, str]
    scratch: Path
    artefacts: Artefacts
    archive: OpenArchive | None = None
    program: Path | None = None
    towers: tuple[Path, ...] = ()
    cell: Cell | None = None
    made_here: bool = True
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def clip(self) -> eager.CLIP:
        """The eager model, where clipcheck's own modules compute it.

        Raises:
            UnfitError: a library's do.
        """
        from clipcheck.families import eager

        if not isinstance(self.model, eager.CLIP):
            raise UnfitError(
                f"expected clipcheck's own modules, found {type(self.model).__name__}",
                remedy="Choose another backend.",
                path=self.checkpoint.path,
            )
        return self.model

    @property
    def sizes(self) -> Sizes:
        """The sizes of the model's inputs and features."""
        from clipcheck.families.registry import sizes_of

        return sizes_of(self.checkpoint.model)
