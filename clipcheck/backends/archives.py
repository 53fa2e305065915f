"""Run an archive in this process or in a sandbox process, with the same interface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from clipcheck.backends.calling import run_method, translating
from clipcheck.backends.forward import ByName
from clipcheck.backends.runner import OfArchive
from clipcheck.checkpoints.inspection import Patched
from clipcheck.errors import IsolationError, RunError
from clipcheck.families.registry import sizes_of
from clipcheck.models.facts import METHODS, Facts
from clipcheck.sandbox.process import Sandbox
from clipcheck.sandbox.wire import Memory, Message
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families.base import DualEncoder
    from clipcheck.models.archives import LoadedArchive
    from clipcheck.models.taps import Listener

_MOST_WRONG = 100
"""Most characters of a sandbox process's complaint about a call."""


@dataclass(frozen=True)
class OpenArchive:
    """An archive that is ready to run, and how its weights differ from the file's.

    Attributes:
        runner: runs it, and returns outputs by name.
        compared: number of weights and buffers that were compared.
        differing: by key, how the interpreter's weight differs from the record's.
    """

    runner: ByName
    compared: int
    differing: Mapping[str, str]


def open_archive(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, sandbox: Sandbox | None
) -> tuple[OpenArchive, DualEncoder]:
    """Load an archive, and the eager model of its weights.

    Args:
        dtype: of both.
        sandbox: sandbox process for the archive's code; None for this process, where both share
            their weights.

    Raises:
        ClipcheckError: it cannot be loaded; the subclass tells why.
    """
    from clipcheck.models.loader import load_checkpoint_both, require_archive

    if sandbox is not None:
        require_archive(checkpoint)
        torchscript_support.require()
        apart = Apart(sandbox, checkpoint, device, dtype)
        runner = ByName(apart, sizes_of(checkpoint.model).embed_dim, apart.model)
        return OpenArchive(runner, len(checkpoint.tensors), apart.differing), apart.model
    both = load_checkpoint_both(checkpoint, device, dtype)
    width = sizes_of(checkpoint.model).embed_dim
    runner = ByName(Inside(both.archive), width, both.eager_model)
    return OpenArchive(runner, both.compared, both.differing), both.eager_model


class Inside(OfArchive):
    """Runs an archive in this process."""

    def __init__(self, archive: LoadedArchive) -> None:
        self._archive = archive

    @property
    def facts(self) -> Facts:
        """Return the facts of the archive."""
        return self._archive.facts()

    def call(self, method: str, *inputs: torch.Tensor) -> object:
        """Return the output of a method."""
        return run_method("jit", self._archive.module, method, *self._archive.given(method, inputs))

    def call_with(
        self, weights: Mapping[str, torch.Tensor], method: str, *inputs: torch.Tensor
    ) -> object:
        """Call a method with other weights in place of those with these keys for this call."""
        with translating("jit", method), self._archive.replaced(weights):
            return self.call(method, *inputs)

    def call_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor] = (),
    ) -> tuple[object, str]:
        """Return the output of a method for inputs in some form, and what was wrong with it."""
        from clipcheck.backends.forms import call_in_form

        def call(*given: torch.Tensor) -> object:
            return getattr(self._archive.module, method)(*self._archive.given(method, given))

        with translating("jit", f"{method} {form}"):
            return call_in_form(call, form, inputs, after)

    def call_module(
        self, module: str, method: str, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the tensors of a module that is called alone."""
        import torch

        from clipcheck.models import torchscript

        part = self._archive.part(module, method)
        if torchscript.tensor_arguments(part) > len(inputs):
            # For example a mask that may be None: taps record only tensors.
            raise RunError(
                f"jit: {module}.{method} takes more than {len(inputs)} tensors",
                remedy="Call it as the whole model does.",
            )
        with translating("jit", f"{module}.{method}"), torch.inference_mode():
            found = part(*inputs)
        given = found if isinstance(found, tuple) else (found,)
        return [each for each in given if isinstance(each, torch.Tensor)]

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each call of one of the
        modules."""
        from clipcheck.models.taps import Site, listening

        def heard(site: Site, entering: bool, tensors: Sequence[torch.Tensor]) -> None:
            site = self._archive.site(site)
            if site.module in modules and site.is_whole:
                listener(site, entering, tensors)

        with listening(heard):
            # Copied: a module that changes its inputs would affect all later ones.
            given = self._archive.given(method, [each.clone() for each in inputs])
            return run_method("jit", self._archive.tapped(), method, *given)

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed."""
        return self._archive.changed()


class Apart(OfArchive):
    """Runs an archive in a sandbox. While the sandbox loads it, the eager model is loaded here.

    Attributes:
        model: the eager model.
        differing: by key, how its weights differ from the file's.
    """

    model: DualEncoder

    def __init__(
        self, sandbox: Sandbox, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> None:
        from clipcheck.models.arena import Arena
        from clipcheck.models.loader import cast_room, dtypes, load_eager
        from clipcheck.models.weights import weights_of

        self._sandbox = sandbox
        self._device = device
        memory = Memory(max(cast_room(checkpoint, dtype), 1))
        memory.seal()
        sandbox.share(memory)
        memory.close()
        compared = _Compared(checkpoint=checkpoint, wanted=dtypes(checkpoint, dtype), memory=memory)

        def load() -> None:
            self.model = load_eager(checkpoint, device, dtype, Arena(memory.buffer))
            compared.weights.update(weights_of(self.model.own()))

        done = sandbox.ask(
            "load",
            "loading the archive",
            answer=compared.answer,
            meanwhile=load,
            path=sandbox.seen(checkpoint.path),
            device=str(device),
            dtype=_name(dtype),
            weights=checkpoint.weight_dtypes,
            naming={**asdict(checkpoint.naming), "masks": sorted(checkpoint.naming.masks)},
            shared=len(memory),
        )
        self.facts = _facts(done.message)
        self.differing = compared.differing_of_all()

    def call(self, method: str, *inputs: torch.Tensor) -> object:
        """Return the output of a method."""
        done = self._sandbox.ask("call", _running(method, inputs), inputs, method=method)
        return self._result(done.message, done.tensors)

    def call_with(
        self, weights: Mapping[str, torch.Tensor], method: str, *inputs: torch.Tensor
    ) -> object:
        """Call a method with other weights in place of those with these keys for this call."""
        doing, tensors = _running(method, inputs), [*weights.values(), *inputs]
        done = self._sandbox.ask("call_with", doing, tensors, method=method, keys=list(weights))
        return self._result(done.message, done.tensors)

    def call_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor] = (),
    ) -> tuple[object, str]:
        """Return the output of a method for inputs in some form, and what was wrong with it."""
        doing = f"{_running(method, inputs)} {form}"
        how: dict[str, Any] = {"method": method, "form": form, "count": len(inputs)}
        done = self._sandbox.ask("call_in_form", doing, [*inputs, *after], **how)
        wrong = str(done.message.get("wrong"))[:_MOST_WRONG]
        return self._result(done.message, done.tensors), wrong

    def call_module(
        self, module: str, method: str, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the tensors of a module that is called alone."""
        doing = f"jit: running {module}.{method}"
        done = self._sandbox.ask("call_module", doing, inputs, module=module, method=method)
        return self._placed(done.tensors)

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Call a method, with ``listener`` called before and after each call of one of the
        modules."""
        from clipcheck.models.taps import Site

        def answer(question: Message, tensors: list[torch.Tensor]) -> Message:
            site = Site(str(question.get("module")), str(question.get("method")))
            if site.module in modules and site.is_whole:
                listener(site, question.get("entering") is True, self._placed(tensors))
            return {}

        doing = f"{_running(method, inputs)} module by module"
        names = sorted(modules)
        done = self._sandbox.ask("listen", doing, inputs, answer, method=method, modules=names)
        return self._result(done.message, done.tensors)

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed, as the sandbox reports."""
        done = self._sandbox.ask("changed", "looking for weights that changed")
        return _texts(done.message.get("changed"))

    def _result(self, message: Message, tensors: list[torch.Tensor]) -> object:
        kind, placed = message.get("type"), self._placed(tensors)
        if kind == "tuple":
            return tuple(placed)
        if kind == "Tensor" and len(placed) == 1:
            return placed[0]
        names = message.get("names")
        if kind == "dict" and isinstance(names, list) and len(names) == len(placed):
            return dict(zip(map(str, names), placed, strict=True))
        return _Other(str(kind))

    def _placed(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.to(self._device) for tensor in tensors]


@dataclass(frozen=True)
class _Other:
    """Stands for a result that is no tensor; its text is the name of its type."""

    kind: str

    def __str__(self) -> str:
        return self.kind


@dataclass(kw_only=True)
class _Compared:
    """Compares the interpreter's weights as they arrive, and answers where the eager model's are.

    Attributes:
        checkpoint: the file.
        wanted: the target dtype of a key and weight.
        memory: the shared memory.
        weights: the eager model's, by key.
        differing: by key, how the interpreter's differ.
        seen: keys of the interpreter's weights.
    """

    checkpoint: Checkpoint
    wanted: Callable[[str, torch.Tensor], torch.dtype]
    memory: Memory
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def answer(self, question: Message, tensors: list[torch.Tensor]) -> Message:
        """Return where the weight is that replaces the archive's own, or the dtype to cast to."""
        from clipcheck.models.loader import unlike

        key = str(question.get("weight"))
        self.seen.add(key)
        if not tensors:
            self.differing[key] = f"the interpreter has {question.get('kind')}"
            return {"at": None, "dtype": None}
        (held,) = tensors[:1]
        self.checkpoint.prefetch(key)
        reason = unlike(held, self.checkpoint.tensors.get(key))
        self.checkpoint.give_back(key)
        if reason:
            self.differing[key] = reason
        return {
            "at": None if reason else self._place(self.weights.get(key)),
            "dtype": _name(self.wanted(key, held)),
        }

    def differing_of_all(self) -> dict[str, str]:
        """Return all differences, including weights that the interpreter does not have."""
        absent = {
            key: "the interpreter does not have it"
            for key in self.checkpoint.tensors
            if key not in self.seen
        }
        return {**self.differing, **absent}

    def _place(self, weight: torch.Tensor | None) -> int | None:
        """Return the offset of an eager model's weight in the shared memory; None if it is not
        there."""
        import ctypes

        if weight is None or weight.device.type != "cpu":
            return None
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory.buffer))
        offset = weight.data_ptr() - start
        return offset if 0 <= offset < len(self.memory) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _running(method: str, inputs: Sequence[torch.Tensor]) -> str:
    rows = " and ".join(str(len(tensor)) for tensor in inputs)
    return f"jit: running {method} on a batch of {rows}"


def _facts(message: Message) -> Facts:
    used = message.get("used")
    if not isinstance(used, dict):
        raise _no_facts("which weights it uses")
    dimensions = {name: message.get(name) for name in ("input_resolution", "context_length")}
    if not all(value is None or type(value) is int for value in dimensions.values()):
        raise _no_facts("its dimensions")
    return Facts(
        scripted=message.get("scripted") is True,
        used={method: frozenset(_texts(used[method])) for method in METHODS if method in used},
        **dimensions,
        patched=_patched(message.get("patched")),
        forward_takes=tuple(_texts(message.get("forward_takes"))),
    )


def _patched(value: Any) -> Patched:
    found = value if isinstance(value, dict) else {}
    device, dtype = found.get("device"), found.get("dtype")
    counts: list[Any] = [found.get(name) for name in ("devices", "casts", "kept")]
    if not isinstance(device, str) or not all(map(_is_counts, counts)):
        raise _no_facts("what it has rewritten in the code")
    devices, casts, kept = counts
    weights = tuple(_texts(found.get("weights")))
    return Patched(
        device=device,
        dtype=None if dtype is None else str(dtype),
        weights=weights,
        devices=devices,
        casts=casts,
        kept=kept,
    )


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _no_facts("a list of names")
    return value


def _no_facts(what: str) -> IsolationError:
    return IsolationError(
        f"expected the process that runs the archive to tell {what}, found something else",
        remedy="Do not run this file: it has taken over the process that ran it.",
    )
