from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.errors import OutputError
from clipcheck.report.evidence import require_folder


def test_the_folder_of_a_report_is_made_with_those_above_it_and_may_be_there(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        require_folder(tmp_path / "reports" / "today")
    assert list((tmp_path / "reports" / "today").iterdir()) == []


def test_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("")
    with pytest.raises(OutputError, match="expected a writable folder"):
        require_folder(tmp_path / "report")
