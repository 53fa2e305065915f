"""Keep what a check compared, and judge it again without running."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import OutputError, ResultsError, UsageError
from clipcheck.harness.rejudging import rejudge
from clipcheck.results.kept import read_kept
from clipcheck.testing import check
from conftest import Run
from tests.samples import minute_bytes


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Run a check with a budget, and keep its outputs."""
    folder = tmp_path_factory.mktemp("kept")
    archive = folder / "model.pt"
    archive.write_bytes(minute_bytes(Format.ARCHIVE))
    how = {"device": "cpu", "isolation": "none", "examples": 8, "budget": "int8"}
    result = check(archive, keep_outputs=folder / "kept", **how)
    return SimpleNamespace(result=result, kept=folder / "kept", archive=archive)


def test_the_same_limits_give_the_same_gates(checked: SimpleNamespace) -> None:
    (found,), (before,) = rejudge(checked.kept).judgements, checked.result.judgements
    assert {gate.name for gate in before.gates} >= {"budget", "fidelity", "integrity"}
    assert found.gates == before.gates
    assert (found.ignored, found.limits) == (before.ignored, before.limits)


def test_another_budget_and_other_gates_are_judged(checked: SimpleNamespace) -> None:
    result = rejudge(checked.kept, budget="cosine=0.9,top1=0.9", select=["budget"])
    (found,) = result.judgements
    (gate,) = found.gates
    assert gate.name == "budget"
    assert "best match agrees in 100 %, at least 96 % (limit 90 %)" in gate.message
    assert found.budget == "cosine=0.9,top1=0.9"
    assert {"fidelity", "repeatability"} <= set(found.ignored)
    with pytest.raises(UsageError, match="expected outputs for 889 random images"):
        rejudge(checked.kept, budget="top1=0.99")


def test_the_report_is_that_of_a_check_and_torch_is_not_imported(checked: SimpleNamespace) -> None:
    code = (
        "import sys; from clipcheck.cli.app import app\n"
        f"sys.argv = ['clipcheck', 'rejudge', {str(checked.kept)!r}, '--json', '-']\n"
        "try:\n    app()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"][0]["budget"] == "int8"
    told = f"Judged again: the outputs are those of {checked.kept}, and nothing was run.\nFalse\n"
    assert done.stderr == told


def test_other_tolerances_are_judged(run: Run, checked: SimpleNamespace, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = ["--keep-outputs", kept, "--isolation", "none", "--examples", 3]
    first = run("check", checked.archive, *options)
    again = run("rejudge", kept)
    assert (first.code, again.code) == (0, 0)
    before, _, _ = first.out.partition("\nNext: ")
    assert again.out.partition("\nNext: ")[0] == before
    strict = run("rejudge", kept, "--atol", 0, "--rtol", 1e-12, "--select", "allclose")
    assert strict.code == 1
    assert "atol 0 + rtol 1e-12" in " ".join(strict.out.split())


def test_a_folder_of_other_files_is_neither_written_nor_read(
    checked: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(checked.kept, folder)
    file = folder / "0.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    with pytest.raises(
        ResultsError, match=r"0\.safetensors: expected the outputs .* it is cut off"
    ):
        read_kept(folder)
    file.write_bytes(data)
    results = folder / "results.json"
    document = json.loads(results.read_text())
    document["results"][0]["run"] = "another"
    results.write_text(json.dumps(document))
    with pytest.raises(ResultsError, match="it has the outputs of another judgement"):
        read_kept(folder)
    (folder / "mine.txt").touch()
    with pytest.raises(ResultsError, match="it has no outputs, or other files"):
        read_kept(folder)


def test_nothing_is_kept_of_a_check_that_compared_nothing(
    run: Run, checked: SimpleNamespace, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    done = run("check", tmp_path / "gone.pt", "--keep-outputs", kept)
    assert done.code == 2
    expected = "there are no outputs to keep: " + str(tmp_path / "gone.pt") + ": no such file"
    assert expected in done.err
    assert not kept.exists()


def test_outputs_that_cannot_be_kept_are_refused_before_a_check(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="it is not empty, and was not changed"):
        check(tmp_path / "gone.pt", keep_outputs=tmp_path)
    done = run("check", tmp_path / "gone.pt", "--keep-outputs", tmp_path)
    assert (done.code, done.err.count("it is not empty")) == (2, 1)
    assert "NOT JUDGED" in done.out
    done = run("pin", tmp_path / "gone.pt", "--output", tmp_path)
    assert (done.code, "cannot be written (Is a directory)" in done.err) == (2, True)


def test_only_gates_that_can_fail_beside_a_budget_are_offered(checked: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="with a budget, so nothing is judged") as caught:
        rejudge(checked.kept, select=["fidelity"])
    assert "fidelity" not in caught.value.remedy
