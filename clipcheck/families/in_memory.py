"""Models in memory as dual encoders: torch modules, and callables on arrays.

Shapes are noted at the end of lines: N images, M texts, L tokens, R pixels a side, E embedding.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipcheck.checkpoints.library import of_object
from clipcheck.errors import RunError, UsageError
from clipcheck.families.base import DualEncoder
from clipcheck.families.building import computing_in
from clipcheck.families.sizes import Sizes
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.inputs.rules import MEAN, STD, ImageRules, clip_texts

EncodeImage: TypeAlias = Callable[[NDArray[np.float32]], Any]
"""Function of pixels, float32 [N, 3, R, R], that returns features [N, E]."""

EncodeText: TypeAlias = Callable[[NDArray[np.int32]], Any]
"""Function of ids, int32 [M, L], that returns features [M, E]."""

Pair: TypeAlias = tuple[EncodeImage | None, EncodeText | None]
"""Callables of both towers; None for a tower that is not there."""

_EXPECTED = "a torch module with encode_image and encode_text, a pair of callables, or a path"


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model in memory.

    Attributes:
        model: calls it.
        name: for reports.
        module: the torch module, or None for callables.
        sizes: of its inputs, and their rules, where it tells them.
        wrap: calls another module of its kind in the same way; None for callables.
        encoders: the functions that are called, by method; two models with one of them in common
            are the same.
    """

    model: DualEncoder
    name: str
    module: nn.Module | None
    sizes: Sizes | None
    wrap: Callable[[nn.Module], DualEncoder] | None
    encoders: dict[str, object]

    @property
    def compiled(self) -> str:
        """The first part that runs compiled, where hooks do not work; empty if none does."""
        for name, part in [] if self.module is None else self.module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                return f"the TorchScript module {name or self.name}"
            if _is_compiled(part):
                return f"the compiled module {name}"
            for method, call in vars(part).items():
                if hasattr(call, "_torchdynamo_orig_callable"):
                    return f"the compiled {f'{name}.{method}'.lstrip('.')}"
        return ""


def adapt(given: object, side: str) -> Adapted:
    """Return a model in memory as a dual encoder; it is neither copied nor changed.

    Args:
        given: a torch module in evaluation mode, or a `Pair`.
        side: ``reference`` or ``candidate``, for messages.

    Raises:
        UsageError: it is neither, or a module in training mode, or without encoders.
        ArchitectureError: it is of a class of transformers that is not supported.
    """
    if isinstance(given, nn.Module):
        return _adapt_module(given, side)
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return _adapt_pair(given, side)
    kind = f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
    raise UsageError(
        f"expected {_EXPECTED} as the {side}, found an object of type {kind}",
        remedy="Give (encode_image, encode_text): functions of float32 pixels [N, 3, R, R] and of "
        "int32 ids [M, L], that return features.",
    )


def _adapt_pair(given: Sequence[object], side: str) -> Adapted:
    calls = dict(zip(ENCODERS, given, strict=True))
    wrong = [type(each).__name__ for each in given if each is not None and not callable(each)]
    if wrong or not any(each is not None for each in given):
        raise UsageError(
            f"expected a pair of callables as the {side}, found "
            f"{wrong[0] if wrong else 'None for both'}",
            remedy="Give (encode_image, encode_text); None for a tower that is not there.",
        )
    there = {method: call for method, call in calls.items() if call is not None}
    names = dict.fromkeys(_named(call) for call in there.values())
    return Adapted(
        model=Callables(there),
        name=" and ".join(names),
        module=None,
        sizes=None,
        wrap=None,
        encoders=dict(there),
    )


def _named(call: Any) -> str:
    return str(getattr(call, "__qualname__", type(call).__qualname__))


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` compiled its ``forward``, in place or by a module around it."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _adapt_module(module: nn.Module, side: str) -> Adapted:
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    training = next((part for part, each in module.named_modules() if each.training), None)
    if training is not None:
        part = f"{training} of " if training else ""
        raise UsageError(
            f"expected the {side} in evaluation mode, found {part}{name} in training mode",
            remedy="Call its method eval() first.",
        )
    if _is_compiled(module):
        raise UsageError(
            f"expected the {side} with compiled encoders, found {name}, of which torch.compile "
            "compiled only forward",
            remedy="Compile its towers, as in model.visual.compile(), or its methods, as in "
            "model.encode_image = torch.compile(model.encode_image).",
        )
    if isinstance(module, DualEncoder):
        encoders = {method: getattr(module, method) for method in ENCODERS}
        return Adapted(
            model=module,
            name=name,
            module=module.own(),
            sizes=_sizes(module),
            wrap=_itself,
            encoders=encoders,
        )
    if _is_of_transformers(module):
        return _adapt_transformers(module, name)
    found = Module(module)
    if not found.outputs:
        raise UsageError(
            f"expected {_EXPECTED} as the {side}, found {name} without such methods",
            remedy="Wrap it in a module that has them, or give a pair of callables.",
        )
    encoders = {each: getattr(module, each) for each in ENCODERS if hasattr(module, each)}
    return Adapted(
        model=found, name=name, module=module, sizes=_sizes(module), wrap=Module, encoders=encoders
    )


def _is_of_transformers(module: nn.Module) -> bool:
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _adapt_transformers(module: nn.Module, name: str) -> Adapted:
    from clipcheck.families import transformers

    architecture = of_object(module)
    wrap = functools.partial(transformers.Transformers, architecture=architecture)
    encoders = {method: (module, method) for method in ENCODERS}
    sizes = transformers.sizes(architecture)
    return Adapted(
        model=wrap(module).eval(),
        name=name,
        module=module,
        sizes=sizes,
        wrap=wrap,
        encoders=dict(encoders),
    )


def _itself(module: nn.Module) -> DualEncoder:
    if not isinstance(module, DualEncoder):
        raise TypeError(f"expected a dual encoder, found {type(module).__name__}")
    return module


class Module(DualEncoder):
    """A torch module with ``encode_image`` or ``encode_text``, such as a model of open_clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(0, 0)
        self.model: Any = model
        methods = [method for method in ENCODERS if callable(getattr(model, method, None))]
        scaled = len(methods) == 2 and isinstance(getattr(model, "logit_scale", None), Tensor)
        self.outputs = (*(ENCODERS[each] for each in methods), *(LOGITS if scaled else ()))
        weights = (each for each in model.parameters() if each.is_floating_point())
        self.dtype = next((each.dtype for each in weights if each.ndim > 1), torch.float32)

    def own(self) -> nn.Module:
        """The module itself."""
        found: nn.Module = self.model
        return found

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E]."""
        return self._features("encode_image", image.to(self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E]."""
        return self._features("encode_text", text.long())

    def _features(self, method: str, given: Tensor) -> Tensor:
        with computing_in(self.dtype):
            found = getattr(self.model, method)(given)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(given):
            raise RunError(
                f"{method} gave {_described(found)}, expected features [{len(given)}, E]",
                remedy="Wrap the model in a module that returns them, or give callables.",
            )
        return found

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E]."""
        images = nn.functional.normalize(image_features, dim=-1)
        texts = nn.functional.normalize(text_features, dim=-1)
        logits: Tensor = self.model.logit_scale.exp() * images @ texts.t()
        bias = getattr(self.model, "logit_bias", None)
        if bias is not None:
            logits = logits + bias
        return logits, logits.t()

    def log_scale(self) -> Tensor:
        """Return the natural logarithm of the factor of the cosines: one number."""
        return self.model.logit_scale if LOGITS[0] in self.outputs else torch.zeros(())


class Callables(DualEncoder):
    """Functions on arrays, such as the calls of an engine, a service or a JAX function.

    They take float32 pixels [N, 3, R, R] and int32 ids [M, L], each a copy of their own, and return
    anything that numpy takes for an array of numbers; float64 is rounded to float32.
    """

    def __init__(self, calls: dict[str, Any]) -> None:
        super().__init__(0, 0)
        self._calls = calls
        self.outputs = tuple(ENCODERS[method] for method in calls)

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E]."""
        return self._called("encode_image", image.to(torch.float32))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E]."""
        return self._called("encode_text", text.to(torch.int32))

    def _called(self, method: str, given: Tensor) -> Tensor:
        returned = self._calls[method](given.cpu().numpy().copy())
        found = np.asarray(returned)
        if found.dtype.kind != "f" or found.ndim != 2 or len(found) != len(given):
            kind = type(returned).__name__
            if found.dtype.kind != "O":
                kind = f"an array of {found.dtype} {list(found.shape)}"
            raise RunError(
                f"{method} gave {kind}, expected features [{len(given)}, E] as floating-point "
                "numbers",
                remedy="Return one row of features for each row that is given.",
            )
        narrow = found.astype(np.float32) if found.dtype.itemsize > 4 else found
        return torch.from_numpy(np.ascontiguousarray(narrow))

    def log_scale(self) -> Tensor:
        """Return 0: it has no logits."""
        return torch.zeros(())


class Once(DualEncoder):
    """A model whose features are computed once for the same rows, and given in float64 as well.

    It stands for the float64 copy where there is none: then the reference's own outputs are what
    candidates are compared with. Two runs of it might differ, and would look like rounding.
    """

    def __init__(self, model: DualEncoder, kept: dict[tuple[str, bytes], Tensor] | None = None):
        super().__init__(model.image_resolution, model.context_length)
        self._model = [model]  # not a submodule: it is moved and cast by nobody
        self._kept = {} if kept is None else kept
        self._exact = kept is not None
        self.outputs = model.outputs

    def exact(self) -> Once:
        """Return this model with the same features in float64."""
        return Once(self._model[0], self._kept)

    def own(self) -> nn.Module:
        """The module of the model."""
        return self._model[0].own()

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E]."""
        return self._features("encode_image", image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E]."""
        return self._features("encode_text", text)

    def _features(self, method: str, given: Tensor) -> Tensor:
        key = method, given.cpu().contiguous().numpy().tobytes() + bytes(str(given.shape), "ascii")
        if key not in self._kept:
            self._kept[key] = getattr(self._model[0], method)(given).detach()
        found = self._kept[key]
        return found.cpu().double() if self._exact else found

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E]."""
        return self._model[0].logits(image_features, text_features)

    def log_scale(self) -> Tensor:
        """Return the natural logarithm of the factor of the cosines: one number."""
        return self._model[0].log_scale()


def copied(adapted: Adapted, device: torch.device) -> DualEncoder:
    """Return a copy in float64.

    Args:
        device: of the copy, which must have float64.

    Raises:
        Exception: any, of what the module consists of.
    """
    if adapted.wrap is None or adapted.module is None:
        raise ValueError("expected a torch module")
    module = adapted.model if adapted.wrap is _itself else adapted.module
    return adapted.wrap(copy.deepcopy(module).to(device).double()).eval()


# --------------------------------------------------------------------------- sizes


def _sizes(module: Any) -> Sizes | None:
    """Return the sizes that a module tells by the attributes of open_clip and of the reference
    implementation, or None."""
    visual = getattr(module, "visual", None)
    side = _whole(_first(visual, "image_size", "input_resolution")) or _whole(
        getattr(module, "image_resolution", None)
    )
    length, vocabulary = (_whole(_first(module, name)) for name in ("context_length", "vocab_size"))
    if vocabulary is None and isinstance(getattr(module, "token_embedding", None), nn.Embedding):
        vocabulary = int(module.token_embedding.num_embeddings)
    if side is None or length is None or vocabulary is None:
        return None
    patch = _whole(_first(visual, "patch_size")) or 32
    biased = getattr(module, "logit_bias", None) is not None
    texts = clip_texts(vocabulary)
    images = _images(getattr(visual, "preprocess_cfg", None) or {})
    grid = max(1, side // patch)
    return Sizes(
        image_resolution=side,
        context_length=length,
        vocab_size=vocabulary,
        embed_dim=0,
        grid=grid,
        images=images,
        texts=texts,
        sigmoid=biased,
    )


def _first(holder: object, *names: str) -> object:
    return next((getattr(holder, name) for name in names if hasattr(holder, name)), None)


def _whole(value: object) -> int | None:
    """Return a number of pixels, tokens or ids: one number, or two that are equal."""
    if isinstance(value, Sequence) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if type(value) is int and value > 0 else None


def _images(preprocess: dict[str, Any]) -> ImageRules:
    """Return the rules of an open_clip model's ``preprocess_cfg``; CLIP's for the rest."""
    resize = preprocess.get("resize_mode")
    return ImageRules(
        mean=tuple(preprocess.get("mean") or MEAN),
        std=tuple(preprocess.get("std") or STD),
        interpolation="bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        resize=resize if resize in ("longest", "squash") else "shortest",
    )


def _described(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {list(found.shape)}"
    return type(found).__name__
