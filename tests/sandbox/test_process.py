"""What a sandbox process can do, and how it ends; each test forks its own."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.errors import IsolationError
from clipcheck.sandbox import process
from clipcheck.sandbox.limits import Limits
from clipcheck.sandbox.process import Sandbox
from clipcheck.sandbox.wire import Memory
from tests.sandbox.probing import HANDLER, HERE, _tried, called
from tests.thorough import parametrize

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that confines")

DENIED, FORBIDDEN = "Operation not permitted", "Permission denied"
GENEROUS = Limits(seconds=60, memory=4 * 10**9, threads=1)

Tried = Callable[..., Any]


@pytest.fixture(scope="module")
def prober() -> Iterator[Sandbox]:
    """Share one process among all tests that do not end it."""
    with contextlib.closing(Sandbox(HANDLER, [HERE.parents[1]], GENEROUS)) as sandbox:
        yield sandbox


@pytest.fixture
def tried(prober: Sandbox) -> Tried:
    return lambda do, **how: prober.ask(do, "trying", **how).message["came"]


@contextlib.contextmanager
def short(seconds: float = 60, memory: int = 4 * 10**9) -> Iterator[Sandbox]:
    """Start a process that the test ends."""
    limits = Limits(seconds, memory, 1)
    with contextlib.closing(Sandbox(HANDLER, [HERE.parents[1]], limits)) as sandbox:
        yield sandbox


# --------------------------------------------------------------------------- files


def test_a_file_of_the_user_cannot_be_read_or_changed(tried: Tried, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    secret.chmod(0o600)
    assert tried("reads", path=str(secret)) == FORBIDDEN
    assert tried("writes", path=str(secret)) == FORBIDDEN
    assert tried("removes", path=str(secret)) == FORBIDDEN
    assert tried("changes_rights", path=str(secret)) == DENIED
    assert tried("lists", path=str(tmp_path)) == FORBIDDEN
    assert tried("writes", path=str(tmp_path / "new")) == FORBIDDEN
    assert secret.read_text() == "mine"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("number", [463, 466, 469])
def test_newer_calls_that_change_a_file_are_denied(tried: Tried, number: int) -> None:
    """setxattrat, removexattrat, file_setattr: outside of a sandbox Linux finds other faults
    first."""
    assert _tried(lambda: called(number))[0]["came"] not in (DENIED, FORBIDDEN)
    assert tried("calls", number=number) == DENIED


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/1/status", "/dev/mem", str(Path.home())])
def test_the_system_beyond_its_libraries_cannot_be_read(tried: Tried, path: str) -> None:
    do = "lists" if Path(path).is_dir() else "reads"
    assert tried(do, path=path) in (FORBIDDEN, "No such file or directory")


def test_given_files_can_be_read_but_not_written(tmp_path: Path) -> None:
    given, beside = tmp_path / "given", tmp_path / "beside"
    given.write_text("the file")
    beside.write_text("another")
    with contextlib.closing(Sandbox(HANDLER, [HERE.parents[1], given], GENEROUS)) as sandbox:
        came = [
            sandbox.ask(do, "trying", path=str(path)).message["came"]
            for do, path in [("reads", given), ("reads", beside), ("writes", given)]
        ]
    assert came == ["b'the file'", FORBIDDEN, FORBIDDEN]


def test_a_file_out_of_its_reach_is_copied_with_those_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("program", "sub/data")
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    path, data = (tmp_path / name for name in names)
    with short() as sandbox:
        assert sandbox.seen(path, [data]) == str(path)
        monkeypatch.setattr(process, "within_reach", lambda file: file != data)
        folder = Path(sandbox.seen(path, [data])).parent
        for name in names:
            came = sandbox.ask("reads", "trying", path=str(folder / name)).message["came"]
            assert came == str(name.encode())


def test_the_sandbox_has_a_temporary_folder_that_is_deleted_at_its_end(tmp_path: Path) -> None:
    with short() as sandbox:
        home = sandbox.ask("environment", "looking").message["home"]
        assert sandbox.ask("writes", "trying", path=f"{home}/x").message["came"] == "1"
        assert Path(home, "x").exists()
    assert not Path(home).exists()


# --------------------------------------------------------------------------- other processes


def test_it_reaches_no_network(tried: Tried) -> None:
    assert tried("network") != os.readlink("/proc/self/ns/net")  # noqa: PTH115
    assert tried("opens_a_socket") == DENIED


def test_it_starts_and_signals_no_other_process(tried: Tried) -> None:
    assert tried("forks") == DENIED
    assert tried("runs_a_program") == DENIED
    assert tried("signals", pid=os.getpid()) == DENIED


def test_it_has_no_rights_and_cannot_get_any(prober: Sandbox) -> None:
    status = prober.ask("status", "looking").message
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


def test_its_environment_has_nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "MY_TOKEN" not in process._environment()
    with short() as sandbox:
        names = sandbox.ask("environment", "looking").message["environment"]
    allowed = (*process._KEPT, "HOME", "TMPDIR", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
    assert [n for n in names if n not in allowed and not n.startswith(process._KEPT_PREFIXES)] == []


def test_active_protections_are_reported(prober: Sandbox) -> None:
    prober.ask("echo", "starting")
    most = 64 + 4 * (os.cpu_count() or 1)
    assert prober.measures == (
        "no network (namespace, seccomp)",
        f"reads Python and this file, writes scratch (Landlock {_landlock()})",
        "no other processes (seccomp)",
        "no new privileges",
        f"at most 60 s a call, 4.0 GB, 1 thread for torch, {most} in all",
    )


def _landlock() -> int:
    import ctypes

    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))


def test_it_starts_no_more_threads_than_it_may() -> None:
    with short() as sandbox:
        came = sandbox.ask("starts_threads", "trying", count=10**4).message["came"]
        assert sandbox.measures[-1].endswith(f" {came} in all")


# --------------------------------------------------------------------------- memory


def test_it_sees_what_is_shared_and_keeps_what_it_writes_there(prober: Sandbox) -> None:
    memory = Memory(4096)
    memory.buffer[:4] = b"good"
    memory.seal()
    prober.share(memory)
    assert prober.ask("spoils", "trying", size=4096).message == {"before": "good", "after": "evil"}
    assert memory.buffer[:4] == b"good"
    memory.close()


def test_it_cannot_make_the_memory_shorter_that_this_process_reads(tried: Tried) -> None:
    assert tried("grows", size=0) == DENIED


def test_an_unshared_mapping_of_memory_is_limited_too(tried: Tried) -> None:
    assert tried("maps", size=16 * 10**9) == "Cannot allocate memory"


def test_open_files_are_limited(tried: Tried) -> None:
    assert tried("opens", count=2000) == "Too many open files"


def test_taking_too_much_memory_is_reported_and_survived(prober: Sandbox) -> None:
    with pytest.raises(IsolationError) as caught:
        prober.ask("takes", "loading it", size=5 * 10**9)
    problem = caught.value.problem
    assert problem.startswith("loading it: it needs more memory than the 4.0 GB that it may take")
    assert "you tried to allocate 5000000000 bytes" in problem
    assert "CLIPCHECK_MEMORY_LIMIT" in caught.value.remedy
    assert prober.ask("echo", "going on", n=1).message == {"n": 1}


# --------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("by", "told"),
    [
        (signal.SIGSEGV, "was ended by SIGSEGV"),
        (signal.SIGABRT, "was ended by SIGABRT"),
        (signal.SIGKILL, "was ended by SIGKILL, as the system does when memory runs out"),
    ],
)
def test_a_crash_is_reported_with_its_signal(by: int, told: str) -> None:
    with short() as sandbox:
        with pytest.raises(IsolationError, match=f"running it: the process {told}"):
            sandbox.ask("dies", "running it", by=by)
        # The next that it is asked for finds a new one.
        assert sandbox.ask("echo", "again", n=2).message == {"n": 2}


def test_an_exit_is_reported_with_its_code() -> None:
    with short() as sandbox, pytest.raises(IsolationError, match="by itself, with exit code 3"):
        sandbox.ask("exits", "running it", code=3)


@parametrize("do", ["hangs", "stops"])
def test_a_call_that_takes_too_long_is_ended(do: str) -> None:
    began = time.monotonic()
    with short(seconds=1) as sandbox:
        with pytest.raises(IsolationError, match="it took more than 1 s, and was ended"):
            sandbox.ask(do, "running it")
        assert sandbox.ask("echo", "again", n=2).message == {"n": 2}
    assert time.monotonic() - began < 30


def test_an_ordinary_error_is_reported_and_the_sandbox_survives(prober: Sandbox) -> None:
    with pytest.raises(IsolationError, match=r"unexpected way \(ZeroDivisionError: of its own\)"):
        prober.ask("fails", "running it")
    assert prober.ask("echo", "going on", n=1).message == {"n": 1}


# --------------------------------------------------------------------------- answers


def test_tensors_cross_in_both_directions(prober: Sandbox) -> None:
    sent = [torch.randn(2, 3), torch.arange(4, dtype=torch.int32)]
    came = prober.ask("echo", "asking", sent, word="a").tensors
    assert all(torch.equal(one, other) for one, other in zip(sent, came, strict=True))


def test_requests_of_the_sandbox_are_answered(prober: Sandbox) -> None:
    came = prober.ask("asks", "asking", answer=lambda q, _: {"n": q["n"] * 2}, times=3)
    assert came.message == {"answers": [0, 2, 4]}


def test_an_error_in_an_answer_ends_the_sandbox_and_is_the_callers() -> None:
    def answer(*_: object) -> dict[str, int]:
        raise LookupError("in the answer")

    with short() as sandbox:
        with pytest.raises(LookupError, match="in the answer"):
            sandbox.ask("asks", "asking", answer=answer, times=1)
        assert sandbox.ask("echo", "again", n=2).message == {"n": 2}


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x00\x00\x02{}",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03\x80\x04N",
        b'\x00\x00\x00\x1d{"done": 1, "tensors": [ ]   }',
        b'\x00\x00\x00\x1d{"what": 1, "tensors": [ ]   }',
        b'\x00\x00\x00\x1d{"failed":1,"tensors": [ ]   }',
        b'\x00\x00\x00\x1d{"asks": 1, "tensors": [ ]   }',
    ],
)
def test_an_invalid_answer_ends_the_sandbox_process(said: bytes) -> None:
    with short() as sandbox, pytest.raises(IsolationError, match="expected an answer, found"):
        sandbox.ask("says", "running it", raw=said.hex())


def test_too_many_requests_end_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MOST_QUESTIONS", 10)
    with short() as sandbox, pytest.raises(IsolationError, match="too many questions"):
        sandbox.ask("asks", "asking", answer=lambda q, _: q, times=100)


def test_an_error_names_only_our_classes_and_only_given_files() -> None:
    sandbox = Sandbox(HANDLER, [], GENEROUS)
    for kind in ("os", "partial", "OSError", "__builtins__", "", None, 5):
        said = process.Received({"failed": {"kind": kind, "problem": "p", "path": "/etc/x"}}, [])
        with pytest.raises(process._Told) as caught:
            sandbox._result(said, "doing")
        assert type(caught.value.error) is IsolationError
    said = process.Received(
        {"failed": {"kind": "DamagedError", "problem": "p", "path": "/etc/x"}}, []
    )
    with pytest.raises(process._Told) as caught:
        sandbox._result(said, "doing")
    assert caught.value.error.path is None


# --------------------------------------------------------------------------- what is left


def _mine() -> tuple[int, set[str]]:
    """Return the open files of this process, and scratch folders."""
    gc.collect()
    folders = {path.name for path in Path(tempfile.gettempdir()).glob("clipcheck-*")}
    return len(os.listdir("/proc/self/fd")), folders  # noqa: PTH208


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


@pytest.mark.thorough
def test_nothing_is_left_of_many_sandboxes_whatever_became_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Others write to the system's.
    with short() as sandbox:
        sandbox.ask("echo", "asking")
    zygote = process.zygote()._process.pid
    before = _mine(), _children(zygote)
    for number in range(12):
        with short() as sandbox, contextlib.suppress(IsolationError):
            do = ("echo", "dies", "fails")[number % 3]
            sandbox.ask(do, "running", **({"by": signal.SIGSEGV} if do == "dies" else {}))
    assert (_mine(), _children(zygote)) == before


def test_sandboxes_and_zygote_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(HERE.parents[1])!r})
from pathlib import Path
from clipcheck.sandbox import process
from clipcheck.sandbox.limits import Limits
own = process.Sandbox({HANDLER!r}, [Path({str(HERE.parents[1])!r})], Limits(60, 4 * 10**9, 1))
home = own.ask("environment", "looking").message["home"]
print(process.zygote()._process.pid, own._life._pid, home, flush=True)
own.ask("hangs", "hanging")
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        zygote, own, home = process.stdout.readline().split()
        assert Path(f"/proc/{own}").exists()
        process.kill()
    until = time.monotonic() + 20
    while any(_lives(pid) for pid in (zygote, own)) or Path(home).exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.thorough
def test_a_zygote_that_was_killed_is_replaced() -> None:
    first = process.zygote()
    with short() as sandbox:
        sandbox.ask("echo", "asking")
        first._process.kill()
        first._process.wait()
        with pytest.raises(IsolationError):
            sandbox.ask("hangs", "asking")
    with short() as sandbox:
        assert sandbox.ask("echo", "asking", n=1).message == {"n": 1}
    assert process.zygote() is not first


def test_a_sandbox_that_cannot_be_forked_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sockets() -> int:
        files = Path("/proc/self/fd").iterdir()
        return sum(file.is_socket() for file in files)

    def refuse(*_: object) -> None:
        raise IsolationError("no fork", remedy="None.")

    zygote = process.zygote()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(zygote, "ask", refuse)
    gc.collect()
    before = sockets()
    with short() as sandbox, pytest.raises(IsolationError, match="no fork") as raised:
        sandbox.ask("echo", "asking")
    # What holds the frames of its making would close it in the end.
    assert raised.tb is not None
    assert sockets() == before
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_forked_does_not_use_the_zygote_of_its_parent() -> None:
    mine = process.zygote()
    assert mine.lives
    mine.owner -= 1
    try:
        assert not mine.lives
    finally:
        mine.owner += 1


def test_a_machine_that_cannot_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(Exception, match="--isolation none"):
        process.zygote()


def test_a_socket_is_what_it_is_given_and_nothing_else(prober: Sandbox) -> None:
    """It has three sockets and one piece of memory, and no file that this process has open."""
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        with short() as sandbox:
            sandbox.ask("echo", "asking")
            life = sandbox._life
            assert life is not None
            held = {os.readlink(each) for each in Path(f"/proc/{life._pid}/fd").iterdir()}  # noqa: PTH115
    kinds = sorted(each.partition(":")[0] for each in held)
    assert kinds == ["/dev/null", "/memfd", "socket", "socket"]
