"""Backends that are torch modules with CLIP's three methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from clipcheck.backends.base import evidence_of_closed, outputs_of_methods
from clipcheck.backends.calling import (
    Array,
    Named,
    Pixels,
    Tokens,
    closed,
    run_method,
    to_numpy,
    translating,
)
from clipcheck.errors import RunError
from clipcheck.gates.integrity import Evidence
from clipcheck.inputs.examples import Frontend

if TYPE_CHECKING:
    import torch


class ModuleBackend:
    """Runs a torch module without recording gradients.

    Args:
        name: the backend's, as it was asked for.
        module: in evaluation mode, with ``encode_image``, ``encode_text`` and ``forward``.
        device: where its weights are.
        evidence: called when it has run, for the gate ``integrity``.
        size: bytes of the artefact that it runs, if it has one.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        device: torch.device,
        evidence: Callable[[], Evidence] | None = None,
        size: int | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.frontend: Frontend | None = None
        self.absent: frozenset[str] = frozenset()
        self._evidence = evidence
        self._module: Any = module
        self._device = device

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        return to_numpy(self._run("encode_image", pixels))

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        return to_numpy(self._run("encode_text", tokens))

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        logits = self._run("forward", pixels, tokens)
        if not isinstance(logits, tuple) or len(logits) != 2:
            raise RunError(
                f"{self.name}: forward gave {type(logits).__name__}, expected two tensors",
                remedy="Let it return logits_per_image and logits_per_text.",
            )
        return to_numpy(logits[0]), to_numpy(logits[1])

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """All four outputs by name; each method is called once.

        Raises:
            RunError: the model cannot be run, or gives something else.
        """
        return outputs_of_methods(self, pixels, tokens)

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``."""
        if self._evidence is None:
            return Evidence(None, doubts=["nothing is known of how the candidate was made"])
        return self._evidence()

    def close(self) -> None:
        """Let go of the module, and of what its evidence holds."""
        self._module = None
        self._evidence = evidence_of_closed

    def _run(self, method: str, *arrays: NDArray[Any]) -> Any:
        import torch

        if self._module is None:
            raise closed(self.name)
        # Copies: a method that writes over its inputs is not to write over those of the others.
        inputs = [torch.from_numpy(array).to(self._device, copy=True) for array in arrays]
        return self._called(method, *inputs)

    def call_in_form(
        self,
        form: str,
        method: str,
        arrays: Sequence[NDArray[Any]],
        after: Sequence[NDArray[Any]] = (),
    ) -> tuple[list[Array], str]:
        """Return the outputs of a method for inputs in some form, and what was wrong with the call.

        Args:
            form: of `clipcheck.backends.forms.FORMS`.
            method: ``encode_image``, ``encode_text`` or ``forward``.
            arrays: its inputs.
            after: others, for a second call; none for no such call.

        Raises:
            RunError: it failed.
        """
        import torch

        if self._module is None:
            raise closed(self.name)
        inputs, more = (
            [torch.from_numpy(array).to(self._device) for array in each] for each in (arrays, after)
        )
        found, wrong = self._called_in_form(form, method, inputs, more)
        given = found if isinstance(found, tuple) else (found,)
        return [to_numpy(each) for each in given if isinstance(each, torch.Tensor)], wrong

    def _called(self, method: str, *inputs: torch.Tensor) -> Any:
        return run_method(self.name, self._module, method, *inputs)

    def _called_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor],
    ) -> tuple[object, str]:
        from clipcheck.backends.forms import call_in_form

        with translating(self.name, f"{method} {form}"):
            return call_in_form(getattr(self._module, method), form, inputs, after)
