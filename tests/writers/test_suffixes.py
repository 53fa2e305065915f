from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UsageError
from clipcheck.writers.suffixes import format_for
from tests.samples import FILE_FORMATS


@pytest.mark.parametrize(
    ("output", "meant"),
    [
        ("x.onnx", "onnx"),
        ("some/x.ONNX", "onnx"),
        ("x.pt2", "pt2"),
        ("x.safetensors", "safetensors"),
        ("x.pt", "archive"),
        ("x.jit", "archive"),
        ("x.ts", "archive"),
        ("x.pth", "state-dict"),
        ("pytorch_model.bin", "state-dict"),
        ("a.onnx/x.pt", "archive"),
    ],
)
def test_the_suffix_sets_the_format(output: str, meant: str) -> None:
    assert format_for(output, None, list(Format)) == meant


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("x.pt", "state-dict"),
        ("x.pth", "archive"),
        ("x", "archive"),
        ("x.v2", "onnx"),
        ("x", "transformers"),
        ("x/", "open_clip"),
    ],
)
def test_what_is_asked_for_is_taken_where_the_name_allows_it(output: str, wanted: str) -> None:
    assert format_for(output, wanted, list(Format)) == wanted


@pytest.mark.parametrize(
    ("output", "wanted", "told"),
    [
        ("x.onnx", "archive", "its suffix means onnx, but --format is archive. Leave out"),
        ("x.pt", "onnx", "means archive or state-dict, but --format is onnx. Leave out "),
        ("x.jit", "state-dict", "give model.pt or model.pth or model.bin or model.ckpt."),
        ("x.bin", "transformers", "or give the name of a folder, without such a suffix."),
        ("x/", "onnx", "expected the name of a file for the format onnx, found a folder. Give"),
        ("x/", None, "found none. Give --format transformers or --format open_clip."),
        ("x", None, "or in a slash for a folder, or --format"),
        ("x.v2", None, ", or --format. The formats are archive, state-dict, "),
    ],
)
def test_a_contradicting_or_missing_suffix_is_refused(
    output: str, wanted: str | None, told: str
) -> None:
    with pytest.raises(UsageError, match=f"^{output}: .*{re.escape(told)}"):
        format_for(output, wanted, list(Format))


def test_a_folder_that_is_there_is_one(tmp_path: Path) -> None:
    assert format_for(str(tmp_path), "open_clip", list(Format)) == "open_clip"
    with pytest.raises(UsageError, match="expected the format of a folder"):
        format_for(str(tmp_path), None, list(Format))


def test_formats_that_cannot_be_written_are_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match=r"found onnx\. Write model.pt, and then: clipcheck conv"):
        format_for("x.onnx", None, FILE_FORMATS)
    with pytest.raises(UsageError, match="expected the name of a file, found a folder"):
        format_for("x/", None, FILE_FORMATS)
