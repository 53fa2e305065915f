from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.sweep import facts
from clipcheck.sweep.cost import flops
from clipcheck.sweep.facts import Facts, facts_of
from clipcheck.sweep.ledger import Ledger
from tests.samples import MINUTE, minute_bytes


def test_a_checkpoint_tells_its_hash_its_size_and_its_operations(tmp_path: Path) -> None:
    path = tmp_path / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    with Ledger(tmp_path / "ledger") as ledger:
        found = facts_of(path, ledger)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size == path.stat().st_size
    assert found.flops == flops(MINUTE)


def test_a_file_that_has_not_changed_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"some")
    with Ledger(tmp_path / "ledger") as ledger:
        known = facts_of(path, ledger)
        monkeypatch.setattr(facts, "_looked_into", lambda *_: pytest.fail("it was read"))
        assert facts_of(path, ledger) == known
        monkeypatch.undo()
        stat = path.stat()
        path.write_bytes(b"same")  # as long as before
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert facts_of(path, ledger).sha256 != known.sha256


def test_what_is_no_checkpoint_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"PK\x03\x04nothing")
    with Ledger(tmp_path / "ledger") as ledger:
        found = facts_of(path, ledger)
    assert found == Facts(hashlib.sha256(path.read_bytes()).hexdigest(), 11)
    assert found.flops is None


def test_what_is_not_there_has_no_facts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        assert facts_of(tmp_path / "gone.pt", ledger) == Facts()
        (tmp_path / "folder").mkdir()
        assert facts_of(tmp_path / "folder", ledger) == Facts()
