"""Bring a checkpoint here for as long as it is judged."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from clipcheck.errors import DownloadError, UsageError
from clipcheck.sweep.jobs import Source


@contextmanager
def brought(source: Source, scratch: Path) -> Iterator[tuple[Path, int]]:
    """The file of a checkpoint, and how many bytes were fetched; they are gone at the end.

    Args:
        source: where it is.
        scratch: the folder to fetch into, in a folder of its own.

    Raises:
        DownloadError: it could not be fetched, or is another file.
        UsageError: it is on the hub, and what reads that is not installed.
    """
    if not source.fetched:
        yield Path(source.place), 0
        return
    folder = folder_of(source, scratch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch = _from_hub if source.kind == "hub" else _from_url
        path = fetch(source, folder)
        yield path, path.stat().st_size
    finally:
        drop(source, scratch)


def folder_of(source: Source, scratch: Path) -> Path:
    """What a source is fetched into."""
    return scratch / hashlib.sha256(str(source).encode()).hexdigest()[:16]


def drop(source: Source, scratch: Path) -> None:
    """Remove what was fetched, whole or in part."""
    if source.fetched:
        shutil.rmtree(folder_of(source, scratch), ignore_errors=True)


def _from_url(source: Source, folder: Path) -> Path:
    from clipcheck.checkpoints.download import retrieve

    path = folder / _file_name(source)
    retrieve(source.place, path, sha256=source.sha256 or None, size=source.size)
    return path


def _from_hub(source: Source, folder: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UsageError(
            f"{source.place}: expected huggingface_hub, found that it is not installed",
            remedy="Install it: pip install huggingface_hub.",
        ) from error
    organisation, repository, name = source.place.split("/", 2)
    try:
        return Path(hf_hub_download(f"{organisation}/{repository}", name, local_dir=folder))
    except (OSError, ValueError) as error:  # its own errors are among these
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{source.place} could not be fetched from the hub: {told.rstrip('.')}",
            remedy="Check the network, and whether the repository asks for a login.",
        ) from error


def _file_name(source: Source) -> str:
    """A plain name: what a URL says is anything."""
    name = PurePosixPath(urlsplit(source.place).path).name
    return re.sub(r"[^\w.-]", "-", name).lstrip(".") or "checkpoint"
