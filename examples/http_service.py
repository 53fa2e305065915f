"""Compare a service with the checkpoint that it serves.

    python examples/http_service.py model.pt http://localhost:8000

The service answers POST requests to /encode_image and /encode_text: rows in numpy's format (float32
pixels [N, 3, R, R], int32 ids [M, L]) with features in numpy's format. Adapt `asking` to yours.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

import clipcheck

Ask = Callable[[NDArray[Any]], NDArray[Any]]


def asking(url: str) -> Ask:
    """Return a function that posts an array, and returns the array of the answer."""
    session = requests.Session()

    def ask(rows: NDArray[Any]) -> NDArray[Any]:
        sent = io.BytesIO()
        np.save(sent, rows)
        answer = session.post(url, data=sent.getvalue(), timeout=60)
        answer.raise_for_status()
        found: NDArray[Any] = np.load(io.BytesIO(answer.content))
        return found

    return ask


def compare(checkpoint: str, address: str) -> clipcheck.Result:
    """Compare the service at an address with a checkpoint."""
    pair = asking(f"{address}/encode_image"), asking(f"{address}/encode_text")
    return clipcheck.compare(checkpoint, pair)


if __name__ == "__main__":
    result = compare(*sys.argv[1:3])
    print(result)
    sys.exit(result.exit_code)
