"""Read an ONNX program, but not the contents of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.checkpoints.onnx_light import without_contents

if TYPE_CHECKING:
    import onnx


def read_light(path: Path) -> tuple[onnx.ModelProto, Path]:
    """Read an ONNX program, with the contents of its weights left in its files.

    Returns:
        The program, and the folder in which it finds these files.

    Raises:
        CheckpointError: a data file is elsewhere.
        DamagedError: a data file is missing, or the program is damaged.
    """
    import onnx

    if data_files(path):
        return onnx.load(path, load_external_data=False), path.parent
    # ONNX Runtime takes no data files through symbolic links.
    path = path.resolve()
    return onnx.ModelProto.FromString(without_contents(path)), path.parent
