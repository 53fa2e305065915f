"""The parent's side: start a sandbox, send requests, and report why it does not answer."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from clipcheck import errors
from clipcheck.errors import ClipcheckError, IsolationError, OutputError, UnavailableError
from clipcheck.sandbox.limits import Limits
from clipcheck.sandbox.reach import within_reach
from clipcheck.sandbox.serving import MEMORY, MOST_WORDS
from clipcheck.sandbox.wire import ROOM, ArrayChannel, Channel, Garbled, Memory, Message, Received
from clipcheck.sandbox.zygote import MOST

if TYPE_CHECKING:
    import torch

_PROGRAM = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from clipcheck.sandbox.zygote import main
main(int(sys.argv[2]), sys.argv[3:])
"""
"""Code of a zygote. It imports from this process's paths, not from the current folder."""

_OF_TENSORS = ("torch", "clipcheck.backends.handlers", "clipcheck.sandbox.serving")
_OF_ARRAYS = ("clipcheck.backends.array_handler", "clipcheck.sandbox.serving")
"""Modules that a zygote imports, for handlers of tensors and of arrays."""

_STARTING = 120.0
"""Seconds for a zygote to import its modules, on a busy machine."""

_KEPT = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "PYTHONHASHSEED",
    "SYSTEMROOT",
)
_KEPT_PREFIXES = (
    "LC_",
    "LD_",
    "DYLD_",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "ATEN_",
    "CUDA_",
    "NVIDIA_",
)
"""Variables of the environment that sandboxes get: those for finding and tuning libraries. Others
may be secret."""

_MOST_QUESTIONS = 100_000
"""Most questions that a sandbox may ask during a request: the largest model has about a thousand
modules that report their inputs."""

_CRASHES = "A file that ends who runs it is unfit for use, whatever is the matter with it."
_SEE = (
    "To see all that is printed, run it by itself where it can do no harm, with --isolation none."
)

Answer = Callable[[Message, "list[torch.Tensor]"], Message]
"""Answers a question that a sandbox asks during a request."""


class Sandbox:
    """A sandbox process for one untrusted file.

    It starts with the first request. If it has ended, the next request starts it again, and what it
    had loaded is lost.

    Args:
        handler: see `clipcheck.sandbox.serving.serve`.
        readable: files and folders that it may read, besides Python.
        arrays: whether tensors are numpy's arrays on both sides, so that none imports torch.

    Attributes:
        measures: that confine it, as phrases; empty before it starts.
    """

    def __init__(
        self,
        handler: str,
        readable: Sequence[Path],
        limits: Limits,
        *,
        gpu: bool = False,
        arrays: bool = False,
    ) -> None:
        self.arrays = arrays
        self.measures: tuple[str, ...] = ()
        self._handler = handler
        self._readable = [os.fspath(path.absolute()) for path in readable]
        self._limits = limits
        self._gpu = gpu
        self._life: _Life | None = None

    def ask(
        self,
        do: str,
        doing: str,
        tensors: Sequence[torch.Tensor] = (),
        answer: Answer | None = None,
        meanwhile: Callable[[], None] | None = None,
        **how: Any,
    ) -> Received:
        """Send a request, and return its result.

        Args:
            do: method of the handler.
            doing: description of the request, such as ``running encode_image``.
            answer: answers questions of the sandbox.
            meanwhile: work for this process before it waits for the result.

        Raises:
            IsolationError: the sandbox ended, took too long or too much memory, or sent no valid
                answer.
            ClipcheckError: the method raised it.
            ValueError: the tensors cannot be sent.
        """
        life = self._living()
        try:
            life.channel.send({"do": do, "with": how}, tensors, self._limits.seconds)
            if meanwhile is not None:
                meanwhile()
            received = self._outcome(life, answer)
            return self._result(received, doing)
        except _Told as told:
            raise told.error from None
        except (EOFError, ConnectionError) as error:
            status = self._end()
            raise IsolationError(
                f"{doing}: the process {_became(status)}", remedy=f"{_CRASHES} {_SEE}"
            ) from error
        except TimeoutError as error:
            self._end()
            raise IsolationError(
                f"{doing}: it took more than {self._limits.seconds:g} s, and was ended",
                remedy="Where it only is slow, give it more time: CLIPCHECK_TIME_LIMIT=SECONDS.",
            ) from error
        except Garbled as error:
            self._end()
            raise IsolationError(
                f"{doing}: expected an answer, found {error}",
                remedy="Do not run this file: it has taken over the process that ran it.",
            ) from error
        except BaseException:  # after any error the sandbox would wait for an answer forever
            self._end()
            raise

    def share(self, memory: Memory) -> None:
        """Share memory with the sandbox, which cannot change it for this process."""
        life = self._living()
        socket.send_fds(life.sharing, [b"m"], [memory.descriptor])

    def seen(self, path: Path, data: Sequence[Path] = ()) -> str:
        """Return the path of a file for the sandbox: a copy in the sandbox's folder, if this
        process can open the file only with privileges.

        Args:
            data: its data files, in its folder or below, which are copied as well.

        Raises:
            OutputError: there is no room for the copy.
        """
        life = self._living()
        if all(map(within_reach, (path, *data))):
            return os.fspath(path.absolute())
        for file in data:
            life.copied(file, path.parent)
        return os.fspath(life.copied(path, path.parent))

    @property
    def peak_memory(self) -> int:
        """Return its peak memory in bytes, with shared memory; 0 if unknown."""
        return 0 if self._life is None else self._life.peak_memory

    def close(self) -> None:
        """End it, and delete its files."""
        if self._life is not None:
            self._end()

    def _living(self) -> _Life:
        if self._life is None:
            self._life = _Life(
                self._handler, self._readable, self._limits, gpu=self._gpu, arrays=self.arrays
            )
            try:
                message = self._life.channel.receive(_STARTING).message
                self.measures = tuple(str(each)[:MOST_WORDS] for each in message["confined"])
            except (EOFError, TimeoutError, Garbled, KeyError) as error:
                status = self._end()
                raise IsolationError(
                    f"a process without rights could not be started: it {_became(status)}",
                    remedy="Report this, with the version of the system; --isolation none does "
                    "without, for files that you trust.",
                ) from error
        return self._life

    def _end(self) -> int:
        life, self._life = self._life, None
        assert life is not None  # noqa: S101 - for the type: only what lives is ended
        return life.end()

    def _outcome(self, life: _Life, answer: Answer | None) -> Received:
        """Return the final answer, after answering its questions. Only its own time counts."""
        left = self._limits.seconds
        for _ in range(_MOST_QUESTIONS):
            began = time.monotonic()
            received = life.channel.receive(left)
            left -= time.monotonic() - began
            if "asks" not in received.message:
                return received
            life.channel.send(self._answered(received, answer), seconds=self._limits.seconds)
        raise Garbled("too many questions")

    def _answered(self, received: Received, answer: Answer | None) -> Message:
        question = received.message["asks"]
        if answer is None or not isinstance(question, dict):
            raise Garbled("a question that nobody can answer")
        return answer(question, received.tensors)

    def _result(self, received: Received, doing: str) -> Received:
        message = received.message
        done = message.get("done")
        if isinstance(done, dict):
            return Received(done, received.tensors)
        failed = message.get("failed")
        if not isinstance(failed, dict):
            raise Garbled("something else")
        words = {name: str(failed.get(name, ""))[:MOST_WORDS] for name in ("problem", "remedy")}
        kind = failed.get("kind")
        if kind == MEMORY:
            raise _told(
                IsolationError,
                f"{doing}: it needs more memory than the {self._limits.memory / 1e9:.1f} GB that "
                f"it may take ({words['problem'].splitlines()[0]})",
                remedy="Where that is too little, allow more: CLIPCHECK_MEMORY_LIMIT=SIZE.",
            )
        error = _error_named(kind)
        if error is None:
            raise _told(
                IsolationError,
                f"{doing}: failed in an unexpected way ({words['problem']})",
                remedy=_SEE,
            )
        path = _path(failed, self._readable)
        raise _Told(error(words["problem"], remedy=words["remedy"], path=path))


class _Told(Exception):  # noqa: N818 - never seen outside
    """An error that the sandbox reported: it is alive and can get further requests."""

    def __init__(self, error: ClipcheckError) -> None:
        self.error = error


def _told(error: type[ClipcheckError], problem: str, remedy: str) -> _Told:
    return _Told(error(problem, remedy=remedy))


class _Life:
    """A sandbox from its start to its end."""

    def __init__(
        self, handler: str, readable: list[str], limits: Limits, *, gpu: bool, arrays: bool
    ) -> None:
        self._zygote = zygote(arrays=arrays)
        with ExitStack() as held:  # closed here if it cannot be started
            scratch = TemporaryDirectory(prefix="clipcheck-", ignore_cleanup_errors=True)
            self._scratch = Path(held.enter_context(scratch))
            self._memory = Memory(ROOM)
            held.callback(self._memory.close)
            near, far = socket.socketpair()
            kind = ArrayChannel if arrays else Channel
            self.channel = kind(held.enter_context(near), self._memory)
            self.sharing, far_sharing = socket.socketpair()
            held.enter_context(self.sharing)
            message = {
                "do": "fork",
                "handler": handler,
                "readable": readable,
                "scratch": str(self._scratch),
                "limits": asdict(limits),
                "gpu": gpu,
                "arrays": arrays,
            }
            with far, far_sharing:
                descriptors = [far.fileno(), far_sharing.fileno(), self._memory.descriptor]
                self._pid = int(self._zygote.ask(message, descriptors)["pid"])
            self._held = held.pop_all()

    def copied(self, path: Path, folder: Path) -> Path:
        """Copy the file into the sandbox's folder, with its path relative to ``folder``."""
        target = self._scratch / os.path.normpath(path.relative_to(folder))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise OutputError(
                f"cannot be copied for the process that is to run it ({error.strerror or error})",
                remedy="Let all users read it, or make room in the folder for temporary files.",
                path=path,
            ) from error
        return target

    @property
    def peak_memory(self) -> int:
        """Return its peak memory in bytes; 0 if unknown."""
        with suppress(OSError):
            for line in Path(f"/proc/{self._pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def end(self) -> int:
        """End it, and return its wait status, as from `os.waitpid`."""
        try:
            # A process that has ended keeps its id until it is waited for.
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            return int(self._zygote.ask({"do": "wait", "pid": self._pid})["status"])
        except IsolationError:
            return signal.SIGKILL  # the zygote has ended, and its sandboxes with it
        finally:
            self._held.close()


class _Zygote:
    """The process that forks sandboxes; there is one for this process.

    Args:
        arrays: whether it need not import torch.
    """

    def __init__(self, *, arrays: bool) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._control, far = socket.socketpair()
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        modules = list(_OF_ARRAYS if arrays else _OF_TENSORS)
        paths = [path for path in sys.path if path]
        with far:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _PROGRAM,
                    json.dumps(paths),
                    str(far.fileno()),
                    *modules,
                ],
                env=_environment(),
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,
            )

    @property
    def lives(self) -> bool:
        """Tell whether it runs, and belongs to this process and not to its parent before a fork."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a message and return the answer.

        Raises:
            IsolationError: the zygote has ended, or does not answer.
        """
        with self._lock:
            try:
                self._control.settimeout(_STARTING)
                socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
                answer = self._control.recv(MOST)
            except OSError:  # gone, closed, or too slow
                answer = b""
        if not answer:
            words = self._last_words()
            self.close()
            raise IsolationError(
                f"what starts processes without rights has ended ({words})",
                remedy="Report this; --isolation none does without, for files that you trust.",
            )
        found: dict[str, Any] = json.loads(answer)
        return found

    def _last_words(self) -> str:
        if self._said.closed:
            return "it was ended before"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a message"

    def close(self) -> None:
        """End it and its sandboxes."""
        self._control.close()
        self._said.close()
        if self.owner == os.getpid():
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


_own: dict[bool, _Zygote] = {}
"""By whether they need not import torch."""

_starting = threading.Lock()


def zygote(*, arrays: bool = False) -> _Zygote:
    """Return this process's zygote, and start it if there is none; it imports in the background.

    Args:
        arrays: whether it need not import torch.

    Raises:
        UnavailableError: this system cannot fork processes or pass file descriptors to them.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
        raise UnavailableError(
            "this system cannot run a file's code in a process of its own",
            remedy="Give --isolation none, for files that you trust, or use Linux.",
        )
    with _starting:
        if arrays not in _own or not _own[arrays].lives:
            _own[arrays] = _Zygote(arrays=arrays)
        return _own[arrays]


@atexit.register
def _close() -> None:
    for each in _own.values():
        if each.lives:
            each.close()


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    return {
        **kept,
        # Threads are lost in a fork, and nothing here needs OpenBLAS.
        "OPENBLAS_NUM_THREADS": "1",
        # Threads of a waiting sandbox would otherwise spin on cores that its parent needs.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _became(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        why = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
        return f"was ended by {name}{why}"
    return f"ended by itself, with exit code {os.waitstatus_to_exitcode(status)}"


def _error_named(kind: object) -> type[ClipcheckError] | None:
    """Return the class of clipcheck's errors with this name, or None."""
    found = getattr(errors, kind, None) if isinstance(kind, str) else None
    if isinstance(found, type) and issubclass(found, ClipcheckError):
        return found
    return None


def _path(failed: Mapping[str, Any], readable: Sequence[str]) -> str | None:
    """Return the file of an error, if the sandbox may read it."""
    path = failed.get("path")
    return path if isinstance(path, str) and path in readable else None
