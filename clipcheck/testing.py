"""Check checkpoints, and compare models, from Python: in a script, a notebook, or a test."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import update_wrapper, wraps
from pathlib import Path
from typing import ParamSpec

from clipcheck.errors import nearest
from clipcheck.harness import checking, comparing
from clipcheck.results.judgement import Result as Found

_Options = ParamSpec("_Options")


class Result(Found):
    """Result of a check, shown as text, in a notebook, or as JSON."""

    def __str__(self) -> str:
        """Return the table and the verdict."""
        from clipcheck.report.text import brief

        return brief(self).plain

    def _repr_html_(self) -> str:
        from clipcheck.report.notebook import render

        return render(self)

    def to_json(self) -> str:
        """Return the document that ``clipcheck check --json`` writes."""
        from clipcheck.results.document import render

        return render(self)

    def write_report(self, folder: str | os.PathLike[str]) -> None:
        """Write the report that ``clipcheck check --report FOLDER`` writes: an HTML page, text,
        JSON, and the failing inputs of files.

        Args:
            folder: created if it does not exist.

        Raises:
            OutputError: a file cannot be written.
        """
        from clipcheck.report import evidence

        evidence.require_folder(Path(folder))
        evidence.keep(self, Path(folder))


def _require_taken(
    name: str, takes: inspect.Signature, /, *args: object, **options: object
) -> None:
    """Raise if a function does not take these arguments, in a message with its public name.

    Raises:
        TypeError: an argument is unknown, missing or given twice.
    """
    _, *known = takes.parameters
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name}() got an unexpected keyword argument {option!r}. "
                f"{nearest(option, known)}; all of them: {', '.join(known)}."
            )
    try:
        takes.bind(*args, **options)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None


def _showing(function: Callable[_Options, Found]) -> Callable[_Options, Result]:
    """Wrap `check` or `compare` to return a result that prints as text, HTML or JSON."""

    takes = inspect.signature(function)

    @wraps(function)
    def showing(*args: _Options.args, **options: _Options.kwargs) -> Result:
        _require_taken(f"clipcheck.{function.__name__}", takes, *args, **options)
        found = function(*args, **options)
        return Result(found.judgements, found.environment, found.left_out)

    return showing


check = _showing(checking.check)
compare = _showing(comparing.compare)


def _as_assertion(
    function: Callable[_Options, Result], name: str, doc: str
) -> Callable[_Options, None]:
    """Return a function that raises where a result did not pass, with the signature of
    ``function``."""
    takes = inspect.signature(function)

    def asserting(*args: _Options.args, **options: _Options.kwargs) -> None:
        __tracebackhide__ = True
        from clipcheck.report.failure import summary

        _require_taken(f"clipcheck.{name}", takes, *args, **options)
        result = function(*args, **options)
        if not result:
            raise AssertionError(summary(result))

    asserting.__qualname__ = asserting.__name__ = name
    asserting.__doc__ = doc
    return update_wrapper(asserting, function, assigned=("__module__",), updated=())


assert_consistent = _as_assertion(
    check,
    "assert_consistent",
    """`check`, for use in a test; the arguments are the same.

    Raises:
        AssertionError: a checkpoint is inconsistent or could not be judged; the message lists
            the failures, the worst first.
        UsageError: the arguments are invalid.
    """,
)
assert_same = _as_assertion(
    compare,
    "assert_same",
    """`compare`, for use in a test; the arguments are the same.

    Raises:
        AssertionError: the candidate differs from the reference or could not be judged; the message
            lists the failures.
        UsageError: the arguments are invalid, or the sizes of the inputs are not known.
    """,
)
