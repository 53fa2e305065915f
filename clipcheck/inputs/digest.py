"""A digest of inputs: two runs with the same digest had the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from clipcheck.inputs.batches import Batch


def digest(batches: Iterable[Batch]) -> str:
    """Hash pixels and token ids, with their dtypes, shapes and order, to 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for array in (batch.pixels, batch.tokens):
            hashed.update(f"{array.dtype} {array.shape} ".encode())
            hashed.update(array.tobytes())
    return hashed.hexdigest()
