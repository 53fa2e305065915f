from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from clipcheck.system.locks import are_missing, file_lock, locked_where_possible
from tests.locking import NONE, refuse_locks


def test_only_one_process_holds_the_lock(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked_where_possible(tmp_path / "lock") as held:
            order.append(f"second {held}")

    with locked_where_possible(tmp_path / "lock") as held:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append(f"first {held}")
    thread.join(10)
    assert order == ["first True", "second True"]


@pytest.mark.parametrize("number", NONE)
def test_without_locks_no_process_waits_or_leaves_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        file_lock(tmp_path / "lock")
    assert are_missing(caught.value)
    for _ in range(2):  # what a process before has left is in nobody's way
        with locked_where_possible(tmp_path / "lock") as held:
            assert not held
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("lock", 0)]


def test_other_errors_do_not_count_as_missing_locks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, locked_where_possible(tmp_path / "a" / "lock"):
        pytest.fail("the block must not be entered")
    assert not are_missing(caught.value)
    assert not are_missing(PermissionError(errno.EACCES, "Permission denied"))
