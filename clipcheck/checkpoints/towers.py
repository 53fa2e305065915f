"""Two programs of one tower each, as exporters lay them out: in a folder, or each by its path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipcheck.errors import UsageError

TOWERS = ("image", "text")

_STEMS = (("visual", "textual"), ("vision_model", "text_model"), ("image", "text"))
"""How the names of the two files begin, or their folders' (Immich, clip-as-service, transformers.js
and optimum)."""

_ENDINGS = (".onnx", ".pt2")

_FOLDERS = ("", "onnx")
"""Where in a folder they are."""

_ASKED = "image=FILE,text=FILE"


def split(name: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Read ``image=FILE,text=FILE``: the files, or None where that is not what is written."""
    written = os.fspath(name)
    for first, second in (TOWERS, TOWERS[::-1]):
        found = re.fullmatch(f"{first}=(.+),{second}=(.+)", written)
        if found and not os.path.exists(written):  # noqa: PTH110 - of any kind
            pair = dict(zip((first, second), map(Path, found.groups()), strict=True))
            return pair[TOWERS[0]], pair[TOWERS[1]]
    return None


def absolute(name: str | os.PathLike[str]) -> str:
    """Write a path, or those of two programs, so that it is the same from any folder."""
    pair = split(name)
    if pair is None:
        return str(Path(name).absolute())
    return ",".join(f"{tower}={file.absolute()}" for tower, file in zip(TOWERS, pair, strict=True))


def find(folder: Path) -> tuple[Path, Path] | None:
    """The two programs in a folder: that of images, that of texts; None where there are none.

    Raises:
        UsageError: there are several pairs, or one of two is missing.
    """
    pairs: list[tuple[Path, Path]] = []
    alone: list[tuple[Path, str]] = []
    for inside in _FOLDERS:
        for stems in _STEMS:
            images, texts = (_programs(folder / inside, stem) for stem in stems)
            pairs += [(images[rest], texts[rest]) for rest in images if rest in texts]
            alone += [(file, stems[1]) for rest, file in images.items() if rest not in texts]
            alone += [(file, stems[0]) for rest, file in texts.items() if rest not in images]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        listed = "; ".join(" and ".join(_inside(each, folder) for each in pair) for pair in pairs)
        raise UsageError(
            f"expected two programs, one for each tower, found several: {listed}",
            remedy=f"Say which two: {_ASKED}.",
            path=folder,
        )
    if alone:
        file, stem = alone[0]
        raise UsageError(
            f"expected two programs, one for each tower, found {_inside(file, folder)} and none "
            f"whose name begins with {stem}",
            remedy=f"Name both, as {_ASKED}; or give the path of the one, to judge it alone.",
            path=folder,
        )
    return None


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _programs(folder: Path, stem: str) -> dict[str, Path]:
    """Programs by what their names have behind the stem: ``_fp16.onnx`` of ``visual_fp16.onnx``,
    ``/model.onnx`` of ``visual/model.onnx``."""
    files = [*folder.glob(f"{stem}*"), *folder.glob(f"{stem}/*")]
    return {
        file.relative_to(folder).as_posix().removeprefix(stem): file
        for file in sorted(files)
        if file.suffix in _ENDINGS and file.is_file()
    }
