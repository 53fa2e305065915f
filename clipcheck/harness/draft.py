"""A judgement that is filled in step by step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from clipcheck.errors import ClipcheckError
from clipcheck.results.judgement import Judgement

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)


class Draft:
    """A judgement that is filled in step by step, so that an error keeps earlier findings."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement

    def add(self, **known: object) -> None:
        """Set fields of the judgement."""
        self.judgement = replace(self.judgement, **known)  # type: ignore[arg-type]

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Record an error as the reason why a subject cannot be judged, and continue."""
        try:
            yield
        except ClipcheckError as error:
            _log.debug("%s could not be judged", self.judgement.checkpoint, exc_info=True)
            self.add(error=str(error), error_type=type(error).__name__, remedy=error.remedy)
