"""The errors that clipcheck raises on purpose.

::

    ClipcheckError (a RuntimeError, as the reference package raises)
    ├── CheckpointError          a file cannot be used as a CLIP checkpoint
    │   ├── UnknownFormatError     it is none of the formats that clipcheck reads
    │   ├── DamagedError           it is one of them, but cut off or altered
    │   ├── UnsafeError            reading it would run code, so it was refused
    │   ├── ArchitectureError      its tensors are not those of a CLIP model
    │   └── NotFiniteError         some of its weights are NaN or infinite
    ├── UnknownModelError        neither a released name nor an existing file
    ├── DownloadError            a released file could not be fetched or verified
    ├── VocabularyError          the tokenizer's vocabulary is missing or not the right one
    ├── UnavailableError         a backend or a device that this machine does not have
    │   └── UnfitError             a backend or a format that is not made for this checkpoint
    ├── RunError                 a model was loaded, but running it failed
    ├── IsolationError           what ran a file's code crashed, hung, or took too much
    ├── ReplayError              a saved failing input cannot be used
    ├── ResultsError             the results of a check cannot be read or compared
    ├── CatalogueError           what names the checkpoints of a sweep cannot be read
    ├── LedgerError              what a sweep keeps of its verdicts cannot be used
    ├── OutputError              a file could not be written
    └── UsageError               arguments that make no sense together

Each message says what was expected, what was found, in which file, and how to mend it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import partial


def first_line(error: BaseException) -> str:
    """The first line of its message, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the one that is most like it."""
    # Without a cutoff there is always one, so that messages have one form only.
    (found,) = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"The nearest name is {found!r}"


class Notice(UserWarning):
    """A notice for the user, which stops nothing; on the command line it is one line."""


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
        # As it was made: else it could not come back from another process.
        return partial(type(self), remedy=self.remedy, path=self.path), (self.problem,)


class CheckpointError(ClipcheckError):
    """A file cannot be used as a CLIP checkpoint."""


class UnknownFormatError(CheckpointError):
    """The file is in none of the formats that clipcheck reads."""


class DamagedError(CheckpointError):
    """The file is in a known format, but it is cut off or altered."""


class UnsafeError(CheckpointError):
    """Reading the file would run code from it, so it was refused."""


class ArchitectureError(CheckpointError):
    """The tensors in the file are not those of a CLIP model."""


class NotFiniteError(CheckpointError):
    """Some weights in the file are NaN or infinite."""


class UnknownModelError(ClipcheckError):
    """Neither a released name nor the path of an existing file."""


class DownloadError(ClipcheckError):
    """A released file could not be fetched, or what was fetched is not that file."""


class VocabularyError(ClipcheckError):
    """The tokenizer's vocabulary file is missing, or it is not the right one."""


class UnavailableError(ClipcheckError):
    """A backend or a device that this machine does not have."""


class UnfitError(UnavailableError):
    """A backend or a format that is not made for this checkpoint, on any machine."""


class RunError(ClipcheckError):
    """A model was loaded, but running it failed."""


class IsolationError(ClipcheckError):
    """The process that ran a file's own code crashed, hung, took too much memory, or answered with
    something that is no answer."""


class ReplayError(ClipcheckError):
    """A saved failing input is not one, or is damaged."""


class ResultsError(ClipcheckError):
    """A file is not the results of a check, or cannot be compared with another."""


class CatalogueError(ClipcheckError):
    """A catalogue of checkpoints cannot be read, or says something that makes no sense."""


class LedgerError(ClipcheckError):
    """The ledger of a sweep is none, is damaged, or is in use."""


class OutputError(ClipcheckError):
    """A file could not be written."""


class UsageError(ClipcheckError):
    """Arguments that make no sense, alone or together."""
