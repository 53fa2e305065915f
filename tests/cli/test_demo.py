from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.cli import demo
from conftest import Run, unfolded
from tests.samples import (
    MINUTE,
    MINUTE_RESNET,
)


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the smallest architectures, and run the demo on them."""
    monkeypatch.setitem(ARCHITECTURES, "minute", MINUTE)
    monkeypatch.setitem(ARCHITECTURES, "minute-resnet", MINUTE_RESNET)
    monkeypatch.setattr(demo, "DEMO", "minute")
    monkeypatch.setattr(demo, "DEMO_RESNET", "minute-resnet")


def test_the_demo_is_of_full_size() -> None:
    """The consistency tests write and judge a full-size ViT-B/32."""
    assert (demo.DEMO, demo.DEMO_RESNET) == ("ViT-B/32", "RN50")


@pytest.mark.usefixtures("minutes")
def test_demo_writes_an_archive_and_finds_it_consistent(run: Run) -> None:
    done = run("demo")
    assert done.code == 0
    assert "minute.pt" in done.out
    assert "seeded" in done.out
    assert "CONSISTENT" in done.out
    assert done.out.endswith("\nNext: clipcheck check YOUR_CHECKPOINT\n")
    assert len(run("demo", "-q").out.splitlines()) <= 6


@pytest.mark.thorough
@pytest.mark.usefixtures("minutes")
def test_demo_of_a_fault_leads_through_what_is_found(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("demo", "--fault", "quickgelu-slope-1.7")
    assert done.code == 1
    out = unfolded(done.out)
    assert out.startswith("Planted into a minute archive, with seeded weights:\n")
    assert "the factor 1.702 is rounded to 1.7" in out
    assert "INCONSISTENT" in out
    tour = out[out.index("What to look at:") :]
    assert "1. the verdict  not passed: fidelity, modules" in tour
    assert "2. the module   transformer.resblocks.0.mlp.gelu\n" in tour
    assert "the smallest failing input" in tour
    assert "4. the page     open clipcheck-demo/report.html" in tour
    (saved,) = Path("clipcheck-demo/failing-inputs").iterdir()
    assert f"Next: clipcheck replay {saved}\n" in tour
    assert "Last: rm -r clipcheck-demo\n" in tour
    assert {path.name for path in Path("clipcheck-demo").iterdir()} == {
        "failing-inputs", "report.html", "report.txt", "results.json", "minute.pt"
    }  # fmt: skip
    assert run("replay", saved).code == 1
    quiet = run("demo", "--fault", "quickgelu-slope-1.7", "--report", "mine", "-q")
    assert "What to look at" not in quiet.out
    assert "INCONSISTENT" in quiet.out
    assert Path("mine/report.html").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("minutes")
def test_demo_takes_a_resnet_for_a_fault_that_no_vision_transformer_has(
    run: Run, tmp_path: Path
) -> None:
    done = run("demo", "--fault", "max-pool-in-stem", "--report", tmp_path / "x")
    assert "2. the module   visual.avgpool\n" in done.out
    assert (tmp_path / "x" / "minute-resnet.pt").exists()


def test_demo_refuses_a_fault_that_there_is_not_before_anything_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("demo", "--fault", "gelu")
    assert done.code == 2
    assert "gelu-for-quickgelu" in done.err
    assert not list(tmp_path.iterdir())
