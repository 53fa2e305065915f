from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcheck.errors import UsageError
from clipcheck.inputs.examples import Preprocessing
from clipcheck.inputs.own import OwnData, Skipped, list_images, read_pixels, read_prompts
from clipcheck.inputs.preprocess import transform


def test_files_are_listed_in_a_fixed_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/c/3.png", "z.png", ".hidden/4.png", "b/.5.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert list_images(tmp_path) == ["z.png", "a/c/3.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a dog\n\xff\xfe", "found a file that is not in UTF-8, at byte 6"),
        (b"\n \r\n", "found no text"),
        (b"a\n" + b"b" * 10_001, "found 10,001 characters on line 2, more than any model takes"),
        (None, "found none that can be read"),
    ],
)
def test_a_file_without_readable_prompts_is_refused(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{path}: --prompts: expected a text file")


def test_lines_keep_their_numbers_and_their_blanks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff a dog\r\n\r\nline\u2028separator\n".encode())
    assert read_prompts(path) == [(1, " a dog"), (3, "line\u2028separator")]


def test_a_folder_without_images_or_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder of images, found nothing"):
        list_images(tmp_path / "none")
    with pytest.raises(UsageError, match="expected images in this folder or below, found no files"):
        list_images(tmp_path)


def test_an_image_is_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    preprocessing = Preprocessing(16, 77)
    expected = transform(16)(image).numpy()
    assert np.array_equal(read_pixels(tmp_path / "turned.png", preprocessing), expected)
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="one side is more than 256 times the other"):
        read_pixels(tmp_path / "thin.png", preprocessing)


def test_a_stamp_changes_with_the_data(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("1")
    stamp = OwnData.of(str(tmp_path), None).stamp()
    assert OwnData.of(str(tmp_path), None).stamp() == stamp
    (tmp_path / "1.png").write_text("22")
    assert OwnData.of(str(tmp_path), None).stamp() != stamp
    assert OwnData().stamp() == ""


def test_rows_come_in_batches(tmp_path: Path) -> None:
    data = OwnData(prompts=[(number, f"a dog {number}") for number in range(1, 12)])
    rows = list(data.rows("prompt", Preprocessing(16, 77), Skipped()))
    assert [(each.first, each.array.shape) for each in rows] == [(0, (8, 77)), (8, (3, 77))]
    assert rows[1].names[0] == "line 9, 'a dog 9'"
