from __future__ import annotations

from html.parser import HTMLParser

from clipcheck.report.notebook import render
from clipcheck.results.judgement import Result
from tests.report import PASSED, failed, failing_result


class Texts(HTMLParser):
    """The texts of a page, and the tags that they stand in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_there_is_a_verdict_and_a_row_for_each_run() -> None:
    found = Texts(render(failing_result())).found
    assert found[0].startswith("INCONSISTENT: 1 of 3 checkpoints differs")
    head = ["checkpoint", "backend", "device", "dtype", "integrity", "fidelity"]
    assert found[1:] == [
        *head,
        *("release/model.pt", "jit", "cpu", "float32", "ok", "ok 37%"),
        *("bad.pt", "jit", "cpu", "float32", "ok", "FAIL 12x"),
        *("gone.pt", "jit", "cpu", "not judged: expected a file, found 'gone.pt'. Look again."),
    ]


def test_a_name_is_no_markup() -> None:
    page = Texts(render(Result((PASSED, failed("<script>\x1b.pt")), {})))
    assert "script" not in page.tags
    assert r"<script>\x1b.pt" in page.found


def test_without_results_there_is_no_table() -> None:
    assert "<table>" not in render(Result((), {}))
