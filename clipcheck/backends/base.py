"""The base class of all backends: what one can do, with defaults, and the life of one that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ClassVar, Self

from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.inputs.examples import Frontend

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from clipcheck.backends.forward import ByName
    from clipcheck.backends.opened import Opened
    from clipcheck.backends.source import Source
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.checkpoints.inspection import Patched

OF_METHODS: Mapping[str, tuple[str, ...]] = {
    **{method: (name,) for method, name in ENCODERS.items()},
    "forward": LOGITS,
}
"""The outputs of each method of a CLIP model."""


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot run on this machine.

    Attributes:
        reason: what is missing, as a phrase without a full stop.
        remedy: what to do about it, as a sentence.
    """

    reason: str
    remedy: str


def too_old(distribution: str, oldest: str) -> Missing | None:
    """Why an installed library cannot be used, or None; one whose version is not known can.

    Args:
        distribution: that brings it.
        oldest: the first version that works here.
    """
    from packaging.version import Version

    try:
        found = version(distribution)
    except PackageNotFoundError:
        return None
    if Version(found) >= Version(oldest):
        return None
    return Missing(
        f"{distribution} {found} is installed, and {oldest} is the oldest that works",
        f"Upgrade it: pip install --upgrade '{distribution}>={oldest}'.",
    )


@dataclass(frozen=True)
class Option:
    """Something that can be chosen of a backend.

    Attributes:
        default: its value where nothing is said.
        values: what it may be; none where that is for the backend's library to say.
        meaning: for people.
    """

    default: str
    values: tuple[str, ...]
    meaning: str


class Backend(ABC):
    """A way to run a checkpoint. The class tells what it can run; an object of it is one model that
    runs, and takes and gives numpy arrays.

    It can be used in a ``with`` statement, which closes it.

    N images of R pixels a side, M texts of L tokens, features of E components.

    Attributes:
        summary: what it is, in a line.
        options: what can be chosen of it, by name.
        variants: the options of each run that ``all`` stands for.
        distributions: what is installed that a verdict on it depends on, its own library first.
        default_for: formats of the files that it runs where no backend is named.
        runs_programs: formats of the programs that it runs as they are.
        needs_archive: whether it runs an archive's own code, `Source.archive`.
        needs_reference: whether it is what the others are compared with, and is itself compared
            with another file alone.
        runs_modules: whether its modules can be run one by one, by `runner`.
        takes_forms: whether `call_in_form` can be called.
        name: the name that results and reports use.
        size: bytes of the artefact that it runs, or None where it has none of its own.
        frontend: how it takes raw images and texts, or None where it has no dimensions of its own
            for that.
        patched: constants of its code that were rewritten, or None where that is not done.
        lacks: outputs that its model does not have: one tower alone has its features.
        seen: rounds pixels to what it takes, as whole numbers; None where it takes them as they
            are.
        normalised: features that it gives with the length 1. As `absent` it is to be asked for
            after it has run, and so are the next two.
        mapping: what the inputs and outputs of a user's program are, for people.
        batches: the only numbers of images and texts that it runs with; nothing for any.
    """

    summary: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {}
    variants: ClassVar[Sequence[Mapping[str, str]]] = ({},)
    distributions: ClassVar[tuple[str, ...]] = ("torch",)
    default_for: ClassVar[frozenset[Format]] = frozenset()
    runs_programs: ClassVar[frozenset[Format]] = frozenset()
    needs_archive: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    runs_modules: bool = False
    takes_forms: ClassVar[bool] = False

    name: str
    size: int | None = None
    frontend: Frontend | None = None
    patched: Patched | None = None
    lacks: frozenset[str] = frozenset()
    seen: Callable[[Pixels], Pixels] | None = None

    # ---------------------------------------------------------------- what it can run

    @classmethod
    def available(cls) -> Missing | None:
        """Why it cannot run on this machine, or None. It imports nothing that takes long."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return the version of the library that runs it. Call it only where it is available."""
        return f"{cls.distributions[0]} {version(cls.distributions[0])}"

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Why it is not made for this checkpoint, or None."""
        return None

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Make one that runs.

        Raises:
            RunError: its library failed; the message has the library's words.
        """
        raise NotImplementedError

    @classmethod
    def open_here(cls, path: Path, device: torch.device, options: Mapping[str, str]) -> Opened:
        """Open a program in this process, which may be one without rights.

        Args:
            options: see `options`; what is not given has its default.

        Raises:
            ClipcheckError: it cannot be opened; the subclass tells why.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- one that runs

    @property
    def runner(self) -> ByName:
        """Run its modules by this, where `runs_modules` says that they can be run."""
        raise NotImplementedError

    @abstractmethod
    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""

    @abstractmethod
    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""

    @abstractmethod
    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""

    def forward(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return what a call of the model itself gives, by name: both logits, if nothing else.

        Raises:
            RunError: it cannot be run, or gives something else.
        """
        return dict(zip(LOGITS, self(pixels, tokens), strict=True))

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """All outputs by name, see `clipcheck.gates.result.OUTPUTS`; each method is called once, so
        that each tower runs twice.

        Raises:
            RunError: the model cannot be run, or gives something else.
        """
        logits = {} if self.lacks.intersection(LOGITS) else self.forward(pixels, tokens)
        given = {"encode_image": pixels, "encode_text": tokens}
        features = {
            name: getattr(self, method)(given[method])
            for method, name in ENCODERS.items()
            if name not in self.lacks
        }
        return {**features, **logits}

    def call_in_form(
        self, form: str, method: str, arrays: Sequence[Array], after: Sequence[Array] = ()
    ) -> tuple[list[Array], str]:
        """Return the outputs of a method for inputs in some form, and what was wrong with the call.

        Args:
            form: of `clipcheck.backends.forms.FORMS`.
            after: others, for a second call; none for no such call.

        Raises:
            RunError: it failed.
        """
        raise NotImplementedError

    @property
    def absent(self) -> frozenset[str]:
        """Outputs that it does not have, as its model does not, or by its own signature. To be
        asked for after it has run."""
        return self.lacks

    @property
    def normalised(self) -> frozenset[str]:
        """See the class."""
        return frozenset()

    @property
    def mapping(self) -> tuple[str, ...]:
        """See the class."""
        return ()

    @property
    def batches(self) -> tuple[Rows, ...]:
        """See the class."""
        return ()

    def gives(self, method: str, *, itself: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """Return the outputs that a method gives; none where it has no such method. To be asked for
        after it has run.

        Args:
            method: ``encode_image``, ``encode_text`` or ``forward``.
            itself: whether it has to be there, and no other method stand in for it.
        """
        names = OF_METHODS[method]
        return () if self.absent.intersection(names) else names

    def changed(self) -> list[str]:
        """The keys of the weights of its own that running it has changed."""
        return []

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``. To be called after it has run."""
        return Evidence(None, doubts=["nothing is known of how the candidate was made"])

    def close(self) -> None:  # noqa: B027 - many have nothing to close
        """Let go of all that it opened. It cannot be run any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evidence_of_closed() -> Evidence:
    """Return the evidence of a closed backend: nothing is known of it any more."""
    return Evidence(None, doubts=["the candidate was closed"])
