"""The eager model of a file as a candidate, judged against that of another file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipcheck.backends.modules import ModuleBackend

if TYPE_CHECKING:
    from clipcheck.backends.base import Backend
    from clipcheck.backends.source import Source
    from clipcheck.gates.integrity import Evidence


class Eager(ModuleBackend):
    """The source's own model."""

    summary = "the eager model, which clipcheck builds of the weights; needs --reference"
    needs_reference = True

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Wrap the source's own model."""
        from clipcheck.backends.libraries import evidence_of

        def evidence() -> Evidence:
            return evidence_of(source.checkpoint, source.model.state_dict(), source.dtype)

        return cls("eager", source.model, source.device, evidence=evidence)
