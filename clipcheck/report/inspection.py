"""What a checkpoint is, as text."""

from __future__ import annotations

from collections import Counter

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.inspection import format_version, read_code

_FORMATS = {
    Format.ARCHIVE: "TorchScript archive",
    Format.STATE_DICT: "state dict (torch.save)",
    Format.SAFETENSORS: "safetensors",
    Format.TRANSFORMERS: "folder of transformers (the hub's layout)",
    Format.OPEN_CLIP: "folder of open_clip",
    Format.PT2: "program of torch.export",
    Format.ONNX: "ONNX program",
}
"""By format, what it is called."""


def render(subject: Checkpoint | Program) -> str:
    """A line for each fact, without a newline at the end."""
    released = registry.by_sha256(subject.sha256)
    known = f"released as {released.name}" if released else "none of the released files"
    facts = {
        "file": f"{subject.path} ({subject.size:,} bytes)",
        "format": _FORMATS[subject.format],
        **(_weights(subject) if isinstance(subject, Checkpoint) else {}),
        "SHA-256": f"{subject.sha256} ({known})",
        **(_records(subject) if isinstance(subject, Checkpoint) else {}),
    }
    return "\n".join(f"{label:<14}{fact}" for label, fact in facts.items())


def _weights(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "architecture": checkpoint.architecture.describe(),
        "parameters": f"{checkpoint.architecture.parameters:,}",
        "dtypes": _counted(Counter(_dtype(t) for t in checkpoint.tensors.values()), "tensors"),
    }


def _records(checkpoint: Checkpoint) -> dict[str, str]:
    return {"checksums": _checksums(checkpoint), **_code(checkpoint)}


def _dtype(tensor: object) -> str:
    return str(getattr(tensor, "dtype", "")).removeprefix("torch.")


def _checksums(checkpoint: Checkpoint) -> str:
    files = checkpoint.parts if checkpoint.records is None else (checkpoint.records,)
    if not files:
        return "this format has none"
    if not all(records.has_checksums for records in files):
        return "left out by the writer"
    return f"right in all {sum(len(records.names()) for records in files)} records"


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
        "casts": _counted(code.dtypes, "constants"),
    }


def _counted(counts: Counter[str], unit: str) -> str:
    if not counts:
        return "none"
    listed = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return f"{listed} ({unit})"
