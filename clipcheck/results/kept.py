"""Keep what a check compared in a folder, so that other limits can judge it without running.

The folder has the JSON document of the check, and a file of arrays for each judgement with outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipcheck.errors import OutputError, ResultsError
from clipcheck.gates.budget import Sample
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.own_results import Addition, OwnResults
from clipcheck.gates.repeatability import Repeat
from clipcheck.gates.result import Case, GateResult, Outputs
from clipcheck.results import document
from clipcheck.results.document import convert_to
from clipcheck.results.judgement import Judgement, Result
from clipcheck.results.outputs import Kept
from clipcheck.results.sealed import Array, bytes_of, decode, encode
from clipcheck.writers.output import creating, require_folder

SCHEMA = 1

_KIND = "outputs"
_RESULTS = "results.json"
_FILE = r"\d+\.safetensors"
_MOST_BYTES = 2 << 30
_SIDES = ("candidate", "reference", "exact")
_COSINES = "cosines"
_GROUPS = ("cases", "lengths", "sample")
_REMEDY = "Give a folder that `clipcheck check --keep-outputs DIR` wrote."


@dataclass(frozen=True)
class _Case:
    """A case without its arrays."""

    rows: dict[str, tuple[str, ...]]
    first_rows: dict[str, int]
    absent: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class _Repeat:
    """Repeated rows without their arrays."""

    what: str
    number: int
    rows: dict[str, list[int]]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """A `Kept` without its arrays."""

    judgement: str
    dtype: str
    scale: float
    error: float | None
    cases: tuple[_Case, ...]
    lengths: tuple[_Case, ...]
    sample: tuple[_Case, ...]
    repeats: tuple[_Repeat, ...]
    evidence: Evidence
    others: tuple[GateResult, ...]
    own: Mapping[str, Addition] | None


def require_kept(folder: Path) -> None:
    """Raise if `write_kept` could not write this folder, before a check starts.

    Raises:
        OutputError: it cannot be written.
    """
    require_folder(folder, is_kept)


def write_kept(result: Result, folder: Path) -> None:
    """Write what the judgements of a result compared into a folder.

    Args:
        folder: which does not exist, is empty, or was written by this function.

    Raises:
        OutputError: it cannot be written, or nothing was compared.
    """
    kept = {n: each.kept for n, each in enumerate(result.judgements) if each.kept is not None}
    if not kept:
        errors = (
            each.error.removesuffix(each.remedy or "").rstrip(". ")
            for each in result.judgements
            if each.error is not None
        )
        raise OutputError(
            "nothing was compared, so there are no outputs to keep: "
            + next(errors, "no backend fits"),
            remedy="Remove the errors of the check.",
            path=folder,
        )
    with creating(folder, ours=is_kept) as written:
        (written / _RESULTS).write_text(document.render(result), encoding="utf-8")
        for number, each in kept.items():
            data = _encoded(each, _name(result.judgements[number]))
            (written / f"{number}.safetensors").write_bytes(data)


def is_kept(folder: Path) -> bool:
    """Tell whether a folder has only files that `write_kept` wrote."""
    if folder.is_symlink() or not (folder / _RESULTS).is_file():
        return False
    names = {file.name for file in folder.iterdir()} - {_RESULTS}
    return bool(names) and all(re.fullmatch(_FILE, name) for name in names)


def read_kept(folder: Path) -> Result:
    """Read a folder that `write_kept` wrote; its judgements have their outputs.

    Raises:
        ResultsError: it is no such folder, or damaged.
    """
    file = folder / _RESULTS
    try:
        if not folder.is_dir():
            raise ValueError("it is no folder")
        result = document.result_of(document.read(bytes_of(file, _MOST_BYTES)))
        if not is_kept(folder):
            raise ValueError("it has no outputs, or other files")
        judgements = []
        for number, judgement in enumerate(result.judgements):
            file = folder / f"{number}.safetensors"
            found = (
                _decoded(bytes_of(file, _MOST_BYTES), _name(judgement)) if file.exists() else None
            )
            judgements.append(replace(judgement, kept=found))
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
    except ValueError as error:
        reason = str(error)
    else:
        return Result(tuple(judgements), result.environment, result.left_out, result.configuration)
    raise ResultsError(
        f"expected the outputs of a check, but {reason}",
        remedy=_REMEDY,
        path=file if folder.is_dir() else folder,
    )


def _name(judgement: Judgement) -> str:
    """Name a judgement, so that its outputs are not taken for those of another."""
    return f"{judgement.run} {judgement.title}"


def _encoded(kept: Kept, name: str) -> bytes:
    arrays: dict[str, Array] = {}
    for group in _GROUPS:
        for number, case in enumerate(getattr(kept, group)):
            for place, array in _arrays(case):
                arrays[f"{group}.{number}.{place}"] = array
    for number, repeat in enumerate(kept.repeats):
        for output, array in repeat.outputs.items():
            arrays[f"repeats.{number}.{output}"] = array
    for kind, sample in (kept.own.samples if kept.own else {}).items():
        arrays[f"own.{kind}.{_COSINES}"] = sample.cosines
        arrays |= {f"own.{kind}.{each}": values for each, values in sample.matches.items()}
    header = _Header(
        judgement=name,
        dtype=kept.dtype,
        scale=kept.scale,
        error=kept.error,
        cases=tuple(map(_case, kept.cases)),
        lengths=tuple(map(_case, kept.lengths)),
        sample=tuple(map(_case, kept.sample)),
        repeats=tuple(
            _Repeat(each.what, each.number, each.rows, each.names) for each in kept.repeats
        ),
        evidence=kept.evidence,
        others=kept.others,
        own=None if kept.own is None else dict(kept.own.additions),
    )
    return encode(_KIND, SCHEMA, vars(header), arrays)


def _case(case: Case) -> _Case:
    rows = {kind: tuple(names) for kind, names in case.rows.items()}
    return _Case(rows, dict(case.first_rows), tuple(sorted(case.absent)), case.dtype)


def _arrays(case: Case) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a case; the reference's only where they are not those of float64."""
    for side in _SIDES:
        for output, array in getattr(case, side).items():
            exact = case.exact.get(output)
            same = exact is not None and array.dtype == exact.dtype and np.array_equal(array, exact)
            if side != "reference" or not same:
                yield f"{side}.{output}", array


def _decoded(data: bytes, name: str) -> Kept:
    plain, arrays = decode(data, _KIND, SCHEMA)
    header = convert_to(plain, _Header)
    if header.judgement != name:
        raise ValueError(f"it has the outputs of another judgement, {header.judgement}")
    groups = {
        group: [
            _whole(each, _below(arrays, f"{group}.{number}."))
            for number, each in enumerate(getattr(header, group))
        ]
        for group in _GROUPS
    }
    repeats = [
        Repeat(each.what, each.number, each.rows, _below(arrays, f"repeats.{number}."), each.names)
        for number, each in enumerate(header.repeats)
    ]
    return Kept(
        dtype=header.dtype,
        scale=header.scale,
        error=header.error,
        repeats=repeats,
        evidence=header.evidence,
        others=header.others,
        own=None if header.own is None else OwnResults(header.own, _samples(arrays)),
        **groups,
    )


def _samples(arrays: Mapping[str, Array]) -> dict[str, Sample]:
    found = {}
    for kind in ("image", "prompt"):
        figures = _below(arrays, f"own.{kind}.")
        if figures:
            found[kind] = Sample(figures.pop(_COSINES), figures)
    return found


def _whole(case: _Case, arrays: Mapping[str, Array]) -> Case:
    sides: dict[str, Outputs] = {side: _below(arrays, f"{side}.") for side in _SIDES}
    reference = {**sides["exact"], **sides["reference"]}
    return Case(
        candidate=sides["candidate"],
        reference=reference,
        exact=sides["exact"],
        rows=case.rows,
        first_rows=case.first_rows,
        absent=frozenset(case.absent),
        dtype=case.dtype,
    )


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
