"""Judge variants of the ways other than the archive: see `clipcheck.audit.faults.ways`.

The weights are a safetensors file's, so that none of it needs TorchScript but the ways that are it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.gates.allclose import allclose
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import Allclose
from clipcheck.harness.judging import Stopwatch, Trial, inputs_of, judge_candidate
from clipcheck.inputs.batches import CORNERS, Batch, batches, classic

if TYPE_CHECKING:
    import torch

    from clipcheck.audit.faults.ways import WayVariant
    from clipcheck.backends.source import Source
    from clipcheck.checkpoints.architecture import Architecture


@dataclass(frozen=True)
class _Setting:
    """Source and trials that all variants in one dtype share.

    Attributes:
        source: without a fault.
        trial: what the gates judge by.
        classic: what the classic assertion judges by.
    """

    source: Source
    trial: Trial
    classic: Trial


class WayBench:
    """Judges variants of one model in any backend. In each dtype the reference runs once.

    Args:
        architecture: its dimensions.
        seed: of the inputs.
        weights: by the released keys.
        folder: for what is written.
    """

    def __init__(
        self,
        architecture: Architecture,
        seed: int,
        weights: Mapping[str, torch.Tensor],
        folder: Path,
    ) -> None:
        from clipcheck.checkpoints.checkpoint import Format
        from clipcheck.checkpoints.formats import open_checkpoint
        from clipcheck.writers.convert import write

        path = folder / "ways.safetensors"
        write(architecture, weights, path, Format.SAFETENSORS)
        self._checkpoint = open_checkpoint(path)
        self._seed = seed
        self._folder = folder
        self._settings: dict[str, _Setting] = {}

    def judge(self, backend: str, variant: WayVariant) -> tuple[Sequence[GateResult], GateResult]:
        """Plant a variant into a backend.

        Returns:
            What the gates found, and the classic assertion.

        Raises:
            RunError: the backend cannot be built with it.
        """
        from clipcheck.backends.reference import exact_floats
        from clipcheck.backends.registry import Choice, find

        if variant.dtype not in self._settings:
            self._settings[variant.dtype] = self._setting(variant.dtype)
        setting = self._settings[variant.dtype]
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            options = Choice(backend).settings
            source = replace(setting.source, options=options, scratch=Path(scratch))
            # The library keeps the fault until all is run.
            with variant.plants[backend](source) as planted:
                with exact_floats():
                    candidate = find(backend).build(planted)
                with candidate:
                    found = judge_candidate(
                        setting.trial, candidate, setting.source, Allclose(), Stopwatch()
                    )
                    assertion = allclose(setting.classic.run(candidate).cases, Allclose())
        return found.gates, assertion

    def _setting(self, dtype: str) -> _Setting:
        import torch

        from clipcheck.backends.artefacts import Artefacts
        from clipcheck.backends.reference import Reference
        from clipcheck.backends.source import Source
        from clipcheck.models.loader import load_eager

        device = torch.device("cpu")
        model = load_eager(self._checkpoint, device, getattr(torch, dtype))
        reference = Reference(model, self._checkpoint.architecture, device)

        def prepare(drawn: Sequence[Batch]) -> Trial:
            return Trial.of(reference, drawn, dtype, Stopwatch())

        inputs = inputs_of(self._checkpoint.architecture)
        return _Setting(
            Source(
                self._checkpoint,
                model,
                device,
                dtype,
                {},
                self._folder,
                Artefacts(None, self._folder),
            ),
            prepare(list(batches(CORNERS, inputs, self._seed))),
            prepare([classic(inputs)]),
        )
