"""Check checkpoints from Python: in a script, a notebook, or a test."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper, wraps
from typing import ParamSpec

from clipcheck.errors import nearest
from clipcheck.harness import checking
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


def _showing(check: Callable[_Options, Found]) -> Callable[_Options, Result]:
    """Wrap a check to return a result that prints as text, HTML or JSON."""

    takes = inspect.signature(check)

    @wraps(check)
    def showing(*args: _Options.args, **options: _Options.kwargs) -> Result:
        _require_taken("clipcheck.check", takes, *args, **options)
        found = check(*args, **options)
        return Result(found.judgements, found.environment, found.left_out)

    return showing


check = _showing(checking.check)


def _as_assertion(check: Callable[_Options, Result]) -> Callable[_Options, None]:
    """Return ``assert_consistent``, with the signature of ``check``."""
    takes = inspect.signature(check)

    def assert_consistent(*args: _Options.args, **options: _Options.kwargs) -> None:
        """`check`, for use in a test; the arguments are the same.

        Raises:
            AssertionError: a checkpoint is inconsistent or could not be judged; the message lists
                the failures, the worst first.
            UsageError: the arguments are invalid.
        """
        __tracebackhide__ = True
        from clipcheck.report.failure import summary

        _require_taken("clipcheck.assert_consistent", takes, *args, **options)
        result = check(*args, **options)
        if not result:
            raise AssertionError(summary(result))

    assert_consistent.__qualname__ = assert_consistent.__name__
    return update_wrapper(assert_consistent, check, assigned=("__module__",), updated=())


assert_consistent = _as_assertion(check)
