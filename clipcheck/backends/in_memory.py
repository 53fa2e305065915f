"""Run a model in memory: a torch module, or callables on arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from clipcheck.backends.calling import run_method, translating
from clipcheck.backends.inside_modules import InsideModules
from clipcheck.backends.modules import ModuleBackend
from clipcheck.checkpoints.keymaps import Layout, module_in
from clipcheck.families import eager
from clipcheck.families.base import DualEncoder
from clipcheck.families.in_memory import Adapted
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import ENCODERS, FEATURES, LOGITS, OUTPUTS
from clipcheck.models.facts import METHODS, Facts
from clipcheck.models.taps import Listener, Site

_UNIT = 1e-2
"""Greatest distance of a normalised feature's length from 1, also in bfloat16."""


class InMemory(ModuleBackend):
    """Runs a model in memory beside a reference in memory.

    Args:
        adapted: the model.
        reference: the reference, which computes logits for a model without a scale of its own.
        device: of the model.
        dtype: of the reference, to which outputs are converted.
    """

    def __init__(
        self, adapted: Adapted, reference: DualEncoder, device: torch.device, dtype: torch.dtype
    ) -> None:
        kind = "callables" if adapted.module is None else "module"
        super().__init__(kind, adapted.model, device)
        given = set(adapted.model.outputs)
        self._own_logits = given.issuperset(LOGITS)
        self._scaling = adapted.model if self._own_logits else reference
        computed = set(LOGITS) if given.issuperset(FEATURES) else set()
        self.lacks = frozenset(OUTPUTS) - ((given | computed) & set(reference.outputs))
        self.doubts: list[str] = []
        self.takes_forms = adapted.module is not None  # type: ignore[misc]
        self._dtype = dtype
        self._unnormalised: set[str] = set()
        self._seen: set[str] = set()
        self.device = device
        self._adapted = adapted
        self._apart: tuple[str, ...] = ()

    def show_modules(self, reference: DualEncoder) -> None:
        """Show the modules of a torch module that have the name of one of the reference's modules,
        also as open_clip and transformers name them."""
        adapted, own = self._adapted, self._adapted.module
        if own is None or not set(FEATURES).issubset(adapted.model.outputs):
            return
        named = _namer(own, reference)
        device = next((each.device for each in own.parameters()), self._device)
        reason = ""
        if adapted.compiled:
            reason = f"hooks do not work in {adapted.compiled}"
        elif device != self._device:
            reason = f"on {device} and {self._device}"
        elif named is None:
            reason = "none has the name of one of the reference's"
        if reason:
            self._apart = (f"modules: not judged one by one: {reason}",)
        elif named is not None:
            self.runs_modules = True
            self._inside = _Inside(self, adapted, named, self._called)

    def _called(self, method: str, *inputs: Tensor) -> Any:
        if method != "forward":
            return self._features(method, *inputs)
        images, texts = (
            self._features(encoder, rows) for encoder, rows in zip(ENCODERS, inputs, strict=True)
        )
        like = self._scaling.log_scale()
        with translating(self.name, "computing logits"), torch.inference_mode():
            per_image, per_text = self._scaling.logits(
                *(f.to(like.device) for f in (images, texts))
            )
        return per_image.to(self._dtype), per_text.to(self._dtype)

    def _features(self, method: str, rows: Tensor) -> Tensor:
        found: Tensor = run_method(self.name, self._module, method, rows).to(self._dtype)
        name, lengths = ENCODERS[method], found.double().norm(dim=-1)
        # An image with a NaN in it runs as well, and its features have no length.
        lengths = lengths[lengths.isfinite()]
        if len(lengths):
            self._seen.add(name)
        if not bool(((lengths - 1).abs() < _UNIT).all()):
            self._unnormalised.add(name)
        return found

    @property
    def normalised(self) -> frozenset[str]:
        """Names of the features that had length 1 in every call, where they were finite."""
        return frozenset(self._seen - self._unnormalised)

    def gives(self, method: str, *, itself: bool = False) -> tuple[str, ...]:
        """Return the outputs of a method; a forward of its own only a model with a scale has."""
        if method == "forward" and itself and not self._own_logits:
            return ()
        return super().gives(method, itself=itself)

    @property
    def mapping(self) -> tuple[str, ...]:
        """The origin of logits, if they are not the model's own, and why it shows no modules."""
        computed = not self._own_logits and not self.lacks.intersection(LOGITS)
        told = ("logits: computed from both features by the reference",) if computed else ()
        return (*told, *self._apart)

    def evidence(self) -> Evidence:
        """Return the doubts for the gate ``integrity``."""
        return Evidence(weights=None, doubts=self.doubts)


class _Inside(InsideModules):
    """Shows the modules of a model in memory, without features that it normalises."""

    def __init__(
        self,
        made: InMemory,
        adapted: Adapted,
        named: Callable[[str], str],
        call: Callable[..., Any],
    ) -> None:
        own, reason = adapted.model.own(), "the model has no module of this name"
        super().__init__(made.name, adapted.model, own, named, made.device, reason=reason)
        self._made = made
        self._call = call

    def listen(
        self,
        method: str,
        inputs: Sequence[Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method as `InsideModules` does."""
        found = super().listen(method, inputs, modules, listener)
        without = self._made.normalised
        if isinstance(found, dict):
            return {name: each for name, each in found.items() if name not in without}
        return None if ENCODERS[method] in without else found

    def _called(self, method: str, *inputs: Tensor) -> Any:
        return self._call(method, *inputs)


def _namer(own: nn.Module, reference: DualEncoder) -> Callable[[str], str] | None:
    """Return a function of the name of one of the reference's modules that gives the model's name
    for it; None if the model has none of them."""
    names = {name for name, _ in own.named_modules()}
    wanted = [name for name, _ in reference.own().named_modules() if name]
    layouts = tuple(Layout) if isinstance(reference, eager.CLIP) else (Layout.REFERENCE,)
    shared = {each: sum(module_in(name, each) in names for name in wanted) for each in layouts}
    best = max(layouts, key=lambda each: shared[each])
    return partial(module_in, layout=best) if shared[best] else None


class Hooked:
    """Lists the inputs and outputs of a torch module's modules: the part of a
    `clipcheck.backends.runner.Runner` that the gate ``modules`` needs.

    Args:
        model: of a torch module.
        outputs: of the reference; what gives no other is not called.
    """

    def __init__(self, model: DualEncoder, outputs: Collection[str]) -> None:
        self._model = model
        both = set(model.outputs).intersection(outputs)
        methods = [each for each in METHODS if ENCODERS.get(each) in both]
        self.facts = Facts(scripted=True, used=dict.fromkeys(methods, frozenset()))

    def listen(
        self,
        method: str,
        inputs: Sequence[Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each call of one of the modules.

        Raises:
            RunError: it failed.
        """
        hooks: list[Any] = []
        for name, module in self._model.own().named_modules():
            if name in modules:
                site = Site(name, "forward")
                hooks.append(_before(module, site, listener))
                hooks.append(_after(module, site, listener))
        try:
            return run_method("module", self._model, method, *inputs)
        finally:
            for hook in hooks:
                hook.remove()


def _before(module: nn.Module, site: Site, listener: Listener) -> Any:
    def hook(_: object, args: object, kwargs: object) -> None:
        listener(site, True, _tensors((args, kwargs)))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(module: nn.Module, site: Site, listener: Listener) -> Any:
    def hook(_: object, __: object, found: object) -> None:
        listener(site, False, [t for t in _tensors(found) if t.is_floating_point()])

    return module.register_forward_hook(hook)


def _tensors(found: object) -> list[Tensor]:
    return [each for each in tree_leaves(found) if isinstance(each, Tensor)]
