"""The errors that clipcheck raises on purpose.

::

    ClipcheckError (a RuntimeError, as the reference package raises)
    ├── CheckpointError          a file cannot be used as a CLIP checkpoint
    │   ├── UnknownFormatError     the file has no format that clipcheck reads
    │   ├── DamagedError           the file has a known format, but is cut off or altered
    │   ├── UnsafeError            reading the file would run code, so it was refused
    │   ├── ArchitectureError      the tensors are not those of a CLIP model
    │   └── NotFiniteError         some weights are NaN or infinite
    ├── UnknownModelError        neither a released name nor an existing file
    ├── DownloadError            a released file could not be fetched or verified
    ├── VocabularyError          the tokenizer's vocabulary is missing or the wrong one
    ├── UnavailableError         this machine does not have the backend or device
    │   └── UnfitError             the backend or format cannot be used for this checkpoint
    ├── RunError                 a model was loaded, but running it failed
    ├── IsolationError           the sandbox process crashed, hung, or took too much memory
    ├── PinError                 a file is no pin, or cannot be compared with
    ├── ReplayError              a saved failing input cannot be used
    ├── ResultsError             the results of a check cannot be read or compared
    ├── CatalogueError           the catalogue of a sweep cannot be read
    ├── LedgerError              the ledger of a sweep cannot be used
    ├── OutputError              a file could not be written
    └── UsageError               invalid arguments, alone or together

Each message says what was expected, what was found, in which file, and how to fix it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import partial


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or its class name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the known one that is closest."""
    # Without a cutoff there is always one, so that messages have a single form.
    (found,) = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"The nearest name is {found!r}"


class Notice(UserWarning):
    """A warning for the user, printed as one line by the command line."""


class ClipcheckError(RuntimeError):
    """Base of all errors that clipcheck raises on purpose.

    Args:
        problem: what was expected and what was found, as a phrase without a full stop.
        remedy: what the reader can do about it, as a sentence.
        path: the file concerned, if there is one.
    """

    def __init__(
        self, problem: str, *, remedy: str, path: str | os.PathLike[str] | None = None
    ) -> None:
        self.problem = problem
        self.remedy = remedy
        self.path = None if path is None else os.fspath(path)
        where = "" if self.path is None else f"{self.path}: "
        super().__init__(f"{where}{problem}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # Default pickling would lose the keyword arguments between processes.
        return partial(type(self), remedy=self.remedy, path=self.path), (self.problem,)


class CheckpointError(ClipcheckError):
    """A file cannot be used as a CLIP checkpoint."""


class UnknownFormatError(CheckpointError):
    """The file has no format that clipcheck reads."""


class DamagedError(CheckpointError):
    """The file has a known format, but is cut off or altered."""

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "Copy or download the file again, or write it anew.",
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(problem, remedy=remedy, path=path)


class UnsafeError(CheckpointError):
    """Reading the file would run code from it, so it was refused."""


class ArchitectureError(CheckpointError):
    """The tensors in the file are not those of a CLIP model."""


class NotFiniteError(CheckpointError):
    """Some weights in the file are NaN or infinite."""


class UnknownModelError(ClipcheckError):
    """The name is neither a released name nor the path of an existing file."""


class DownloadError(ClipcheckError):
    """A released file could not be fetched, or has the wrong contents."""


class VocabularyError(ClipcheckError):
    """The tokenizer's vocabulary file is missing or the wrong one."""


class UnavailableError(ClipcheckError):
    """This machine does not have the backend or device."""


class UnfitError(UnavailableError):
    """The backend or format cannot be used for this checkpoint, on any machine."""


class RunError(ClipcheckError):
    """A model was loaded, but running it failed."""


class IsolationError(ClipcheckError):
    """The sandbox process crashed, hung, took too much memory, or sent an invalid answer."""


class PinError(ClipcheckError):
    """A file is no pin, is damaged, or is of another model."""


class ReplayError(ClipcheckError):
    """A file is no saved failing input, or is damaged."""


class ResultsError(ClipcheckError):
    """A file is not the results of a check, or cannot be compared with another."""


class CatalogueError(ClipcheckError):
    """A catalogue of checkpoints cannot be read, or has invalid entries."""


class LedgerError(ClipcheckError):
    """A file is no ledger of a sweep, is damaged, or is in use."""


class OutputError(ClipcheckError):
    """A file could not be written."""


class UsageError(ClipcheckError):
    """Arguments are invalid, alone or together."""
