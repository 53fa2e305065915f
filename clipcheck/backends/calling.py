"""Call models with arrays, and convert their libraries' errors to ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.errors import ClipcheckError, RunError

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Named = dict[str, Array]
Pixels = NDArray[np.float32]
Tokens = NDArray[np.int32]
Rows = tuple[int | None, int | None]
"""Numbers of images and of texts; None for any number."""


def run_method(name: str, module: Any, method: str, *inputs: torch.Tensor) -> Any:
    """Call a method of a model without recording gradients.

    Args:
        inputs: on the module's device.

    Raises:
        RunError: the method is missing, or failed.
    """
    import torch

    call: Callable[..., Any] | None = getattr(module, method, None)
    if call is None:
        raise RunError(
            f"{name}: the model has no method {method}",
            remedy="Trace encode_image, encode_text and forward; `clipcheck convert` does.",
        )
    with translating(name, method), torch.inference_mode():
        return call(*inputs)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Convert a tensor; bfloat16, which numpy does not have, to float32."""
    import torch

    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.asarray(tensor.cpu().numpy())


@contextmanager
def translating(name: str, doing: str) -> Iterator[None]:
    """Convert errors of a backend's library to ours, and quote their messages.

    Args:
        doing: what was done, as in ``encode_image`` or ``exporting``.

    Raises:
        RunError: in place of any error that is not ours.
    """
    try:
        yield
    except ClipcheckError:
        raise
    # Libraries raise all kinds of errors; an interrupt is no Exception.
    except Exception as error:
        raise RunError(
            f"{name}: {doing} failed ({reason(error)})",
            remedy="Run it again with --debug to see the whole message.",
        ) from error


def closed(name: str) -> RunError:
    """Return the error for a backend that is run after it was closed."""
    return RunError(f"{name}: it was closed", remedy="Build it anew.")


def reason(error: Exception) -> str:
    """Return the last line of a message: after TorchScript's traceback, before torch's C++ one."""
    message = str(error).partition("Exception raised from ")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # torch.onnx's last line says where the rest was printed.
    lines = [line for line in lines if not line.startswith("(Refer to the full stack")]
    return lines[-1] if lines else type(error).__name__
