"""Backends of a user's own code, named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipcheck.backends import registry
from clipcheck.backends.registry import backend_named, find, parse
from clipcheck.errors import UsageError
from conftest import Run

MODULE = """
import numpy as np
import torch
import clipcheck
from clipcheck.backends.eager import Eager

def engine(path, shift=0.0):
    model, _ = clipcheck.load(path, device="cpu", jit=True)
    def encode_image(pixels):
        return model.encode_image(torch.from_numpy(pixels)).numpy() + shift
    def encode_text(ids):
        return model.encode_text(torch.from_numpy(ids)).numpy()
    return encode_image, encode_text

def wrong(path):
    return engine(path, 1e-3)

def broken(path):
    raise OSError("no such engine")

def exits(path):
    raise SystemExit(3)

def images_only(path):
    return engine(path)[0], None

def module(path):
    model, _ = clipcheck.load(path, device="cpu", jit=False)
    model.ln_final.eps = 1e-3
    return model

class Mine(Eager):
    needs_reference = False

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "user_engine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("user_engine", None)
    find.cache_clear()


def test_a_factory_in_the_current_folder_is_judged(
    folder: Path, minute_archive: Path, run: Run
) -> None:
    done = run("check", minute_archive, "--backend", "user_engine:engine", "--examples", 4)
    assert done.code == 0, done.out + done.err
    assert "user_engine:engine" in done.out
    assert "logits: computed from both features by the reference" in done.out
    done = run("check", minute_archive, "--backend", "user_engine:wrong", "--examples", 4)
    assert done.code == 1
    assert "smallest input that fails" in done.out
    assert "clipcheck replay" not in done.out
    assert "writes a report that shows what fails." in done.out
    assert str(folder) not in sys.path
    done = run("check", minute_archive, "--backend", "user_engine:broken", "--examples", 4)
    assert done.code == 2
    assert "making the model failed (no such engine)" in " ".join(done.out.split())
    done = run("check", minute_archive, "--backend", "user_engine:exits", "--examples", 4)
    assert done.code == 2
    assert "making the model failed (it exits with 3)" in " ".join(done.out.split())


def test_a_factory_of_one_tower_is_judged_by_what_it_gives(
    folder: Path, minute_archive: Path, run: Run
) -> None:
    done = run("check", minute_archive, "--backend", "user_engine:images_only", "--examples", 4)
    assert done.code == 0, done.out + done.err
    assert "not judged: text_features, logits_per_image, logits_per_text" in done.out


def test_modules_of_a_torch_module_are_judged_one_by_one(
    folder: Path, minute_archive: Path, run: Run
) -> None:
    options = ("--backend", "user_engine:module", "--examples", 1, "--select", "modules")
    done = run("check", minute_archive, *options)
    assert done.code == 1, done.out + done.err
    assert "ln_final (forward): error" in " ".join(done.out.split())


def test_a_backend_class_is_used_as_it_is(folder: Path) -> None:
    assert find("user_engine:Mine").__name__ == "Mine"


@pytest.mark.parametrize(
    ("written", "told", "remedy"),
    [
        (
            "user_engine:nothing",
            "cannot be imported (AttributeError: module 'user_engine' has no",
            "python -c 'import user_engine' must work",
        ),
        (
            "needs_more:engine",
            "cannot be imported (ModuleNotFoundError: No module named 'not_installed'",
            "mend the module",
        ),
        ("no_module:engine", "cannot be imported (ModuleNotFoundError: No", "in the folder of"),
        ("stops:engine", "cannot be imported (SystemExit: 4)", "mend the module"),
        ("user_engine:number", "which is of type int", "Name a function of a path"),
    ],
)
def test_what_is_no_factory_is_refused(folder: Path, written: str, told: str, remedy: str) -> None:
    (folder / "needs_more.py").write_text("import not_installed", encoding="utf-8")
    (folder / "stops.py").write_text("raise SystemExit(4)", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        parse(written)
    assert told in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_file_cannot_name_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(UsageError, match="which is code of a user's own"):
        parse("user_engine:engine", own=False)
    assert backend_named("user_engine:engine").__name__ == "Backend"
