"""Keep Hypothesis from drawing the constants of whoever calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_alone = threading.RLock()


@contextmanager
def without_local_constants() -> Iterator[None]:
    """Draw the same for the same seed, whichever script asks.

    Hypothesis reads the source of all modules that are no package's, and draws numbers and texts
    that stand there now and then. There is no setting for it, and no public name. In a version that
    has other names than these what is drawn may depend on the caller; the digest of the inputs,
    which every result carries, tells.
    """
    from hypothesis.internal.conjecture import providers

    read = getattr(providers, "_get_local_constants", None)
    permitted = getattr(providers, "CONSTANTS_CACHE", None)
    if read is None or permitted is None:
        yield
        return
    from hypothesis.internal.constants_ast import Constants

    with _alone:
        # Of the cache, what was found for tests of the caller's own would be taken for ours.
        providers._get_local_constants = Constants
        providers.CONSTANTS_CACHE = type(permitted)(permitted.max_size)
        try:
            yield
        finally:
            providers._get_local_constants = read
            providers.CONSTANTS_CACHE = permitted
