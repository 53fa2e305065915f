"""Build a library's model with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from clipcheck.errors import ArchitectureError

_TOO_MANY = 3
"""Most keys in a message."""

COUNTER = "num_batches_tracked"
"""Suffix of the keys of counters, which have no effect in evaluation; some files lack them."""

_POSITIONS = "embeddings.position_ids"
"""Suffix of the key of a buffer in state dicts of older versions of transformers."""


_MOST_WEIGHTS = 20_000
"""Most weights of a model; those of the libraries' lists have fewer than 3,000."""


class Uninitialised(TorchFunctionMode):
    """Skips the initialisation of weights, which are replaced later, and stops a configuration with
    a billion layers.

    Models of libraries are not built on the meta device: some towers run a layer to get shapes, and
    buffers that are not in checkpoints need their values.

    Raises:
        ValueError: inside, when the model gets too many weights.
    """

    def __enter__(self) -> Uninitialised:
        left = iter(range(_MOST_WEIGHTS))

        def count(*_: object) -> None:
            if next(left, None) is None:
                raise ValueError(f"it has more than {_MOST_WEIGHTS:,} weights")

        self._counting = register_module_parameter_registration_hook(count)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._counting.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        given = kwargs or {}
        target = args[0] if args else given.get("tensor")
        if in_place and isinstance(target, nn.Parameter):
            return target
        return func(*args, **given)


class Widened(TorchFunctionMode):
    """Replaces float32 by float64 inside a model: some normalisations and softmax convert their
    input to float32, also in a float64 model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {key: _wider(value) for key, value in (kwargs or {}).items()}
        if func is Tensor.float:
            return args[0].double()
        return func(*(_wider(value) for value in args), **given)


def computing_in(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which a model of this dtype computes in it: in float64, modules that
    cast to float32 inside stay in float64."""
    return Widened() if dtype == torch.float64 else nullcontext()


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def assign(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    is_visual: Callable[[str], bool],
    config: str,
) -> None:
    """Assign weights to a model, without a copy, and set it to evaluation mode.

    Args:
        model: its own weights are replaced.
        tensors: by its keys, all of a tower in one floating-point dtype.
        config: name of the model's configuration file, for messages.

    Raises:
        ArchitectureError: the weights do not fit the model; the message names a key, and both
            shapes.
    """
    wanted = model.state_dict()
    weights = {key: each for key, each in tensors.items() if not key.endswith(_POSITIONS)}
    device = next(iter(weights.values())).device
    for key, tensor in wanted.items():
        if key in weights and tensor.numel() == weights[key].numel() == 1:
            weights[key] = weights[key].reshape(tensor.shape)
        elif key.endswith(COUNTER) and key not in weights:
            weights[key] = torch.zeros_like(tensor, device=device)
    require_fitting(weights, wanted, f"Take the {config} that belongs to the weights.")
    model.load_state_dict(weights, strict=True, assign=True)
    _cast_buffers(model, device, is_visual)
    for module in model.modules():
        if getattr(module, "loss_type", "") is None:
            # Tracing reads every attribute, and transformers warns if there is no loss type.
            module.loss_type = "ForCausalLM"  # type: ignore[assignment]
    model.requires_grad_(False)
    model.eval()


def require_fitting(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    remedy: str,
    path: Path | None = None,
) -> None:
    """Raise if tensors do not have exactly the keys and shapes of a model.

    Raises:
        ArchitectureError: the message names a key, and both shapes.
    """
    problems = [
        f"{key} has shape {list(weights[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    problems += [
        f"{key} is missing, expected {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key not in weights
    ]
    problems += [
        f"{key}, {list(tensor.shape)}, is not a key of the model"
        for key, tensor in weights.items()
        if key not in wanted
    ]
    if problems:
        more = len(problems) - _TOO_MANY
        told = "; ".join(problems[:_TOO_MANY]) + (f"; and {more} more" if more > 0 else "")
        raise ArchitectureError(
            f"its weights do not fit the model of its configuration: {told}",
            remedy=remedy,
            path=path,
        )


def _cast_buffers(model: nn.Module, device: torch.device, is_visual: Callable[[str], bool]) -> None:
    """Move buffers that state dicts leave out (masks, rotary embeddings) to the weights' device and
    to the dtype of their tower."""
    kept = model.state_dict().keys()
    towers = {visual: dtype_of(model, is_visual, visual=visual) for visual in (True, False)}
    for prefix, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            key = f"{prefix}.{name}".lstrip(".")
            if key in kept:
                continue
            dtype = towers[is_visual(key)] if buffer.is_floating_point() else None
            module._buffers[name] = buffer.to(device, dtype)


def dtype_of(
    model: nn.Module, is_visual: Callable[[str], bool], *, visual: bool
) -> torch.dtype | None:
    """Return the floating-point dtype of a tower, or None if the model lacks the tower."""
    found = (
        weight.dtype
        for key, weight in model.named_parameters()
        if is_visual(key) == visual and weight.is_floating_point() and weight.ndim > 1
    )
    return next(found, None)
