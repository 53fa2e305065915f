"""The suite of clipcheck on this repository's default checkpoints.

The promise: an archive and the eager model of its weights compute the same. ``--clip-model`` and
``--clip-device`` choose what is judged.
"""

from __future__ import annotations

from clipcheck.suite import test_gate as test_gate
