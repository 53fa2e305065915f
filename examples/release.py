"""Gate a release: judge a checkpoint in every backend that fits, and keep the report.

    python examples/release.py model.pt report/

Exits 0 if it is consistent, 1 if not, 2 if it could not be judged.
"""

from __future__ import annotations

import sys

import clipcheck


def judge(checkpoint: str, folder: str, examples: int = 30) -> clipcheck.Result:
    """Judge a checkpoint, and write the page, the text and the JSON into a folder."""
    result = clipcheck.check(checkpoint, backend=["jit", "export"], examples=examples)
    result.write_report(folder)
    return result


if __name__ == "__main__":
    found = judge(*sys.argv[1:3])
    print(found)
    sys.exit(found.exit_code)
