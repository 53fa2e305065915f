"""Inputs and outputs of an archive's ``forward``.

The reference's takes pixels and ids, and returns both logits. open_clip's returns normalised image
and text features and the logit scale, in a tuple or a dict. Others return one of the logits, the
features, or all four, or are one of the encoders. Outputs are identified by name, else by shape.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from clipcheck.backends.runner import OfArchive
from clipcheck.errors import RunError
from clipcheck.gates.result import ENCODERS, FEATURES, LOGITS, OUTPUTS
from clipcheck.models.facts import METHODS, Facts

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.runner import Runner
    from clipcheck.families.base import DualEncoder
    from clipcheck.models.taps import Listener

_SCALED = (*FEATURES, "logit_scale")
_BIAS = "logit_bias"

_EXPECTED = (
    "logits per image and per text, features of images and of texts that are not normalised, or "
    "normalised ones and the logit scale"
)

_REMEDY = "Let forward take pixels and ids, and return logits_per_image and logits_per_text."

_ROUNDING = 16
"""Greatest distance of a sum of probabilities from 1, in units in the last place."""

_UNIT = 1e-2
"""Greatest distance of a normalised feature's length from 1, also in bfloat16."""


class UntoldError(RunError):
    """The inputs or outputs of ``forward`` could not be identified."""


@dataclass(frozen=True)
class Sizes:
    """Sizes by which outputs are identified.

    Attributes:
        images: number of images.
        texts: number of texts.
        width: components of a feature.
    """

    images: int
    texts: int
    width: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """The shape of each output."""
        return {
            "image_features": (self.images, self.width),
            "text_features": (self.texts, self.width),
            "logits_per_image": (self.images, self.texts),
            "logits_per_text": (self.texts, self.images),
        }


def outputs_of(given: object, sizes: Sizes, order: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Find the outputs in the result of ``forward``, by the names and in the order of `OUTPUTS`.

    Args:
        given: the result.
        sizes: of the inputs.
        order: names of its tensors, if an earlier call identified them.

    Raises:
        ValueError: it has none; the message describes the result.
    """
    named = _named(given, sizes, order)
    if all(name in named for name in _SCALED):
        images, texts, scale = (named[name] for name in _SCALED)
        logits = scale * images @ texts.t() + named.get(_BIAS, 0.0)
        return {"logits_per_image": logits, "logits_per_text": logits.t()}
    normalised = [name for name in FEATURES if name in named and is_normalised(named[name])]
    shares = [name for name in LOGITS if name in named and _is_probability(named[name])]
    found = {name: named[name] for name in OUTPUTS if name in named}
    for name in (*normalised, *shares):
        del found[name]
    if not found:
        what = "normalised features and no scale" if normalised else _described(given)
        what = "probabilities, which do not tell the logits" if shares else what
        raise ValueError(f"forward gave {what}, expected {_EXPECTED}")
    return found


def order_of(given: object, sizes: Sizes) -> tuple[str, ...]:
    """Name the tensors of the result of ``forward``, if their shapes identify each of them."""
    expected: dict[tuple[int, ...], str] = {s: name for name, s in sizes.shapes.items()}
    if len(expected) < len(OUTPUTS):  # As many images as texts: both logits are of one shape.
        return ()
    names = [expected.get(tuple(each.shape), "") for each in _tensors(given)]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()


def _tensors(given: object) -> Sequence[torch.Tensor]:
    """Return the tensors of a result without names; none if it has anything else.

    Sequences of hidden states [N, L, D], and the outputs of towers of transformers' models, each in
    a tuple of its own, are left out unless there is nothing else.
    """
    import torch

    several = [given] if isinstance(given, torch.Tensor) else given
    if not isinstance(several, Sequence) or isinstance(several, str):
        return ()
    alone = [each for each in several if not isinstance(each, tuple)]
    if not all(isinstance(each, torch.Tensor) for each in alone):
        return ()
    flat = [each for each in alone if each.dim() < 3]
    return flat or alone


def _named(given: object, sizes: Sizes, order: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the tensors by their names, or by number and shape."""
    import torch

    if isinstance(given, Mapping):
        return {str(name): each for name, each in given.items() if isinstance(each, torch.Tensor)}
    tensors = _tensors(given)
    names = order if len(order) == len(tensors) else ()
    names = names or order_of(given, sizes) or _usual([each.shape for each in tensors], sizes)
    return dict(zip(names, tensors, strict=False))


def _usual(shapes: Sequence[torch.Size], sizes: Sizes) -> Sequence[str]:
    """Return the usual names of this number of tensors, if shapes do not identify them."""
    if len(shapes) == 2 and all(shape[1:] == (sizes.width,) for shape in shapes):
        return FEATURES if sizes.width not in (sizes.images, sizes.texts) else LOGITS
    if len(shapes) <= len(LOGITS):
        return LOGITS
    scales = all(shape.numel() == 1 for shape in shapes[2:])
    features = len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]
    names = (*_SCALED, _BIAS)
    return names if scales and features and len(shapes) <= len(names) else ()


def is_normalised(features: torch.Tensor) -> bool:
    """Tell whether all rows have length 1."""
    lengths = features.detach().double().norm(dim=-1)
    return features.numel() > 0 and bool(((lengths - 1).abs() < _UNIT).all())


def _is_probability(logits: torch.Tensor) -> bool:
    """Tell whether each row sums to 1; a single row or column is not enough to tell."""
    import torch

    if logits.dim() != 2 or min(logits.shape) < 2 or not logits.is_floating_point():
        return False
    off = (logits.detach().double().sum(dim=1) - 1).abs()
    rounding = _ROUNDING * torch.finfo(logits.dtype).eps
    return bool((logits >= 0).all()) and bool((off < rounding).all())


def _described(given: object) -> str:
    import torch

    if isinstance(given, torch.Tensor):
        return f"a tensor of shape {list(given.shape)}"
    if isinstance(given, Mapping):
        return f"a dict of {', '.join(map(str, given)) or 'nothing'}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {', '.join(map(_described, given)) or 'nothing'}"
    return str(given) if type(given).__module__.startswith("clipcheck") else type(given).__name__


class ByName(OfArchive):
    """Runs an archive, and returns the outputs of ``forward`` by name.

    A ``forward`` that is an encoder gets the encoder's name, if the archive has no such method.

    Args:
        runner: runs the archive.
        width: components of a feature.
        model: the eager model, which tells what is of the image tower, and what its library's
            model takes.
        own: whether the archive is made of the library's model, and not of what calls it.

    Attributes:
        gives: the outputs of ``forward``; empty before it ran.
        untold: why its inputs or outputs could not be identified, or an empty string.
    """

    def __init__(self, runner: Runner, width: int, model: DualEncoder, *, own: bool = True) -> None:
        self.gives: tuple[str, ...] = ()
        self.untold = ""
        self._runner = runner
        self._width = width
        self._model = model
        self._own = own
        self._order: tuple[str, ...] = ()

    @property
    def facts(self) -> Facts:
        """Return the facts of the archive, with the methods that can be called here."""
        used = {
            self._encoder if method == "forward" and self._is_encoder else method: keys
            for method, keys in self._facts.used.items()
            if method != "forward" or not (self.untold or self.unfit)
        }
        return replace(self._facts, used={each: used[each] for each in METHODS if each in used})

    def call(self, method: str, *inputs: torch.Tensor) -> object:
        """Return the output of a method."""
        name, taken = self._called(method, inputs)
        return self._named(method, inputs, self._runner.call(name, *taken))

    def call_with(
        self, weights: Mapping[str, torch.Tensor], method: str, *inputs: torch.Tensor
    ) -> object:
        """Call a method with other weights in place of those with these keys for this call."""
        name, taken = self._called(method, inputs)
        return self._named(method, inputs, self._runner.call_with(weights, name, *taken))

    def call_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor] = (),
    ) -> tuple[object, str]:
        """Return the output of a method for inputs in some form, and what was wrong with it."""
        name, taken = self._called(method, inputs)
        then = self._called(method, after)[1] if after else ()
        found, wrong = self._runner.call_in_form(form, name, taken, then)
        return self._named(method, inputs, found), wrong

    def call_module(
        self, module: str, method: str, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the tensors of a module that is called alone."""
        return self._runner.call_module(module, method, inputs)

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each call of one of the
        modules."""
        name, taken = self._called(method, inputs)
        given = self._runner.listen(name, taken, modules, listener)
        return self._named(method, inputs, given)

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed."""
        return self._runner.changed()

    @cached_property
    def _facts(self) -> Facts:
        return self._runner.facts

    @cached_property
    def _encoder(self) -> str:
        """Return the name of the encoder if ``forward`` is one, or an empty string."""
        if len(self._facts.forward_takes) != 1:
            return ""
        towers = {self._model.is_visual(key) for key in self._facts.used.get("forward", ())}
        if len(towers) != 1:
            return ""
        return "encode_image" if towers.pop() else "encode_text"

    @property
    def unfit(self) -> str:
        """Why ``forward`` is not judged, though it is told what it takes; or nothing."""
        if not (self._own and self._model.forward_pairs):
            return ""
        return (
            "jit: forward takes one text for each image, and logits take each with each; it "
            "has no encode_image and encode_text, which would be judged (torch.jit.trace_module "
            "writes them)"
        )

    @property
    def _is_encoder(self) -> bool:
        """Tell whether ``forward`` has an encoder's name: the archive has no such method."""
        return bool(self._encoder) and self._encoder not in self._facts.used

    def _called(
        self, method: str, inputs: Sequence[torch.Tensor]
    ) -> tuple[str, Sequence[torch.Tensor]]:
        """Return the archive's own method, and the inputs that it takes."""
        if method != "forward" and not (self._is_encoder and method == self._encoder):
            return method, inputs
        if len(inputs) == 2 and self._encoder:
            inputs = inputs[:1] if self._encoder == "encode_image" else inputs[1:]
        takes = self._facts.forward_takes
        images = len(inputs) == 2 or (self._encoder or method) == "encode_image"
        texts = len(inputs) == 2 or not images
        pixels, tokens = (inputs[0] if images else None), (inputs[-1] if texts else None)
        known = self._model.arguments(pixels, tokens) if self._own else {}
        if known.keys() >= set(takes):
            return "forward", [known[name] for name in takes]
        if len(takes) == len(inputs):
            return "forward", inputs
        tensors = "1 tensor, and is no encoder" if len(takes) == 1 else f"{len(takes)} tensors"
        raise self._not_told(f"forward takes {tensors}, expected pixels and ids")

    def _named(self, method: str, inputs: Sequence[torch.Tensor], given: object) -> object:
        """Return the outputs unchanged, those of ``forward`` by name."""
        encoder = method if self._is_encoder and method == self._encoder else ""
        if method != "forward" and not encoder:
            return given
        import torch

        sizes = self._sizes(inputs, encoder)
        self._order = self._order or order_of(given, sizes)
        try:
            with torch.inference_mode():
                found = outputs_of(given, sizes, self._order)
        except ValueError as error:
            raise self._not_told(str(error)) from error
        self.gives = self.gives or tuple(found)
        feature = ENCODERS.get(encoder, "")
        return found.get(feature, given) if encoder else found

    def _sizes(self, inputs: Sequence[torch.Tensor], encoder: str) -> Sizes:
        counts = [len(each) for each in inputs]
        if encoder:
            counts = [*counts, 0] if encoder == "encode_image" else [0, *counts]
        return Sizes(counts[0], counts[1], self._width)

    def _not_told(self, problem: str) -> RunError:
        """Return the error to raise, which depends on whether an earlier call was identified."""
        if self.gives:
            return RunError(f"jit: {problem}", remedy=_REMEDY)
        self.untold = f"jit: {problem}"
        return UntoldError(self.untold, remedy=_REMEDY)
