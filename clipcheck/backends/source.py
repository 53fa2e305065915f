"""The source from which a backend is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from clipcheck.backends.archives import OpenArchive
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.calling import Array, to_numpy
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import UnfitError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families import eager
    from clipcheck.families.base import DualEncoder
    from clipcheck.families.sizes import Sizes
    from clipcheck.sandbox.process import Sandbox


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """Everything that is needed to open a program of one file.

    Attributes:
        path: of the file.
        device: to run on.
        dtype: in which it computes, by name; None if outputs are taken as they are.
        sizes: of the model.
        weights: that it should have, by the released keys; None if they are not known.
        options: by name, a value for each of the backend's options.
        sandbox: sandbox process that runs it; None for this process.
        made_here: whether the backend made it, so that it must have all outputs.
        names: what the user said that its inputs and outputs are, by their names.
        model: whose modules to look for inside of it; None for none.
    """

    path: Path
    device: torch.device | str
    dtype: str | None
    sizes: Sizes
    weights: Mapping[str, torch.Tensor] | None
    options: Mapping[str, str]
    sandbox: Sandbox | None = None
    made_here: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    model: DualEncoder | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that is needed to build a backend.

    Attributes:
        checkpoint: the file; for a program, the checkpoint of its weights.
        model: the eager model of its weights, on ``device`` and in ``dtype``. Backends may share
            its weights; they must not change it.
        device: to run on.
        dtype: to compute in, by name: float32, float16 or bfloat16.
        options: by name, a value for each of the backend's options.
        scratch: folder for temporary files, which outlives the backend.
        artefacts: the cache.
        archive: the loaded archive, if the checkpoint is one and it is needed.
        program: a program to run directly, in place of a built one.
        towers: such a file of each tower, in place of one of both.
        sandbox: sandbox process for the program's code; None for this process.
        made_here: whether the backend itself made the program, so that it must have all outputs.
        names: what the user said that a program's inputs and outputs are, by their names.
        exports: programs that `exported` returned, by model, with and without checks.
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
    sandbox: Sandbox | None = None
    made_here: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    exports: WeakKeyDictionary[DualEncoder, dict[bool, ExportedProgram]] = field(
        default_factory=WeakKeyDictionary
    )

    def exported(self, *, checked: bool = True) -> ExportedProgram:
        """Return the model's program, exported once for all backends: it takes seconds.

        Args:
            checked: see `clipcheck.writers.programs.export`; other models have no such checks.
        """
        from clipcheck.writers.programs import export

        of = self.checkpoint.model
        checked |= not (isinstance(of, LibraryArchitecture) and of.library == "transformers")
        programs = self.exports.setdefault(self.model, {})
        if checked not in programs:
            programs[checked] = export(self.model, checked=checked)
        return programs[checked]

    @property
    def clip(self) -> eager.CLIP:
        """The eager model with clipcheck's own modules.

        Raises:
            UnfitError: the model is a library's.
        """
        from clipcheck.families import eager

        if not isinstance(self.model, eager.CLIP):
            raise UnfitError(
                f"expected clipcheck's own modules, found {type(self.model).__name__}",
                remedy="Choose another backend.",
                path=self.checkpoint.path,
            )
        return self.model

    def logits(self, images: Array, texts: Array) -> tuple[Array, Array]:
        """Return the eager model's logits per image [N, M] and per text [M, N] for features."""
        import torch

        like = self.model.log_scale()
        given = [torch.from_numpy(each).to(like.device, like.dtype) for each in (images, texts)]
        with torch.inference_mode():
            per_image, per_text = self.model.logits(*given)
        return to_numpy(per_image), to_numpy(per_text)

    def file(self, path: Path) -> ProgramFile:
        """Return a program of this source."""
        return ProgramFile(
            path=path,
            device=self.device,
            dtype=self.dtype,
            sizes=self.sizes,
            weights=self.model.state_dict(),
            options=self.options,
            sandbox=self.sandbox,
            made_here=self.made_here,
            names=self.names,
            model=self.model,
        )

    @property
    def sizes(self) -> Sizes:
        """The sizes of the model's inputs and features."""
        from clipcheck.families.registry import sizes_of

        return sizes_of(self.checkpoint.model)
