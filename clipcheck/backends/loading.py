"""Load both sides of a comparison: the reference, and the source of backends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.archives import OpenArchive, open_archive
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.calling import translating
from clipcheck.backends.registry import Choice, default_for, require_available
from clipcheck.backends.source import Source
from clipcheck.backends.towers import Towers
from clipcheck.checkpoints import onnx_data
from clipcheck.checkpoints.artefacts import computing_dtype
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.opening import weights_of
from clipcheck.errors import ArchitectureError, UnfitError, UsageError
from clipcheck.families.registry import by_library
from clipcheck.gates.result import OUTPUTS
from clipcheck.gates.tolerances import LIMITS

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.reference import Reference
    from clipcheck.families.base import DualEncoder
    from clipcheck.sandbox.process import Sandbox


@dataclass(frozen=True)
class Sides:
    """Both sides of a comparison.

    Attributes:
        source: of which candidates are built.
        reference: the eager model; it may share weights with candidates.
    """

    source: Source
    reference: Reference


class OpenSides:
    """Both sides, loaded on first use."""

    def __init__(self, load: Callable[[], Sides]) -> None:
        self._load = load
        self._sides: Sides | None = None

    def load(self) -> Sides:
        """Load both sides, again if necessary: running a candidate may change the shared weights.

        Raises:
            ArchitectureError: the two have different dimensions.
            UsageError: the subject is a program that computes in another dtype.
            ClipcheckError: one cannot be loaded; the subclass tells why.
        """
        self._sides = None  # frees memory before loading again
        self._sides = self._load()
        return self._sides

    @property
    def source(self) -> Source:
        """Source of which candidates are built."""
        return (self._sides or self.load()).source

    @property
    def reference(self) -> Reference:
        """Reference that candidates are compared with."""
        return (self._sides or self.load()).reference


@contextmanager
def opened_sides(
    subject: Checkpoint | Program,
    reference: Checkpoint | None,
    device: torch.device,
    dtype: str,
    *,
    archive: bool,
    sandbox: Sandbox | None = None,
    artefacts: Path | None = None,
    names: Mapping[str, str] | None = None,
) -> Iterator[OpenSides]:
    """Open both sides of a comparison, for all backends, with a temporary folder.

    Args:
        reference: checkpoint of the reference; None for the subject itself.
        archive: whether to load the archive's code as well.
        sandbox: sandbox process for the subject's own code; None for this process.
        artefacts: folder of the cache; None for no cache.
        names: what the user said that a program's inputs and outputs are, by their names.
    """
    with tempfile.TemporaryDirectory(prefix="clipcheck-") as name:
        scratch = Path(name)
        built = Artefacts(artefacts, scratch)

        def load() -> Sides:
            return load_sides(
                subject,
                reference,
                device,
                dtype,
                scratch,
                built,
                archive=archive,
                sandbox=sandbox,
                names=names,
            )

        yield OpenSides(load)


def load_sides(
    subject: Checkpoint | Program,
    reference: Checkpoint | None,
    device: torch.device,
    dtype: str,
    scratch: Path,
    artefacts: Artefacts,
    *,
    archive: bool,
    sandbox: Sandbox | None = None,
    names: Mapping[str, str] | None = None,
) -> Sides:
    """Load both sides with an existing temporary folder, see `opened_sides`.

    Raises:
        ArchitectureError: the two have different dimensions.
        UsageError: the subject is a program that computes in another dtype.
        ClipcheckError: one cannot be loaded; the subclass tells why.
    """
    import torch

    from clipcheck.backends.reference import Reference
    from clipcheck.models.loader import load_eager

    if isinstance(subject, Program):
        require_dtype(subject, dtype)
    wanted = getattr(torch, dtype)
    parts = [each.path for each in subject.parts] if isinstance(subject, Program) else []
    checkpoint = by_library(weights_of(subject, reference))
    opened: OpenArchive | None = None
    model: DualEncoder
    if archive and not parts:
        opened, model = open_archive(checkpoint, device, wanted, sandbox)
    else:
        model = load_eager(checkpoint, device, wanted)
    source = Source(
        checkpoint=checkpoint,
        model=model,
        device=device,
        dtype=dtype,
        options={},
        scratch=scratch,
        artefacts=artefacts,
        archive=opened,
        program=parts[0] if len(parts) == 1 else None,
        towers=tuple(parts) if len(parts) > 1 else (),
        sandbox=sandbox,
        made_here=not parts,
        names=names or {},
    )
    if reference is not None and reference is not checkpoint:
        model = load_eager(_stored_alike(reference, checkpoint), device, wanted)
    return Sides(source, Reference(model, checkpoint.model, device))


def require_runs(choice: Choice, subject: Checkpoint | Program) -> None:
    """Raise if a backend cannot run a program: it would run the program's reference instead.

    Raises:
        UnfitError: the backend does not run programs of this format.
    """
    if isinstance(subject, Program) and subject.format not in choice.backend.runs_programs:
        raise UnfitError(
            f"{choice.name} does not run programs of the format {subject.format}",
            remedy=f"Leave --backend out, or choose {default_for(subject.format)}.",
        )


def dtype_of(program: Program) -> str | None:
    """Return the dtype that a program computes in, where its files tell.

    Raises:
        UsageError: its towers compute in two.
    """
    if program.format in (Format.ARCHIVE, Format.OPENVINO, Format.EXECUTORCH):
        return None
    tell = onnx_data.computing_dtype if program.format is Format.ONNX else computing_dtype
    found = {each: tell(each.path) for each in program.parts}
    several = sorted({dtype for dtype in found.values() if dtype is not None})
    if len(several) > 1:
        raise UsageError(
            f"its towers compute in {' and '.join(several)}",
            remedy="Judge each of them alone.",
            path=program.path,
        )
    return several[0] if several else None


def require_dtype(program: Program, dtype: str) -> None:
    """Raise if a program computes in another dtype than the requested one, if the file tells.

    Raises:
        UsageError: the dtypes differ.
    """
    found = dtype_of(program)
    if found in (None, dtype):
        return
    raise UsageError(
        f"expected a program that computes in {dtype}, found {found}",
        remedy=f"Leave --dtype out, or add --dtype {found}."
        if found in LIMITS
        else f"Export it in one of the dtypes that can be judged: {', '.join(LIMITS)}.",
        path=program.path,
    )


def build(choice: Choice, source: Source) -> Backend:
    """Build the chosen backend.

    Raises:
        UnavailableError: it cannot run on this machine.
        UnfitError: it cannot run this checkpoint.
        RunError: its library failed.
    """
    require_available(choice)
    unfit = choice.backend.unfit(source.checkpoint, source.device, source.dtype)
    if source.program is None and not source.towers and unfit is not None:
        raise UnfitError(f"{choice.name}: {unfit}", remedy="Choose another backend.")
    source = replace(source, options=choice.settings)
    with translating(choice.name, "building"):
        if source.towers:
            parts = [choice.backend.build(replace(source, program=each)) for each in source.towers]
            made: Backend = Towers(parts, source.towers, source.logits)
        else:
            made = choice.backend.build(source)
        made.lacks |= frozenset(OUTPUTS).difference(source.model.outputs)
        return made


def rounded_alike(source: Source, rounded: Mapping[str, torch.dtype]) -> Source:
    """Return a source with some weights rounded as a candidate stores them, so that rounding does
    not count as an error of its computation.

    Args:
        rounded: dtypes by key.
    """
    from clipcheck.families.registry import over

    weights = {
        key: each.to(rounded[key]).to(each.dtype) if key in rounded else each
        for key, each in source.model.state_dict().items()
    }
    return replace(source, model=over(source.checkpoint.model, weights))


def _stored_alike(reference: Checkpoint, candidate: Checkpoint) -> Checkpoint:
    """Return the reference with its weights rounded to the candidate's stored dtypes.

    The effect of rounding on outputs is no fault of a conversion to half precision. The gate
    ``weights`` judges whether the weights were rounded correctly.
    """
    if reference.model != candidate.model:
        raise ArchitectureError(
            f"expected the dimensions of the reference, {reference.model.describe()}; "
            f"found {candidate.model.describe()}",
            remedy="Give the checkpoint that it was made from, with --reference.",
            path=candidate.path,
        )
    stored: Mapping[str, torch.Tensor] = candidate.tensors
    tensors = {
        key: tensor.to(stored[key].dtype) if key in stored else tensor
        for key, tensor in reference.tensors.items()
    }
    return replace(reference, tensors=tensors)
