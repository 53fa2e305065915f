"""Find two programs of one tower each: in a folder of an exporter, or by their two paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipcheck.errors import UsageError

TOWERS = ("image", "text")

_STEMS = (("visual", "textual"), ("vision_model", "text_model"), ("image", "text"))
"""Prefixes of the names of the two files, or of their folders (Immich, clip-as-service,
transformers.js and optimum)."""

_ENDINGS = (".onnx", ".pt2")

_FOLDERS = ("", "onnx")
"""Subfolders with the programs."""

_ASKED = "image=FILE,text=FILE"


def split(name: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Return the files of ``image=FILE,text=FILE``, or None for any other name."""
    written = os.fspath(name)
    for first, second in (TOWERS, TOWERS[::-1]):
        found = re.fullmatch(f"{first}=(.+),{second}=(.+)", written)
        if found and not os.path.exists(written):  # noqa: PTH110 - any kind of file
            pair = dict(zip((first, second), map(Path, found.groups()), strict=True))
            return pair[TOWERS[0]], pair[TOWERS[1]]
    return None


def absolute(name: str | os.PathLike[str]) -> str:
    """Return an absolute path, or those of two programs as ``image=FILE,text=FILE``."""
    return str(within(Path.cwd(), name))


def within(folder: Path, name: str | os.PathLike[str]) -> Path:
    """Return a path relative to a folder, or those of two programs as ``image=FILE,text=FILE``."""
    pair = split(name)
    if pair is None:
        return folder / name
    return Path(
        ",".join(f"{tower}={folder / file}" for tower, file in zip(TOWERS, pair, strict=True))
    )


def find(folder: Path) -> tuple[Path, Path] | None:
    """Return the image tower's and the text tower's program in a folder, or None.

    Raises:
        UsageError: there are several pairs, another program beside one, or one of two is missing.
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
        files = [file for inside in _FOLDERS for file in (folder / inside).glob("*")]
        beside = {file for file in files if file.suffix in _ENDINGS}
        others = sorted({*beside, *(file for file, _ in alone)} - {*pairs[0]})
        if others:
            both = " and ".join(_inside(each, folder) for each in pairs[0])
            raise UsageError(
                f"expected two programs, one for each tower, found {both}, and besides "
                + ", ".join(_inside(each, folder) for each in others),
                remedy=f"Choose: {_ASKED} for two towers, or the path of one program.",
                path=folder,
            )
        return pairs[0]
    if pairs:
        listed = "; ".join(" and ".join(_inside(each, folder) for each in pair) for pair in pairs)
        raise UsageError(
            f"expected two programs, one for each tower, found several: {listed}",
            remedy=f"Choose two: {_ASKED}.",
            path=folder,
        )
    if alone:
        file, stem = alone[0]
        raise UsageError(
            f"expected two programs, one for each tower, found {_inside(file, folder)} and none "
            f"whose name begins with {stem}",
            remedy=f"Give both, as {_ASKED}; or give the path of this one, to judge it alone.",
            path=folder,
        )
    return None


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _programs(folder: Path, stem: str) -> dict[str, Path]:
    """Return programs by the part of the name after the stem: ``_fp16.onnx`` for
    ``visual_fp16.onnx``, ``/model.onnx`` for ``visual/model.onnx``."""
    files = [*folder.glob(f"{stem}*"), *folder.glob(f"{stem}/*")]
    return {
        file.relative_to(folder).as_posix().removeprefix(stem): file
        for file in sorted(files)
        if file.suffix in _ENDINGS and file.is_file()
    }
