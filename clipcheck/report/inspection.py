"""Describe a checkpoint as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.inspection import Patched, format_version, read_code
from clipcheck.families.registry import summary_of
from clipcheck.report import patched
from clipcheck.report.cells import visible
from clipcheck.report.tables import table


def render(subject: Checkpoint | Program) -> str:
    """Return a line for each fact. Ends without a newline."""
    facts = _of_program(subject) if isinstance(subject, Program) else _of_checkpoint(subject)
    return table(facts.items()).plain


def _of_program(program: Program) -> dict[str, str]:
    several = f" of all {len(program.files)} files" if len(program.files) > 1 else ""
    return {
        **_files("file", [part.path for part in program.parts]),
        **_files("data", [file for part in program.parts for file in part.data]),
        "format": _FORMATS[program.format],
        "weights": "inside the program, without keys of a state dict",
        "SHA-256": f"{program.sha256}{several}",
    }


def _files(label: str, files: Sequence[Path]) -> dict[str, str]:
    """List files with their sizes, the first ten by name."""
    told = [f"{file} ({file.stat().st_size:,} bytes)" for file in files[:_MOST_FILES]]
    if len(files) > _MOST_FILES:
        told.append(f"and {len(files) - _MOST_FILES} more")
    return {label: "\n".join(told)} if told else {}


def _of_checkpoint(checkpoint: Checkpoint) -> dict[str, str]:
    released = registry.by_sha256(checkpoint.sha256)
    known = f"released as {released.name}" if released else "not a released file"
    return {
        "file": f"{checkpoint.path} ({checkpoint.size:,} bytes)",
        "format": _FORMATS[checkpoint.format],
        **({"model": visible(str(checkpoint.origin))} if str(checkpoint.origin) else {}),
        "architecture": checkpoint.model.describe(),
        "computes": _computes(checkpoint),
        "parameters": f"{checkpoint.parameters:,}",
        "dtypes": _counted(Counter(_dtype(t) for t in checkpoint.tensors.values()), "tensors"),
        "SHA-256": f"{checkpoint.sha256} ({known})",
        "checksums": _checksums(checkpoint),
        **_code(checkpoint),
    }


_MOST_FILES = 10


def _computes(checkpoint: Checkpoint) -> str:
    if checkpoint.told:
        return f"{summary_of(checkpoint.model)}: from {checkpoint.told}"
    if checkpoint.format is Format.ARCHIVE:
        return "by its own code"
    why = f" ({checkpoint.untold})" if checkpoint.untold else ""
    return f"not determined by the weights{why}"


_FORMATS = {
    Format.ARCHIVE: "TorchScript archive",
    Format.STATE_DICT: "state dict (torch.save)",
    Format.SAFETENSORS: "safetensors",
    Format.TRANSFORMERS: "folder of transformers (config.json)",
    Format.OPEN_CLIP: "folder of open_clip (open_clip_config.json)",
    Format.PT2: "program of torch.export or AOTInductor",
    Format.ONNX: "ONNX program",
    Format.OPENVINO: "OpenVINO program",
    Format.EXECUTORCH: "ExecuTorch program",
}


def _dtype(tensor: object) -> str:
    return str(getattr(tensor, "dtype", "")).removeprefix("torch.")


def _checksums(checkpoint: Checkpoint) -> str:
    parts = checkpoint.parts if checkpoint.records is None else (checkpoint.records,)
    if not parts:
        return "this format has none"
    if not all(records.has_checksums for records in parts):
        return "not written"
    return f"correct in all {sum(len(records.names()) for records in parts)} records"


def _code(checkpoint: Checkpoint) -> dict[str, str]:
    if checkpoint.records is None:
        return {}
    version = format_version(checkpoint.records)
    written = f"format version {version}; torch's own version is not recorded in this format"
    if checkpoint.format is not Format.ARCHIVE:
        return {"written by": written}
    code = read_code(checkpoint.records)
    return {
        "written by": written,
        "devices": _counted(code.devices, "constants to patch"),
        **_casts(code.dtypes, checkpoint.weight_dtypes),
    }


def _casts(counts: Counter[str], weights: Sequence[str]) -> dict[str, str]:
    """List the casts to a dtype of the weights, rewritten for another dtype, and the others."""
    rewritten = Counter({name: n for name, n in counts.items() if name in weights})
    kept = counts - rewritten
    told = [
        _counted(rewritten, "rewritten if another dtype is requested") if rewritten else "",
        _counted(kept, "unchanged") if kept else "",
    ]
    suspicion = patched.suspicion(
        Patched(device="", dtype=None, weights=tuple(weights), devices={}, casts={}, kept=kept)
    )
    return {
        "casts": ", ".join(part for part in told if part) or "none",
        **({"note": suspicion} if suspicion else {}),
    }


def _counted(counts: Counter[str], unit: str) -> str:
    if not counts:
        return "none"
    listed = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return f"{listed} ({unit})"
