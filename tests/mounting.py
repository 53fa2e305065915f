"""Tasks on a full disk, and on a read-only disk.

This module runs as a separate process in namespaces in which it may mount. Each task checks its own
result; stdout has a JSON object with the failure of each task by name, empty if it passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest import mock

import pytest

from clipcheck.errors import ClipcheckError, DownloadError, OutputError

SIZE = 1_000_000
FREE = 40_000

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NO_ROOM = "No space left on device"
READ_ONLY = "Read-only file system"


def mount(disk: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", *options, "clipcheck-test", str(disk)]
    subprocess.run(command, check=True, capture_output=True)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def unchanged(folder: Path, *, but: str = "?") -> Iterator[None]:
    """Require that all files stay as they were, except one of this name."""
    before = files_in(folder)
    yield
    after = {name: data for name, data in files_in(folder).items() if Path(name).name != but}
    assert after == before, f"{sorted(before)} became {sorted(after)}"


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command line; return the exit code, stdout and stderr."""
    from clipcheck.cli import app as cli

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["clipcheck", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("it gave no exit code")


def raising(kind: type[ClipcheckError], *words: str) -> AbstractContextManager[object]:
    """Expect an error of clipcheck's own with these words."""
    return pytest.raises(kind, match=".*".join(words))


def a_download_of_known_size(disk: Path, outside: Path) -> None:
    from clipcheck.checkpoints import download

    with unchanged(disk, but=".x.lock"), raising(DownloadError, NO_ROOM, "has room"):
        download.retrieve((outside / "x").as_uri(), disk / "x", sha256=SHA256, size=len(CONTENT))


def a_download_of_unknown_size(disk: Path, outside: Path) -> None:
    from clipcheck.checkpoints import download

    with unchanged(disk, but=".old.lock"), raising(DownloadError, NO_ROOM):
        download.retrieve((outside / "x").as_uri(), disk / "old", sha256=SHA256)


def a_download_of_what_is_half_there(disk: Path, outside: Path) -> None:
    """A partial file that does not fit beside its copy is deleted, and the download begins anew."""
    from clipcheck.checkpoints import download

    part = disk / f"y.{'0' * 32}.part"
    part.write_bytes(CONTENT[: FREE // 2 + 10_000])
    (outside / "y").write_bytes(CONTENT[:FREE])
    digest = hashlib.sha256(CONTENT[:FREE]).hexdigest()
    path = download.retrieve((outside / "y").as_uri(), disk / "y", sha256=digest, size=FREE)
    assert path.read_bytes() == CONTENT[:FREE]
    assert not part.exists()
    for left in disk.glob("*y*"):
        left.unlink()


def conversion(form: str) -> Callable[[Path, Path], None]:
    def work(disk: Path, outside: Path) -> None:
        with unchanged(disk):
            for name in ("old", "new"):
                target = disk / name
                code, _, err = run(
                    "convert", outside / "m.pt", "-o", target, "--format", form, "--quiet"
                )
                assert code == 2, err
                assert err.startswith(f"clipcheck: {target}: cannot be written ({NO_ROOM}"), err
                assert err.count("\n") == 1, err

    return work


def a_conversion_of_unknown_size(disk: Path, outside: Path) -> None:
    """The disk fills up while it is written, because its free space is not known beforehand."""
    from clipcheck.writers import output

    with mock.patch.object(output, "_require_room"), unchanged(disk):
        for form in ("state-dict", "safetensors"):
            code, _, err = run("convert", outside / "m.pt", "-o", disk / "old", "--format", form)
            assert code == 2, err
            assert f"{disk / 'old'}: cannot be written (" in err, err


def a_check_and_all_that_it_writes(disk: Path, outside: Path) -> None:
    report, old = disk / "report", disk / "old"
    filler = disk / "rest"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1000)):
            pass
    with unchanged(disk):
        code, out, err = run(
            "check", outside / "m.pt", "--examples", "1", "--report", report, "--json", old,
            "--junit", old,
        )  # fmt: skip
    assert code == 2, err
    assert "CONSISTENT" in out, out  # the verdict is told all the same
    told = [line for line in err.splitlines() if line.startswith("clipcheck: ")]
    assert [NO_ROOM in line for line in told] == [True] * 3, err
    filler.unlink()


def an_artefact(disk: Path, outside: Path) -> None:
    from clipcheck.backends.artefacts import Artefacts

    kept = Artefacts(disk / "kept", outside / "scratch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = kept.get("x.so", {}, lambda path: bytes_to(path, CONTENT))
    assert [NO_ROOM in str(each.message) for each in caught] == [True], caught
    assert path.is_relative_to(outside), path
    assert path.read_bytes() == CONTENT
    assert [each for each in (disk / "kept").rglob("*") if each.name[0] != "."] == []


def bytes_to(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def a_failing_input(disk: Path, outside: Path) -> None:
    from clipcheck.harness.search.saved import write
    from clipcheck.inputs.examples import Example

    with unchanged(disk), raising(OutputError, NO_ROOM):
        write(disk / "found", Example(prompts=("a",)), {"text": "x" * 100_000}, "")
    assert not (disk / "found").exists()


def what_was_downloaded(disk: Path, outside: Path) -> None:
    from clipcheck.checkpoints import download

    for name in ("recorded", "unrecorded"):
        path = download.retrieve("http://127.0.0.1:1/x", disk / name, sha256=SHA256)
        assert path.read_bytes() == CONTENT


def a_download(disk: Path, outside: Path) -> None:
    from clipcheck.checkpoints import download

    for name in ("new", "old"):
        with raising(DownloadError, READ_ONLY, "that the folder is writable"):
            download.retrieve((outside / "x").as_uri(), disk / name, sha256=SHA256)


def what_was_built(disk: Path, outside: Path) -> None:
    from clipcheck.backends.artefacts import Artefacts

    kept = Artefacts(disk / "kept", outside / "scratch")
    path = kept.get("x.so", {}, lambda path: bytes_to(path, b"not again"))
    assert path.is_relative_to(disk)
    assert path.read_bytes() == CONTENT
    assert kept.got[0].seconds is None


def what_is_built(disk: Path, outside: Path) -> None:
    from clipcheck.backends.artefacts import Artefacts

    kept = Artefacts(disk / "kept", outside / "scratch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("y.so", "z.so"):
            path = kept.get(name, {}, lambda path: bytes_to(path, CONTENT))
            assert path.is_relative_to(outside), path
    assert [READ_ONLY in str(each.message) for each in caught] == [True], caught


def a_conversion(disk: Path, outside: Path) -> None:
    target = disk / "new"
    code, _, err = run("convert", outside / "m.pt", "-o", target, "--format", "safetensors")
    assert code == 2, err
    assert err.startswith(f"clipcheck: {target}: cannot be written ({READ_ONLY}"), err


def a_check(disk: Path, outside: Path) -> None:
    code, out, err = run(
        "check", outside / "m.pt", "--examples", "1", "--report", disk / "report",
        "--json", disk / "old", "--junit", disk / "junit",
    )  # fmt: skip
    assert code == 2, err
    assert "CONSISTENT" in out, out
    told = [line for line in err.splitlines() if line.startswith("clipcheck: ")]
    assert [READ_ONLY in line for line in told] == [True] * 3, err


ON_A_FULL_DISK = {
    "download": a_download_of_known_size,
    "download of unknown size": a_download_of_unknown_size,
    "download that was cut off": a_download_of_what_is_half_there,
    "archive": conversion("archive"),
    "state-dict": conversion("state-dict"),
    "safetensors": conversion("safetensors"),
    "conversion of unknown size": a_conversion_of_unknown_size,
    "check": a_check_and_all_that_it_writes,
    "artefact": an_artefact,
    "failing input": a_failing_input,
}

ON_A_READ_ONLY_DISK = {
    "what was downloaded": what_was_downloaded,
    "download": a_download,
    "what was built": what_was_built,
    "what is built": what_is_built,
    "conversion": a_conversion,
    "check": a_check,
}


def full(disk: Path) -> None:
    """Fill the disk, but for `FREE` bytes or a little less."""
    mount(disk, "-o", f"size={SIZE}")
    (disk / "old").write_bytes(b"something of before")
    (disk / "filler").write_bytes(bytes(SIZE - FREE - 20_000))


def read_only(disk: Path, outside: Path) -> None:
    from clipcheck.backends.artefacts import Artefacts
    from clipcheck.checkpoints import download

    mount(disk)
    (disk / "old").write_bytes(b"something of before")
    (disk / "unrecorded").write_bytes(CONTENT)
    download.retrieve((outside / "x").as_uri(), disk / "recorded", sha256=SHA256)
    kept = Artefacts(disk / "kept", outside / "scratch")
    kept.get("x.so", {}, lambda path: bytes_to(path, CONTENT))
    del kept  # which holds a file open
    mount(disk, "-o", "remount,ro")


def main(outside: Path) -> None:
    """Run all tasks, one after another."""
    from clipcheck.checkpoints.checkpoint import Format
    from tests.samples import minute_bytes

    warnings.simplefilter("ignore")
    (outside / "x").write_bytes(CONTENT)
    (outside / "m.pt").write_bytes(minute_bytes(Format.ARCHIVE))
    disks = [outside / "full", outside / "read-only"]
    for disk in disks:
        disk.mkdir()
    full(disks[0])
    read_only(disks[1], outside)
    found = {}
    for disk, works in zip(disks, (ON_A_FULL_DISK, ON_A_READ_ONLY_DISK), strict=True):
        for name, work in works.items():
            try:
                work(disk, outside)
            except Exception:
                found[f"{disk.name}: {name}"] = traceback.format_exc()
            else:
                found[f"{disk.name}: {name}"] = ""
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
