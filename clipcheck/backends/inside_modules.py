"""Show what enters and leaves each module of a torch module that runs here, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from clipcheck.backends.calling import run_method, translating
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.models.facts import METHODS, Facts
from clipcheck.models.taps import Site

if TYPE_CHECKING:
    from clipcheck.models.taps import Listener

NO_MODULE = "the library has no module for it"


class Methods(Protocol):
    """CLIP's methods, by which a model is called."""

    def encode_image(self, image: Tensor, /) -> Tensor:
        """Pixels [N, 3, R, R] to features [N, E]."""

    def encode_text(self, text: Tensor, /) -> Tensor:
        """Ids [M, L] to features [M, E]."""

    def forward(self, image: Tensor, text: Tensor, /) -> tuple[Tensor, Tensor]:
        """Pixels and ids to logits [N, M] and [M, N]."""


@dataclass(frozen=True)
class _Call:
    """The arguments of a module.

    Attributes:
        leaves: of the arguments, those that are no tensors.
        places: of the tensors among the leaves, by their places; a tensor that is given twice is
            one.
    """

    leaves: Sequence[object]
    places: Mapping[int, int]
    spec: TreeSpec

    @classmethod
    def of(cls, args: object, kwargs: object) -> tuple[_Call, list[Tensor]]:
        """Return a call, and its tensors."""
        leaves, spec = tree_flatten((args, kwargs))
        found: dict[int, Tensor] = {}
        places: dict[int, int] = {}
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                found.setdefault(id(leaf), leaf)
                places[place] = list(found).index(id(leaf))
        kept = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(kept, places, spec), list(found.values())

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """Return its arguments with other tensors."""
        leaves = list(self.leaves)
        for place, number in self.places.items():
            leaves[place] = tensors[number]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs


class InsideModules:
    """Runs a torch module as a whole, and shows its modules.

    A listener gets copies of tensors, each one once, and may keep them.

    Args:
        name: of the backend.
        methods: by which the model is called.
        own: the torch module.
        named: returns the name in ``own`` of one of the eager model's modules, or an empty string.
        device: of the model.
        note: what is not as it is where the model runs as a whole, or an empty string.
        reason: why a module has no name in ``own``.
    """

    of_program = True
    facts = Facts(scripted=True, used=dict.fromkeys(METHODS, frozenset()))

    def __init__(
        self,
        name: str,
        methods: Methods,
        own: nn.Module,
        named: Callable[[str], str],
        device: torch.device,
        *,
        note: str = "",
        reason: str = NO_MODULE,
    ) -> None:
        self.note = note
        self._name = name
        self._methods = methods
        self._own = {name: module for name, module in own.named_modules() if name}
        self._named = named
        self._device = device
        self._reason = reason
        self._calls: dict[str, _Call] = {}
        self._hidden: dict[str, str] = {}

    def listen(
        self,
        method: str,
        inputs: Sequence[Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each of the modules. Return the
        features of an encoder, or for ``forward`` all outputs by name.

        Raises:
            RunError: it failed.
        """
        there = {name: self._own.get(self._named(name)) for name in modules}
        self._hidden |= {name: self._reason for name, module in there.items() if module is None}
        hooks: list[Any] = []
        for name, module in there.items():
            if module is not None:
                hooks += self._hooks(Site(name, "forward"), module, listener)
        try:
            if method in ENCODERS:
                return self._called(method, *inputs)
            features = {
                ENCODERS[each]: self._called(each, rows)
                for each, rows in zip(ENCODERS, inputs, strict=True)
            }
        finally:
            for hook in hooks:
                hook.remove()
        return features | dict(zip(LOGITS, self._called(method, *inputs), strict=True))

    def call_module(
        self,
        module: str,
        method: str,  # noqa: ARG002 - a module has one
        inputs: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """Return the tensors of a module that is called alone, with the other arguments of its last
        call.

        Raises:
            RunError: it failed.
        """
        args, kwargs = self._calls[module].filled(inputs)
        with translating(self._name, f"running {module} alone"), torch.inference_mode():
            return _floats(self._own[self._named(module)](*args, **kwargs))

    def call_head(self, image: Tensor, text: Tensor) -> None:
        """Return nothing: a model's method computes logits from inputs."""

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed: they are compared elsewhere."""
        return []

    @property
    def hidden(self) -> Mapping[str, str]:
        """Return by module why it is not shown."""
        return self._hidden

    def _called(self, method: str, *inputs: Tensor) -> Any:
        return run_method(self._name, self._methods, method, *inputs)

    def _hooks(self, site: Site, module: nn.Module, listener: Listener) -> list[Any]:
        def before(_: object, args: object, kwargs: object) -> None:
            call, tensors = _Call.of(args, kwargs)
            self._calls[site.module] = call
            listener(site, True, [tensor.clone() for tensor in tensors])

        def after(_: object, __: object, found: object) -> None:
            listener(site, False, _floats(found))

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]


def _floats(found: object) -> list[Tensor]:
    """Return copies of the floating-point tensors among a module's outputs."""
    tensors = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
    return [each.clone() for each in tensors if each.is_floating_point()]
