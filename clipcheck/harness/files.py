"""The files of a check: what is judged, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipcheck.backends.loading import dtype_of, require_runs
from clipcheck.backends.registry import Choice, default_for, eager_backend
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import weights_of
from clipcheck.errors import UnfitError
from clipcheck.families.registry import summary_of
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.system.figures import size

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Files:
    """The subject, and the file that it is compared with.

    Attributes:
        reference: the checkpoint whose eager model is the reference; None for the subject's own.
        weights: result of the gate ``weights``, if there are two files with weights.
        compared: backends whose preprocessing was compared already: it is the same in all dtypes.
    """

    subject: Checkpoint | Program
    reference: Checkpoint | None
    weights: GateResult | None
    compared: set[str] = field(default_factory=set)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint with the weights that the subject should have."""
        return weights_of(self.subject, self.reference)

    @property
    def gates(self) -> tuple[GateResult, ...]:
        """Results that are known before anything runs."""
        return () if self.weights is None else (self.weights,)


def describe(subject: Checkpoint | Program) -> str:
    """Describe a file: its format, architecture or files, and dtypes."""
    if isinstance(subject, Program):
        names = ", ".join(subject.names[:3])
        more = ", ..." if len(subject.files) > 3 else ""
        several = (
            f" in {len(subject.files)} files ({names}{more})" if len(subject.files) > 1 else ""
        )
        what = "a program for each tower," if subject.towers else "a program of"
        return f"{subject.format}, {what} {size(subject.size)}{several}"
    checkpoint = subject
    dtypes = " and ".join(checkpoint.dtypes)
    parameters = f"{checkpoint.parameters:,} parameters"
    described = checkpoint.model.describe()
    return f"{checkpoint.format}, {described}, {parameters}, {dtypes}"


def computes(checkpoint: Checkpoint, released: str | None) -> str:
    """Describe how the model computes, and the source of that."""
    told = checkpoint.told or (f"the released file of {released}" if released else "")
    source = f"from {told}" if told else "assumed, as in the released models"
    return f"{summary_of(checkpoint.model)}: {source}"


def default_backend(files: Files) -> Choice:
    """Return the backend for a file's format."""
    subject = files.subject
    library = isinstance(subject, Checkpoint) and isinstance(subject.model, LibraryArchitecture)
    form = Format.PT2 if library and subject.format is not Format.ARCHIVE else subject.format
    if default_for(form):
        return Choice(default_for(form))
    if files.reference is not None:
        return Choice(eager_backend())
    raise UnfitError(
        f"this {form} has only weights and no code, so there is nothing to compare with the eager "
        "model",
        remedy="Choose a backend (--backend all runs every one), compare it with another file "
        "(--reference CHECKPOINT), or make an archive of it: clipcheck convert WEIGHTS -o "
        "model.pt, with --architecture ARCH and --key NAME if it needs them.",
        path=files.subject.path,
    )


def default_dtypes(files: Files, device: torch.device) -> tuple[str, ...]:
    """Return a program's own dtype; otherwise float32, in which all gates apply, and on a GPU also
    the checkpoint's own dtype."""
    if isinstance(files.subject, Program):
        told = dtype_of(files.subject)
        return (told if told in LIMITS else "float32",)
    own = files.checkpoint.compute_dtype
    if device.type == "cpu" or own not in LIMITS or own == "float32":
        return ("float32",)
    return ("float32", own)


def require_another_subject(choice: Choice, files: Files) -> None:
    """Raise if the backend cannot run the subject, or is the reference itself."""
    require_runs(choice, files.subject)
    if choice.backend.needs_reference and files.reference is None:
        raise UnfitError(
            "the eager model is the reference, and cannot be compared with itself",
            remedy="Give another checkpoint as the reference: --reference CHECKPOINT.",
        )


def reason_unfit(choice: Choice, files: Files, device: torch.device, dtype: str) -> str | None:
    """Return why a backend cannot run this checkpoint on this machine, or None."""
    missing = choice.backend.available()
    if missing is not None:
        return f"{missing.reason}. {missing.remedy}"
    try:
        require_another_subject(choice, files)
        return choice.backend.unfit(files.checkpoint, device, dtype)
    except UnfitError as error:
        return error.problem
