"""The process that a search runs in: ``python -m tests.fuzz.child TARGET SECONDS SEED FOLDER OUT``.

It writes its counts to OUT as it goes, so that they are there however it ends.
"""

from __future__ import annotations

import os
import random
import sys
import time
import warnings
from pathlib import Path

_EVERY = 50
"""Runs between two times that the counts are written."""

_COVERED = [
    "clipcheck.checkpoints",
    "clipcheck.harness.search",
    "clipcheck.results.history",
    "clipcheck.backends",
]
_LIBRARIES = ["json", "zipfile", "pickletools", "PIL.PngImagePlugin"]


def main(name: str, seconds: str, seed: str, folder: str, out: str) -> None:
    """Search until the time is over, then end the process."""
    warnings.simplefilter("ignore")
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        from tests.fuzz import search, targets
    else:
        import torch  # noqa: F401 - before the imports are instrumented, which would take minutes

        with atheris.instrument_imports(include=[*_COVERED, *_LIBRARIES]):
            from tests.fuzz import search, targets
    target = targets.TARGETS[name]
    scratch = Path(out).parent
    job = search.Search(target, Path(folder), scratch)
    seeds = target.seeds()
    for each in seeds:  # what is imported and kept is so before memory is bounded
        job.run(each)
    search.bound_memory()
    tally = Path(out)

    def run(data: bytes) -> None:
        job.run(data)
        if job.tally.runs % _EVERY == 0:
            tally.write_text(job.tallied(), encoding="utf-8")
            if time.monotonic() > end:
                os._exit(0)

    end = time.monotonic() + float(seconds)
    if atheris is None:
        rng = random.Random(int(seed))
        while True:
            run(search.altered(target, seeds, rng))

    def alter(data: bytes, _: int, drawn: int) -> bytes:
        rng = random.Random(drawn)
        # What was found to reach new code, or a seed anew.
        known = seeds if len(data) < 2 or rng.random() < 0.1 else [data]
        return search.altered(target, known, rng)

    corpus = scratch / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, each in enumerate(seeds):
        (corpus / str(number)).write_bytes(each)
    most = max(1 << 16, *(2 * len(each) for each in seeds))
    options = [f"-seed={seed}", f"-max_len={most}", "-timeout=0", "-rss_limit_mb=0", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=alter)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
