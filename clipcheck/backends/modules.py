"""The backends ``eager`` and ``jit``: torch modules with CLIP's three methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipcheck.backends.base import Array
from clipcheck.errors import RunError


class ModuleBackend:
    """Runs a torch module without recording gradients.

    Args:
        name: ``eager`` or ``jit``.
        module: in evaluation mode, with ``encode_image``, ``encode_text`` and ``forward``.
        device: where its weights are.
    """

    def __init__(self, name: str, module: torch.nn.Module, device: torch.device) -> None:
        self.name = name
        self._module: Any = module
        self._device = device

    def encode_image(self, pixels: NDArray[np.float32]) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        return to_numpy(self._run("encode_image", pixels))

    def encode_text(self, tokens: NDArray[np.int32]) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        return to_numpy(self._run("encode_text", tokens))

    def __call__(
        self, pixels: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        logits = self._run("forward", pixels, tokens)
        if not isinstance(logits, tuple) or len(logits) != 2:
            raise RunError(
                f"{self.name}: forward gave {type(logits).__name__}, expected two tensors",
                remedy="Let it return logits_per_image and logits_per_text.",
            )
        return to_numpy(logits[0]), to_numpy(logits[1])

    def _run(self, method: str, *arrays: NDArray[Any]) -> Any:
        inputs = [torch.from_numpy(array).to(self._device) for array in arrays]
        return run_method(self.name, self._module, method, *inputs)


def run_method(name: str, module: Any, method: str, *inputs: torch.Tensor) -> Any:
    """Call a method of a model without recording gradients.

    Args:
        name: the backend's, for the message.
        module: a module, of TorchScript or not.
        method: ``encode_image``, ``encode_text`` or ``forward``.
        inputs: on the module's device.

    Raises:
        RunError: it is not there, or it failed.
    """
    call: Callable[..., Any] | None = getattr(module, method, None)
    if call is None:
        raise RunError(
            f"{name}: the model has no method {method}",
            remedy="Trace encode_image, encode_text and forward; `clipcheck convert` does.",
        )
    try:
        with torch.inference_mode():
            return call(*inputs)
    except (RuntimeError, IndexError) as error:
        raise RunError(
            f"{name}: {method} failed ({_reason(error)})",
            remedy="Run the model by hand with --debug to see all of torch's message.",
        ) from error


def _reason(error: Exception) -> str:
    """The last line of torch's message: the interpreter puts its own traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def to_numpy(tensor: torch.Tensor) -> Array:
    """The tensor's values; bfloat16, which numpy does not have, as float32."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.asarray(tensor.cpu().numpy())
