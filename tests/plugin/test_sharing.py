from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipcheck.plugin.sharing import Case, Finding, Findings
from clipcheck.results.judgement import Judgement
from tests.locking import refuse_locks

CASE = Case("a.pt", "jit", "cpu", "float32")

DIES = """
import os, sys
from pathlib import Path
from clipcheck.plugin.sharing import Case, Findings
case = Case("a.pt", "jit", "cpu", "float32")
Findings(Path(sys.argv[1])).find_or_judge(case, lambda: os._exit(7))
"""


def finding(case: Case = CASE, source: str = "the file given") -> Finding:
    return Finding(case, Judgement(case.model, case.device, dtype=case.dtype), source)


def never() -> Finding:
    pytest.fail("judged twice")


def test_a_case_is_judged_once_by_all_workers(tmp_path: Path) -> None:
    one, other = Findings(tmp_path / "run"), Findings(tmp_path / "run")
    assert one.find_or_judge(CASE, finding) == finding()
    assert other.find_or_judge(CASE, never) == finding()
    assert one.find_or_judge(CASE, never) is one.find_or_judge(CASE, never)


@pytest.mark.parametrize(
    "other",
    [
        replace(CASE, model="b.pt"),
        replace(CASE, backend="onnx"),
        replace(CASE, device="cuda"),
        replace(CASE, dtype="float16"),
    ],
    ids=str,
)
def test_other_cases_are_judged_on_their_own(tmp_path: Path, other: Case) -> None:
    findings = Findings(tmp_path)
    findings.find_or_judge(CASE, finding)
    assert findings.find_or_judge(other, lambda: finding(other)) == finding(other)


def test_a_checkpoint_that_killed_its_worker_is_not_tried_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert done.returncode == 7
    found = Findings(tmp_path).find_or_judge(CASE, never)
    assert found.judgement == Judgement(
        "a.pt",
        "cpu",
        dtype="float32",
        error="expected a result, but the worker died: it crashed, or the machine ran out of "
        "memory. Judge it alone to see how: pytest --pyargs clipcheck.suite "
        "-n 0 --clip-model a.pt --clip-device cpu --clip-dtype float32.",
    )
    assert Findings(tmp_path).all() == [found]


def test_after_an_interrupt_a_checkpoint_is_judged_again(tmp_path: Path) -> None:
    def interrupted() -> Finding:
        raise KeyboardInterrupt

    findings = Findings(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        findings.find_or_judge(CASE, interrupted)
    assert findings.all() == []
    assert findings.find_or_judge(CASE, finding) == finding()


def test_results_come_in_the_order_in_which_they_were_started(tmp_path: Path) -> None:
    cases = [replace(CASE, model=f"{name}.pt") for name in "qwertz"]
    for case in cases:
        Findings(tmp_path).find_or_judge(case, lambda case=case: finding(case))  # type: ignore[misc]
    assert [found.case for found in Findings(tmp_path).all()] == cases


def test_a_file_truncated_by_a_full_disk_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def cut_off(path: Path, contents: bytes) -> int:
        write(path, contents[: len(contents) // 2])
        raise OSError(28, "No space left on device")

    findings = Findings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut_off)
        with pytest.raises(OSError, match="No space left"):
            findings.find_or_judge(CASE, finding)
    assert findings.all() == []
    assert findings.find_or_judge(CASE, finding) == finding()
    assert findings.all() == [finding()]


def test_without_locks_each_judges_what_it_does_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch)

    def interrupted() -> Finding:
        # Another one begins: it cannot know whether this one lives.
        theirs = finding(source="theirs")
        assert Findings(tmp_path).find_or_judge(CASE, lambda: theirs) == theirs
        return finding(source="ours")

    assert Findings(tmp_path).find_or_judge(CASE, interrupted) == finding(source="ours")
    assert Findings(tmp_path).find_or_judge(CASE, never) == finding(source="ours")
    assert Findings(tmp_path).all() == [finding(source="ours")]


def test_a_case_is_described_in_one_line() -> None:
    assert str(CASE) == "a.pt, jit on cpu in float32"
