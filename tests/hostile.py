"""Archives with malicious code, for tests of the sandbox.

Each is a sound tiny archive with a function of TorchScript before its image encoder, which does
nothing to a batch without rows: archives are traced with one. The crash is in its source instead:
TorchScript's parser has no bound on how deeply brackets may be nested.
"""

from __future__ import annotations

import linecache
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcheck.audit.faults.planting import on_pixels
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import architecture_named, synthesize

ARCHITECTURE = architecture_named("tiny-vit")


def hangs(pixels: Tensor) -> Tensor:
    while pixels.size(0) > 0:
        pixels = pixels * 1.0
    return pixels


def takes_memory(pixels: Tensor) -> Tensor:
    if pixels.size(0) > 0:
        pixels = pixels + torch.ones([64, 1024, 1024, 128], dtype=torch.float32).sum()
    return pixels


def prints(pixels: Tensor) -> Tensor:
    if pixels.size(0) > 0:
        print("\x1b[2J this is from the file")
    return pixels


def reading(path: Path) -> Callable[[Tensor], Tensor]:
    """Read a file by an operator of torch, and return its contents as features."""
    return _with_path(path, "secret = torch.from_file({path!r}, False, 8, dtype=torch.uint8)")


def writing(path: Path) -> Callable[[Tensor], Tensor]:
    """Create a file by an operator of torch; tracing creates it once already, as a constant."""
    return _with_path(path, "secret = torch.from_file({path!r}, True, 8, dtype=torch.uint8)")


def _with_path(path: Path, line: str) -> Callable[[Tensor], Tensor]:
    code = f"""
def taken(pixels: Tensor) -> Tensor:
    if pixels.size(0) > 0:
        {line.format(path=str(path))}
        pixels = pixels + secret.sum()
    return pixels
"""
    # TorchScript reads the source of what it compiles, by the name of the file.
    name = f"<{code}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    found: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "__name__": __name__}
    exec(compile(code, name, "exec"), found)
    taken: Callable[[Tensor], Tensor] = found["taken"]
    return taken


def write(
    path: Path,
    act: Callable[[Tensor], Tensor] | None = None,
    *,
    architecture: Architecture = ARCHITECTURE,
) -> Path:
    """Write an archive that acts before its image encoder, or a sound one."""
    with torchscript_support.silenced():
        plant: Any = None if act is None else on_pixels(torch.jit.script(act))
        write_archive(architecture, synthesize(architecture), path, alter=plant)
    return path


def write_crashing(
    path: Path, depth: int = 200_000, *, architecture: Architecture = ARCHITECTURE
) -> Path:
    """Write an archive that ends any process that loads it, by SIGSEGV."""
    sound = write(path.with_suffix(".sound"), architecture=architecture)
    with zipfile.ZipFile(sound) as read, zipfile.ZipFile(path, "w") as written:
        for name in read.namelist():
            contents = read.read(name)
            if re.search(r"/code/__torch__.*\.py$", name):
                deep = b"(" * depth + b"1" + b")" * depth
                contents = contents.replace(
                    b"    return ", b"    _0 = " + deep + b"\n    return ", 1
                )
            written.writestr(name, contents)
    sound.unlink()
    return path
