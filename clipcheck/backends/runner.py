"""The protocols for running an archive, in this process or another, and for looking inside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard

from clipcheck.models.facts import Facts

if TYPE_CHECKING:
    import torch

    from clipcheck.models.taps import Listener


class Listened(Protocol):
    """Runs a model, and tells the inputs and outputs of its modules."""

    @property
    def facts(self) -> Facts:
        """Return the facts of the model."""

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each call of one of the
        modules."""


class Shows(Listened, Protocol):
    """Tells as well what it does not show, and calls modules alone.

    Attributes:
        of_program: whether it shows a program, which runs as a whole in each call; an archive
            runs the method that is called.
    """

    of_program: bool

    @property
    def hidden(self) -> Mapping[str, str]:
        """Return by module why it is not shown. Call it after it has run."""

    @property
    def note(self) -> str:
        """Return what differs from a run without looking inside, or an empty string. Call it after
        it has run."""

    def call_module(
        self, module: str, method: str, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Call a module alone, by the name and method from `listen`, and return its tensors.

        Raises:
            RunError: it failed.
            IsolationError: the sandbox process crashed, hung or took too much memory.
        """

    def call_head(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor | None:
        """Return the logits per image for features [N, E] and [M, E] of a program, which computes
        them alone; None where it is no program that can. Call it after it has run.

        Raises:
            RunError: it failed.
        """

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed."""


class OfArchive:
    """The part of `Shows` that is the same for all archives."""

    of_program = False

    @property
    def hidden(self) -> Mapping[str, str]:
        """Return by module why it is not shown: none, all that are called are shown."""
        return {}

    def call_head(self, image: torch.Tensor, text: torch.Tensor) -> None:
        """Return nothing: other features need other weights, see `Runner.call_with`."""

    @property
    def note(self) -> str:
        """Return what differs from a run without looking inside: nothing."""
        return ""


class Runner(Shows, Protocol):
    """Runs an archive."""

    def call(self, method: str, *inputs: torch.Tensor) -> object:
        """Return the output of a method: normally a tensor, or a tuple or dict of tensors.

        Raises:
            RunError: the method is missing, or failed.
            IsolationError: the sandbox process crashed, hung or took too much memory.
        """

    def call_with(
        self, weights: Mapping[str, torch.Tensor], method: str, *inputs: torch.Tensor
    ) -> object:
        """Call a method with other weights in place of those with these keys for this call."""

    def call_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor] = (),
    ) -> tuple[object, str]:
        """Return the output of a method for inputs in some form, and what was wrong with it, see
        `clipcheck.backends.forms`."""


def runs_archive(shown: Shows) -> TypeGuard[Runner]:
    """Return whether what shows its modules is an archive."""
    return not shown.of_program
