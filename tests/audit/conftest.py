"""One thread for the tests of the audit: small models gain nothing from more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clipcheck.audit import auditing


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let the audit see one core. It divides the cores among its jobs, and sets torch's threads for
    the process, here that of the tests: beside other tests the threads wait for each other, and
    would stay for all later tests of the process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditing, "cores", lambda: 1)
        yield
    torch.set_num_threads(threads)
