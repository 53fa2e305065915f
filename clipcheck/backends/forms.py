"""Call a method with the same numbers in other forms.

Users call models with int64 ids, with pixels that are views of larger tensors, and with gradients
on. A program that ignores strides, or reuses its output buffer, is right only for some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch

Tensors = Sequence[torch.Tensor]
Call = Callable[..., object]


def _strided(x: torch.Tensor) -> torch.Tensor:
    """Return a view of every second number of a larger tensor."""
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
    wide[..., ::2] = x
    return wide[..., ::2]


def _turned(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor with channels last, or a table with columns first in memory."""
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.t().contiguous().t()


def _with_gradients(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() else x.clone()


def _in_own_dtype(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype) if x.is_floating_point() else x.clone()


FORMS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as int64": lambda x: x.clone() if x.is_floating_point() else x.long(),
    "strided": _strided,
    "channels last": _turned,
    "with gradients": _with_gradients,
    "as float16": _in_own_dtype(torch.float16),
    "as bfloat16": _in_own_dtype(torch.bfloat16),
}
"""By name, a function that gives a contiguous tensor this form."""


def call_in_form(call: Call, form: str, inputs: Tensors, after: Tensors = ()) -> tuple[object, str]:
    """Call a method with its inputs in some form.

    Args:
        after: inputs of a second call; empty for no such call.

    Returns:
        The output of the first call, and a fault of the call as a phrase that starts with a verb,
        or an empty string.
    """
    with _mode(form):
        given = [FORMS[form](each) for each in inputs]
        before = [each.detach().clone() for each in given]
        result = call(*given)
        kept = _copied(result)
        wrong = "" if all(map(_same, given, before)) else "changes what it is given"
        if after:
            call(*(FORMS[form](each) for each in after))
            if not all(map(_same, _tensors(result), _tensors(kept))):
                wrong = wrong or "writes over what it gave before"
    return kept, wrong


def _mode(form: str) -> AbstractContextManager[object]:
    if form != "with gradients":
        return torch.inference_mode()
    modes = ExitStack()
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.enable_grad())
    return modes


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.detach(), other.detach()
    return (
        one.shape == other.shape
        and bool(torch.equal(one.isnan(), other.isnan()))
        and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
    )


def _tensors(result: object) -> list[torch.Tensor]:
    if isinstance(result, Mapping):
        result = tuple(result.values())
    found = result if isinstance(result, tuple) else (result,)
    return [each for each in found if isinstance(each, torch.Tensor)]


def _copied(result: object) -> object:
    if isinstance(result, tuple):
        return tuple(_copied(each) for each in result)
    if isinstance(result, Mapping):
        return {name: _copied(each) for name, each in result.items()}
    return result.detach().clone() if isinstance(result, torch.Tensor) else result
