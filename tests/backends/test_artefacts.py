from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipcheck.backends import artefacts
from clipcheck.backends.artefacts import Artefacts, default_folder, limit_in_bytes
from clipcheck.errors import UsageError
from tests.locking import NONE, pretend_locks, refuse_locks

SPAWN = multiprocessing.get_context("spawn")
KEY = {"torch": "2.9", "checkpoint": "ab"}


def writing(contents: bytes = b"program") -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.write_bytes(contents)

    return build


def never(path: Path) -> None:
    raise AssertionError(f"{path} was built again")


def entries(folder: Path) -> list[Path]:
    """List the visible entries of the cache, also unfinished and replaced ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def test_a_built_artefact_is_reused(folder: Path, scratch: Path) -> None:
    first = Artefacts(folder, scratch)
    built = first.get("x.so", KEY, writing())
    second = Artefacts(folder, scratch)
    fetched = second.get("x.so", KEY, never)
    assert fetched == built
    assert fetched.name == "x.so"
    assert fetched.read_bytes() == b"program"
    assert fetched.is_relative_to(folder)
    assert list(scratch.iterdir()) == []
    assert [got.path for got in first.got + second.got] == [built, built]
    assert first.got[0].seconds is not None
    assert second.got[0].seconds is None


def test_the_time_of_building_is_reported(folder: Path, scratch: Path) -> None:
    def build(path: Path) -> None:
        time.sleep(0.05)
        path.touch()

    kept = Artefacts(folder, scratch)
    kept.get("x.so", KEY, build)
    (got,) = kept.got
    assert got.seconds is not None
    assert 0.05 <= got.seconds < 5


@pytest.mark.parametrize(
    ("name", "key"),
    [("y.so", KEY), ("x.so", {**KEY, "torch": "2.10"}), ("x.so", {**KEY, "mode": "default"})],
)
def test_another_name_or_key_means_another_artefact(
    name: str, key: dict[str, str], folder: Path, scratch: Path
) -> None:
    kept = Artefacts(folder, scratch)
    one = kept.get("x.so", KEY, writing(b"one"))
    other = kept.get(name, key, writing(b"other"))
    assert (one.read_bytes(), other.read_bytes()) == (b"one", b"other")


def test_another_version_of_clipcheck_builds_its_own(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Artefacts(folder, scratch).get("x.so", KEY, writing(b"old"))
    monkeypatch.setattr(artefacts, "__version__", "99")
    assert Artefacts(folder, scratch).get("x.so", KEY, writing(b"new")).read_bytes() == b"new"


def test_the_order_of_the_key_does_not_matter(folder: Path, scratch: Path) -> None:
    Artefacts(folder, scratch).get("x.so", KEY, writing())
    Artefacts(folder, scratch).get("x.so", dict(reversed(KEY.items())), never)


def test_additional_files_are_kept_with_the_artefact(folder: Path, scratch: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"graph")
        path.with_name("x.onnx.data").write_bytes(b"weights")
        (path.parent / "more").mkdir()
        (path.parent / "more" / "tokens").write_bytes(b"ids")

    Artefacts(folder, scratch).get("x.onnx", KEY, build)
    path = Artefacts(folder, scratch).get("x.onnx", KEY, never)
    assert path.with_name("x.onnx.data").read_bytes() == b"weights"
    assert (path.parent / "more" / "tokens").read_bytes() == b"ids"


def test_without_a_cache_each_artefact_is_built_once_in_scratch(scratch: Path) -> None:
    kept = Artefacts(None, scratch)
    path = kept.get("x.so", KEY, writing())
    assert kept.get("x.so", KEY, never) == path
    assert path.is_relative_to(scratch)
    assert [got.path for got in kept.got] == [path]
    assert Artefacts(None, scratch).get("x.so", KEY, writing()) != path


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(
    failure: BaseException, folder: Path, scratch: Path
) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise failure

    kept = Artefacts(folder, scratch)
    with pytest.raises(type(failure)):
        kept.get("x.so", KEY, fail)
    assert entries(folder) == []
    assert list(scratch.iterdir()) == []
    assert kept.got == []
    assert kept.get("x.so", KEY, writing()).read_bytes() == b"program"


def test_a_build_that_writes_another_file_is_an_error(folder: Path, scratch: Path) -> None:
    def build(path: Path) -> None:
        path.with_name("y.so").touch()

    with pytest.raises(ValueError, match=r"expected build to write x\.so, and it did not"):
        Artefacts(folder, scratch).get("x.so", KEY, build)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    """Flip one bit and keep the size and modification time, like a torn write."""
    stat = path.stat()
    contents = bytearray(path.read_bytes())
    contents[3] ^= 1
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def remove(path: Path) -> None:
    path.unlink()


def add_another(path: Path) -> None:
    path.with_name("z").touch()


def lose_the_record(path: Path) -> None:
    (path.parent / ".sha256.json").unlink()


def damage_the_record(path: Path) -> None:
    (path.parent / ".sha256.json").write_bytes(b'{"x.so": "\xff')


@pytest.mark.parametrize(
    "damage", [cut_off, alter, remove, add_another, lose_the_record, damage_the_record]
)
def test_a_damaged_artefact_is_built_again(
    damage: Callable[[Path], None], folder: Path, scratch: Path
) -> None:
    damage(Artefacts(folder, scratch).get("x.so", KEY, writing()))
    kept = Artefacts(folder, scratch)
    assert kept.get("x.so", KEY, writing()).read_bytes() == b"program"
    assert kept.got[0].seconds is not None
    Artefacts(folder, scratch).get("x.so", KEY, never)


def test_an_unusable_cache_folder_is_reported_once_and_not_used(
    tmp_path: Path, scratch: Path
) -> None:
    (tmp_path / "file").touch()
    kept = Artefacts(tmp_path / "file" / "kept", scratch)
    with pytest.warns(UserWarning, match="cannot be kept there"):
        path = kept.get("x.so", KEY, writing())
    kept.get("y.so", KEY, writing())  # A second warning would be an error.
    assert path.read_bytes() == b"program"
    assert path.is_relative_to(scratch)
    assert [got.seconds is None for got in kept.got] == [False, False]


def test_artefacts_in_a_read_only_folder_are_used(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Artefacts(folder, scratch).get("x.so", KEY, writing())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(artefacts, "file_lock", refuse)  # root may write anywhere
    kept = Artefacts(folder, scratch)
    assert kept.get("x.so", KEY, never) == path
    with pytest.warns(UserWarning, match=r"Permission denied.*CLIPCHECK_ARTEFACTS"):
        assert kept.get("y.so", KEY, writing()).is_relative_to(scratch)


def test_with_a_full_disk_the_artefact_stays_in_scratch(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "x.so").write_bytes(b"pro")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefacts.shutil, "copytree", fill)
    kept = Artefacts(folder, scratch)
    with pytest.warns(UserWarning, match="No space left on device"):
        path = kept.get("x.so", KEY, writing())
    assert path.is_relative_to(scratch)
    assert path.read_bytes() == b"program"
    assert [got.path for got in kept.got] == [path]
    assert entries(folder) == []


def test_only_the_user_may_read_the_cache_folder(folder: Path, scratch: Path) -> None:
    Artefacts(folder, scratch).get("x.so", KEY, writing())
    assert folder.stat().st_mode & 0o077 == 0


def test_the_least_recently_used_go_first(folder: Path, scratch: Path) -> None:
    for name in "abc":
        Artefacts(folder, scratch, limit=3000).get(name, KEY, writing(bytes(1000)))
    Artefacts(folder, scratch, limit=3000).get("a", KEY, never)
    Artefacts(folder, scratch, limit=3000).get("d", KEY, writing(bytes(1000)))
    assert {path.name for path in folder.glob("*/[a-d]")} == {"a", "c", "d"}
    assert len(entries(folder)) == 3


def test_the_artefact_in_use_stays_however_large_it_is(folder: Path, scratch: Path) -> None:
    Artefacts(folder, scratch, limit=10).get("a", KEY, writing(bytes(8)))
    path = Artefacts(folder, scratch, limit=10).get("b", KEY, writing(bytes(1000)))
    assert path.exists()
    assert entries(folder) == [path.parent]


def test_additional_files_count_towards_the_limit(folder: Path, scratch: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(bytes(500))
        path.with_name("data").write_bytes(bytes(500))

    Artefacts(folder, scratch, limit=999).get("a", KEY, build)
    path = Artefacts(folder, scratch, limit=999).get("b", KEY, writing(b"1"))
    assert entries(folder) == [path.parent]


def test_artefacts_that_this_process_uses_stay(folder: Path, scratch: Path) -> None:
    kept = Artefacts(folder, scratch, limit=0)
    first = kept.get("a", KEY, writing())
    second = kept.get("b", KEY, writing())
    assert first.exists()
    del kept
    third = Artefacts(folder, scratch, limit=0).get("c", KEY, writing())
    assert [first.exists(), second.exists(), third.exists()] == [False, False, True]


NAMES = "abcde"


class Model:
    """The simplest cache with a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[str, int] = {}

    def get(self, name: str, size: int) -> None:
        self.held[name] = self.held.pop(name, size)
        for old in list(self.held)[:-1]:
            if sum(self.held.values()) > self.limit:
                del self.held[old]


@settings(max_examples=30, deadline=None)
@given(
    limit=st.integers(0, 30),
    asked=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 12)), max_size=12),
)
def test_an_artefact_stays_as_long_as_a_model_uses_it(
    limit: int, asked: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    model = Model(limit)
    for name, size in asked:
        Artefacts(folder, folder / ".scratch", limit=limit).get(name, KEY, writing(bytes(size)))
        model.get(name, size)
        assert {path.name: path.stat().st_size for path in folder.glob("*/[a-e]")} == model.held


def build_slowly(folder: Path, scratch: Path, log: Path, begun: Event) -> None:
    def build(path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        path.write_bytes(b"half")
        begun.set()
        time.sleep(0.3)
        path.write_bytes(b"program")

    assert Artefacts(folder, scratch).get("x.so", KEY, build).read_bytes() == b"program"


@pytest.mark.thorough
def test_concurrent_processes_build_once(folder: Path, scratch: Path) -> None:
    log = folder.parent / "log"
    begun = SPAWN.Event()
    workers = [
        SPAWN.Process(target=build_slowly, args=(folder, scratch, log, begun)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(log.read_text().split()) == 1


def hang(folder: Path, scratch: Path, begun: Event) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        begun.set()
        time.sleep(60)

    Artefacts(folder, scratch).get("x.so", KEY, build)


def hang_over_the_copy(folder: Path, scratch: Path, begun: Event) -> None:
    def copy(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "x.so").write_bytes(b"half")
        begun.set()
        time.sleep(60)

    artefacts.shutil.copytree = copy  # type: ignore[assignment]
    Artefacts(folder, scratch).get("x.so", KEY, writing())


@pytest.mark.parametrize("target", [hang, hang_over_the_copy])
@pytest.mark.parametrize("swept", [False, True])
def test_a_killed_process_does_not_disturb_the_next_one(
    target: Callable[[Path, Path, Event], None], swept: bool, folder: Path, scratch: Path
) -> None:
    begun = SPAWN.Event()
    worker = SPAWN.Process(target=target, args=(folder, scratch, begun))
    worker.start()
    assert begun.wait(60)
    worker.kill()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert not list(folder.glob("*/.sha256.json"))
    if swept:
        other = Artefacts(folder, scratch).get("y.so", KEY, writing())
        assert entries(folder) == [other.parent]
    assert Artefacts(folder, scratch).get("x.so", KEY, writing()).read_bytes() == b"program"


def use(folder: Path, scratch: Path, ready: Event, over: Event) -> None:
    kept = Artefacts(folder, scratch)
    path = kept.get("x.so", KEY, writing())
    ready.set()
    assert over.wait(60)
    assert path.read_bytes() == b"program"


def test_artefacts_of_another_process_stay_until_it_ends(folder: Path, scratch: Path) -> None:
    ready, over = SPAWN.Event(), SPAWN.Event()
    worker = SPAWN.Process(target=use, args=(folder, scratch, ready, over))
    worker.start()
    assert ready.wait(60)
    Artefacts(folder, scratch, limit=0).get("y.so", KEY, writing())
    over.set()
    worker.join(60)
    assert worker.exitcode == 0
    assert len(list(folder.glob("*/x.so"))) == 1
    assert len(list(folder.glob(".*.used"))) == 2
    Artefacts(folder, scratch, limit=0).get("y.so", KEY, never)
    assert len(list(folder.glob("*/x.so"))) == 0
    assert len(list(folder.glob(".*.used"))) == 1


def test_an_artefact_being_built_is_not_deleted(folder: Path, scratch: Path) -> None:
    begun = SPAWN.Event()
    worker = SPAWN.Process(target=hang_over_the_copy, args=(folder, scratch, begun))
    worker.start()
    try:
        assert begun.wait(60)
        Artefacts(folder, scratch, limit=0).get("y.so", KEY, writing())
        assert len(list(folder.glob("*.part/x.so"))) == 1
    finally:
        worker.kill()
        worker.join(60)


def test_marks_of_use_are_released_silently(folder: Path, scratch: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from clipcheck.backends.artefacts import Artefacts\n"
        "kept = Artefacts(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "kept.get('x', {}, Path.touch)\n"
    )
    run = [sys.executable, "-Walways", "-c", code, str(folder), str(scratch)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stderr == ""


def test_if_the_clock_is_set_back_the_least_recently_used_still_go_first(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = 365 * 86400 * 10**9
    clock = time.time_ns()
    for name in "abcd":
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        Artefacts(folder, scratch, limit=2000).get(name, KEY, writing(bytes(1000)))
        clock -= year
    assert {path.name for path in folder.glob("*/[a-d]")} == {"c", "d"}


def test_files_of_another_version_are_left_alone(folder: Path, scratch: Path) -> None:
    ours = Artefacts(folder, scratch).get("x.so", KEY, writing()).parent
    newer = folder / "v2"
    newer.mkdir()
    (newer / "entry").write_bytes(b"of another version")
    (folder / ".v2.lock").touch()
    (folder / f"{'ab' * 32}.new").mkdir()
    Artefacts(folder, scratch, limit=0).get("y.so", KEY, writing())
    assert not ours.exists()
    assert (newer / "entry").read_bytes() == b"of another version"
    assert (folder / ".v2.lock").exists()
    assert (folder / f"{'ab' * 32}.new").exists()


def test_incomplete_files_of_an_earlier_version_are_deleted(folder: Path, scratch: Path) -> None:
    (folder / f"{'ab' * 32}.part").mkdir(parents=True)
    path = Artefacts(folder, scratch).get("x.so", KEY, writing())
    assert entries(folder) == [path.parent]


def test_without_locks_existing_artefacts_are_used(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Artefacts(folder, scratch).get("x.so", KEY, writing())
    for number in NONE:
        refuse_locks(monkeypatch, number)
        kept = Artefacts(folder, scratch)
        assert kept.get("x.so", KEY, never) == path
        with pytest.warns(UserWarning, match=os.strerror(number)):
            built = kept.get("y.so", KEY, writing(b"another"))
        assert built.is_relative_to(scratch)
        assert built.read_bytes() == b"another"
    assert entries(folder) == [path.parent]


def test_two_processes_with_ineffective_locks_do_not_write_to_one_entry(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_locks(monkeypatch)
    copy = shutil.copytree
    other: list[Path] = []
    targets: list[Path] = []

    def interrupted(source: Path, target: Path) -> None:
        """Copy half; then another process copies all of its own."""
        targets.append(target)
        if len(targets) == 2:
            copy(source, target)
            return
        target.mkdir()
        shutil.copyfile(source / "x.so", target / "x.so")
        with ThreadPoolExecutor(1) as pool:  # in one thread, filelock would see that it is held
            theirs = pool.submit(Artefacts(folder, scratch).get, "x.so", KEY, build(b"theirs"))
            other.append(theirs.result(10))
        shutil.copyfile(source / "weights", target / "weights")

    def build(contents: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            path.write_bytes(contents)
            path.with_name("weights").write_bytes(contents)

        return write

    monkeypatch.setattr(artefacts.shutil, "copytree", interrupted)
    path = Artefacts(folder, scratch).get("x.so", KEY, build(b"ours"))
    assert path == other[0]
    assert len(set(targets)) == 2
    for found in (path, path.with_name("weights")):
        assert found.read_bytes() == b"theirs"
    assert entries(folder) == [path.parent]
    Artefacts(folder, scratch).get("x.so", KEY, never)


def test_the_folder_is_set_by_the_variable_or_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS", "~/mine")
    assert default_folder() == Path("/home/x/mine")
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS", "")
    assert default_folder() == Path("/home/x/.cache/clipcheck/artefacts")
    monkeypatch.delenv("CLIPCHECK_ARTEFACTS")
    assert default_folder() == Path("/home/x/.cache/clipcheck/artefacts")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", 20_000_000_000),
        ("0", 0),
        ("123456", 123456),
        ("123456B", 123456),
        ("5GB", 5_000_000_000),
        (" 1.5 TB ", 1_500_000_000_000),
        ("500 MB", 500_000_000),
        ("7k", 7000),
    ],
)
def test_a_limit_is_bytes_or_has_a_unit(
    written: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS_LIMIT", written)
    assert limit_in_bytes() == expected


@pytest.mark.parametrize("written", ["much", "-1", "5GiB", "GB", "1e9", "nan"])
def test_an_invalid_limit_is_an_error(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS_LIMIT", written)
    with pytest.raises(UsageError, match=f"expected a size as in 5GB or 500MB, found '{written}'"):
        Artefacts(tmp_path, tmp_path)


def test_the_variable_sets_the_default_limit(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_ARTEFACTS_LIMIT", "10B")
    for name in "ab":
        Artefacts(folder, scratch).get(name, KEY, writing(bytes(8)))
    assert [path.name for path in folder.glob("*/[ab]")] == ["b"]
