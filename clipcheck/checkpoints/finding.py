"""Find a CLIP model in a file of training code: under any key, prefix and wrapper, beside others.

A single model is used; if there are several, the user chooses with --key.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from clipcheck.checkpoints.dimensions import listed
from clipcheck.checkpoints.state_dicts import Inert
from clipcheck.checkpoints.unpickle import TensorRecord
from clipcheck.checkpoints.variants import require_usual
from clipcheck.errors import ArchitectureError, CheckpointError, UsageError

Weight = TypeVar("Weight")
"""A tensor, or the record of one in a file."""

ASKED_KEY = "--key (in pytest --clip-key, in Python key=)"
"""The option for the model in a file, for messages of the command, pytest and Python alike."""

TOP = "."
"""Name of a model whose keys are at the file's top level."""

_MOST_LEVELS = 6
"""Most nested mappings, and parts of a prefix, above a model."""

_MOST_NAME = 250
"""Most characters of a key in messages. Keys of a wrapped model have up to 150."""

_MOST_NAMED = 8
"""Most models in a message."""

_WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
)
"""Parts of keys from wrappers: DistributedDataParallel or AveragedModel, `torch.compile`,
FullyShardedDataParallel, activation checkpointing."""

_IMAGE_PARTS = frozenset({"visual", "vision_model"})
_TEXT_PARTS = frozenset(
    {
        "text",
        "text_model",
        "transformer",
        "token_embedding",
        "positional_embedding",
        "text_projection",
        "ln_final",
    }
)
"""Names after a model's prefix in the keys of the towers, in any layout."""

_OWN = (
    "visual",
    "vision",
    "transformer",
    "text",
    "token",
    "positional",
    "ln_",
    "logit",
    "attn_mask",
    "context_length",
    "input_resolution",
    "vocab_size",
)
"""Starts of a model's keys after its prefix, also those of unknown additions."""


@dataclass(frozen=True)
class Origin:
    """The place of a model in a file.

    Attributes:
        key: keys of the mappings that lead to it, joined by dots; empty at the top.
        prefix: of all its keys there.
        left_out: keys of tensors beside it that are not part of it.
    """

    key: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the model for --key."""
        return ".".join(filter(None, [self.key, self.prefix.rstrip(".")])) or TOP

    def has_name(self, name: str) -> bool:
        """Whether its name is ``name``, or starts with it."""
        return self.name == name or self.name.startswith(f"{name}.")

    def __str__(self) -> str:
        """Describe it as a phrase; empty if the file has only the model."""
        taken = [
            f"read from {self.key!r}" if self.key else "",
            f"without {self.prefix!r}" if self.prefix else "",
        ]
        parts = [", ".join(filter(None, taken)), listed("left out", list(self.left_out), 3)]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class Model(Generic[Weight]):
    """A CLIP model in a file.

    Attributes:
        weights: by their keys without prefix and wrappers.
        origin: its place in the file.
    """

    weights: Mapping[str, Weight]
    origin: Origin


def find_model(
    saved: object,
    kind: type[Weight],
    key: str | None,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    usual: bool = True,
) -> Model[Weight]:
    """Find the CLIP model in a saved object of training code.

    If there is none, return the mapping with the most tensors: the caller reports what they lack.

    Args:
        saved: content of the file.
        kind: class of its tensors.
        key: ``--key``: the name of the model, or its start.
        strict: whether a model must have this name; else a single model is used, too.
        usual: whether the model must have no additions that clipcheck's own modules lack.

    Raises:
        ArchitectureError: it has no tensors by name, or those of another kind of model.
        CheckpointError: it has several models, and the key does not say which.
        UsageError: it has no model of that name.
    """
    mappings = list(_mappings(saved))
    candidates = [each for place, found in mappings for each in _candidates(place, found, kind)]
    if candidates or (key is not None and strict):
        return _chosen(candidates, key, path, strict=strict).model(path, usual=usual)
    tensors = [(place, _tensors(found, kind)) for place, found in mappings]
    place, most = max(tensors, key=lambda each: len(each[1]), default=("", {}))
    if not most:
        raise ArchitectureError(
            f"expected a dict of tensors by name, found {_described(saved)}",
            remedy="Save model.state_dict().",
            path=path,
        )
    if usual:
        require_usual(most, path)
    return Model({_unwrapped(key): tensor for key, tensor in most.items()}, Origin(place))


def _described(saved: object) -> str:
    found = _mapping_of(saved)
    if found:
        names = [key[:80] for key in found if isinstance(key, str)]
        return f"none under {listed('its keys', names) or 'its keys, which are no names'}"
    if isinstance(saved, TensorRecord):
        return "a tensor"
    if type(saved) is dict:
        return "one without any keys"
    return "an object of another class" if type(saved) is Inert else f"a {type(saved).__name__}"


def _mapping_of(value: object) -> Mapping[object, object] | None:
    """Return the items of a mapping, or the attributes of an object."""
    if isinstance(value, Inert):
        return value or value.attributes
    return value if isinstance(value, Mapping) else None


def _mappings(saved: object) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield all mappings, the outer ones first, each once, with the keys that lead to it."""
    pending: deque[tuple[tuple[str, ...], object]] = deque([((), saved)])
    met: set[int] = set()
    while pending:
        keys, value = pending.popleft()
        found = _mapping_of(value)
        if found is None or id(found) in met:
            continue
        met.add(id(found))
        yield ".".join(keys), found
        if len(keys) == _MOST_LEVELS:
            continue
        for key, child in found.items():
            if isinstance(key, str) and _mapping_of(child) is not None:
                pending.append(((*keys, key[:_MOST_NAME]), child))


def _candidates(
    place: str, found: Mapping[object, object], kind: type[Weight]
) -> list[_Candidate[Weight]]:
    """Yield the possible CLIP models in a mapping: keys of both towers after a common prefix."""
    tensors = _tensors(found, kind)
    parts = [(prefix, part) for key in tensors for prefix, part in _cuts(key)]
    images = {prefix for prefix, part in parts if part in _IMAGE_PARTS}
    prefixes = images & {prefix for prefix, part in parts if part in _TEXT_PARTS}
    keys: dict[str | None, list[str]] = {None: []}
    for key in tensors:
        owners = [prefix for prefix, _ in _cuts(key) if prefix in prefixes]
        keys.setdefault(owners[-1] if owners else None, []).append(key)
    beside = keys.pop(None)
    return [_Candidate(place, str(prefix), own, beside, tensors) for prefix, own in keys.items()]


def _tensors(found: Mapping[object, object], kind: type[Weight]) -> dict[str, Weight]:
    return {
        key[:_MOST_NAME]: value
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, kind)
    }


def _cuts(key: str) -> list[tuple[str, str]]:
    """Return each possible prefix of a key, with its dot, and the part that follows it."""
    parts = key.split(".")[: _MOST_LEVELS + 1]
    return [("".join(f"{part}." for part in parts[:n]), parts[n]) for n in range(len(parts))]


@dataclass(frozen=True)
class _Candidate(Generic[Weight]):
    """A possible CLIP model in a mapping of weights.

    Attributes:
        place: keys that lead to its mapping.
        prefix: of its keys there, with the dot.
        keys: those with the prefix, without those of another model's longer prefix.
        beside: keys without the prefix of any model.
        tensors: all of the mapping.
    """

    place: str
    prefix: str
    keys: Sequence[str]
    beside: Sequence[str]
    tensors: Mapping[str, Weight]

    @property
    def origin(self) -> Origin:
        """Its place, without the ignored keys."""
        return Origin(self.place, self.prefix)

    @cached_property
    def own(self) -> list[tuple[str, str]]:
        """Keys of its weights without prefix and wrappers, each with the key in the file."""
        return [(name, key) for name, key in self.named if name.startswith(_OWN)]

    @cached_property
    def named(self) -> list[tuple[str, str]]:
        """The same for all keys with its prefix, including additions."""
        return [(_unwrapped(key.removeprefix(self.prefix)), key) for key in self.keys]

    @cached_property
    def identity(self) -> frozenset[tuple[str, object]]:
        """Identity of its tensors in the file: equal for candidates with the same tensors."""
        return frozenset((name, _identity(self.tensors[key])) for name, key in self.own)

    def model(self, path: str | os.PathLike[str], *, usual: bool) -> Model[Weight]:
        """Return the model if it can be read; see `find_model`.

        Raises:
            ArchitectureError: it has additions, or a weight twice.
        """
        if usual:
            require_usual([_unwrapped(key) for key in [*self.keys, *self.beside]], path)
        # A library's model has other names for some weights, such as ALIGN's temperature.
        chosen = self.own if usual else self.named
        weights: dict[str, Weight] = {}
        for name, key in chosen:
            tensor = self.tensors[key]
            if _identity(weights.setdefault(name, tensor)) != _identity(tensor):
                raise ArchitectureError(
                    f"expected one tensor for {name}, found two that differ, one of them {key}",
                    remedy="Save the state dict of the model without its wrapper.",
                    path=path,
                )
        taken = {key for _, key in chosen}
        left_out = tuple(key for key in self.tensors if key not in taken)
        return Model(weights, Origin(self.place, self.prefix, left_out))


def _identity(tensor: object) -> object:
    """Return the identity of a tensor in the file: equal for the same tensor."""
    return tensor if isinstance(tensor, TensorRecord) else id(tensor)


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _distinct(candidates: Iterable[_Candidate[Weight]]) -> list[_Candidate[Weight]]:
    """Remove candidates with the same tensors as an earlier one."""
    found: dict[frozenset[tuple[str, object]], _Candidate[Weight]] = {}
    for candidate in candidates:
        found.setdefault(candidate.identity, candidate)
    return list(found.values())


def _chosen(
    candidates: Sequence[_Candidate[Weight]],
    key: str | None,
    path: str | os.PathLike[str],
    *,
    strict: bool,
) -> _Candidate[Weight]:
    """Return the model with this name or start of its name; without a name, the only one."""
    different = _distinct(candidates)
    found = different
    if key is not None:
        named = [each for each in candidates if each.origin.has_name(key)]
        found = _distinct([each for each in named if each.origin.name == key] or named)
    if not found and not strict:
        found = different
    if len(found) == 1:
        return found[0]
    names = [each.origin.name[:80] for each in found or different]
    if not found:
        some = listed("it has", names, _MOST_NAMED).replace(":", "", 1) or "it has none"
        raise UsageError(
            f"{os.fspath(path)}: expected a CLIP model under {key!r}; {some}",
            remedy=f"Give one of these as {ASKED_KEY}."
            if names
            else "Leave --key out to see what is wrong with the file.",
        )
    raise CheckpointError(
        f"expected one CLIP model, found {listed(str(len(names)), names, _MOST_NAMED)}",
        remedy=f"Say which with {ASKED_KEY}, as {names[0]}.",
        path=path,
    )
