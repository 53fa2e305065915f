"""Run the eager model, or a user's program, in ExecuTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clipcheck.backends.base import Missing, Option, missing
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.opened import Opened, Receive
from clipcheck.backends.programs import ProgramBackend, flat, key_of
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import RunError

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families.base import DualEncoder

_OLDEST = "1.5"
"""The oldest version that works with torch 2.14."""

MOST = 64
"""Most rows of the programs that are written here: ExecuTorch plans memory for them ahead."""

_DTYPES = {0: "uint8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
"""numpy's names of ExecuTorch's types, for inputs of a CLIP model (c10/core/ScalarType.h)."""


class ExecuTorch(ProgramBackend):
    """A program of ExecuTorch."""

    summary = "a program of ExecuTorch (.pte), lowered to its portable kernels or XNNPACK"
    options: ClassVar[Mapping[str, Option]] = {
        "delegate": Option(
            "xnnpack",
            ("portable", "xnnpack"),
            "what the eager model is lowered to; a .pte file has its own",
        ),
    }
    called = "executorch"
    artefact = "program.pte"
    folds = True
    distributions = ("executorch",)
    default_for = frozenset({Format.EXECUTORCH})
    runs_programs = frozenset({Format.EXECUTORCH})

    @classmethod
    def available(cls) -> Missing | None:
        """Return why ExecuTorch cannot run here, or None."""
        return missing({"executorch": _OLDEST}, "executorch")

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Say why it cannot run here, or None."""
        if device.type != "cpu":
            return f"clipcheck runs ExecuTorch only on the CPU, not on {device.type}"
        if dtype != "float32":
            return "clipcheck lowers to ExecuTorch only in float32"
        return None

    @classmethod
    def key(cls, source: Source) -> dict[str, str]:
        """Return what its programs depend on: the delegate and the most rows as well."""
        delegate = source.options["delegate"]
        return {**key_of(source, "executorch"), "delegate": delegate, "rows": str(MOST)}

    @classmethod
    def write(cls, source: Source, path: Path) -> None:
        """Lower the eager model."""
        with translating(cls.called, "lowering"):
            path.write_bytes(_lowered(source.model, source.options["delegate"]))

    @classmethod
    def open_here(
        cls,
        path: Path,
        device: torch.device | str,  # noqa: ARG003 - it runs on the CPU alone
        options: Mapping[str, str],  # noqa: ARG003 - a program has its own delegates
    ) -> Opened:
        """Open a program in this process."""
        from executorch.runtime import Runtime

        with translating("executorch", "opening the program"):
            program = Runtime.get().load_program(path.read_bytes())
            method = program.load_method("forward")
        if method is None:
            raise RunError(
                "executorch: the program has no method forward", remedy="Export one that has."
            )
        # The method does not keep the program's bytes, which it reads.
        held = program, method
        told = method.metadata
        inputs = [told.input_tensor_meta(number) for number in range(told.num_inputs())]

        def run(arrays: Sequence[Array]) -> Raw:
            import torch

            _, running = held
            return flat(running.execute([torch.from_numpy(array) for array in arrays]))

        def weights(receive: Receive) -> None:
            """Give none: ExecuTorch does not tell them."""

        declared = [_declared(number, each) for number, each in enumerate(inputs, 1)]
        return Opened(declared=declared, run=run, weights=weights)


def _declared(number: int, told: Any) -> Declared:
    """Return an input; its first size is the most rows that memory was planned for."""
    _, *sizes = told.sizes()
    return Declared(f"input {number}", (None, *sizes), _DTYPES.get(told.dtype(), ""))


def _lowered(model: DualEncoder, delegate: str) -> bytes:
    """Return the program of a model, for up to `MOST` rows."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from clipcheck.writers.programs import export

    partitioners = [XnnpackPartitioner()] if delegate == "xnnpack" else []
    lowered = to_edge_transform_and_lower(
        export(model, checked=False, most=MOST), partitioner=partitioners
    )
    return bytes(lowered.to_executorch().buffer)
