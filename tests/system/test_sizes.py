from __future__ import annotations

import pytest

from clipcheck.system.sizes import bytes_in, written


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 kB"),
        (326_175, "326 kB"),
        (27_539_168, "27.5 MB"),
        (1_353_500_174, "1.4 GB"),
        (2_000_000_000_000, "2,000.0 GB"),
    ],
)
def test_a_number_of_bytes_is_written_for_people(count: int, told: str) -> None:
    assert written(count) == told


@pytest.mark.parametrize("size", ["27.5 MB", "1.4 GB", "326 kB"])
def test_what_is_written_is_read_again(size: str) -> None:
    found = bytes_in(size)
    assert found is not None
    assert written(found) == size
