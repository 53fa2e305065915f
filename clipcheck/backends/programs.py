"""Backends that are one program: pixels and ids in, all outputs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcheck.backends import signature
from clipcheck.backends.base import Backend, evidence_of_closed
from clipcheck.backends.calling import Array, Named, Pixels, Tokens, closed, translating
from clipcheck.backends.opened import Opened
from clipcheck.backends.signature import Outputs, Raw
from clipcheck.checkpoints.checkpoint import bytes_of
from clipcheck.errors import CheckpointError, RunError
from clipcheck.families.sizes import HasSizes
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import OUTPUTS

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.source import Source

Run = Callable[[Pixels, Tokens], Raw]


class ProgramBackend(Backend):
    """Runs a program; each call of it gives all outputs.

    Args:
        evidence: called when it has run, for the gate ``integrity``.
        data: the files that this one names for its weights.
        dtype: what it computes in. Where that is float16, outputs that it casts to float32 in the
            end, as converted programs do, are rounded back to it.
        made_here: whether it was made by the backend, and has to have all outputs.

    Raises:
        CheckpointError: it takes other inputs than a CLIP model.
    """

    def __init__(
        self,
        name: str,
        opened: Opened,
        *,
        architecture: HasSizes,
        path: Path,
        evidence: Callable[[Opened], Evidence],
        data: Sequence[Path] = (),
        dtype: str | None = None,
        made_here: bool = False,
    ) -> None:
        # Of one that was made here it is found when it runs, as any other fault of it.
        given = signature.inputs(opened.declared, architecture, path, any_size=not made_here)

        def run(pixels: Pixels, tokens: Tokens) -> Raw:
            raw = opened.run([each.value(pixels, tokens) for each in given])
            return raw if dtype != "float16" else [(name, _narrowed(array)) for name, array in raw]

        self.name = name
        self.size = bytes_of([path, *data])
        self._run: Run | None = run
        self._architecture = architecture
        self._evidence: Callable[[], Evidence] | None = partial(evidence, opened)
        self._leave = opened.leave
        self._made_here = made_here
        self._known: Outputs | None = None

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        empty = np.zeros((1, self._architecture.context_length), dtype=np.int32)
        return self._one("image_features", pixels, empty)

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        side = self._architecture.image_resolution
        return self._one("text_features", np.zeros((1, 3, side, side), dtype=np.float32), tokens)

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.outputs(pixels, tokens)
        for name in ("logits_per_image", "logits_per_text"):
            self._require(found, name)
        return found["logits_per_image"], found["logits_per_text"]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """The outputs that the program gives, by name; it is called once.

        Raises:
            RunError: it cannot be run.
            CheckpointError: it runs at some batch sizes alone.
        """
        raw = self._raw(pixels, tokens)
        if [name for name, _ in raw] == list(OUTPUTS):
            return {str(name): array for name, array in raw}
        if self._known is None:
            example = signature.probe(self._architecture)
            self._known = signature.outputs(self._raw(*example), self._architecture)
        return self._known.named(raw)

    @property
    def absent(self) -> frozenset[str]:
        """Outputs that a user's program does not have. One that was made here has all of them."""
        own = self._known is None or self._made_here
        return self.lacks if own or self._known is None else self.lacks | self._known.absent

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``."""
        if self._evidence is None:
            return evidence_of_closed()
        found = self._evidence()
        if self._known is None:
            return found
        return replace(found, doubts=[*found.doubts, *self._known.doubts])

    @contextmanager
    def in_float(self, name: str, weight: torch.Tensor) -> Iterator[None]:
        """Have one quantised weight be in float meanwhile.

        Args:
            name: its name in the program.
            weight: what it is in float.

        Raises:
            RunError: the program cannot be run so.
        """
        if self._leave is None:
            raise RunError(
                f"{self.name}: the program has no quantised weights",
                remedy="Give one that has.",
            )
        self._leave(name, weight.detach().cpu().float())
        try:
            yield
        finally:
            self._leave(name, None)

    def close(self) -> None:
        """Let go of the program."""
        self._run = None
        self._evidence = None

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
        run = self._run
        with translating(self.name, "running the program"):
            try:
                return run(pixels, tokens)
            except Exception as error:
                sizes = [size for size in _SIZES if _runs(run, size, self._architecture)]
                if self._made_here or len(sizes) in (0, len(_SIZES)):
                    raise
                raise _some_sizes_alone(self.name, sizes, (len(pixels), len(tokens))) from error


def _narrowed(array: Array) -> Array:
    return array.astype("float16") if array.dtype == "float32" else array


_SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4), (8, 8))
"""Images and texts that a program is tried with that does not run at another size."""


def _runs(run: Run, size: tuple[int, int], architecture: HasSizes) -> bool:
    try:
        run(*signature.blank(architecture, *size))
    # Of whatever library, and for whatever reason.
    except Exception:
        return False
    return True


def _some_sizes_alone(
    name: str, sizes: Sequence[tuple[int, int]], wanted: tuple[int, int]
) -> CheckpointError:
    told = ", ".join(f"{images} and {texts}" for images, texts in sizes)
    return CheckpointError(
        f"{name}: the program does not run with {wanted[0]} and {wanted[1]} images and texts; of "
        f"the sizes that were tried it runs with {told}",
        remedy=signature.to_any_size("pixels", "tokens"),
    )


def key_of(source: Source, *libraries: str) -> dict[str, str]:
    """Return all that a program made of ``source`` depends on, by name.

    Args:
        source: what it is made of.
        libraries: whose versions matter, beside torch.
    """
    from importlib.metadata import version

    import torch

    from clipcheck.writers.programs import PROGRAM

    return {
        "checkpoint": source.checkpoint.sha256,
        "model": source.checkpoint.origin.name,
        # The same weights may be of several architectures: they do not tell.
        "architecture": repr(source.checkpoint.model),
        "device": source.device.type,
        "dtype": source.dtype,
        "program": PROGRAM,
        # With what it was built for, as +cu130, which its metadata may leave out.
        "torch": torch.__version__,
        **{library: version(library) for library in libraries},
    }


def flat(result: Any) -> Raw:
    """The tensors that a torch program gave, with the names that they have in it.

    Args:
        result: a tensor, or a mapping or a sequence with tensors.
    """
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


_SMALLEST = 1.2e-7
"""The value that converters of ONNX to half precision raise smaller weights to (1e-7, rounded to
float16)."""


def is_rounded(held: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a weight is the expected one, rounded to half precision or bfloat16.

    Programs that compute in one of these throughout hold all weights so, where the eager model has
    some in float32.
    """
    import torch

    narrow = held.dtype in (torch.float16, torch.bfloat16)
    if not narrow or expected.dtype != torch.float32 or held.shape != expected.shape:
        return False
    off = held.float() - expected.to(held.device, held.dtype).float()
    return bool((off.abs() <= _SMALLEST).all())


class WeightsCompared:
    """Compares the weights of a program with those that it has to have, bit for bit, as they
    come."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self._seen: set[str] = set()
        self._rounded: set[str] = set()
        self._differing: dict[str, str] = {}

    def receive(self, name: str, held: torch.Tensor, *_: object) -> None:
        """Compare one.

        Args:
            name: its key, with or without `clipcheck.models.whole.PREFIX`.
            held: what the program has.
        """
        from clipcheck.checkpoints.checkpoint import same_bits
        from clipcheck.models.whole import PREFIX

        key = name.removeprefix(PREFIX)
        if key not in self._weights:
            return
        expected = self._weights[key].to(held.device)
        if is_rounded(held, expected):
            self._rounded.add(key)
            return
        self._seen.add(key)
        if not same_bits(held, expected):
            self._differing[key] = "the program has other bits than the file"

    def evidence(self) -> Evidence:
        """Return the evidence found; where a program has none of the weights by their keys, nothing
        is known."""
        if not self._seen:
            return Evidence(None)
        known = self._seen | self._rounded
        absent = dict.fromkeys(self._weights.keys() - known, "the program does not have it")
        return Evidence(len(self._seen), differing={**self._differing, **absent})
