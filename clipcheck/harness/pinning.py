"""Make a pin of a checkpoint: run its eager model on the pinned inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcheck.backends.loading import opened_sides
from clipcheck.backends.sandboxes import prepare
from clipcheck.backends.weights import stored_of
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.formats import open_checkpoint, require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import require_told, undecided
from clipcheck.checkpoints.told import named
from clipcheck.errors import RunError, UnfitError, UsageError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import dimensions_of, sizes_of, summary_of, verified
from clipcheck.gates.budget import decidable, inputs_for, parse_budget
from clipcheck.gates.fingerprints import Fingerprints, fingerprints_of
from clipcheck.gates.metrics import row_rms, unit
from clipcheck.gates.result import FEATURES, LOGITS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.checking import environment
from clipcheck.harness.converting import require_convertible
from clipcheck.harness.files import describe
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.trial import lengths_not_drawn
from clipcheck.inputs.batches import Batch, every_length
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import (
    BESIDE,
    SAMPLE,
    SIZES,
    draw_prompts,
    edge_cases,
    sample,
)
from clipcheck.results.pin import (
    MOST_BYTES,
    Header,
    Ids,
    Pin,
    PinnedLengths,
    judged_rows,
)
from clipcheck.results.sealed import Array
from clipcheck.system.progress import Progress, Span, say_import, silent

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.reference import Named
    from clipcheck.backends.sandboxes import Isolation
    from clipcheck.families.sizes import Sizes

_NAME = 64
"""Bytes of a row's description, and of other things that each row or weight has."""

_LINEAR = 1e-6
"""Greatest distance of a logit from a multiple of its cosine, as a share of the logit scale: the
scale may have been rounded to float32."""


def make_pin(
    checkpoint: str,
    *,
    key: str | None = None,
    architecture: str | None = None,
    device: str | None = None,
    seed: int = CheckOptions.seed,
    budget: str | None = None,
    isolation: Isolation | None = None,
    download_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Pin:
    """Run the eager model of a checkpoint in float64 and each dtype, and return a pin.

    Args:
        checkpoint: path or released name.
        architecture: as for ``--architecture``.
        seed: of the inputs.
        budget: that the pin has to decide, as for ``clipcheck check --budget``.
        isolation: of an archive whose code tells the architecture.

    Raises:
        ClipcheckError: the checkpoint cannot be used; the subclass tells why.
        RunError: the eager model cannot be run in float32, or its outputs are not finite.
        UsageError: the budget needs more inputs than a pin can have.
    """
    drawn = SAMPLE if budget is None else inputs_for(parse_budget(budget))
    require_found(checkpoint)
    prepare([checkpoint], isolation)
    span = Span(progress or silent)
    say_import(span.say)
    from clipcheck.models.loader import resolve_device

    span.say(f"{checkpoint}: reading")
    target = resolve_device(device)
    with span.apart():  # a download shows its own bar
        told = None if architecture is None else named(architecture)
        opened = open_checkpoint(checkpoint, download_root, key=key, told=told)
    found, computes = _told(verified(opened), isolation)
    inputs = inputs_of(found.model)
    weights = fingerprints_of((key, stored_of(each)) for key, each in found.tensors.items())
    sizes = sizes_of(found.model)
    _require_room(drawn, sizes, weights)
    prompts = draw_prompts(inputs, seed, drawn)
    given = [draw(inputs.resolution, inputs.images, seed, prompts) for draw in (edge_cases, sample)]
    every = every_length(inputs, seed)
    rows = lengths_not_drawn(every, given[0] + given[1][:BESIDE], inputs.texts)
    rows = _fitting(rows, sizes, drawn, weights)
    lengths = every.select([], rows)
    batches = [each for several in given for each in several]
    measured = _measure(found, target, batches, every, rows, span)
    header = Header(
        environment=environment(),
        checkpoint=checkpoint,
        sha256=found.sha256,
        description=describe(found),
        computes=computes,
        architecture=dimensions_of(found.model),
        **_sizes(sizes),
        scale=measured.scale,
        bias=_bias(measured.exact, measured.scale),
        seed=seed,
        inputs=(digest(given[0]), digest(given[1])),
        prompts=prompts.names,
        lengths=lengths.rows["prompt"],
        parameters=found.parameters,
        keys=tuple(weights.keys),
        shapes=tuple(weights.shapes),
        missing=measured.missing,
    )
    features = {
        name: np.concatenate([each[name] for each in measured.exact]).astype(np.float32)
        for name in FEATURES
        if name in header.outputs
    }
    by_length = PinnedLengths(
        lengths.tokens, measured.lengths.astype(np.float32), measured.by_length
    )
    return Pin(
        header=header,
        tokens=prompts.tokens,
        features=features,
        errors=measured.errors,
        lengths=by_length,
        weights=weights,
    )


def _require_room(drawn: int, sizes: Sizes, weights: Fingerprints) -> None:
    """Raise if the features of a sample do not fit into a pin.

    Raises:
        UsageError: they do not; the message names the greatest budget that can be decided.
    """
    most = (MOST_BYTES - _bytes_beside(sizes, weights)) // _bytes_of_row(sizes)
    if drawn > max(most, SAMPLE):
        raise UsageError(
            f"expected a budget that {most:,} images and prompts can decide, which a pin of this "
            f"model can have in {MOST_BYTES // 10**6} MB; found one that needs {drawn:,}",
            remedy=f"Give limits of at most {decidable(most):g} for top1 and top5, or check "
            "against the checkpoint in place of a pin: --reference.",
        )


def _bytes_of_row(sizes: Sizes) -> int:
    """Return the bytes of an image and a prompt that only a budget judges."""
    towers = sum(name in FEATURES for name in sizes.outputs)
    return towers * (3 * sizes.embed_dim + 4) + 4 * sizes.context_length + _NAME


def _bytes_beside(sizes: Sizes, weights: Fingerprints) -> int:
    """Return the bytes of all else but prompts of further lengths."""
    rows = sum(judged_rows().values())
    names = sum(len(key) + _NAME for key in weights.keys)
    arrays = weights.digests.nbytes + weights.values.nbytes
    return rows * (4 * sizes.embed_dim + 4 * sizes.context_length + _NAME) + names + arrays


def _fitting(rows: list[int], sizes: Sizes, drawn: int, weights: Fingerprints) -> list[int]:
    """Return those prompts of further lengths that fit into a pin beside a sample, evenly spread:
    all but for wide models."""
    if "text_features" not in sizes.outputs:
        return []
    left = MOST_BYTES - _bytes_beside(sizes, weights) - drawn * _bytes_of_row(sizes)
    most = max(0, left // (4 * sizes.embed_dim + 4 * sizes.context_length + _NAME))
    return rows if len(rows) <= most else [rows[n * len(rows) // most] for n in range(most)]


def _sizes(sizes: Sizes) -> dict[str, Any]:
    """Return the fields of a header for the sizes of a model."""
    found = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
    texts = found.pop("texts")
    del found["tokenizer"]
    return {**found, "ids": Ids(texts.start, texts.end, texts.pad, texts.first, texts.last)}


@dataclass(kw_only=True)
class _Measured:
    """Outputs of the eager model.

    Attributes:
        scale: exp(logit_scale).
        exact: outputs in float64 of all batches.
        errors: by dtype and output, the error of each row of the judged batches.
        lengths: text features in float64 of the prompts of further lengths.
        by_length: by dtype, the error of each of these.
        missing: by dtype, why it cannot be run.
    """

    scale: float
    exact: Sequence[Named]
    lengths: Array
    errors: dict[str, dict[str, Array]] = field(default_factory=dict)
    by_length: dict[str, Array] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def _measure(
    checkpoint: Checkpoint,
    device: torch.device,
    batches: Sequence[Batch],
    lengths: Batch,
    rows: Sequence[int],
    span: Span,
) -> _Measured:
    """Run the eager model in float64, and in each dtype.

    Args:
        lengths: prompts of every length, without images.
        rows: those of them that are kept.

    Raises:
        RunError: it cannot be run in float32, or its outputs are not finite.
    """
    given = [(batch.pixels, batch.tokens) for batch in batches]
    width = sizes_of(checkpoint.model).embed_dim
    more = {"lengths": lengths.tokens} if rows else {}

    def split(found: list[Named]) -> tuple[list[Named], Array]:
        last = found.pop()["text_features"][rows] if rows else np.zeros((0, width))
        return found, last

    parts = dict(zip(("float64", *LIMITS), span.split([16, 4, 4, 4]), strict=True))
    measured: _Measured | None = None
    for dtype in LIMITS:
        with opened_sides(checkpoint, None, device, dtype, archive=False) as sides:
            reference = sides.reference
            if measured is None:
                parts["float64"].say(f"{checkpoint.path}: running the eager model in float64")
                exact = reference.exact_outputs(given, parts["float64"].reach, **more)
                outputs, last = split(exact)
                measured = _Measured(scale=reference.scale, exact=outputs, lengths=last)
            parts[dtype].say(f"{checkpoint.path}: running the eager model in {dtype}")
            try:
                judged = given[: len(SIZES) + BESIDE]
                own, last = split(reference.outputs(judged, parts[dtype].reach, **more))
                measured.errors[dtype] = _errors(own, measured.exact)
                name = "text_features"
                two = ([{name: last}], [{name: measured.lengths}])
                none = {name: np.zeros(0, dtype=np.float32)}
                measured.by_length[dtype] = (_errors(*two) if rows else none)[name]
            except RunError as error:
                if dtype == "float32":
                    raise
                measured.missing[dtype] = error.problem
    assert measured is not None  # noqa: S101 - for the type: there are dtypes
    return measured


def _told(checkpoint: Checkpoint, isolation: Isolation | None) -> tuple[Checkpoint, str]:
    """Return the checkpoint, and how it computes with the source of that.

    Raises:
        ArchitectureError: nothing tells how it computes.
    """
    if isinstance(checkpoint.model, LibraryArchitecture):
        require_told(checkpoint)
        return checkpoint, f"{summary_of(checkpoint.model)}: from {checkpoint.told}"
    found = require_convertible(checkpoint, isolation)
    if not found.checkpoint.told:
        raise undecided(checkpoint, f"nothing tells how it computes; {found.computes}")
    return found.checkpoint, found.computes


def _errors(own: Sequence[Named], exact: Sequence[Named]) -> dict[str, Array]:
    """Return by output the root mean square error of each row.

    Raises:
        RunError: an output is not finite.
    """
    errors = {
        name: np.concatenate(
            [row_rms(mine[name] - true[name]) for mine, true in zip(own, exact, strict=False)]
        ).astype(np.float32)
        for name in own[0]
    }
    for name, each in errors.items():
        if not np.isfinite(each).all():
            raise RunError(
                f"the eager model itself is not finite: {name}, so nothing can be compared with it",
                remedy="Look for weights that overflow.",
            )
    return errors


def _bias(exact: Sequence[Named], scale: float) -> float:
    """Return the number that is added to all cosines times ``scale``; 0 without logits.

    Raises:
        UnfitError: logits are anything else.
    """
    if LOGITS[0] not in exact[0]:
        return 0.0
    rest = np.concatenate([(each[LOGITS[0]] - scale * _cosines(each)).ravel() for each in exact])
    bias = float(np.median(rest))
    if not np.abs(rest - bias).max() <= _LINEAR * scale:
        raise UnfitError(
            "its logits are not its cosines times a factor, so a pin cannot describe them",
            remedy="Check its programs against the checkpoint: --reference CHECKPOINT.",
        )
    return bias


def _cosines(outputs: Named) -> Array:
    images, texts = (unit(outputs[name]) for name in FEATURES)
    return np.asarray(images @ texts.T)
