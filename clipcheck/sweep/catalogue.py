"""Read the checkpoints of a sweep and their options, from TOML or a folder.

TOML has a table for each checkpoint or pattern; paths are relative to the catalogue's folder::

    [defaults]                      # for entries without a value of their own
    device = "cpu"

    [[checkpoint]]
    path = "release/*.pt"
    backend = ["jit", "export"]
    dtype = ["float32", "bfloat16"]

    [[checkpoint]]
    path = "weights.safetensors"
    architecture = "open_clip:ViT-B-32"     # weights alone do not determine it

    [[checkpoint]]
    url = "https://example.org/model.pt"
    sha256 = "9c1f…"                # or its first digits
    size = "350 MB"

    [[checkpoint]]
    path = "epoch-9.ckpt"
    key = "model_ema"               # which model in the file

    [[checkpoint]]
    path = "tower.onnx"
    reference = "model.pt"
    map = ["x=pixels"]              # meaning of an input or output

    [[checkpoint]]
    name = "ViT-B/32"               # a released one
"""

from __future__ import annotations

import glob
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipcheck.backends.registry import ALL, chosen
from clipcheck.checkpoints import download, registry, towers
from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture
from clipcheck.checkpoints.directories import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG
from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.checkpoints.openvino_data import is_openvino, weights_of
from clipcheck.checkpoints.told import named
from clipcheck.errors import (
    CatalogueError,
    CheckpointError,
    ClipcheckError,
    UnknownModelError,
    UsageError,
    nearest,
)
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.declarations import OPTIONS
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep.jobs import DEFAULT, Source
from clipcheck.system.sizes import bytes_in

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pt2", ".onnx", ".xml", ".pte")
"""Suffixes of the files to find in a folder."""

MOST_BYTES = 16 << 20
"""Size limit of a catalogue: thousands of entries take less."""

_WHERE = ("path", "url", "name")
_HOW = tuple(each.key for each in OPTIONS.values() if each.of_checkpoint)
_KEYS = (*_WHERE, *_HOW, "sha256", "size")

_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A checkpoint of a catalogue, with its options.

    Attributes:
        label: the path, name or URL as given.
        backends: as for `clipcheck.check`; only `DEFAULT` for the file's default.
        devices: empty for the default.
        dtypes: only `DEFAULT` for the device's default.
        reference: path or released name of the reference; None for the checkpoint itself.
        architecture: as for `clipcheck.check`, or None.
        dimensions: if they are known before the file is fetched.
        unfit: why it is not judged; empty if it is.
        key: as for `clipcheck.check`.
        map: as for `clipcheck.check`.
        images: absolute path of a folder of the user's images; None for that of the command.
        prompts: absolute path of a file of the user's prompts; None for that of the command.
    """

    label: str
    source: Source
    backends: tuple[str, ...] = (DEFAULT,)
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = (DEFAULT,)
    reference: str | None = None
    architecture: str | None = None
    dimensions: Architecture | None = None
    unfit: str = ""
    key: str | None = None
    map: tuple[str, ...] = ()
    images: str | None = None
    prompts: str | None = None


class _Wrong(ValueError):  # noqa: N818 - it becomes an error with a place
    """A mistake in the catalogue, and its remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def read(path: Path, download_root: str | None = None) -> list[Entry]:
    """Read the checkpoints of a catalogue, in order.

    Args:
        path: of a TOML file, or of a folder, whose checkpoints are sorted by name.
        download_root: folder for released files.

    Raises:
        CatalogueError: it cannot be read; a key is unknown or missing; a pattern matches nothing;
            a checkpoint is listed twice. The message names the entry.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() != ".toml":
        raise CatalogueError(
            f"expected a folder, or a catalogue that ends in .toml, found {path.name!r}",
            remedy="Name a folder or a catalogue; for a single checkpoint use `clipcheck check`.",
            path=path,
        )
    entries: list[Entry] = []
    for place, given in _from_toml(_text(path), path):
        try:
            entries += _entries(given, path.parent, download_root)
            _require_once(entries)
        except _Wrong as wrong:
            raise CatalogueError(f"{place}: {wrong}", remedy=wrong.remedy, path=path) from wrong
    if not entries:
        raise CatalogueError(
            "expected a checkpoint, found none",
            remedy="Write a [[checkpoint]] for each.",
            path=path,
        )
    return entries


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _refused(path, f"it has more than {MOST_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _refused(path, f"it is not in UTF-8, at byte {error.start}") from error


def _refused(path: Path, problem: str) -> CatalogueError:
    return CatalogueError(
        f"expected a catalogue that can be read, but {problem}",
        remedy="Give the path of a TOML file, or of a folder.",
        path=path,
    )


_Given = Iterator[tuple[str, Mapping[str, Any]]]
"""Place and contents of each entry."""


def _from_toml(text: str, path: Path) -> _Given:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(path, f"it is no TOML ({error})") from error
    try:
        _require_known(document, ("defaults", "checkpoint"))
        defaults = _table(document.get("defaults", {}), "defaults")
        _require_known(defaults, _HOW)
        checkpoints = document.get("checkpoint", [])
        if not isinstance(checkpoints, list):
            raise _Wrong("expected [[checkpoint]]", "Write it with two brackets on each side.")
    except _Wrong as wrong:
        raise CatalogueError(str(wrong), remedy=wrong.remedy, path=path) from wrong
    for number, given in enumerate(checkpoints, 1):
        place = f"checkpoint {number}"
        if not isinstance(given, dict):
            raise CatalogueError(
                f"{place}: expected a table, found {given!r}",
                remedy='Write [[checkpoint]] and, in the next line, path = "...".',
                path=path,
            )
        yield place, {**defaults, **given}


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"expected [{name}] to be a table, found {value!r}", f"Write [{name}].")
    return value


def _require_known(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            told = f"expected one of {', '.join(known)}, found {key!r}"
            raise _Wrong(told, f"{nearest(key, known)}.")


def _entries(given: Mapping[str, Any], folder: Path, root: str | None) -> Iterator[Entry]:
    """Yield the entries of a table: several if its path is a pattern."""
    _require_known(given, _KEYS)
    where = [key for key in _WHERE if key in given]
    if len(where) != 1:
        raise _Wrong(
            f"expected one of {', '.join(_WHERE)}, found {' and '.join(where) or 'none'}",
            "Say where the checkpoint is, in one way.",
        )
    (kind,) = where
    place = _string(given, kind)
    sha256, size = _digest(given), _size(given)
    if kind != "url" and (sha256 or size is not None):
        raise _Wrong(
            f"expected sha256 and size of a url alone, found them beside {kind}",
            "Leave them out: they are read from an existing file.",
        )
    make = {"path": _by_path, "url": _by_url, "name": _by_name}[kind]
    key = _string(given, "key") if "key" in given else None
    for label, source in make(place, folder, root):
        known = replace(source, sha256=sha256, size=size) if kind == "url" else source
        yield _checked(
            Entry(
                label=label if key is None else f"{label} ({key})",
                source=known,
                backends=_strings(given, "backend") or (DEFAULT,),
                devices=_strings(given, "device"),
                dtypes=_strings(given, "dtype") or (DEFAULT,),
                reference=_reference(given, folder),
                architecture=_architecture(given, folder),
                dimensions=ARCHITECTURES.get(label) if kind == "name" else None,
                key=key,
                map=_strings(given, "map"),
                images=_own(given, folder, "images"),
                prompts=_own(given, folder, "prompts"),
            )
        )


_Found = Iterator[tuple[str, Source]]


def _by_path(place: str, folder: Path, root: str | None) -> _Found:  # noqa: ARG001
    if not _PATTERN.search(place):
        yield place, Source("path", str(towers.within(folder.absolute(), place)))
        return
    matching = sorted(glob.glob(place, root_dir=folder, recursive=True))  # noqa: PTH207 - relative
    if not matching:
        raise _Wrong(
            f"expected files that {place!r} matches, found none",
            f"Paths start from the folder of the catalogue, {folder.absolute()}.",
        )
    for each in matching:
        yield each, Source("path", str((folder / each).absolute()))


def _by_url(place: str, folder: Path, root: str | None) -> _Found:  # noqa: ARG001
    try:
        parts = urlsplit(place)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Wrong(f"expected a url of http or https, found {place!r}", "Write https://...")
    yield place, Source("url", place)


def _by_name(place: str, folder: Path, root: str | None) -> _Found:  # noqa: ARG001
    try:
        there = download.cached(place, root)
        known = registry.find(place)
    except UnknownModelError as error:
        raise _Wrong(error.problem, error.remedy) from error
    if there is None:
        yield place, Source("url", known.url, known.sha256, known.size)
    else:
        yield place, Source("path", str(there.absolute()))


def _checked(entry: Entry) -> Entry:
    """Return the entry; raise if its backends, dtypes or devices are unknown."""
    wild = [each for each in entry.backends if each in (ALL, DEFAULT)]
    if wild and len(entry.backends) > 1:
        raise _Wrong(
            f"expected {ALL} alone, found {', '.join(entry.backends)}",
            "It means every backend that fits; leave out the others.",
        )
    for dtype in entry.dtypes:
        if dtype != DEFAULT and dtype not in LIMITS:
            raise _Wrong(f"expected a dtype, found {dtype!r}", f"Known are {', '.join(LIMITS)}.")
    for device in entry.devices:
        if not _DEVICE.fullmatch(device):
            raise _Wrong(
                f"expected a device, found {device!r}", "Known are cpu, cuda, cuda:1, mps."
            )
    if wild:
        return entry
    return replace(
        entry, backends=tuple(str(choice) for choice in chosen(entry.backends, own=False))
    )


def _require_once(entries: Sequence[Entry]) -> None:
    seen: set[tuple[str, str, str, str, str | None]] = set()
    for entry in entries:
        for device in entry.devices or ("",):
            for backend in entry.backends:
                for dtype in entry.dtypes:
                    run = (str(entry.source), device, backend, dtype, entry.key)
                    if run in seen:
                        told = " ".join(part for part in run[1:4] if part)
                        raise _Wrong(
                            f"expected {entry.label} once, found it twice"
                            + (f" ({told})" if told else ""),
                            "Leave one of them out.",
                        )
                    seen.add(run)


def _string(given: Mapping[str, Any], key: str) -> str:
    value = given[key]
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"expected {key} to be a text, found {value!r}", "Put it in quotes.")
    return value


def _strings(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, [])
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(e, str) and e for e in several):
        raise _Wrong(f"expected {key} to be a text or a list of them, found {value!r}", "Quote it.")
    if len(set(several)) < len(several):
        raise _Wrong(f"expected each {key} once, found {value!r}", "Leave one of them out.")
    try:
        if key == "backend":
            chosen(several, own=False)
        elif key == "map":
            CheckOptions(map=several)
    except ClipcheckError as error:
        raise _Wrong(error.problem, error.remedy) from error
    return tuple(several)


def _reference(given: Mapping[str, Any], folder: Path) -> str | None:
    if "reference" not in given:
        return None
    name = _string(given, "reference")
    return name if name in registry.RELEASED else str((folder / name).absolute())


def _architecture(given: Mapping[str, Any], folder: Path) -> str | None:
    if "architecture" not in given:
        return None
    name = _string(given, "architecture")
    place = folder / name
    try:
        return named(str(place) if place.is_file() else name, asked="").argument
    except ClipcheckError as error:
        raise _Wrong(f"architecture: {error.problem}", error.remedy) from error


def _own(given: Mapping[str, Any], folder: Path, key: str) -> str | None:
    if key not in given:
        return None
    path = str((folder / _string(given, key)).absolute())
    try:
        CheckOptions(**{key: path})  # type: ignore[arg-type]
    except ClipcheckError as error:
        raise _Wrong(f"{error.path}: {error.problem}", error.remedy) from error
    return path


def _digest(given: Mapping[str, Any]) -> str:
    if "sha256" not in given:
        return ""
    found = _string(given, "sha256").lower()
    if not _DIGEST.fullmatch(found):
        raise _Wrong(
            f"expected a SHA-256 of 64 hexadecimal digits, or 8 or more that it begins with, "
            f"found {found!r}",
            "Leave it out if it is not known.",
        )
    return found


def _size(given: Mapping[str, Any]) -> int | None:
    value = given.get("size")
    if value is None:
        return None
    size = value if type(value) is int else bytes_in(value) if isinstance(value, str) else None
    if size is None or size <= 0:
        raise _Wrong(f"expected a size such as '350 MB', found {value!r}", "Or leave it out.")
    return size


def _of_folder(folder: Path) -> list[Entry]:
    """Find all checkpoints in a folder and below, sorted by name. A folder that is a checkpoint
    itself is not searched; of one with a program for each tower, these are one checkpoint."""
    found = sorted(_without_data(list(_within(folder, frozenset()))))
    if not found:
        raise CatalogueError(
            f"expected a checkpoint in this folder, found none ({', '.join(ENDINGS)})",
            remedy="Name the folder that they are in.",
            path=folder,
        )
    return [Entry(label=str(path), source=Source("path", str(path.absolute()))) for path in found]


def _without_data(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the paths that are neither data files of programs among them, whose suffixes may be
    any, nor other XML."""
    data = {each for path in paths for each in _data(path)}
    return (path for path in paths if path not in data and not _is_other_xml(path))


def _data(path: Path) -> Iterator[Path]:
    with suppress(CheckpointError):  # the check reports the error
        if path.suffix.lower() == ".onnx":
            yield from data_files(path)
        elif path.suffix.lower() == ".xml" and not _is_other_xml(path):
            yield weights_of(path)


def _is_other_xml(path: Path) -> bool:
    with suppress(OSError):  # the check reports the error
        return path.suffix.lower() == ".xml" and path.is_file() and not is_openvino(path)
    return False


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG))


def _pair(folder: Path) -> frozenset[Path]:
    """Return a program for each tower in a folder, with their data files; nothing where these are
    no pair, so that each is a checkpoint."""
    found: tuple[Path, ...] | None = None
    with suppress(UsageError):
        found = towers.find(folder)
    return frozenset(each for path in found or () for each in (path, *_data(path)))


def _within(folder: Path, known: frozenset[Path]) -> Iterator[Path]:
    """Yield the checkpoints of a folder, without files that belong to a known one."""
    if _is_model(folder):
        yield folder
        return
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise _refused(folder, error.strerror or str(error)) from error
    pair = _pair(folder)
    if not known.issuperset(pair):
        yield folder
    known |= pair
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if _is_model(path) or not path.is_symlink():  # which may form a loop
                yield from _within(path, known)
        elif path.suffix.lower() in ENDINGS and path not in known:
            yield path
