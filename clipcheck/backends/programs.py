"""Backends that are a program, which takes pixels, ids or both, and returns features and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from clipcheck.backends import signature
from clipcheck.backends.base import Backend, evidence_of_closed
from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens, closed, translating
from clipcheck.backends.dealing import run_in_batches, sizes_to_try
from clipcheck.backends.held import rounded_weights, weights_evidence
from clipcheck.backends.inside import InsideProgram
from clipcheck.backends.opened import Opened, open_apart
from clipcheck.backends.optimiser import Optimiser, Setting
from clipcheck.backends.signature import Outputs, Raw, blank
from clipcheck.checkpoints.checkpoint import bytes_of
from clipcheck.errors import RunError
from clipcheck.families.sizes import Sizes
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.optimised import Rewrites
from clipcheck.gates.result import FEATURES, LOGITS, MEANT, OUTPUTS

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.source import ProgramFile, Source
    from clipcheck.families.base import DualEncoder

Run = Callable[[Pixels, Tokens], Raw]


class ProgramBackend(Backend):
    """Runs a program of one or both towers; each call returns all outputs.

    If a program takes a fixed number of rows, other numbers run in batches of this size; the last
    one is padded with its last row, and the result is cut.

    Args:
        evidence: called after it has run, for the gate ``integrity``, with the program and whether
            it must have all weights.
        data: its data files.
        dtype: in which it computes. With float16, outputs that the program casts to float32 at the
            end, as converted programs do, are rounded back.
        made_here: whether the backend made it, so that it must have all outputs for any number of
            rows.
        names: the user's meanings of inputs and outputs, by name.
        model: whose modules to look for inside of the program; None for none.
        device: that it runs on.
        rounded: see `Backend`.

    Attributes:
        called: name of the backend.
        artefact: name of the file in the cache.
        folds: whether its exporter folds constants, so that some weights may be missing.
        least: rows of each input that its code requires if it takes any number of them; fewer are
            filled up.

    Raises:
        UsageError: an input could be several, or the user named one that is not there.
        CheckpointError: it takes other inputs than a CLIP model.
    """

    called: ClassVar[str] = ""
    artefact: ClassVar[str] = ""
    folds: ClassVar[bool] = False
    least: ClassVar[int] = 1
    takes_weights = True

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Write a program of the eager model, or take that of an earlier run, and open it.

        A source that is a program already is opened as it is.
        """
        if source.program is not None:
            return cls.open_program(source.file(source.program))
        path = source.artefacts.get(cls.artefact, cls.key(source), partial(cls.write, source))
        file = replace(source.file(path), dtype=None, sandbox=None, made_here=True)
        return cls.of(file, cls.open_here(path, source.device, source.options))

    @classmethod
    def key(cls, source: Source) -> dict[str, str]:
        """Return everything that a program of `write` depends on, by name."""
        return key_of(source)

    @classmethod
    def write(cls, source: Source, path: Path) -> None:
        """Write a program of the eager model.

        Raises:
            RunError: its library failed.
        """
        raise NotImplementedError

    @classmethod
    def open_program(cls, program: ProgramFile) -> Backend:
        """Open a program from any source."""
        path, device, options = program.path, program.device, program.options
        if program.sandbox is None:
            return cls.of(program, cls.open_here(path, device, options))
        data = cls.data_of(path)
        return cls.of(program, open_apart(cls.called, path, device, options, program.sandbox, data))

    @classmethod
    def of(cls, program: ProgramFile, opened: Opened) -> Self:
        """Return the backend that runs an open program."""
        return cls(
            cls.called,
            opened,
            sizes=program.sizes,
            path=program.path,
            evidence=partial(weights_evidence, program.weights, folds=cls.folds),
            data=cls.data_of(program.path),
            dtype=program.dtype,
            made_here=program.made_here,
            names=program.names,
            model=program.model,
            device=program.device,
            rounded=rounded_weights(program.weights, opened, program.dtype)
            if program.dtype == "float32" and cls.stores_half(program.path)
            else None,
        )

    @classmethod
    def stores_half(cls, path: Path) -> bool:  # noqa: ARG003
        """Tell whether a program may store weights in half precision."""
        return False

    @classmethod
    def data_of(cls, path: Path) -> Sequence[Path]:  # noqa: ARG003
        """Return the data files of a program."""
        return ()

    def __init__(
        self,
        name: str,
        opened: Opened,
        *,
        sizes: Sizes,
        path: Path,
        evidence: Callable[[Opened, bool], Evidence],
        data: Sequence[Path] = (),
        dtype: str | None = None,
        made_here: bool = False,
        names: Mapping[str, str] | None = None,
        model: DualEncoder | None = None,
        device: torch.device | str | None = None,
        rounded: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self._inputs = signature.inputs(opened.declared, sizes, path, names)

        def run(pixels: Pixels, tokens: Tokens) -> Raw:
            raw = opened.run([each.value(pixels, tokens) for each in self._inputs])
            return raw if dtype != "float16" else [(name, _narrowed(array)) for name, array in raw]

        self.name = name
        self.size = bytes_of([path, *data])
        self.rounded = rounded or {}
        self._run: Run | None = run
        self._sizes = sizes
        self._path = path
        self._evidence: Callable[[bool], Evidence] | None = partial(evidence, opened)
        self._restore = opened.restore
        self._restoring: tuple[Sequence[tuple[Pixels, Tokens]], list[list[Array]]] = ((), [])
        self._notes = tuple(opened.notes)
        self._model = model
        self._device = device
        self._inside = opened.inside
        self._optimiser = opened.optimiser
        self._raw_of = opened.run
        self.runs_modules = opened.inside is not None and model is not None
        self._made_here = made_here
        self._names = names
        self._known: Outputs | None = None
        self._normalised: frozenset[str] = frozenset()
        self._failed: RunError | None = None
        self._batches = () if made_here else self._declared()
        self.kinds = frozenset(each.kind for each in self._inputs)
        (pixels,) = [each for each in self._inputs if each.kind == "pixels"] or (None,)
        if pixels is not None and pixels.rounds and (pixels.colours or pixels.dtype != dtype):
            self.seen = pixels.seen
        if pixels is not None and not pixels.colours and not made_here:
            self.pixels = pixels

    def _declared(self) -> tuple[Rows, ...]:
        """The number of images and of texts that it says it takes; nothing for any."""
        sizes = {each.kind: each.batch for each in reversed(self._inputs) if each.batch}
        fixed = sizes.get("pixels"), sizes.get("tokens", sizes.get("mask"))
        return (fixed,) if any(fixed) else ()

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E]."""
        return self._one("image_features", pixels, blank(self._sizes, 0, 1)[1])

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E]."""
        return self._one("text_features", blank(self._sizes, 1, 0)[0], tokens)

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.outputs(pixels, tokens)
        for name in LOGITS:
            self._require(found, name)
        return found[LOGITS[0]], found[LOGITS[1]]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return the program's outputs by name.

        Raises:
            RunError: it cannot be run.
            UsageError: one of its outputs could be several.
        """
        if self._known is None and self._made_here:
            raw = self._raw(pixels, tokens)
            if [name for name, _ in raw] == list(OUTPUTS):
                return {str(name): array for name, array in raw}
        if self._known is None:
            self._look()
        return self._dealt(pixels, tokens)

    def _look(self) -> None:
        """Run it once, to find how many rows it takes, and which output is what."""
        if self._failed is not None:
            raise self._failed
        pixels, tokens = signature.probe(self.batch_sizes, self._sizes)
        try:
            raw = self._raw(pixels, tokens)
        except RunError as error:
            self._batches = () if self._made_here else tuple(self._sizes_that_run())
            if not self._batches:
                self._failed = error
                raise
            pixels, tokens = signature.probe(self.batch_sizes, self._sizes)
            raw = self._raw(pixels, tokens)
        if not self._batches and not self._made_here:
            fixed = self._burnt_in()
            self._batches = (fixed,) if any(fixed) else ()
        counts = len(pixels), len(tokens)
        self._known = signature.outputs(
            raw, self._inputs, self._sizes, counts, self._path, self._names
        )
        if not self._made_here:
            # Of several rows, also where one runs at a time.
            self._normalised = signature.normalised(
                self._dealt(*signature.probe((None, None), self._sizes))
            )

    def _burnt_in(self) -> Rows:
        """The numbers of images and of texts of the probe, where it runs with no other."""
        images, texts = signature.PROBE
        found: list[int | None] = []
        for size, other in ((images, (images + 2, texts)), (texts, (images, texts + 2))):
            try:
                self._raw(*signature.probe(other, self._sizes))
                found.append(None)
            except RunError:
                found.append(size)
        return found[0], found[1]

    def _sizes_that_run(self) -> Iterator[Rows]:
        """Numbers of images and texts that it runs with."""
        kinds = [kind for kind in ("pixels", "tokens") if kind in self.kinds]
        for sizes in sizes_to_try(len(kinds)):
            taken = dict(zip(kinds, sizes, strict=True))
            rows = taken.get("pixels"), taken.get("tokens")
            with suppress(RunError):
                self._raw(*signature.probe(rows, self._sizes))
                yield rows

    def _dealt(self, pixels: Pixels, tokens: Tokens) -> Named:
        """All outputs of any number of rows."""
        known = self._known
        if known is None:
            raise ValueError("its outputs are not known yet")
        if self.batch_sizes == (None, None) and min(len(pixels), len(tokens)) >= self.least:
            return known.named(self._raw(pixels, tokens))
        given = {"image": pixels, "prompt": tokens}
        with translating(self.name, "putting its batches together"):
            return run_in_batches(
                lambda *rows: known.named(self._raw(*rows)),
                given,
                dict(zip(given, self.batch_sizes, strict=True)),
                least=self.least,
                pairs=not known.places.keys().isdisjoint(LOGITS),
            )

    @property
    def absent(self) -> frozenset[str]:
        """Return the outputs that a user's program does not have; none if it was made here."""
        if self._known is None or self._made_here:
            return self.lacks
        return self.lacks | OUTPUTS.keys() - self._known.places.keys()

    @property
    def normalised(self) -> frozenset[str]:
        """Names of its normalised features."""
        return self._normalised

    @property
    def mapping(self) -> tuple[str, ...]:
        """Its notes, and its inputs and outputs, each with its meaning."""
        if self._known is None:
            return self._notes
        return (
            *self._notes,
            *map(str, self._inputs),
            *(
                f"{called} -> {MEANT[name]}{', normalised' if name in self._normalised else ''}"
                for name, called in self._known.names.items()
            ),
        )

    @property
    def batches(self) -> tuple[Rows, ...]:
        """Numbers of images and texts with which it runs; empty for any."""
        return self._batches

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``."""
        return evidence_of_closed() if self._evidence is None else self._evidence(not self.absent)

    def outputs_in_float(
        self, name: str, weight: torch.Tensor, batches: Sequence[tuple[Pixels, Tokens]]
    ) -> list[Named]:
        """Return for each batch the features that depend on one quantised weight, with it in float.

        Raises:
            RunError: the program cannot be run so.
        """
        if self._restore is None:
            raise RunError(
                f"{self.name}: the program has no quantised weights",
                remedy="Give one that has.",
            )
        if self._known is None:
            self._look()
        if self._restoring[0] is not batches:
            given = [[each.value(*batch) for each in self._inputs] for batch in batches]
            self._restoring = batches, given
        called = {} if self._known is None else self._known.names
        wanted = {told: name for name, told in called.items() if name in FEATURES}
        weight = weight.detach().cpu().float()
        return [
            {wanted[told]: array for told, array in found.items()}
            for found in self._restore(name, weight, self._restoring[1], list(wanted))
        ]

    @property
    def optimisers(self) -> Sequence[Optimiser]:
        """Return that of the program, if it has one."""
        whole = self._optimiser
        if whole is None:
            return ()

        def use(setting: Setting | None) -> None:
            whole.use(setting)
            # What was found of the program, and why it failed, were of another setting.
            self._failed = None
            vars(self).pop("runner", None)

        def rewrites(before: Setting, after: Setting, arrays: Sequence[Array]) -> Rewrites:
            return whole.rewrites(before, after, self._given(*arrays))

        return (replace(whole, use=use, rewrites=rewrites),)

    def close(self) -> None:
        """Release the program."""
        self._run = None
        self._optimiser = None
        self._evidence = None
        self._inside = None
        del self._raw_of
        vars(self).pop("runner", None)

    @cached_property
    def runner(self) -> InsideProgram:
        """Show its modules by this."""
        if self._inside is None or self._model is None or self._device is None:
            raise ValueError("expected a program that shows its inside")
        return InsideProgram(
            name=self.name,
            shown=self._inside,
            run=self._raw_of,
            inputs=self._inputs,
            given=self._given,
            named=self._features_as_they_are,
            model=self._model,
            device=self._device,
        )

    def _given(self, pixels: Pixels | None, tokens: Tokens | None) -> list[Array]:
        """Return its inputs for pixels and ids, of which one may be missing."""
        images, texts = (each or 1 for each in self.batch_sizes)
        others = signature.probe((images, texts), self._sizes)
        pixels = others[0] if pixels is None else pixels
        tokens = others[1] if tokens is None else tokens
        return [each.value(pixels, tokens) for each in self._inputs]

    def _features_as_they_are(self, raw: Raw) -> Named:
        """Return outputs by name, without normalised features."""
        if self._known is None and not self._made_here:
            self._look()
        known = self._known
        found = (
            {str(name): array for name, array in raw if name in OUTPUTS}
            if known is None
            else known.named(raw)
        )
        return {name: each for name, each in found.items() if name not in self._normalised}

    def _one(self, name: str, pixels: Pixels, tokens: Tokens) -> Array:
        found = self.outputs(pixels, tokens)
        self._require(found, name)
        return found[name]

    def _require(self, found: Named, name: str) -> None:
        if name not in found:
            raise RunError(
                f"{self.name}: the program gives no {name}",
                remedy=f"Export one that gives all of: {', '.join(OUTPUTS)}.",
            )

    def _raw(self, pixels: Pixels, tokens: Tokens) -> Raw:
        if self._run is None:
            raise closed(self.name)
        with translating(self.name, "running the program"):
            return self._run(pixels, tokens)


def _narrowed(array: Array) -> Array:
    return array.astype("float16") if array.dtype == "float32" else array


def key_of(source: Source, *libraries: str) -> dict[str, str]:
    """Return everything that a program of ``source`` depends on, by name, as a key of the cache.

    Args:
        libraries: whose versions matter, besides torch.
    """
    from importlib.metadata import version

    import torch

    from clipcheck.writers.programs import PROGRAM

    return {
        "checkpoint": source.checkpoint.sha256,
        "model": source.checkpoint.origin.name,
        # The same weights may have several architectures.
        "architecture": repr(source.checkpoint.model),
        "device": source.device.type,
        "dtype": source.dtype,
        "program": PROGRAM,
        # With its build, such as +cu130, which the metadata may lack.
        "torch": torch.__version__,
        **{library: version(library) for library in libraries},
    }


def flat(result: Any) -> Raw:
    """Flatten a torch program's result to tensors with their names."""
    import torch

    from clipcheck.backends.calling import to_numpy

    if isinstance(result, torch.Tensor):
        return [(None, to_numpy(result))]
    pairs = result.items() if isinstance(result, Mapping) else ((None, each) for each in result)
    return [
        (None if name is None else str(name), to_numpy(each))
        for name, each in pairs
        if isinstance(each, torch.Tensor)
    ]
