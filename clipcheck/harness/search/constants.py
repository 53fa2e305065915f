"""Keep Hypothesis from drawing the constants of the caller's source."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_alone = threading.RLock()


@contextmanager
def without_local_constants() -> Iterator[None]:
    """Make draws depend on the seed alone, not on the calling script.

    Hypothesis reads the source of modules outside of packages, and sometimes draws constants from
    there. There is no setting and no public name for this. In a version with other private names,
    draws may depend on the caller; the digest of the inputs in each result shows that.
    """
    from hypothesis.internal.conjecture import providers

    read = getattr(providers, "_get_local_constants", None)
    permitted = getattr(providers, "CONSTANTS_CACHE", None)
    if read is None or permitted is None:
        yield
        return
    from hypothesis.internal.constants_ast import Constants

    with _alone:
        # The cache would otherwise have constants of the caller's tests.
        providers._get_local_constants = Constants
        providers.CONSTANTS_CACHE = type(permitted)(permitted.max_size)
        try:
            yield
        finally:
            providers._get_local_constants = read
            providers.CONSTANTS_CACHE = permitted
