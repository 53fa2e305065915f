from __future__ import annotations

import pytest

from clipcheck.backends import registry
from clipcheck.backends.base import Missing
from clipcheck.backends.registry import BACKENDS, listing, way


def test_every_backend_is_listed_with_what_its_file_says() -> None:
    found = listing()
    assert tuple(each.name for each in found) == BACKENDS
    for each in found:
        assert each.summary == way(each.name).SUMMARY
        assert each.options == way(each.name).OPTIONS
        assert bool(each.version) == (each.missing is None)


def test_of_one_that_cannot_run_no_version_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        raise AssertionError("its library is not there")

    missing = Missing("it is not installed", "Install it.")
    monkeypatch.setattr(way("onnxruntime"), "available", lambda: missing)
    monkeypatch.setattr(way("onnxruntime"), "version", version)
    found = {each.name: each for each in registry.listing()}["onnxruntime"]
    assert found.missing == missing
    assert found.version == ""
