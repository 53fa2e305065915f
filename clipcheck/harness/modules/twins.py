"""The modules of an eager model and their float64 copies, run on the archive's inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from clipcheck.backends.reference import float64_device
from clipcheck.families import eager
from clipcheck.families.connections import LAST

NOT_TAKEN = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
"""Errors that torch raises where a module is given something that it does not take."""

_LEAVES = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.AvgPool2d,
    nn.Linear,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.GELU,
    eager.LayerNorm,
    eager.QuickGELU,
    eager.AttentionPool2d,
)
_BLOCKS = (eager.ResidualAttentionBlock, eager.Bottleneck)
_SEQUENCES = (eager.ResidualAttentionBlock, nn.MultiheadAttention)
"""Modules over [L, N, D]. The archive may use [N, L, D], which computes the same."""


@dataclass(frozen=True)
class Pair:
    """One tensor, in the eager model's dtype and in float64.

    Attributes:
        own: on the model's device.
        exact: on a device with float64; ids stay integers.
    """

    own: torch.Tensor
    exact: torch.Tensor


@dataclass(frozen=True)
class Expected:
    """Outputs that a module has to give.

    Attributes:
        place: which of the tensors that it was given was taken as its input.
        outputs: all of its tensors.
    """

    place: int
    outputs: Sequence[Pair]


class Twins:
    """The modules of a model and their float64 copies, of one block at a time.

    Args:
        images: rows of the image tower.
        prompts: rows of the text tower.

    Attributes:
        blocks: by the name of each module that is judged, the block that it is inside of, or
            nothing.
        last: the modules whose outputs tell what the towers give.
    """

    last: Sequence[str] = LAST

    def __init__(self, model: eager.CLIP, images: int, prompts: int, device: torch.device) -> None:
        self.blocks = dict(_targets(model))
        self.device = float64_device(device)
        self._model = model
        self._rows = {True: images, False: prompts}
        self._name = ""
        self._twin: nn.Module = nn.Identity()

    def rows(self, name: str) -> int:
        """Return the number of rows of the module's tower."""
        return self._rows[_is_visual(name)]

    def pair(self, tensor: torch.Tensor) -> Pair:
        """Return a tensor of the archive as an input: unchanged, and converted to float64."""
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        # In this order: a device without float64 cannot convert to it on the way out.
        return Pair(tensor, tensor.to(self.device).to(dtype, copy=True))

    def expected(
        self, name: str, inputs: Sequence[torch.Tensor], _outputs: Sequence[torch.Tensor] = ()
    ) -> Iterator[Expected]:
        """Run the module of that name on each of these tensors, as if that were its input."""
        for place, given in enumerate(inputs):
            if bool(torch.isfinite(given).all()):
                with suppress(*NOT_TAKEN):
                    yield Expected(place, [self.run(name, self.pair(given))])

    def run(self, name: str, given: Pair) -> Pair:
        """Call the module of this name and its float64 copy.

        Raises:
            RuntimeError, TypeError, ValueError, IndexError, AssertionError: the module does not
                accept the input; torch has no single exception for that.
        """
        module = self._model.get_submodule(name)
        rows, causal = self.rows(name), not _is_visual(name)
        if any(getattr(each, "inplace", False) for each in module.modules()):
            # A ReLU in place would write over what was given.
            given = Pair(given.own.clone(), given.exact.clone())
        own = _call(module, given.own, rows, causal)
        return Pair(own, _call(self._of(name), given.exact, rows, causal).double())

    def _of(self, name: str) -> nn.Module:
        whole = self.blocks[name] or name
        if whole != self._name:
            self._twin = nn.Identity()  # frees the previous copy before the next is made
            self._twin = self._copied(self._model.get_submodule(whole))
            self._name = whole
        return self._twin.get_submodule(name.removeprefix(whole).removeprefix("."))

    def _copied(self, module: nn.Module) -> nn.Module:
        # A lookup computes nothing, and a table of all tokens in float64 is large.
        if isinstance(module, nn.Embedding):
            return copy.deepcopy(module).to(self.device)
        # Given as what the parameters were copied to already, so that they are copied once.
        done = {
            id(weight): nn.Parameter(weight.detach().to(self.device).double(), False)
            for weight in module.parameters()
        }
        return copy.deepcopy(module, done).to(self.device).to(torch.float64)


def distance(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root mean square of the difference, in float64."""
    apart = got.to(exact.device).double() - exact.double()
    return float(apart.square().mean().sqrt())


def _targets(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name of each module to judge, and of its block. The parts of an attention are left
    out: they are never called."""
    block = whole = ""
    for name, module in model.named_modules():
        block = block if name.startswith(f"{block}.") else ""
        if whole and name.startswith(f"{whole}."):
            continue
        if isinstance(module, _BLOCKS):
            yield name, ""
            block = name
        elif isinstance(module, _LEAVES):
            yield name, block
            whole = name


def _is_visual(name: str) -> bool:
    return name.startswith("visual.")


def _call(module: nn.Module, x: torch.Tensor, rows: int, causal: bool) -> torch.Tensor:
    if not isinstance(module, _SEQUENCES):
        output: torch.Tensor = module(x)
        return output
    if x.dim() == 3 and x.shape[1] != rows and x.shape[0] == rows:
        # Rows first, where the eager model has positions first.
        return _sequence(module, x.transpose(0, 1), causal).transpose(0, 1)
    return _sequence(module, x, causal)


def _sequence(module: nn.Module, x: torch.Tensor, causal: bool) -> torch.Tensor:
    mask = eager.causal_mask(x.transpose(0, 1)) if causal else None
    if isinstance(module, nn.MultiheadAttention):
        output: torch.Tensor = module(x, x, x, need_weights=False, attn_mask=mask)[0]
    else:
        output = module(x, mask)
    return output
