"""What a checkpoint is, as text."""

from __future__ import annotations

from collections import Counter

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.inspection import format_version, read_code


def render(checkpoint: Checkpoint) -> str:
    """A line for each fact, without a newline at the end."""
    released = registry.by_sha256(checkpoint.sha256)
    known = f"released as {released.name}" if released else "none of the released files"
    facts = {
        "file": f"{checkpoint.path} ({checkpoint.path.stat().st_size:,} bytes)",
        "format": _format(checkpoint),
        "architecture": checkpoint.architecture.describe(),
        "parameters": f"{checkpoint.architecture.parameters:,}",
        "dtypes": _counted(Counter(_dtype(t) for t in checkpoint.tensors.values()), "tensors"),
        "SHA-256": f"{checkpoint.sha256} ({known})",
        "checksums": _checksums(checkpoint),
        **_code(checkpoint),
    }
    return "\n".join(f"{label:<14}{fact}" for label, fact in facts.items())


def _format(checkpoint: Checkpoint) -> str:
    names = {
        Format.ARCHIVE: "TorchScript archive",
        Format.STATE_DICT: "state dict (torch.save)",
        Format.SAFETENSORS: "safetensors",
    }
    return names[checkpoint.format]


def _dtype(tensor: object) -> str:
    return str(getattr(tensor, "dtype", "")).removeprefix("torch.")


def _checksums(checkpoint: Checkpoint) -> str:
    if checkpoint.records is None:
        return "this format has none"
    if not checkpoint.records.has_checksums:
        return "left out by the writer"
    return f"right in all {len(checkpoint.records.names())} records"


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
