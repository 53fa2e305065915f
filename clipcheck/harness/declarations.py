"""The options of a check: names, types, defaults and help. Nothing else states them.

`clipcheck.harness.options.CheckOptions` validates them. The command line, ``[tool.clipcheck]``, the
pytest plugin and a sweep's catalogue take theirs from `OPTIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.gates.tolerances import BUDGETS, LIMITS, Allclose
from clipcheck.harness.declared import Value, about, declared_by, either
from clipcheck.inputs.counts import EDGE_CASES

if TYPE_CHECKING:
    import torch

DYNAMIC_BATCH = "dynamic-batch"
"""That a program runs any number of images and texts."""

REQUIRED = (DYNAMIC_BATCH,)

EXAMPLES = EDGE_CASES + 12
"""Default number of images: the edge cases, and two batches that Hypothesis draws."""

Device: TypeAlias = "str | torch.device | None"


@dataclass(frozen=True, kw_only=True)
class Declarations:
    """The options of a check, not validated. A default of None depends on the checkpoint or the
    machine."""

    backend: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            "NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all for each that fits.",
            metavar="B",
            group="Running it",
            unset=f"by the file's format; {OF_ARCHIVES} for an archive",
            of_checkpoint=True,
        ),
    )
    key: str | None = field(
        default=None,
        metadata=about(
            "Model to read from a training checkpoint that holds several, such as model_ema or "
            "state_dict.teacher.",
            metavar="NAME",
            group="Model",
            of_checkpoint=True,
        ),
    )
    reference: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Take the weights for the eager model from this file, not from CHECKPOINT.",
            metavar="CHECKPOINT",
            group="Model",
            path=True,
            of_checkpoint=True,
        ),
    )
    pinned: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Compare with a file of `clipcheck pin`, on its inputs, without a reference.",
            metavar="FILE",
            group="Model",
            path=True,
        ),
    )
    architecture: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Architecture of weights that do not determine it: a released name, open_clip:NAME, or "
            "the path of an open_clip_config.json or config.json.",
            metavar="ARCH",
            group="Model",
            path=True,
            of_checkpoint=True,
        ),
    )
    map: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            "Meaning of an input or output of a program that its name and shape leave open, such "
            "as image_embeds=image_features.",
            metavar="NAME=MEANING",
            group="Model",
            of_checkpoint=True,
        ),
    )
    require: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            f"{DYNAMIC_BATCH}: fail a program that runs only some batch sizes.",
            metavar="WHAT",
            group="Gates",
        ),
    )
    device: Device | Sequence[str | torch.device] = field(
        default=None,
        metadata=about(
            "cpu, cuda, cuda:1 or mps.",
            metavar="D",
            group="Running it",
            unset="the GPU if there is one",
            of_checkpoint=True,
        ),
    )
    dtype: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            f"{either(LIMITS)}.",
            metavar="T",
            group="Running it",
            unset="float32, and on a GPU also the checkpoint's own",
            of_checkpoint=True,
        ),
    )
    examples: int = field(
        default=EXAMPLES,
        metadata=about(
            f"Images to compare: {EDGE_CASES} edge cases, the rest drawn by Hypothesis. 0: the "
            "edge cases, and your own of --images and --prompts.",
            metavar="N",
            group="Inputs and limits",
            least=0,
        ),
    )
    images: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Also compare your own images: all in this folder and below, any number.",
            metavar="DIR",
            group="Inputs and limits",
            path=True,
            of_checkpoint=True,
        ),
    )
    prompts: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Also compare your own prompts: a text file in UTF-8, one a line.",
            metavar="FILE",
            group="Inputs and limits",
            path=True,
            of_checkpoint=True,
        ),
    )
    exhaustive: bool = field(
        default=False,
        metadata=about(
            "Also run every token id, every length of a prompt, and every position of an image.",
            group="Inputs and limits",
        ),
    )
    seed: int = field(
        default=0,
        metadata=about(
            "Seed of the images and prompts.", metavar="N", group="Inputs and limits", least=0
        ),
    )
    atol: float = field(
        default=Allclose.atol,
        metadata=about(
            "Absolute tolerance on probabilities.",
            metavar="A",
            group="Inputs and limits",
        ),
    )
    rtol: float = field(
        default=Allclose.rtol,
        metadata=about(
            "Relative tolerance on probabilities.",
            metavar="R",
            group="Inputs and limits",
        ),
    )
    budget: str | None = field(
        default=None,
        metadata=about(
            f"Limits of a lossy program: {either(BUDGETS)}, or limits such as "
            "cosine=0.99,top1=0.95. See `clipcheck explain budget`.",
            metavar="B",
            group="Inputs and limits",
        ),
    )
    select: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            "Run only this gate. See `clipcheck explain`.",
            metavar="GATE",
            group="Gates",
        ),
    )
    ignore: str | Sequence[str] | None = field(
        default=None,
        metadata=about(
            "Skip this gate; the verdict names it.",
            metavar="GATE",
            group="Gates",
        ),
    )
    keep_outputs: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Keep what was compared in DIR, for `clipcheck rejudge`.",
            metavar="DIR",
            group="Output",
            path=True,
        ),
    )
    fail_fast: bool = field(
        default=False,
        metadata=about(
            "Stop after the first checkpoint that does not pass.",
            group="Running it",
        ),
    )
    cache: bool = field(
        default=True,
        metadata=about(
            "Keep and reuse compiled and exported programs.",
            group="Running it",
        ),
    )
    isolation: str | None = field(
        default=None,
        metadata=about(
            "Run a file's own code in a sandbox process, or (none) in this one.",
            metavar="process|none",
            group="Running it",
            unset="process, except for released files, which are known by their hash",
        ),
    )
    download_root: str | os.PathLike[str] | None = field(
        default=None,
        metadata=about(
            "Folder for released files.",
            metavar="DIR",
            group="Model",
            unset="$CLIPCHECK_CACHE, else ~/.cache/clip",
            path=True,
        ),
    )


OPTIONS = declared_by(Declarations)
"""By name."""


def words_of(values: Mapping[str, Value]) -> list[str]:
    """Return the words of a command line that gives options these values."""
    found = [OPTIONS[name].words(values[name]) for name in OPTIONS if name in values]
    return [word for words in found for word in words]
