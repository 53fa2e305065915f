from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Run


@pytest.mark.thorough
def test_audit_plants_into_the_backends_that_are_named_and_exits_0_when_all_is_right(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    names = ["quickgelu-slope-1.7", "linear-by-addmm", "logit-scale-not-exponentiated"]
    options = [option for name in names for option in ("--only", name)]
    options += ["--backend", "clip", "--backend", "jit", "--json", tmp_path / "audit.json"]
    done = run("audit", "--arch", "tiny-vit", *options)
    assert done.code == 0
    assert done.out.endswith(
        "PASSED: 3 of 3 faults caught (the classic assertion: 2); 1 of 1 clean variants passed.\n"
    )
    document = json.loads((tmp_path / "audit.json").read_text())
    assert [(fault["backend"], fault["name"]) for fault in document["faults"]] == [
        ("jit", "quickgelu-slope-1.7"),
        ("jit", "logit-scale-not-exponentiated"),
        ("clip", "logit-scale-not-exponentiated"),
    ]


@pytest.mark.parametrize("wrong", ["a fault that slips through", "a clean variant rejected"])
def test_audit_exits_1_when_anything_is_wrong(
    run: Run, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    from clipcheck.audit import auditing as audit

    clean = wrong.startswith("a clean")
    gate = "fidelity" if clean else None
    finding = audit.Finding(
        name="x",
        family="f",
        reason="r",
        clean=clean,
        architecture="tiny-vit",
        seed=3,
        weights="seeded",
        dtype="float32",
        gate=gate,
        margin=2.0,
        classic_caught=False,
        backend="jit",
    )
    seen: dict[str, object] = {}

    def found(architectures: list[str], **options: object) -> audit.Audit:
        seen.update(options, architectures=architectures)
        return audit.Audit([finding])

    monkeypatch.setattr(audit, "audit", found)
    done = run(
        "audit", "--arch", "RN50", "--seed", 3, "--seed", 4, "--weights", "trained", "--json", "-"
    )
    assert done.code == 1
    assert json.loads(done.out)["passed"] is False
    del seen["progress"]
    assert seen == {
        "architectures": ["RN50"], "seeds": [3, 4], "weights": ["trained"], "dtypes": ("float32",),
        "backends": None, "families": (), "only": (), "localize": False,
    }  # fmt: skip


def test_audit_refuses_what_it_does_not_know(run: Run) -> None:
    done = run("audit", "--only", "no-such-fault")
    assert done.code == 2
    assert "no-such-fault" in done.err


def test_the_audit_lists_all_names_and_judges_nothing(run: Run) -> None:
    from clipcheck.audit.faults import CLEAN, FAULTS
    from clipcheck.audit.faults.by_backend import BACKEND_FAULTS, CLEAN_BACKENDS
    from clipcheck.audit.faults.by_type import CLEAN_TYPES, TYPE_FAULTS
    from clipcheck.audit.faults.lossy import CLEAN_LOSSY, LOSSY_FAULTS

    done = run("audit", "--list")
    assert (done.code, done.err) == (0, "")
    faults, clean = done.out.split("\n\n")
    planted = (*FAULTS, *BACKEND_FAULTS, *TYPE_FAULTS, *LOSSY_FAULTS)
    sound = (*CLEAN, *CLEAN_BACKENDS, *CLEAN_TYPES, *CLEAN_LOSSY)
    for part, variants in ((faults, planted), (clean, sound)):
        title, *lines = part.strip().splitlines()
        assert title.startswith(f"{len(variants)} ")
        assert [line.split()[0] for line in lines] == [each.name for each in variants]
        assert all(each.reason in line for line, each in zip(lines, variants, strict=True))
