"""Backends that are torch modules with CLIP's three methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend, evidence_of_closed
from clipcheck.backends.calling import (
    Array,
    Pixels,
    Tokens,
    closed,
    run_method,
    to_numpy,
    translating,
)
from clipcheck.errors import RunError
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.runner import Shows


class ModuleBackend(Backend):
    """Runs a torch module without recording gradients.

    Args:
        module: in evaluation mode, with ``encode_image``, ``encode_text`` and ``forward``.
        device: where its weights are.
        evidence: called after it has run, for the gate ``integrity``.
        size: bytes of the artefact that it runs, if any.
        inside: shows its modules; None if it does not.
    """

    takes_forms = True

    def __init__(
        self,
        name: str,
        module: Any,
        device: torch.device,
        *,
        evidence: Callable[[], Evidence] | None = None,
        size: int | None = None,
        inside: Shows | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self._inside = inside
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

    @property
    def runner(self) -> Shows:
        """Show its modules by this."""
        if self._inside is None:
            raise ValueError("expected a module that shows its modules")
        return self._inside

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``."""
        return super().evidence() if self._evidence is None else self._evidence()

    def close(self) -> None:
        """Release the module, and everything that its evidence refers to."""
        self._module = None
        self._inside = None
        self._evidence = evidence_of_closed

    def _run(self, method: str, *arrays: Array) -> Any:
        import torch

        if self._module is None:
            raise closed(self.name)
        # Copied: a method that overwrites its inputs must not affect other backends.
        inputs = [torch.from_numpy(array).to(self._device, copy=True) for array in arrays]
        return self._called(method, *inputs)

    def call_in_form(
        self,
        form: str,
        method: str,
        arrays: Sequence[Array],
        after: Sequence[Array] = (),
    ) -> tuple[list[Array], str]:
        """Return the outputs of a method for inputs in some form, see `Backend`."""
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
