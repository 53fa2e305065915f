"""``clipcheck models``: list the released models."""

from __future__ import annotations

from clipcheck.cli import options
from clipcheck.cli.output import print_line


def models(download_root: options.DownloadRoot = None) -> None:
    """List the released models, and which are in the cache."""
    from clipcheck.checkpoints import download, registry
    from clipcheck.report.cells import visible
    from clipcheck.report.tables import table
    from clipcheck.system import figures

    print_line(f"cache: {download.cache_directory(download_root)}")
    rows = []
    for name in registry.available_models():
        path = download.cached(name, download_root)
        size = figures.size(registry.find(name).size)
        rows.append((name, size, visible(str(path or "not in the cache"))))
    print_line(table(rows, right=[1]).plain)
