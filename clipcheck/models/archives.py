"""A TorchScript archive loaded into this process: its module, taps and facts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clipcheck.checkpoints.naming import Naming
from clipcheck.errors import DamagedError
from clipcheck.models import taps, torchscript
from clipcheck.models.facts import METHODS, Facts
from clipcheck.models.weights import WeightWatch, by_reference, weights_of


class LoadedArchive:
    """An archive, patched for a device and a dtype. Loading it runs the file's own code.

    Args:
        dtype: in which its code shall compute; None does not change it.
        weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.

    Attributes:
        module: the archive's. Its weights may be replaced until `watch` is called.

    Raises:
        UnavailableError: this torch or Python has no TorchScript.
        DamagedError: the interpreter cannot load it.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        dtype: torch.dtype | None,
        weights: Collection[str],
        naming: Naming,
    ) -> None:
        self.module = torchscript.load_archive(path, device)
        self._patched = torchscript.patch(self.module, device, dtype, weights)
        self.device = device
        self._path, self._dtype, self._dtypes, self._naming = path, dtype, weights, naming
        self._tapped: torch.jit.ScriptModule | None = None
        self._watches: list[WeightWatch] = []
        self._uncast: dict[str, bool] = {}
        self._parts: dict[str, torch.nn.Module] = {}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield its own weights and buffers by the reference's keys, without masks."""
        return by_reference(self.module, self._naming)

    def site(self, site: taps.Site) -> taps.Site:
        """Return the same call, with the reference's name of the module."""
        return taps.Site(self._naming.reference(site.module), site.method)

    def given(self, method: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the inputs of a method in the dtypes that its code expects: open_clip's code does
        not cast pixels, so users pass them in the weights' dtype."""
        if self._dtype is None or not self._convolves_uncast(method):
            return list(inputs)
        return [each.to(self._dtype) if each.is_floating_point() else each for each in inputs]

    def _convolves_uncast(self, method: str) -> bool:
        if method not in self._uncast:
            there = method in self._methods() and method != "encode_text"
            self._uncast[method] = there and torchscript.convolves_uncast(self.module, method)
        return self._uncast[method]

    def _methods(self) -> Sequence[str]:
        scripted = isinstance(self.module, torch.jit.ScriptModule)
        return self.module._c._method_names() if scripted else ()

    def watch(self) -> None:
        """Watch its weights for changes from now on."""
        self._watches = [WeightWatch(self.module)]

    def changed(self) -> list[str]:
        """Return the reference's keys of the weights that changed since `watch`."""
        changed = (key for watch in self._watches for key in watch.changed())
        return list(dict.fromkeys(map(self._naming.reference, changed)))

    def part(self, module: str, method: str) -> Callable[..., object]:
        """Return a method of one of its modules, by the reference's name of the module.

        Raises:
            KeyError: it has no such module.
        """
        if not self._parts:
            named = self.module.named_modules()
            self._parts = {self._naming.reference(name): part for name, part in named}
        script: Any = self._parts[module]
        found: Callable[..., object] = script._c._get_method(method)
        return found

    @contextmanager
    def replaced(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Replace weights, by the reference's keys, during the block.

        Raises:
            KeyError: it has no weight with this key.
        """
        held = dict(self.weights())
        before = {key: held[key].data for key in weights}
        try:
            for key, weight in weights.items():
                held[key].data = weight.to(held[key].dtype)
            yield
        finally:
            for key, weight in before.items():
                held[key].data = weight

    def tapped(self) -> torch.jit.ScriptModule:
        """Load the archive again, with taps in its code and the same weights.

        Taps must be inserted before the first call, and prevent fusions that users get, so they are
        in a separate module.
        """
        if self._tapped is None:
            # Tensors loaded in inference mode have no version counters.
            with torch.inference_mode(False):
                self._tapped = self._with_taps()
                self._watches.append(WeightWatch(self._tapped))
        return self._tapped

    def _with_taps(self) -> torch.jit.ScriptModule:
        tapped = torchscript.load_archive(self._path, self.device)
        shared = dict(weights_of(self.module))
        for key, held in weights_of(tapped):
            if key in shared:
                held.data = shared[key].data
        torchscript.patch(tapped, self.device, self._dtype, self._dtypes)
        taps.tap(tapped)
        return tapped

    def facts(self) -> Facts:
        """Return the facts of the archive.

        Raises:
            DamagedError: a dimension in it is no number.
        """
        methods = self._methods()
        return Facts(
            scripted=isinstance(self.module, torch.jit.ScriptModule),
            used={
                method: frozenset(
                    self._naming.reference(key)
                    for key in torchscript.used_weights(self.module, method)
                )
                for method in METHODS
                if method in methods
            },
            input_resolution=self._dimension("input_resolution"),
            context_length=self._dimension("context_length"),
            patched=self._patched,
            forward_takes=torchscript.tensors_taken(self.module._c._get_method("forward"))
            if "forward" in methods
            else (),
        )

    def _dimension(self, name: str) -> int | None:
        value = getattr(self.module, name, None)
        if value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DamagedError(
                f"expected a whole number as {name}, found {type(value).__name__}",
                remedy=f"Do not use this file: {torchscript.ANEW}",
                path=self._path,
            ) from error
