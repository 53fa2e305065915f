"""Tasks that write files, and a process that kills children during them.

This module runs as a separate process with all imports done and no other thread, so that forking a
child takes milliseconds. Requests on stdin and answers on stdout are lines of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipcheck.results.judgement import Result

Files = dict[str, str]
"""What is in a folder, by name: a digest of each file."""


@dataclass(frozen=True)
class Task:
    """A piece of work that writes to a folder.

    Attributes:
        work: does it; of version 1 what may be there before, or 2.
        units: patterns of what is there whole or not at all, of files and folders alike.
        mends: whether the next run ends as if nothing had been.
    """

    work: Callable[[Path, int], None]
    units: tuple[str, ...]
    mends: bool = True


# What a fork may be killed before. Between two of them a file is at most longer than it was.
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime"}


def _download(folder: Path, version: int) -> None:
    from clipcheck.checkpoints import download

    source = folder.parent / "source"
    if version == 1:  # a file of that name that is another
        folder.mkdir(exist_ok=True)
        (folder / "x").write_bytes(b"something else")
        return
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    size = source.stat().st_size
    download.retrieve(source.as_uri(), folder / "x", sha256=digest, size=size, progress=False)


def _convert(form: str) -> Callable[[Path, int], None]:
    def work(folder: Path, version: int) -> None:
        from clipcheck.checkpoints.checkpoint import Format
        from clipcheck.writers.convert import write
        from tests.samples import MINUTE, minute_weights

        weights = minute_weights()
        weights["logit_scale"] += version
        write(MINUTE, weights, folder / "x.pt", Format(form))

    return work


def _open_clip(folder: Path, version: int) -> None:
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.checkpoints.formats import open_checkpoint
    from clipcheck.cli import output
    from clipcheck.writers.directories import write_open_clip
    from tests.samples import minute_bytes

    if version == 2 and not (folder / "x").exists():  # else it is refused
        source = folder.parent / "minute.safetensors"
        source.write_bytes(minute_bytes(Format.SAFETENSORS))
        write_open_clip(open_checkpoint(source), folder / "x")
    output.write(folder / "log", "done")


def _pt2(folder: Path, version: int) -> None:
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.checkpoints.formats import open_checkpoint
    from clipcheck.writers.programs import convert_to_program
    from tests.samples import minute_bytes

    source = folder.parent / "minute.safetensors"
    source.write_bytes(minute_bytes(Format.SAFETENSORS))
    if version == 1:
        (folder / "x.pt2").write_bytes(b"something else")
    else:
        convert_to_program(open_checkpoint(source), folder / "x.pt2", Format.PT2)


def _report(folder: Path, version: int) -> None:
    from clipcheck.report import evidence
    from clipcheck.results.judgement import Result
    from tests.report import ENVIRONMENT, failed, saved_in

    evidence.require_folder(folder)
    judgement = saved_in(None, failed(prompt=f"prompt {version}"))
    evidence.keep(Result((judgement,), ENVIRONMENT), folder)


def _files(folder: Path, version: int) -> None:
    from clipcheck.cli import output
    from clipcheck.report import junit
    from clipcheck.results import document as json_report
    from clipcheck.results.judgement import Result
    from tests.report import ENVIRONMENT, failed

    result = Result((failed(prompt=f"prompt {version}"),), ENVIRONMENT)
    output.write(folder / "x.json", json_report.render(result))
    output.write(folder / "x.xml", junit.render(result))


def _artefact(folder: Path, version: int) -> None:
    from clipcheck.backends.artefacts import Artefacts

    def build(path: Path) -> None:
        path.write_bytes(b"program" * 1000 * version)
        path.with_name("weights").write_bytes(bytes(300_000))

    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    kept = Artefacts(folder, scratch, limit=310_000)  # room for one
    path = kept.get("x.so", {"version": str(version)}, build)
    assert path.is_relative_to(folder)
    assert path.read_bytes() == b"program" * 1000 * version


def _finding(folder: Path, version: int) -> None:
    from clipcheck.plugin.sharing import Case, Finding, Findings
    from tests.report import PASSED

    case = Case(f"{version}.pt", "jit", "cpu", "float32")
    findings = Findings(folder)  # of which one is that whoever looked for it died
    findings.find_or_judge(case, lambda: Finding(case, PASSED))
    assert findings.all()[-1].case == case


TASKS = {
    "download": Task(_download, ("x",)),
    "archive": Task(_convert("archive"), ("x.pt",)),
    "state-dict": Task(_convert("state-dict"), ("x.pt",)),
    "safetensors": Task(_convert("safetensors"), ("x.pt",)),
    "open_clip": Task(_open_clip, ("x",)),
    "pt2": Task(_pt2, ("x.pt2",)),
    "report": Task(_report, ("results.json", "report.txt", "report.html", "failing-inputs/*")),
    "files": Task(_files, ("x.json", "x.xml")),
    "artefact": Task(_artefact, ("[0-9a-f]" * 64,)),
    "finding": Task(_finding, ("*.found", "*.started"), mends=False),
}


class Trials:
    """Kill children during one task, and check the files that they leave.

    Args:
        task: what they do.
        folder: where, in a folder of its own each time.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self._task = task
        self._folder = folder / "out"
        self._before = folder / "before"
        (folder / "source").write_bytes(random.Random(1).randbytes(3_000_000))
        self._begin(old=False)
        self._finish(1)
        shutil.copytree(self._folder, self._before, dirs_exist_ok=True)
        self._old = self._units()
        self._whole: dict[bool, tuple[Files, list[str]]] = {}
        for old in (False, True):
            self._begin(old=old)
            started = time.monotonic()
            self._finish(2)
            self._seconds = time.monotonic() - started
            self._whole[old] = self._units(), self._names()

    def at_each_step(self, every: int, *olds: bool) -> int:
        """Kill one before every n-th file operation, with or without an earlier file in place;
        return how many were killed."""
        steps = 0
        for old in olds:
            self._begin(old=old)
            step = 1
            while self._killed(lambda step=step: _kill_at(step, self._folder)):  # type: ignore[misc]
                steps += 1
                self._look(old, f"killed before step {step}")
                step += every
                self._begin(old=old)
            self._look(old, "not killed")
        return steps

    def at_sizes(self, *sizes: int) -> int:
        """Kill one when any file that it writes gets longer than each size; return how many were
        killed."""
        kills = 0
        for size in sizes:
            self._begin(old=True)
            kills += self._killed(lambda size=size: _kill_beyond(size))  # type: ignore[misc]
            self._look(True, f"killed at {size} bytes")
        return kills

    def at_random(self, count: int, seed: int) -> int:
        """Kill some at random times of the run; return how many were killed."""
        draw = random.Random(seed)
        kills = 0
        for _ in range(count):
            old = draw.random() < 0.5
            self._begin(old=old)
            seconds = draw.uniform(0, self._seconds)
            kills += self._killed(lambda: None, seconds)
            self._look(old, f"killed after {seconds:.4f} s")
        return kills

    def again_and_again(self, count: int, seed: int) -> int:
        """Kill one after another, and check that files do not accumulate."""
        draw = random.Random(seed)
        self._begin(old=False)
        kills = sum(
            self._killed(lambda: None, draw.uniform(0, self._seconds)) for _ in range(count)
        )
        self._look(False, f"killed {count} times")
        return kills

    def _begin(self, *, old: bool) -> None:
        for there in self._folder.parent.iterdir():
            if there not in (self._before, self._folder.parent / "source"):
                shutil.rmtree(there) if there.is_dir() else there.unlink()
        if old:
            shutil.copytree(self._before, self._folder)
        else:
            self._folder.mkdir()

    def _look(self, old: bool, what: str) -> None:
        """Check that no partial file has a final name, and that the next run succeeds."""
        units = self._units()
        whole, names = self._whole[old]
        before = self._old if old else {}
        for name, digest in units.items():
            if digest not in (before.get(name), whole.get(name)):
                raise AssertionError(f"{what}: {name} is neither as before nor as after")
        self._finish(2)
        if not self._task.mends:
            return
        if self._units() != whole:
            raise AssertionError(f"{what}: the next run left {self._units()}, not {whole}")
        if self._names() != names:
            raise AssertionError(f"{what}: the next run left {self._names()}, not {names}")

    def _finish(self, version: int) -> None:
        child = os.fork()
        if child == 0:
            self._child(version)
        if os.waitpid(child, 0)[1] != 0:
            raise AssertionError("a run that nobody killed failed; see what it printed")

    def _killed(self, prepare: Callable[[], None], seconds: float | None = None) -> bool:
        child = os.fork()
        if child == 0:
            prepare()
            self._child(2)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and status != 0:
            raise AssertionError("it failed before it was killed; see what it printed")
        return os.WIFSIGNALED(status)

    def _child(self, version: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._task.work(self._folder, version)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _units(self) -> Files:
        found = {}
        for pattern in self._task.units:
            for path in self._folder.glob(pattern):
                if not path.name.startswith("."):
                    found[path.relative_to(self._folder).as_posix()] = _digest(path)
        return found

    def _names(self) -> list[str]:
        """Return the names of all files, with random parts replaced."""
        paths = (path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*"))
        return sorted(re.sub(r"\b[0-9a-f]{32}\b", "HEX", path) for path in paths)


def _kill_at(step: int, folder: Path) -> None:
    """Kill this process before its n-th operation in the folder."""
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        inside = any(str(folder) in str(each) for each in arguments[:2])
        # Where a whole folder is removed, its files are named by what is open.
        if event in _EVENTS and (inside or event in ("os.remove", "os.rmdir")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _kill_beyond(size: int) -> None:
    """Let the kernel kill this process when one of its files gets longer, whoever writes it."""
    from clipcheck.writers import output

    output._require_room = lambda *_: None  # which is what would get longer first
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _digest(path: Path) -> str:
    told = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            told.update(f"{file.relative_to(path.parent)}".encode() + b"\0" + file.read_bytes())
    return told.hexdigest()


def _page(result: Result) -> str:
    failing = result.judgements[0].failing
    assert failing is not None
    return f"<p>{failing.example.prompts}</p>\n" * 5000


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Import everything, and serve."""
    warnings.simplefilter("ignore")
    import filelock  # noqa: F401 - for the forks, as those below
    import requests  # noqa: F401
    import torch
    import tqdm  # noqa: F401

    import clipcheck.backends.artefacts
    import clipcheck.checkpoints.download
    import clipcheck.cli.app
    import clipcheck.plugin.sharing
    import clipcheck.report.evidence
    import clipcheck.writers.directories
    import tests.report
    import tests.samples
    from clipcheck.checkpoints.checkpoint import Format

    torch.set_num_threads(1)
    for form in Format.STATE_DICT, Format.SAFETENSORS:
        tests.samples.minute_bytes(form)
    # A page costs a second, and how it is drawn is not what is looked at.
    clipcheck.report.evidence.html.render = _page  # type: ignore[assignment]
    print(json.dumps("ready"), flush=True)
    for request in _requests():
        with tempfile.TemporaryDirectory(dir=request["folder"]) as folder:
            try:
                trials = Trials(TASKS[request["task"]], Path(folder))
                answer = {"killed": getattr(trials, request["how"])(*request["arguments"])}
            except AssertionError as error:
                answer = {"problem": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
