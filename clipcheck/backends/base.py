"""The base class of all backends, with default capabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UnfitError
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.inputs.examples import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from clipcheck.backends.opened import Opened
    from clipcheck.backends.optimiser import Optimiser, Setting
    from clipcheck.backends.runner import Shows
    from clipcheck.backends.signature import Input
    from clipcheck.backends.source import ProgramFile, Source
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
    """Say that an installed library is too old, or return None; an unknown version is accepted.

    Args:
        distribution: of the library.
        oldest: first version that works.
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


def missing(libraries: Mapping[str, str], extra: str) -> Missing | None:
    """Say which libraries are not installed or too old, or return None.

    Args:
        libraries: the oldest version that works of each, by a name that is both the module's and
            the distribution's.
        extra: of clipcheck, which has them.
    """
    from importlib.util import find_spec

    absent = [name for name in libraries if find_spec(name) is None]
    if not absent:
        return next(filter(None, (too_old(*each) for each in libraries.items())), None)
    are = "is" if len(absent) == 1 else "are"
    return Missing(
        f"{' and '.join(absent)} {are} not installed", f'Run: pip install "clipcheck[{extra}]".'
    )


@dataclass(frozen=True)
class Option:
    """An option of a backend.

    Attributes:
        default: value if the option is not given.
        values: allowed values; empty if the backend's library validates them.
        meaning: description.
    """

    default: str
    values: tuple[str, ...]
    meaning: str


class Backend(ABC):
    """A way to run a checkpoint. The class has the capabilities; an object is one model that is
    ready to run, with numpy inputs and outputs.

    Use it in a ``with`` statement, which closes it.

    N images of R pixels a side, M texts of L tokens, features of E components.

    Attributes:
        summary: one line.
        options: by name.
        variants: options of each run with ``all``.
        distributions: installed packages that a verdict depends on, its own library first.
        default_for: file formats for which it is the default.
        runs_programs: formats of programs that it runs directly.
        needs_archive: whether it runs an archive's own code, `Source.archive`.
        needs_reference: whether it is the eager model, which needs another file as the reference.
        runs_modules: whether it shows what enters and leaves its modules, by `runner`.
        may_run_modules: whether it does so for some checkpoints, where `runs_modules` of the class
            says no.
        takes_forms: whether `call_in_form` can be called.
        keeps_nan: whether its library's operators give NaN for NaN.
        takes_weights: whether `outputs_in_float` can be called.
        name: in results and reports.
        size: bytes of the artefact that it runs, or None.
        preprocessing: preprocessing and tokenizer with the candidate's own dimensions, or None.
        patched: constants of its code that were rewritten, or None.
        lacks: outputs that its model does not have, such as logits of a single tower.
        rounded: by key, the dtype of a weight that its program stores in fewer bits than it
            computes in.
        pixels: its input of normalised pixels, as its file declares it; None where it takes
            colours, or no input is declared.
        seen: rounds pixels to what it takes, as whole numbers; None where it takes them as they
            are.
        kinds: of the inputs of a program, see `clipcheck.backends.signature.INPUTS`.
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
    may_run_modules: ClassVar[bool] = False
    takes_forms: ClassVar[bool] = False
    keeps_nan: ClassVar[bool] = True
    takes_weights: bool = False

    name: str
    size: int | None = None
    preprocessing: Preprocessing | None = None
    patched: Patched | None = None
    lacks: frozenset[str] = frozenset()
    pixels: Input | None = None
    seen: Callable[[Pixels], Pixels] | None = None
    kinds: frozenset[str] = frozenset()
    rounded: Mapping[str, torch.dtype] = MappingProxyType({})

    # ---------------------------------------------------------------- what it can run

    @classmethod
    def available(cls) -> Missing | None:
        """Return why it cannot run on this machine, or None, without slow imports."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return the version of its library, which must be installed."""
        return f"{cls.distributions[0]} {version(cls.distributions[0])}"

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Return why it cannot run this checkpoint, or None."""
        return None

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Build the backend, ready to run.

        Raises:
            RunError: its library failed; the message quotes the library.
        """
        raise NotImplementedError

    @classmethod
    def open_program(cls, program: ProgramFile) -> Backend:
        """Open a user's program of one of the formats `runs_programs`, also without its weights.

        Raises:
            ClipcheckError: it cannot be opened; the subclass tells why.
        """
        raise UnfitError(
            "this backend opens programs only with the weights of their reference",
            remedy="Give the checkpoint: --reference CHECKPOINT.",
            path=program.path,
        )

    @classmethod
    def open_here(
        cls, path: Path, device: torch.device | str, options: Mapping[str, str]
    ) -> Opened:
        """Open a program in this process, which may be the sandbox process.

        Args:
            options: see `options`; missing ones have their defaults.

        Raises:
            ClipcheckError: it cannot be opened; the subclass tells why.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- one that runs

    @property
    def optimisers(self) -> Sequence[Optimiser]:
        """Return the optimisers that can be controlled, of each program that it runs. What they
        rewrote takes pixels and ids."""
        return ()

    def line_for(self, setting: Setting) -> str:
        """Return the line of a user's Python code that gives its optimiser a setting."""
        raise NotImplementedError

    @property
    def runner(self) -> Shows:
        """Show its modules by this, where `runs_modules` says that they can be shown."""
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
        """Return the outputs of a call of the model itself, by name: at least both logits.

        Raises:
            RunError: it cannot be run, or returns something else.
        """
        return dict(zip(LOGITS, self(pixels, tokens), strict=True))

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return all outputs by name, see `clipcheck.gates.result.OUTPUTS`. Each method is called
        once, so each tower runs twice.

        Raises:
            RunError: the model cannot be run, or returns something else.
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
            after: inputs of a second call; empty for no such call.

        Raises:
            RunError: it failed.
        """
        raise NotImplementedError

    def outputs_in_float(
        self, name: str, weight: torch.Tensor, batches: Sequence[tuple[Pixels, Tokens]]
    ) -> list[Named]:
        """Return for each batch the features that depend on one quantised weight, with this weight
        in float.

        Args:
            name: of the weight, as in `Evidence.tensors`.
            batches: of `batch_sizes`; the same list for all weights, which come in their order in
                the program: what was computed is used again.

        Raises:
            RunError: the program cannot be run so.
        """
        raise NotImplementedError

    @property
    def absent(self) -> frozenset[str]:
        """Return the outputs that it does not have, by its model or its own signature. Call it
        after it has run."""
        return self.lacks

    @property
    def normalised(self) -> frozenset[str]:
        """Names of the features that it normalises to length 1. Call it after it has run."""
        return frozenset()

    @property
    def mapping(self) -> tuple[str, ...]:
        """Meanings of the inputs and outputs of a user's program. Call it after it has run."""
        return ()

    @property
    def batches(self) -> tuple[Rows, ...]:
        """The only numbers of images and texts with which it runs; empty if it takes any.

        Call it after it has run.
        """
        return ()

    @property
    def batch_sizes(self) -> Rows:
        """Numbers of images and texts to run it with at a time; None for any."""
        return self.batches[-1] if self.batches else (None, None)

    def gives(self, method: str, *, itself: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """Return the outputs of a method; none if it has no such method. Call it after it has run.

        Args:
            method: ``encode_image``, ``encode_text`` or ``forward``.
            itself: whether the method must exist, and none may replace it.
        """
        names = OF_METHODS[method]
        return () if self.absent.intersection(names) else names

    def changed(self) -> list[str]:
        """Return the keys of its own weights that running changed."""
        return []

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``. Call it after it has run."""
        return Evidence(weights=None, doubts=["nothing is known of how the candidate was made"])

    def close(self) -> None:  # noqa: B027 - many have nothing to close
        """Release everything that it opened. It cannot run any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evidence_of_closed() -> Evidence:
    """Return the evidence of a closed backend: none."""
    return Evidence(weights=None, doubts=["the candidate was closed"])
