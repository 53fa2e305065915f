"""A result as one page of HTML that needs nothing beside itself."""

from __future__ import annotations

from clipcheck.results.judgement import Result


def render(result: Result) -> str:
    """The whole page. It has no scripts and fetches nothing.

    Args:
        result: of any verdict.
    """
    # Both take a third of a second to import, and a check without a report needs neither.
    from clipcheck.report.html.page import page

    return page(result)
