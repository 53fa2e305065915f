"""Run the archive itself with TorchScript's interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends import signature
from clipcheck.backends.base import Backend, Missing
from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens, run_method, to_numpy
from clipcheck.backends.dealing import Sizes, batches_of, fixed_sizes, run_in_batches
from clipcheck.backends.forward import ByName, UntoldError
from clipcheck.backends.held import rounded_weights, weights_evidence
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.opened import Opened, Receive, open_apart
from clipcheck.backends.programs import ProgramBackend, flat
from clipcheck.backends.signature import Declared, Raw, blank
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.errors import RunError
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import ENCODERS, LOGITS, MEANT, OUTPUTS
from clipcheck.inputs.examples import Preprocessing
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.archives import OpenArchive
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families import eager
    from clipcheck.families.sizes import HasSizes
    from clipcheck.models.facts import Facts


_KINDS = {"encode_image": ("image",), "encode_text": ("prompt",), "forward": ("image", "prompt")}
"""Kinds of rows that each method takes."""


def torchscript_missing() -> Missing | None:
    """Return why torch has no TorchScript here, or None."""
    reason = torchscript_support.unavailable()
    return None if reason is None else Missing(reason, torchscript_support.REMEDY)


class Archive(ModuleBackend):
    """An archive, loaded together with the eager model of its weights.

    Attributes:
        patched: constants of its code that were rewritten.
    """

    summary = "the archive's own code, run by TorchScript (torch.jit.load)"
    default_for = frozenset({Format.ARCHIVE})
    runs_programs = frozenset({Format.ARCHIVE})
    needs_archive = True
    runs_modules = True

    @classmethod
    def available(cls) -> Missing | None:
        """Require TorchScript."""
        return torchscript_missing()

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Accept only archives: other formats have no code."""
        if checkpoint.format is Format.ARCHIVE:
            return None
        return f"this {checkpoint.format} has only weights and no code"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Wrap the archive; open it as a program if it is frozen or of one tower."""
        if source.program is not None:
            return cls.open_program(source.file(source.program))
        if source.archive is None:
            raise ValueError("the source was loaded without its archive")
        return cls(source, source.archive)

    @classmethod
    def open_program(cls, program: ProgramFile) -> Backend:
        """Open an archive of which only inputs and outputs are known."""
        import torch

        path, device, sandbox = program.path, torch.device(program.device), program.sandbox
        # torch compares no checksums.
        Records(MappedFile(path)).verify()
        opened = (
            open_apart("jit", path, device, {}, sandbox)
            if sandbox
            else cls.open_here(path, device, {})
        )
        return ProgramBackend(
            "jit",
            opened,
            sizes=program.sizes,
            path=path,
            evidence=partial(weights_evidence, program.weights),
            rounded=rounded_weights(program.weights, opened, program.dtype),
            dtype=program.dtype,
            names=program.names,
        )

    @classmethod
    def open_here(
        cls,
        path: Path,
        device: torch.device | str,
        options: Mapping[str, str],  # noqa: ARG003
    ) -> Opened:
        """Open an archive as a program in this process: what its ``forward`` takes and gives."""
        import torch

        from clipcheck.models.torchscript import load_archive

        module = load_archive(path, torch.device(device))
        if not hasattr(module, "forward"):
            raise RunError(
                "jit: the archive has no method forward",
                remedy="Trace the module itself, as torch.jit.trace(model, example) does.",
            )
        forward: Any = module.forward
        arguments = forward.schema.arguments[1:]

        def run(arrays: Sequence[Array]) -> Raw:
            given = [torch.from_numpy(array).to(device, copy=True) for array in arrays]
            return flat(run_method("jit", module, "forward", *given))

        def weights(receive: Receive) -> None:
            for name, tensor in module.state_dict().items():
                receive(name, tensor)

        return Opened(
            declared=[Declared(each.name, None, "") for each in arguments], run=run, weights=weights
        )

    def __init__(self, source: Source, archive: OpenArchive) -> None:
        size = source.checkpoint.path.stat().st_size
        super().__init__(
            "jit", archive.runner, source.device, evidence=partial(_evidence, source), size=size
        )
        self._runner = archive.runner
        facts = archive.runner.facts
        self.patched = facts.patched
        self._sizes = source.sizes
        self._fixed: dict[str, Sizes] = {}
        self._of_library = isinstance(source.checkpoint.model, LibraryArchitecture)
        if not self._of_library:
            self.preprocessing = _preprocessing_of(facts, self._sizes)

    @property
    def runner(self) -> ByName:
        """Runs the archive."""
        return self._runner

    @property
    def methods(self) -> Mapping[str, tuple[str, ...]]:
        """Outputs of each method; those of ``forward`` are known after a call."""
        forward = self.runner.gives or LOGITS
        return {
            method: forward if method == "forward" else (ENCODERS[method],)
            for method in self.runner.facts.methods
        }

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        if self._by_forward_alone("encode_image"):
            return self.forward(pixels, blank(self._sizes, 0, 1)[1])["image_features"]
        return self._dealt("encode_image", image=pixels)["image_features"]

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        if self._by_forward_alone("encode_text"):
            return self.forward(blank(self._sizes, 1, 0)[0], tokens)["text_features"]
        return self._dealt("encode_text", prompt=tokens)["text_features"]

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.forward(pixels, tokens)
        for name in LOGITS:
            if name not in found:
                raise RunError(f"jit: forward gives no {name}", remedy="Let it return both logits.")
        return found[LOGITS[0]], found[LOGITS[1]]

    def forward(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return the outputs of ``forward``, by name."""
        return self._dealt("forward", image=pixels, prompt=tokens)

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Its outputs by name; each method is called once."""
        found: Named = {}
        with suppress(UntoldError):  # the evidence reports it
            if "forward" in self.methods:
                found.update(self.forward(pixels, tokens))
        with suppress(UntoldError):
            if "encode_image" in self.methods:
                found["image_features"] = self.encode_image(pixels)
            if "encode_text" in self.methods:
                found["text_features"] = self.encode_text(tokens)
        unfit = self.runner.untold or self.runner.unfit
        if not self.methods and unfit:
            raise RunError(unfit, remedy="Trace encode_image and encode_text as well.")
        return {name: found[name] for name in OUTPUTS if name in found}

    def gives(self, method: str, *, itself: bool = False) -> tuple[str, ...]:
        """Return the outputs of a method, or of ``forward`` in its place."""
        if itself or method == "forward":
            return self.methods.get(method, ())
        return super().gives(method)

    def call_in_form(
        self, form: str, method: str, arrays: Sequence[Array], after: Sequence[Array] = ()
    ) -> tuple[list[Array], str]:
        """Return the outputs of a method for inputs in some form, see `Backend`."""
        given = dict(zip(_KINDS[method], arrays, strict=True))
        sizes = self._fixed.get(method, {})
        filled = [
            batches_of(rows, sizes.get(kind))[0]
            for kind, rows in zip(_KINDS[method], after, strict=False)
        ]
        faults: list[str] = []

        def run(*rows: Array) -> Named:
            found, fault = ModuleBackend.call_in_form(self, form, method, rows, filled)
            faults.append(fault)
            return dict(zip(self.gives(method, itself=True), found, strict=False))

        found = run_in_batches(run, given, sizes)
        return list(found.values()), next(filter(None, faults), "")

    @property
    def batches(self) -> tuple[Rows, ...]:
        """The only numbers of images and texts with which it runs; empty if it takes any."""
        images, texts = (
            next((each[kind] for each in self._fixed.values() if each.get(kind)), None)
            for kind in _KINDS["forward"]
        )
        return ((images, texts),) if images or texts else ()

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed."""
        return self.runner.changed()

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``."""
        found, untold = super().evidence(), self.runner.untold
        return replace(found, doubts=[*found.doubts, untold]) if untold else found

    @property
    def absent(self) -> frozenset[str]:
        """Return the outputs that no method has."""
        return frozenset(OUTPUTS).difference(*self.methods.values())

    @cached_property
    def normalised(self) -> frozenset[str]:
        """Names of its normalised features. Encoders of the reference's own model give others, by
        their interface; those of a library may do either, such as CoCa's."""
        if not self._of_library:
            return frozenset()
        with suppress(RunError):  # the run reports it
            return signature.normalised(self.outputs(*signature.probe((None, None), self._sizes)))
        return frozenset()

    @property
    def mapping(self) -> tuple[str, ...]:
        """Its normalised features."""
        return tuple(
            f"{MEANT[name]}: normalised, as are the reference's that they are compared with"
            for name in OUTPUTS
            if name in self.normalised
        )

    def _by_forward_alone(self, encoder: str) -> bool:
        methods = self.methods
        return encoder not in methods and ENCODERS[encoder] in methods.get("forward", ())

    def _dealt(self, method: str, **given: Array) -> Named:
        """Return the outputs of a method by name; in batches of its size if it runs with no other
        number of rows."""

        def run(*rows: Array) -> Named:
            found = self._run(method, *rows)
            named = found if isinstance(found, dict) else {ENCODERS[method]: found}
            return {name: to_numpy(each) for name, each in named.items()}

        if method not in self._fixed:
            try:
                return run(*given.values())
            except UntoldError:
                raise
            except RunError:
                sizes = fixed_sizes(run, given)
                if not sizes:
                    raise
                self._fixed[method] = sizes
        return run_in_batches(run, given, self._fixed[method])

    def _called(self, method: str, *inputs: torch.Tensor) -> Any:
        return self.runner.call(method, *inputs)

    def _called_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor],
    ) -> tuple[object, str]:
        found, wrong = self.runner.call_in_form(form, method, inputs, after)
        return (tuple(found.values()) if isinstance(found, dict) else found), wrong


def _preprocessing_of(facts: Facts, sizes: HasSizes) -> Preprocessing:
    """Return the preprocessing with the archive's own dimensions, or with those of its weights if
    it has none, as some converted archives."""
    resolution, length = facts.input_resolution, facts.context_length
    return Preprocessing(
        sizes.image_resolution if resolution is None else resolution,
        sizes.context_length if length is None else length,
    )


def _evidence(source: Source) -> Evidence:
    archive, checkpoint = source.archive, source.checkpoint
    if archive is None:
        raise ValueError("the source was loaded without its archive")
    known = Evidence(
        weights=archive.compared,
        doubts=_doubts(archive.runner.facts, source.model),
        differing=archive.differing,
    )
    if isinstance(checkpoint.model, LibraryArchitecture):
        return known
    a = checkpoint.architecture
    implied = (a.image_resolution, a.context_length, a.vocab_size)
    found = {
        name: int(checkpoint.tensors[name]) if name in checkpoint.tensors else None
        for name in BUFFERS
    }
    return replace(
        known,
        buffers={name: (found[name], value) for name, value in zip(BUFFERS, implied, strict=True)},
        unused=_unused(archive.runner, source.clip),
    )


def _doubts(facts: Facts, model: torch.nn.Module) -> list[str]:
    import torch

    candidate, reference = facts.scripted, isinstance(model, torch.jit.ScriptModule)
    if candidate and not reference:
        return []
    if candidate == reference:
        kind = "TorchScript modules" if reference else "eager models"
        return [f"nothing was compared: both sides are {kind}"]
    return ["the candidate is an eager model and the reference a TorchScript module"]


def _unused(runner: ByName, model: eager.CLIP) -> dict[str, list[str]]:
    """Return the weights that the archive's code does not use, by method."""
    facts, expected = runner.facts, model.weights_of_methods()
    if not facts.scripted:
        return {}
    if set(LOGITS).isdisjoint(runner.gives):
        encoders = [method for method, name in ENCODERS.items() if name in runner.gives]
        if encoders:
            expected["forward"] = set().union(*(expected[each] for each in encoders))
    return {method: sorted(expected[method] - used) for method, used in facts.used.items()}
