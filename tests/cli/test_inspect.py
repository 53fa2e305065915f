from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipcheck.checkpoints.formats import open_checkpoint
from conftest import Run
from tests.cli import minute
from tests.samples import (
    minute_config,
    minute_weights,
    saved,
)


def test_inspect_shows_all_and_runs_nothing(
    run: Run, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the file was run")

    monkeypatch.setattr(torch.jit, "load", never)
    done = run("inspect", tiny_archive)
    assert done.code == 0
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert facts["file"].startswith(str(tiny_archive))
    assert facts["format"] == "TorchScript archive"
    assert facts["architecture"].startswith("tiny-")
    assert facts["SHA-256"] == (f"{open_checkpoint(tiny_archive).sha256} (not a released file)")
    assert facts["checksums"].startswith("correct in all ")
    assert re.match(r"2 cpu, \d+ cuda:0 \(constants to patch\)", facts["devices"])
    assert re.match(
        r"\d+ float16 \(rewritten .*\), \d+ float32, \d+ int64 \(unchanged", facts["casts"]
    )


def test_inspect_says_where_in_a_file_the_model_was_found(run: Run, tmp_path: Path) -> None:
    weights = {f"model.{key}": tensor for key, tensor in minute_weights().items()}
    weights["head.weight"] = weights["model.ln_final.weight"]
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved({"state_dict": weights}))
    done = run("inspect", path)
    assert (done.code, done.err) == (0, "")
    told = "read from 'state_dict', without 'model.'; left out: head.weight"
    assert f"\nmodel         {told}\n" in done.out


def test_the_user_names_one_of_several_models(run: Run, several: Path, tmp_path: Path) -> None:
    done = run("inspect", several)
    assert done.code == 2
    assert "expected one CLIP model, found 2: model, model_ema. Say which with --key" in done.err
    done = run("inspect", several, "--key", "model_ema")
    assert "\nmodel         read from 'model_ema'\n" in done.out
    path = tmp_path / "written.safetensors"
    told = ("--architecture", minute_config(tmp_path))
    done = run("convert", several, "--key", "model_ema", "-o", path, *told)
    assert done.code == 0, done.err
    assert f"weights of {several} (read from 'model_ema')" in done.out
    found = open_checkpoint(path).tensors["visual.proj"]
    assert found.equal(-minute_weights()["visual.proj"])
    done = run("localize", several, "--key", "model", *told)
    assert "has only weights and no code" in done.err
    assert "with --architecture ARCH and --key NAME if it needs them" in done.err
    done = run("convert", several, "--key", "nothing", "-o", path)
    assert done.code == 2
    assert "expected a CLIP model under 'nothing'; it has model, model_ema. Give" in done.err


def test_inspect_says_what_folders_and_programs_are(run: Run, tmp_path: Path) -> None:
    archive, folder = minute(tmp_path / "minute.pt"), tmp_path / "folder"
    assert run("convert", archive, "-o", folder, "--format", "open_clip").code == 0
    done = run("inspect", folder)
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert facts["format"].startswith("folder of open_clip")
    assert facts["SHA-256"].startswith(open_checkpoint(folder).sha256)
