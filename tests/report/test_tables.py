from __future__ import annotations

from rich.text import Text

from clipcheck.report.tables import table
from clipcheck.system.width import WIDTH


def test_columns_are_as_wide_as_their_widest_cell_and_keep_styles() -> None:
    found = table(
        [("a", Text("ok", "green"), "3"), ("日本語", "no", "1,234\nx")],
        heads=("name", "it", "count"),
        right=[2],
        indent=1,
    )
    assert found.plain.split("\n") == [
        " name    it  count",
        " a       ok      3",
        " 日本語  no  1,234",
        "                 x",
    ]
    assert any(found.plain[span.start : span.end].strip() == "ok" for span in found.spans)


def test_the_last_column_alone_is_wrapped_and_only_where_this_is_asked_for() -> None:
    row = ("a name", "word " * 40 + "end")
    assert table([row]).plain == "  ".join(row)
    lines = table([row], indent=2, wraps=True).plain.split("\n")
    assert max(map(len, lines)) <= WIDTH
    assert all(line.startswith(" " * 10) for line in lines[1:])
