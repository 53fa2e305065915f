"""Run the command line in another process, with limits of memory and time.

An attack may fill all memory, or never end. It must not stop the tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MOST_GROWTH = 1 << 30
"""Bytes by which that process may grow."""

_MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """Result of a run of the command line.

    Attributes:
        code: what it exited with; negative where a signal ended it, None where it did not end.
        out: what it printed.
        err: what it said on stderr.
        seconds: how long it took.
        grown: bytes of memory that it took at most, beside those that it had.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    grown: int


class Bounded:
    """The other process; started at the first use, and again after an attack has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, *arguments: object, folder: Path) -> Outcome:
        """Run ``clipcheck ARGUMENTS`` in ``folder``."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bounded"],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"arguments": [str(each) for each in arguments], "folder": str(folder)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _MOST_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        self._process.kill()
        code = self._process.wait() if ready else None
        self.close()
        return Outcome(code, "", "", _MOST_SECONDS, 0)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def _run(arguments: list[str]) -> Outcome:
    from clipcheck.cli import app as cli

    out, err = io.StringIO(), io.StringIO()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted anew
    before, began, code = _memory("VmRSS"), time.monotonic(), 0
    sys.argv = ["clipcheck", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0
    seconds = time.monotonic() - began
    grown = _memory("VmHWM") - before
    return Outcome(code, out.getvalue(), err.getvalue(), seconds, grown)


def _serve() -> None:
    import resource

    import torch  # noqa: F401 - now, so that it is no part of what an attack takes

    from clipcheck.checkpoints import opening  # noqa: F401
    from clipcheck.report import history, inspection  # noqa: F401

    limit = _memory("VmSize") + MOST_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        asked = json.loads(line)
        os.chdir(asked["folder"])
        print(json.dumps(vars(_run(asked["arguments"]))), flush=True)


if __name__ == "__main__":
    _serve()
