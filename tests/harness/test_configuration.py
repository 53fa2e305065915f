"""Options of a check in pyproject.toml: which file is read, what is accepted and what refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from clipcheck.errors import ClipcheckError, UsageError
from clipcheck.harness.configuration import (
    KEYS,
    options_of,
    read_configuration,
    without_overruled,
)
from clipcheck.harness.options import CheckOptions
from clipcheck.results.configuration import Configuration
from tests.samples import minute_config


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_text(text)
    return path


def test_all_options_of_a_check_can_be_configured_by_their_names_and_no_others() -> None:
    assert [*KEYS] == [field.name.replace("_", "-") for field in fields(CheckOptions)]


def test_the_nearest_file_upwards_that_has_the_table_is_read(tmp_path: Path) -> None:
    assert read_configuration(tmp_path / "a") == Configuration()
    outer = write(tmp_path, "[tool.clipcheck]\nexamples = 40\n")
    write(tmp_path / "a" / "b", "[tool.other]\nexamples = 3\n")
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir()
    assert read_configuration(deep) == Configuration(str(outer), {"examples": 40})
    inner = write(tmp_path / "a", "[tool.clipcheck]\n")
    assert read_configuration(deep) == Configuration(str(inner))


def test_options_are_taken_and_the_command_line_overrules_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[tool.clipcheck]\nexamples = 40\natol = 1\nfail-fast = true\nignore = ["top1"]\n'
        'dtype = "float16"\n',
    )
    configuration = read_configuration(tmp_path)
    given = {"examples": 3, "seed": 5}
    assert options_of(configuration, given) == CheckOptions(
        examples=3, seed=5, atol=1, fail_fast=True, ignore=["top1"], dtype="float16"
    )
    left = without_overruled(configuration, {**given, "fail_fast": False})
    assert str(left) == (
        f'Options from {tmp_path / "pyproject.toml"}: atol = 1, ignore = ["top1"], '
        'dtype = "float16"'
    )
    assert str(Configuration()) == ""


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = minute_config(tmp_path)
    write(tmp_path, f'[tool.clipcheck]\narchitecture = "{config.name}"\nreference = "ViT-B/32"\n')
    (tmp_path / "deep").mkdir()
    options = options_of(read_configuration(tmp_path / "deep"), {})
    assert (options.told, options.reference) == (str(config), "ViT-B/32")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exampels = 3", "found 'exampels'. The nearest name is 'examples'; all of them: backend,"),
        ("fail_fast = true", "found 'fail_fast'. The nearest name is 'fail-fast'"),
        ('examples = "3"', "expected examples in [tool.clipcheck] to be a whole number, found '3'"),
        ("examples = true", "to be a whole number, found True"),
        ("atol = false", "to be a number, found False"),
        ("cache = 1", "to be true or false, found 1"),
        ("key = 3", "to be a string, found 3"),
        ('device = ["cpu", 1]', "to be a string or a list of strings, found ['cpu', 1]"),
        (
            "examples = 0",
            "examples in [tool.clipcheck]: expected at least 1 example without --images",
        ),
        ('examples = 0\nimages = "x"', "images in [tool.clipcheck]: expected a folder of images"),
        ('select = ["fidelty"]', "select in [tool.clipcheck]: expected a gate, found 'fidelty'"),
        ('architecture = "ViT"', "architecture in [tool.clipcheck]: expected a released name"),
        ('isolation = "none"', "only the command line can turn the sandbox off. Use the command"),
        ("seed =", "expected a file in TOML, found one that cannot be read (Invalid value"),
    ],
)
def test_invalid_values_are_refused_with_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, f"[tool.clipcheck]\n{text}\n")
    with pytest.raises(ClipcheckError) as caught:
        read_configuration(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


@pytest.mark.parametrize("content", [b"[tool]\nclipcheck = 3\n", b"\xff"])
def test_a_file_that_is_no_table_or_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"pyproject\.toml: expected"):
        read_configuration(tmp_path)
