"""Run the modules of an archive one by one, each beside its eager and its float64 twin.

The archive runs as a whole, with taps around its submodules. What goes into a module goes into
the eager module of that name as well, and into a float64 copy of that one; the three outputs are
compared there and then. So each module is judged on its own, whatever the ones before it did, and
no more is kept than what one residual block works on.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from clipcheck.backends.modules import run_method
from clipcheck.backends.reference import exact_arithmetic, float64_device
from clipcheck.compare.modules import Coverage, ModuleError
from clipcheck.errors import RunError
from clipcheck.inputs.batches import Batch
from clipcheck.models import eager
from clipcheck.models.taps import Site, listening
from clipcheck.progress import Advance, Tally, still

_LEAVES = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.AvgPool2d,
    nn.Linear,
    nn.Embedding,
    nn.MultiheadAttention,
    eager.LayerNorm,
    eager.QuickGELU,
    eager.AttentionPool2d,
)
_BLOCKS = (eager.ResidualAttentionBlock, eager.Bottleneck)
_SEQUENCES = (eager.ResidualAttentionBlock, nn.MultiheadAttention)
"""Modules over [L, N, D]. The archive may have [N, L, D] there, which computes the same."""

Tensors = Sequence[torch.Tensor]


def judge_modules(
    archive: torch.jit.ScriptModule,
    model: eager.CLIP,
    batch: Batch,
    device: torch.device,
    advance: Advance = still,
) -> Coverage:
    """Call all three methods of an archive, and judge the modules that it shares with ``model``.

    Args:
        archive: with taps, and the weights of ``model``.
        model: the eager model in float32.
        batch: inputs; neither the number of images nor that of prompts may be that of the
            positions in a tower.
        device: where both are.
        advance: told the share of the modules that is done.

    Returns:
        The errors of the modules, and why others were not judged. A method that is not there, or
        that fails, leaves its reason.
    """
    judge = _Judge(model, len(batch.pixels), len(batch.tokens), float64_device(device), advance)
    pixels = torch.from_numpy(batch.pixels).to(device)
    tokens = torch.from_numpy(batch.tokens).to(device)
    methods = {
        "encode_image": (pixels,),
        "encode_text": (tokens,),
        "forward": (pixels, tokens),
    }
    with exact_arithmetic(), listening(judge.listen):
        for method, inputs in methods.items():
            judge.run(archive, method, inputs)
    return judge.coverage()


@dataclass
class _Judge:
    model: eager.CLIP
    images: int
    prompts: int
    exact_device: torch.device
    advance: Advance
    errors: list[ModuleError] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    running: list[Tensors] = field(default_factory=list)
    judged: set[tuple[str, bytes]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.targets = dict(_targets(self.model))
        self.tally = Tally(len(self.targets), self.advance)
        self.twins = _Twins(self.exact_device)

    def run(self, archive: torch.jit.ScriptModule, method: str, inputs: Tensors) -> None:
        self.running.clear()  # A call that failed has left its own behind.
        try:
            run_method("jit", archive, method, *inputs)
        except RunError as error:
            rows = " and ".join(str(len(tensor)) for tensor in inputs)
            self.failures.append(f"{error.problem}, in a batch of {rows} rows")

    def listen(self, site: Site, entering: bool, tensors: Tensors) -> None:
        if site.module not in self.targets:
            return
        if entering:
            # Copied: a ReLU in place, or a sum, may write over it before the call ends.
            self.running.append([tensor.clone() for tensor in tensors])
        else:
            self._judge(site, self.running.pop(), tensors)

    def _judge(self, site: Site, inputs: Tensors, outputs: Tensors) -> None:
        key = site.module, _digest([*inputs, *outputs])
        if key in self.judged:
            return  # Another method did the very same.
        self.judged.add(key)
        self.tally.add()
        # What is not finite is no activation: it is a mask, or comes of a fault further up.
        finite = [tensor for tensor in inputs if bool(torch.isfinite(tensor).all())]
        if not finite:
            self.skipped.append((site, "nothing that it is given is finite"))
            return
        found = [error for given in finite for error in self._errors(site, given, outputs)]
        if found:
            self.errors.append(min(found, key=lambda error: error.candidate))
        else:
            self.skipped.append((site, "it takes or gives other shapes than the eager module"))

    def _errors(self, site: Site, given: torch.Tensor, outputs: Tensors) -> Iterator[ModuleError]:
        """One for each output that could be the module's, were ``given`` its input."""
        module, block = self.targets[site.module]
        visual = site.module.startswith("visual.")
        run = _runner(module, given, self.images if visual else self.prompts, causal=not visual)
        twin = self.twins.of(site.module, module, block, self.model)
        try:
            expected = run(module, given.clone())
            exact = run(twin, _to_float64(given, self.exact_device)).double()
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            return  # This is not what the eager module takes.
        for got in outputs:
            if got.shape == exact.shape:
                yield ModuleError(
                    site.module,
                    site.method,
                    candidate=_distance(got, exact),
                    reference=_distance(expected, exact),
                    size=float(exact.square().mean().sqrt()),
                    block=block,
                )

    def coverage(self) -> Coverage:
        judged = {error.module for error in self.errors}
        called = judged | {site.module for site, _ in self.skipped}
        skipped = {n: "the archive does not call it" for n in self.targets if n not in called}
        for site, reason in self.skipped:
            # One method may call it in a way that can be judged, and another not.
            name = f"{site.module} in {site.method}" if site.module in judged else site.module
            skipped[name] = reason
        return Coverage(self.errors, skipped, self.failures)


def _targets(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """By name, each module to judge and the block that it is in. Parts of attention are not
    modules of their own: they are never called."""
    block = whole = ""
    for name, module in model.named_modules():
        block = block if name.startswith(f"{block}.") else ""
        if whole and name.startswith(f"{whole}."):
            continue
        if isinstance(module, _BLOCKS):
            yield name, (module, "")
            block = name
        elif isinstance(module, _LEAVES):
            yield name, (module, block)
            whole = name


class _Twins:
    """Float64 copies of modules, of one block at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._name = ""
        self._twin: nn.Module = nn.Identity()

    def of(self, name: str, module: nn.Module, block: str, model: nn.Module) -> nn.Module:
        whole = block or name
        if whole != self._name:
            self._twin = copy.deepcopy(model.get_submodule(whole)).to(self._device)
            # A lookup computes nothing, and a table of all tokens in float64 is large.
            if not isinstance(module, nn.Embedding):
                self._twin = self._twin.to(torch.float64)
            self._name = whole
        return self._twin.get_submodule(name.removeprefix(whole).removeprefix("."))


Runner = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def _runner(module: nn.Module, given: torch.Tensor, rows: int, *, causal: bool) -> Runner:
    """How to call an eager module with what the archive's was given."""
    if not isinstance(module, _SEQUENCES):
        return lambda module, x: module(x)
    if given.dim() == 3 and given.shape[1] != rows and given.shape[0] == rows:
        # Rows first, where the eager model has positions first.
        return lambda module, x: _sequence(module, x.transpose(0, 1), causal).transpose(0, 1)
    return lambda module, x: _sequence(module, x, causal)


def _sequence(module: nn.Module, x: torch.Tensor, causal: bool) -> torch.Tensor:
    mask = eager.causal_mask(x.transpose(0, 1)) if causal else None
    if isinstance(module, nn.MultiheadAttention):
        output: torch.Tensor = module(x, x, x, need_weights=False, attn_mask=mask)[0]
    else:
        output = module(x, mask)
    return output


def _to_float64(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    # In this order: a device without float64 cannot convert to it on the way out.
    return tensor.to(device).to(dtype, copy=True)


def _distance(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference."""
    apart = got.to(exact.device).double() - exact
    return float(apart.square().mean().sqrt())


def _digest(tensors: Tensors) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        # As bytes: numpy has no bfloat16, which a layer may well be in.
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
