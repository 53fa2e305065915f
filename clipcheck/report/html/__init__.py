"""Render a result as one self-contained HTML page."""

from __future__ import annotations

from clipcheck.results.judgement import Result


def render(result: Result) -> str:
    """Return the page. It has no scripts and fetches nothing.

    Args:
        result: of any verdict.
    """
    # jinja2 and matplotlib take a third of a second to import; only reports need them.
    from clipcheck.report.html.page import page

    return page(result)
