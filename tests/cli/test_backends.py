from __future__ import annotations

import pytest

from clipcheck.backends.base import Missing
from clipcheck.backends.names import BACKENDS
from clipcheck.backends.registry import find
from conftest import Run


def test_backends_are_listed_with_what_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Missing("onnxruntime is not installed", "Install it: pip install 'clipcheck[onnx]'.")
    monkeypatch.setattr(find("onnxruntime"), "available", lambda: missing)
    done = run("backends")
    assert (done.code, done.err) == (0, "")
    assert "onnxruntime   cannot run here: onnxruntime is not installed.\n" in done.out
    assert "pip install 'clipcheck[onnx]'" in done.out
    starts = [line.split()[0] for line in done.out.splitlines() if line[:1] not in ("", " ")]
    assert starts[: len(BACKENDS)] == list(BACKENDS)
