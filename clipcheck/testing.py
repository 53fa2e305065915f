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
        """The table and the verdict."""
        from clipcheck.report.text import brief

        return brief(self).plain

    def _repr_html_(self) -> str:
        from clipcheck.report.notebook import render

        return render(self)

    def to_json(self) -> str:
        """The document that ``clipcheck check --json`` writes."""
        from clipcheck.results.document import render

        return render(self)


def _require_taken(
    name: str, takes: inspect.Signature, /, *args: object, **options: object
) -> None:
    """See that a function takes these arguments: Python's own message would name the function that
    is called below.

    Raises:
        TypeError: it does not.
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
    """Wrap a check so that its result shows itself."""

    takes = inspect.signature(check)

    @wraps(check)
    def showing(*args: _Options.args, **options: _Options.kwargs) -> Result:
        _require_taken("clipcheck.check", takes, *args, **options)
        found = check(*args, **options)
        return Result(found.judgements, found.environment, found.left_out)

    return showing


check = _showing(checking.check)


def _as_assertion(check: Callable[_Options, Result]) -> Callable[_Options, None]:
    """Take the arguments of a check, for people and type checkers alike."""
    takes = inspect.signature(check)

    def assert_consistent(*args: _Options.args, **options: _Options.kwargs) -> None:
        """`check`, for use in a test; the arguments are the same.

        Raises:
            AssertionError: a checkpoint is inconsistent or could not be judged; the message says on
                one screen what failed, the worst first.
            UsageError: the arguments make no sense.
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
