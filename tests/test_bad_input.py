"""Bad files: one clear message, exit code 2, no code run, and no files left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

import clipcheck
from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    ClipcheckError,
    DamagedError,
    NotFiniteError,
    OutputError,
    UnknownFormatError,
    UnknownModelError,
    UnsafeError,
)
from clipcheck.writers.output import replacing
from conftest import Run
from tests.samples import (
    COMMENT_SIZE,
    FILE_FORMATS,
    Weights,
    code_record,
    contents_at,
    entry,
    flipped,
    minute_bytes,
    minute_config,
    minute_weights,
    repacked,
    saved,
    with_field,
)

# ------------------------------------------------------------------ the bad files

MARK = "marked-by-a-pickle"
"""A file of this name in the working folder would show that code was run."""


class Command:
    """Pickles to a call of ``os.system``."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARK}",)


def archive() -> bytes:
    return minute_bytes(Format.ARCHIVE)


def unsafe_archive() -> bytes:
    return repacked(archive(), {"data.pkl": pickle.dumps(Command(), protocol=2)})


def unsafe_state_dict(*, legacy: bool) -> bytes:
    return saved({**minute_weights(), "x": Command()}, legacy=legacy)


def plain_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("holiday/photo.jpg", b"\xff\xd8\xff")
    return file.getvalue()


def altered(**changes: torch.Tensor | None) -> Weights:
    """Return the weights with other tensors, or without some. A double underscore stands for a
    dot."""
    weights: dict[str, torch.Tensor | None] = {**minute_weights()}
    weights.update({key.replace("__", "."): tensor for key, tensor in changes.items()})
    return {key: tensor for key, tensor in weights.items() if tensor is not None}


def spoilt(*keys: str, value: float) -> Weights:
    weights = minute_weights()
    for key in keys:
        weights[key].view(-1)[0] = value
    return weights


def without_code() -> bytes:
    """Return an archive whose directory hides all but the weights, as one altered byte can do."""
    data = archive()
    last = entry(data, "data.pkl")
    hidden = data.index(b"PK\x06\x06", last) - (last + 46 + len("minute/data.pkl"))
    return with_field(data, "data.pkl", COMMENT_SIZE, hidden, "<H")


@dataclass(frozen=True)
class Bad:
    """A file, and the error message that it gets."""

    make: Callable[[], bytes]
    error: type[ClipcheckError]
    problem: str
    remedy: str


AGAIN = "Copy or download the file again"
BAD = {
    "empty": Bad(lambda: b"", UnknownFormatError, "the file is empty", AGAIN),
    "text": Bad(lambda: b"hello", UnknownFormatError, "text that begins with 'hello'", "Give the "),
    "zip": Bad(plain_zip, UnknownFormatError, "none of torch's", "not a zip file that contains it"),
    "cut": Bad(lambda: archive()[:-1000], DamagedError, "it was cut off or altered", AGAIN),
    "cut short": Bad(lambda: archive()[:100], DamagedError, "it was cut off or altered", AGAIN),
    "flip in a record": Bad(
        lambda: flipped(archive(), contents_at(archive(), "data/9")),
        DamagedError,
        "the record 'minute/data/9' was altered",
        AGAIN,
    ),
    "flip in the directory": Bad(
        lambda: flipped(archive(), entry(archive(), "data/9") + 46),
        DamagedError,
        "expected all records in one folder",
        "Give a file that torch",
    ),
    "flip in a name": Bad(
        lambda: flipped(archive(), entry(archive(), "data/9") + 46 + 10),
        DamagedError,
        "has another name in the directory",
        AGAIN,
    ),
    "flip in a length": Bad(without_code, DamagedError, "its end record says", AGAIN),
    "flip in the code": Bad(
        lambda: flipped(archive(), contents_at(archive(), code_record(archive())) + 200),
        DamagedError,
        "the record 'minute/code/__torch__/multimodal/model/",
        AGAIN,
    ),
    "unsafe archive": Bad(
        unsafe_archive, UnsafeError, f"asks for {os.name}.system", "Do not load this file"
    ),
    "unsafe state dict": Bad(
        lambda: unsafe_state_dict(legacy=False),
        UnsafeError,
        f"asks for {os.name}.system",
        "do not load it with anything else",
    ),
    "unsafe legacy state dict": Bad(
        lambda: unsafe_state_dict(legacy=True),
        UnsafeError,
        f"asks for {os.name}.system",
        "do not load it with anything else",
    ),
    "another model": Bad(
        lambda: saved(torchvision.models.squeezenet1_1().state_dict()),
        ArchitectureError,
        "it lacks 'positional_embedding'; its 52 keys begin with 'features.0.weight'",
        "Give a CLIP checkpoint",
    ),
    "missing key": Bad(
        lambda: saved(altered(ln_final__bias=None)),
        ArchitectureError,
        "missing: ln_final.bias",
        "Save the model's whole state dict",
    ),
    "extra key": Bad(
        lambda: saved(altered(visual__head__weight=torch.ones(1))),
        ArchitectureError,
        "unexpected: visual.head.weight",
        "If they are no part of the model, save the state dict without them",
    ),
    "misshapen key": Bad(
        lambda: saved(altered(ln_final__bias=torch.ones(65))),
        ArchitectureError,
        "misshapen: ln_final.bias [65] instead of [64]",
        "Save the model's whole state dict",
    ),
    "nan": Bad(
        lambda: saved(spoilt("visual.proj", value=float("nan"))),
        NotFiniteError,
        "NaN or infinite weights in visual.proj",
        "Take a checkpoint from before the training diverged",
    ),
    "infinity": Bad(
        lambda: saved(spoilt("logit_scale", "ln_final.bias", value=float("inf"))),
        NotFiniteError,
        "NaN or infinite weights in logit_scale, ln_final.bias",
        "Take a checkpoint from before the training diverged",
    ),
}


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest) -> Bad:
    return BAD[request.param]


@pytest.fixture
def path(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bad file, alone in the working folder."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(bad.make())
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture(autouse=True)
def _nothing_is_run_or_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = [file.name for file in tmp_path.rglob("*")]
    assert not {name for name in left if MARK in name or name.startswith(".clipcheck")}


def test_the_attack_used_here_works_when_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = io.BytesIO(unsafe_state_dict(legacy=False))
    torch.load(data, weights_only=False)
    (tmp_path / MARK).unlink()


# ------------------------------------------------------------------ one message


def test_opening_and_verifying_raises_one_complete_error(bad: Bad, path: Path) -> None:
    with pytest.raises(ClipcheckError) as caught:
        open_checkpoint(path).verify()
    assert type(caught.value) is bad.error
    assert caught.value.path == str(path)
    assert bad.problem in caught.value.problem
    assert bad.remedy in caught.value.remedy
    message = str(caught.value)
    assert message == f"{path}: {caught.value.problem}. {caught.value.remedy}"
    assert re.search(r"\w\.$", message)
    assert "\n" not in message


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write how the weights compute, so that the error is not about that."""
    return minute_config(tmp_path_factory.mktemp("config"))


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_command_reports_the_error_in_one_line_and_exits_2(
    run: Run, bad: Bad, path: Path, command: str, config: Path
) -> None:
    output = path.with_name("output.pt")
    more = ["-o", output] if command == "convert" else []
    done = run(command, path, *more, "--architecture", config)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(f"clipcheck: {path}: ")
    assert done.err.count("\n") == 1
    assert bad.problem in done.err
    assert bad.remedy in done.err
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_check_reports_the_error_once_and_exits_2(
    run: Run, bad: Bad, path: Path, config: Path
) -> None:
    done = run("check", path, "--json", "-", "--architecture", config)
    (result,) = json.loads(done.out)["results"]
    assert done.code == 2
    assert done.err == ""
    assert result["error"].startswith(f"{path}: ")
    assert result["error"].count(bad.problem) == 1
    assert bad.remedy in result["error"]
    assert "Traceback" not in done.out


def test_a_traceback_is_shown_on_request(run: Run, path: Path) -> None:
    done = run("--debug", "inspect", path)
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith(f"clipcheck: {path}: ")


def test_a_file_with_weights_that_are_not_finite_is_not_converted(run: Run, tmp_path: Path) -> None:
    path, output = tmp_path / "in", tmp_path / "out"
    path.write_bytes(saved(spoilt("visual.proj", value=float("inf"))))
    output.write_text("before")
    config = minute_config(tmp_path)
    done = run("convert", path, "-o", output, "--format", "safetensors", "--architecture", config)
    assert done.code == 2
    assert "NaN or infinite" in done.err
    assert output.read_text() == "before"


# ------------------------------------------------------------------ what is no file


def test_the_error_for_a_directory_says_so(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"found a directory without either\. Give"):
        open_checkpoint(tmp_path)
    done = run("inspect", tmp_path)
    assert done.code == 2
    assert done.err.startswith(f"clipcheck: {tmp_path}: expected ")


WITHOUT_TORCH = """
import sys
from clipcheck.cli.app import main
sys.modules["torch"] = sys.modules["torchvision"] = None
for line in sys.stdin.read().splitlines():
    sys.argv = ["clipcheck", *line.split()]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, flush=True)
"""
"""Runs commands where importing torch is an error."""


def test_a_missing_path_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_bytes(archive())
    commands = [
        "check gone.pt",
        "check there.pt --reference gone.pt",
        "inspect gone.pt",
        "convert gone.pt -o made.pt",
        "localize gone.pt",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.count("ended with 2") == len(commands)
    assert (done.stdout + done.stderr).count("gone.pt: no such file or folder") == len(commands)
    assert "Traceback" not in done.stderr


def test_an_unknown_name_is_answered_with_the_nearest(run: Run) -> None:
    with pytest.raises(UnknownModelError) as caught:
        open_checkpoint("ViT-B-32")
    assert "'ViT-B-32'" in caught.value.problem
    assert "The nearest name is 'ViT-B/32'" in caught.value.remedy
    for command in ("inspect", "check"):
        done = run(command, "ViT-B-32")
        assert done.code == 2
        assert "'ViT-B/32'" in done.out + done.err
        assert "Traceback" not in done.out + done.err


@contextmanager
def somebody_else() -> Iterator[None]:
    """Run without root's right to read everything, if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return a folder that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no such permissions")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_an_unreadable_file_is_not_reported_as_missing(
    run: Run, shared_folder: Path, closed: str
) -> None:
    folder = shared_folder / "folder"
    folder.mkdir()
    path = folder / "checkpoint.pt"
    path.write_bytes(archive())
    run("inspect", path)  # imports what it needs, as long as that may be read
    target = path if closed == "file" else folder
    target.chmod(0)
    with somebody_else():
        if os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            pytest.skip("this user may read everything")
        with pytest.raises(
            CheckpointError, match=r"cannot be read \(Permission denied\)"
        ) as caught:
            open_checkpoint(path)
        done = run("inspect", path)
    target.chmod(0o755)
    assert type(caught.value) is CheckpointError
    assert done.code == 2
    assert done.err == (
        f"clipcheck: {path}: cannot be read (Permission denied). Check that the file is there and "
        "that you may read it.\n"
    )


# ------------------------------------------------------------------ damage anywhere


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = archive()
    path = tmp_path / "cut"
    ends = {*range(1, 70), *range(0, len(data), 1009), *range(len(data) - 150, len(data))}
    for end in ends - {0}:
        path.unlink(missing_ok=True)  # it may be mapped still
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert isinstance(caught.value, DamagedError if end >= 4 else UnknownFormatError), end


@dataclass(frozen=True)
class Damage:
    """Cuts ``data`` off, or gives some bytes other values."""

    end: int
    edits: tuple[tuple[int, int], ...]

    def of(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for position, value in self.edits:
            damaged[position] = value
        return bytes(damaged[: self.end])


@st.composite
def damages(draw: st.DrawFn, data: bytes, size: int) -> Damage:
    """Damage within the first ``size`` bytes of ``data``; shrinks to a cut at the start."""
    if draw(st.booleans()):
        edit = st.one_of(
            # Any byte, a single bit, and the directory at the end, which is a small part.
            st.tuples(st.integers(0, size - 1), st.integers(0, 255)),
            st.integers(0, size - 1).flatmap(lambda at: st.tuples(st.just(at), bits(data[at]))),
            st.tuples(st.integers(max(size - 5000, 0), size - 1), st.integers(0, 255)),
        )
        return Damage(len(data), tuple(draw(st.lists(edit, min_size=1, max_size=8))))
    return Damage(draw(st.integers(0, len(data) - 1)), ())


def bits(value: int) -> st.SearchStrategy[int]:
    """Return the byte with one bit flipped."""
    return st.integers(0, 7).map(lambda bit: value ^ (1 << bit))


def opened_or_refused(path: Path) -> Checkpoint | None:
    """Return the checkpoint, verified, or None if it was refused by an error of ours."""
    refusal = None
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.verify()
    except ClipcheckError as error:
        refusal = error
    if refusal is None:
        return checkpoint
    assert refusal.path == str(path)
    return None


def assert_refused_or_unharmed(data: bytes, folder: Path) -> None:
    path = folder / "damaged"
    path.unlink(missing_ok=True)  # it may be mapped still
    path.write_bytes(data)
    checkpoint = opened_or_refused(path)
    if checkpoint is None:
        return
    expected = minute_weights()
    # A buffer under another name is told as left out; the shapes say the same.
    missing = expected.keys() - checkpoint.tensors.keys()
    assert missing <= set(BUFFERS)
    assert len(checkpoint.origin.left_out) == len(missing)
    for key, tensor in checkpoint.tensors.items():
        assert same_bits(tensor, expected[key]), key


@given(data=st.data())
@pytest.mark.parametrize("form", [Format.ARCHIVE, Format.STATE_DICT])
def test_damage_to_a_file_with_checksums_is_refused_or_does_no_harm(
    form: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sound = minute_bytes(form)
    damage = data.draw(damages(sound, len(sound)))
    assert_refused_or_unharmed(damage.of(sound), tmp_path_factory.getbasetemp())


@given(data=st.data())
def test_damage_to_the_header_of_safetensors_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # The format has no checksums: of altered weights nobody can tell.
    sound = minute_bytes(Format.SAFETENSORS)
    damage = data.draw(damages(sound, 8 + int.from_bytes(sound[:8], "little")))
    assert_refused_or_unharmed(damage.of(sound), tmp_path_factory.getbasetemp())


@given(data=st.data())
def test_damage_to_a_legacy_state_dict_raises_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # It has no checksums either, and its pickles are strewn over the file.
    sound = saved(minute_weights(), legacy=True)
    damage = data.draw(damages(sound, 5000))
    path = tmp_path_factory.getbasetemp() / "legacy"
    path.write_bytes(damage.of(sound))
    opened_or_refused(path)


DAMAGED_ARCHIVES = {
    "cut": lambda: archive()[:-1],
    "record": lambda: flipped(archive(), contents_at(archive(), "data/9")),
    "pickle": lambda: flipped(archive(), contents_at(archive(), "data.pkl") + 50),
    "constant": lambda: flipped(archive(), contents_at(archive(), "constants/0")),
    "code": lambda: flipped(archive(), contents_at(archive(), code_record(archive())) + 100),
    "name": lambda: flipped(archive(), entry(archive(), "constants.pkl") + 46 + 10),
    "directory": lambda: flipped(archive(), entry(archive(), "version") + 1),
    "hidden code": without_code,
}


@pytest.mark.parametrize(
    "damage",
    # Altered weights are found by the check, and not by the loader, which leaves them unread.
    [name for name in DAMAGED_ARCHIVES if name != "record"],
)
def test_a_damaged_archive_is_neither_run_nor_taken_for_a_state_dict(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the file was given to TorchScript")

    monkeypatch.setattr(torch.jit, "load", never)
    path = tmp_path / "damaged.pt"
    path.write_bytes(DAMAGED_ARCHIVES[damage]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fallback to a state dict warns
        with pytest.raises(DamagedError):
            clipcheck.load(path, device="cpu", jit=True)


# ------------------------------------------------------------------ outputs

LIMITED = """
import resource, sys
from clipcheck.cli import app as cli

source, config, folder, *forms = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for form in forms:
    sys.argv = ["clipcheck", "convert", source, "-o", f"{folder}/{form}", "--format", form]
    sys.argv += ["--architecture", config]
    try:
        cli.main()
    except SystemExit as done:
        print(form, done.code)
"""
"""Converts where no file may grow beyond less than the weights take."""


def test_no_room_for_an_output_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    source = tmp_path / "weights"
    source.write_bytes(saved(minute_weights()))
    folder = tmp_path / "out"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, source, minute_config(tmp_path), folder, *FILE_FORMATS],
        capture_output=True,
        text=True,
        check=False,
    )
    # A writer that ends the process leaves another exit code, and no line.
    assert done.stdout.splitlines() == [f"{form} 2" for form in FILE_FORMATS], done.stderr
    assert done.returncode == 0
    messages = done.stderr.splitlines()
    assert len(messages) == len(FILE_FORMATS)
    for form, message in zip(FILE_FORMATS, messages, strict=True):
        assert message.startswith(f"clipcheck: {folder / form}: cannot be written (")
        assert "room" in message
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "gone" / "x.pt"
    done = run("synthesize", "tiny-vit", "-o", output)
    assert done.code == 2
    assert done.err == (
        f"clipcheck: {output}: cannot be written: the folder '{output.parent}' does not exist. "
        "Create the folder, or give another output path.\n"
    )


def test_a_directory_is_not_replaced(run: Run, tmp_path: Path) -> None:
    done = run("synthesize", "tiny-vit", "-o", tmp_path)
    assert done.code == 2
    assert f"{tmp_path}: expected the format of a folder, found none. Give --format " in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OutputError, match="it is a device or a pipe, not a file"), replacing(path):
        pass
    assert path.is_fifo()


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target, link = folder / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert [file.name for file in folder.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_existing_file_stays_if_writing_fails(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    expected = OutputError if error is OSError else error
    with pytest.raises(expected), replacing(path) as temporary:
        _fail_midway(temporary, error)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def _fail_midway(path: Path, error: type[BaseException]) -> None:
    path.write_text("half of what")
    raise error


def test_an_output_has_the_permissions_that_files_have_here(tmp_path: Path) -> None:
    usual, path = tmp_path / "usual", tmp_path / "file"
    usual.touch()
    with replacing(path) as temporary:
        temporary.touch(0o600)
    assert path.stat().st_mode == usual.stat().st_mode


def test_free_space_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system does not tell")
    written = []
    with (
        pytest.raises(OutputError, match=r"cannot be written \((No space left|File too large)"),
        replacing(tmp_path / "file", room=1 << 60) as temporary,
    ):
        written.append(temporary)
    assert not written
    assert not list(tmp_path.iterdir())


def test_a_file_system_of_unknown_free_space_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    with replacing(tmp_path / "file", room=100) as temporary:
        temporary.write_text("written")
    assert (tmp_path / "file").read_text() == "written"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no such permissions")
def test_a_folder_that_may_not_be_written_to_is_an_error(shared_folder: Path) -> None:
    closed = shared_folder / "closed"
    closed.mkdir()
    for mode in (0o555, 0):
        closed.chmod(mode)
        with somebody_else():
            denied = pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)")
            with denied, replacing(closed / "file") as temporary:
                temporary.touch()
    closed.chmod(0o755)
    assert not list(closed.iterdir())
