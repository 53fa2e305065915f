from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipcheck.harness import checking
from clipcheck.results import document as json_report
from conftest import Run
from tests.report import ENVIRONMENT, PASSED, failed


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The results of two checks; the second is worse."""
    better = checking.Result((PASSED,), ENVIRONMENT)
    worse = checking.Result((replace(failed(), checkpoint="model.pt"),), ENVIRONMENT)
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, result in zip(paths, (better, worse), strict=True):
        path.write_text(json_report.render(result), encoding="utf-8")
    return paths


def test_diff_reports_what_got_worse_and_exits_1(run: Run, runs: tuple[Path, Path]) -> None:
    old, new = runs
    done = run("diff", old, new)
    assert done.code == 1
    assert done.out.startswith("new failure: model.pt, jit on cpu in float32\n")
    assert done.out.endswith("\nWORSE: 1 new failure.\n")
    done = run("diff", new, old)
    assert done.code == 0
    assert done.out.endswith("\nNOT WORSE: 1 fixed.\n")
    assert run("diff", old, old).out == "NOT WORSE: 1 passes as before.\n"


def test_diff_writes_json(run: Run, runs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("diff", *runs, "--json", "-")
    assert json.loads(done.out)["worse"] is True
    assert done.code == 1
    done = run("diff", *runs, "--json", tmp_path / "diff.json")
    assert "WORSE" in done.out
    assert json.loads((tmp_path / "diff.json").read_text())["worse"] is True
    done = run("diff", *runs, "--json", tmp_path / "gone" / "diff.json")
    assert (done.code, "WORSE" in done.out) == (2, True)


def test_diff_exits_2_for_what_it_cannot_compare(run: Run, runs: tuple[Path, Path]) -> None:
    old, new = runs
    new.write_text(new.read_text()[:-100])
    for pair in ((old, new), (new, old), (old, old.with_name("gone.json"))):
        done = run("diff", *pair)
        assert done.code == 2
        assert done.out == ""
        assert len(done.err.splitlines()) == 1
        assert "expected the results of a check, but " in done.err
