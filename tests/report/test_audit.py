from __future__ import annotations

import json
from dataclasses import replace

from clipcheck.audit.findings import Audit, Finding
from clipcheck.gates.localisation import Localisation, Place
from clipcheck.report.audit import render, render_json, summary

FAULT = Finding(
    name="gelu",
    family="activation",
    reason="another GELU",
    clean=False,
    architecture="tiny-vit",
    seed=0,
    weights="seeded",
    dtype="float32",
    gate="modules",
    margin=1830.4,
    classic_caught=False,
    backend="jit",
    greatest={"module": 18304.0},
)
GROSS = replace(FAULT, name="no-mask", gate="integrity", margin=float("inf"), classic_caught=True)
CLEAN = replace(FAULT, name="addmm", family="clean", clean=True, gate=None, margin=0.42)


def test_the_summary_counts_and_compares_with_the_classic_assertion() -> None:
    assert summary(Audit([FAULT, GROSS, CLEAN])) == (
        "PASSED: 2 of 2 faults caught (the classic assertion: 1); 1 of 1 clean variants passed."
    )


def test_what_is_wrong_is_named() -> None:
    missed, rejected = replace(FAULT, gate=None), replace(CLEAN, gate="modules")
    assert summary(Audit([missed, GROSS, rejected])) == (
        "FAILED: 1 of 2 faults caught (the classic assertion: 1); 0 of 1 clean variants passed.\n"
        "Wrong: addmm in tiny-vit (jit), gelu in tiny-vit (jit)."
    )


FOUND = Localisation(
    [
        Place(tower="image"),
        Place(tower="text", module="ln_final", part="itself, or pooling"),
        Place(tower="logits", module="forward"),
    ]
)


def test_the_hit_rate_and_what_was_localised_elsewhere_are_reported() -> None:
    hit = replace(FAULT, localisation=FOUND, localised=True)
    miss = replace(GROSS, localisation=Localisation([Place(tower="image")]))
    assert summary(Audit([hit, CLEAN])) == (
        "PASSED: 1 of 1 faults caught (the classic assertion: 0); 1 of 1 clean variants passed. "
        "1 of 1 faults that show on ordinary inputs were localised to the module they were "
        "planted in."
    )
    hidden = replace(GROSS, localisation=Localisation([Place(tower="image")]), localised=True)
    assert summary(Audit([hit, hidden, CLEAN])) == (
        "PASSED: 2 of 2 faults caught (the classic assertion: 1); 1 of 1 clean variants passed. "
        "1 of 1 faults that show on ordinary inputs were localised to the module they were "
        "planted in; 1 does not show there."
    )
    told = summary(Audit([hit, miss]))
    assert told.startswith("FAILED: 2 of 2 faults caught")
    assert "1 of 2 faults that show on ordinary inputs were localised" in told
    assert told.endswith("\nLocalised elsewhere: no-mask in tiny-vit.")
    rows = render(Audit([hit, miss])).splitlines()
    assert any(
        row.split() == ["gelu", "tiny-vit", *["ln_final", "(itself,", "or", "pooling),", "forward"]]
        for row in rows
    )
    assert any(row.split() == ["X", "no-mask", "tiny-vit", "nowhere"] for row in rows)
    hits = json.loads(render_json(Audit([hit, miss, FAULT, hidden])))["faults"]
    assert [fault["localised"] for fault in hits] == [True, False, None, True]
    assert [fault["hidden"] for fault in hits] == [False, False, False, True]
    assert hits[0]["places"] == [
        {"tower": "text", "module": "ln_final", "part": "itself, or pooling"},
        {"tower": "logits", "module": "forward", "part": ""},
    ]


def test_a_row_has_the_least_margin_of_a_fault_and_the_greatest_of_a_clean_variant() -> None:
    weaker = replace(FAULT, seed=1, margin=12.0, classic_caught=True)
    audit = Audit([FAULT, weaker, GROSS, CLEAN, replace(CLEAN, seed=1, margin=0.61)])
    lines = render(audit).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["gelu"] == ["tiny-vit", "jit", "modules", "12", "1/2"]
    assert rows["no-mask"] == ["tiny-vit", "jit", "integrity", "not", "finite", "1/1"]
    assert rows["addmm"] == ["tiny-vit", "jit", "-", "0.61", "0/2"]
    assert all(len(line) <= 100 for line in lines)


def test_the_longest_names_of_the_catalogue_keep_their_columns_apart() -> None:
    from clipcheck.audit.faults import CLEAN as CLEAN_VARIANTS
    from clipcheck.audit.faults import FAULTS

    longest = max((v.name for v in (*FAULTS, *CLEAN_VARIANTS)), key=len)
    text = render(Audit([replace(FAULT, name=longest, architecture="tiny-resnet"), CLEAN]))
    assert f"{longest} " in text


def test_the_json_has_the_fields_of_schema_1() -> None:
    document = json.loads(render_json(Audit([FAULT, GROSS, CLEAN])))
    assert document.keys() == {"schema", "passed", "left_out", "faults", "clean"}
    assert (document["schema"], document["passed"]) == (1, True)
    first, second = document["faults"]
    assert first["name"] == "gelu"
    assert (first["architecture"], first["backend"]) == ("tiny-vit", "jit")
    assert (first["caught"], first["gate"], first["classic_caught"]) == (True, "modules", False)
    assert first["margin"] == 1830.4
    assert first["greatest"] == {"module": 18304.0}
    assert second["margin"] is None  # JSON has no infinity.
    (clean,) = document["clean"]
    assert (clean["name"], clean["architecture"], clean["passed"]) == ("addmm", "tiny-vit", True)


def test_each_architecture_has_a_row_of_its_own() -> None:
    audit = Audit([FAULT, replace(FAULT, architecture="tiny-resnet", margin=7.0), CLEAN])
    lines = render(audit).splitlines()
    assert [line.split()[1:4] for line in lines if line.startswith("gelu")] == [
        ["tiny-vit", "jit", "modules"],
        ["tiny-resnet", "jit", "modules"],
    ]


def test_each_backend_has_its_own_row_and_skipped_ones_are_named() -> None:
    other = replace(FAULT, backend="onnxruntime", gate=None)
    audit = Audit([FAULT, other, CLEAN], {"compile": "no C++ compiler was found. Install g++."})
    lines = render(audit).splitlines()
    assert [line.split()[2] for line in lines if line.startswith("gelu")] == ["jit", "onnxruntime"]
    assert "compile: left out (no C++ compiler was found. Install g++.)" in lines
    assert lines[-1] == "Wrong: gelu in tiny-vit (onnxruntime)."
    document = json.loads(render_json(audit))
    assert document["left_out"] == audit.left_out
    assert [fault["backend"] for fault in document["faults"]] == ["jit", "onnxruntime"]
    assert [variant["backend"] for variant in document["clean"]] == ["jit"]
