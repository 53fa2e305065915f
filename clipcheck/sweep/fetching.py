"""Fetch a checkpoint for the time of its check."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from clipcheck.errors import DownloadError, UsageError, first_line
from clipcheck.sweep.jobs import Source

_ON_THE_HUB = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of open_clip's weights on the hub, in open_clip's order."""


@contextmanager
def brought(source: Source, folder: Path | None) -> Iterator[tuple[Path, int]]:
    """Yield the file of a checkpoint and the number of fetched bytes; delete the file at the end.

    Args:
        folder: to fetch into, for this file alone; None for a temporary one.

    Raises:
        DownloadError: it could not be fetched, or is a different file.
        UsageError: it is on the hub, and huggingface_hub is not installed.
    """
    if not source.fetched:
        yield Path(source.place), 0
        return
    with _folder(folder) as own:
        path = (_from_hub if source.kind == "hub" else _from_url)(source, own)
        yield path, path.stat().st_size


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="clipcheck-sweep-") as temporary:
            yield Path(temporary)
        return
    wanted.mkdir(parents=True, exist_ok=True)
    try:
        yield wanted
    finally:
        shutil.rmtree(wanted, ignore_errors=True)


def _from_url(source: Source, folder: Path) -> Path:
    from clipcheck.checkpoints.download import retrieve

    size = None if source.estimated else source.size
    return retrieve(
        source.place,
        folder / _file_name(source),
        sha256=source.sha256 or None,
        size=size,
        progress=False,
    )


def _from_hub(source: Source, folder: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise UsageError(
            f"{source.place}: expected huggingface_hub, found that it is not installed",
            remedy="Install it: pip install huggingface_hub.",
        ) from error
    organisation, repository, name = source.place.split("/", 2)
    names = [name] if name else list(_ON_THE_HUB)
    while True:
        try:
            return Path(hf_hub_download(f"{organisation}/{repository}", names[0], local_dir=folder))
        except EntryNotFoundError as error:
            del names[0]
            if not names:
                raise _not_fetched(source, error) from error
        except (OSError, ValueError) as error:  # bases of huggingface_hub's errors
            raise _not_fetched(source, error) from error


def _not_fetched(source: Source, error: Exception) -> DownloadError:
    return DownloadError(
        f"{source.place} could not be fetched from the hub: {first_line(error).rstrip('.')}",
        remedy="Check the network, and whether the repository asks for a login.",
    )


def _file_name(source: Source) -> str:
    """Return a safe file name: a URL may have any."""
    name = PurePosixPath(urlsplit(source.place).path).name
    return re.sub(r"[^\w.-]", "-", name).lstrip(".") or "checkpoint"
