"""``clipcheck models``: list the released models."""

from __future__ import annotations

from clipcheck.cli import options
from clipcheck.cli.output import print_line


def models(download_root: options.DownloadRoot = None) -> None:
    """List the released models, and which are in the cache."""
    from clipcheck.checkpoints import download, registry
    from clipcheck.system import figures

    print_line(f"cache: {download.cache_directory(download_root)}")
    for name in registry.available_models():
        size = figures.size(registry.find(name).size)
        path = download.cached(name, download_root)
        print_line(f"{name:<16}{size:>9}  {path or 'not in the cache'}")
