from __future__ import annotations

import copy
import tomllib
from typing import Any

from packaging.requirements import Requirement

from tools import write_sbom

NEEDED = [Requirement("torch>=2.9"), Requirement("Pillow>=11.0")]
BILL: dict[str, Any] = {
    "metadata": {"component": {"bom-ref": "root", "name": "clipcheck", "version": "1.0"}},
    "components": [
        {"bom-ref": "torch==2.9.1", "name": "torch", "version": "2.9.1"},
        {"bom-ref": "pillow==12.0.0", "name": "pillow", "version": "12.0.0"},
        {"bom-ref": "mpmath==1.3.0", "name": "mpmath", "version": "1.3.0"},
    ],
    "dependencies": [
        {"ref": "root", "dependsOn": ["torch==2.9.1", "pillow==12.0.0"]},
        {"ref": "torch==2.9.1", "dependsOn": ["mpmath==1.3.0"]},
    ],
}


def test_a_bill_that_lists_every_requirement_is_right() -> None:
    assert write_sbom.mistakes(BILL, "1.0", NEEDED) == []


def test_a_missing_requirement_is_reported() -> None:
    needed = [*NEEDED, Requirement("rich>=14.0")]
    assert write_sbom.mistakes(BILL, "1.0", needed) == ["rich is missing"]


def test_what_only_others_depend_on_is_not_taken_for_a_requirement() -> None:
    bill = copy.deepcopy(BILL)
    bill["dependencies"][0]["dependsOn"].remove("pillow==12.0.0")
    assert write_sbom.mistakes(bill, "1.0", NEEDED) == ["Pillow is missing"]


def test_a_version_that_is_not_allowed_is_reported() -> None:
    needed = [Requirement("torch>=2.10")]
    expected = ["torch>=2.10 is expected, the bill has 2.9.1"]
    assert write_sbom.mistakes(BILL, "1.0", needed) == expected


def test_a_bill_of_another_release_is_reported() -> None:
    expected = ["it is of clipcheck 1.0, not of clipcheck 1.1"]
    assert write_sbom.mistakes(BILL, "1.1", NEEDED) == expected


def test_what_is_declared_are_the_dependencies_and_the_extras_of_users() -> None:
    project = tomllib.loads((write_sbom.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [each.name for each in write_sbom.declared(project)]
    assert {"torch", "packaging", "onnxruntime", "transformers", "pytest"} <= set(names)
    assert {"selenium", "mypy"}.isdisjoint(names)
    assert len(names) == len(set(names))
