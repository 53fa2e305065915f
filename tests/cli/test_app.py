from __future__ import annotations

import errno
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clipcheck
from clipcheck.audit.faults import fault_named
from clipcheck.backends.base import Missing
from clipcheck.backends.registry import BACKENDS, way
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.architecture import ARCHITECTURES, Activation
from clipcheck.checkpoints.checkpoint import Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.cli import app as cli
from clipcheck.cli import terminal
from clipcheck.errors import Notice
from clipcheck.harness import checking
from clipcheck.report import annotations, junit, markdown, text
from clipcheck.results import document as json_report
from clipcheck.system.progress import Progress
from clipcheck.writers.archive import write_archive
from conftest import Run, SeededArchive, unfolded
from tests.report import ENVIRONMENT, PASSED, failed, failing_result
from tests.samples import (
    MINUTE,
    MINUTE_RESNET,
    minute_bytes,
    minute_config,
    minute_weights,
    saved,
)

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def test_check_prints_a_verdict_and_exits_0(run: Run, tiny_archive: Path) -> None:
    done = run("check", tiny_archive)
    assert done.code == 0
    assert done.out.startswith(f"{tiny_archive}\n")
    assert unfolded(done.out).endswith(
        "\nCONSISTENT: 1 checkpoint agrees between JIT and eager.\n"
        f"Next: clipcheck check {tiny_archive} --report clip-report\n"
        "      keeps what was found, to go with the release.\n"
    )
    assert done.err == ""


def test_quiet_leaves_the_table_and_the_verdict(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(minute_archive.parent)
    done = run("check", "-q", minute_archive.name, "--examples", 1)
    assert done.code == 0
    first, *middle, last = done.out.splitlines()
    assert first.split()[-6:] == [
        "integrity", "allclose", "fidelity", "modules", "top1", "repeatability"
    ]  # fmt: skip
    assert len(middle) <= 3
    assert last == "CONSISTENT: 1 checkpoint agrees between JIT and eager."


def test_no_report_is_suggested_where_one_is_kept(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    options = ["--report", tmp_path / "report", "--examples", 1]
    assert "Next:" not in run("check", minute_archive, *options).out


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal(run: Run) -> None:
    for command in ("check", "inspect"):
        done = run(command, "a\x1b[31m.pt")
        assert "\x1b" not in done.out + done.err
        assert r"a\x1b[31m.pt" in done.out + done.err


def test_check_exits_1_for_an_inconsistent_checkpoint(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive, "--atol", 0, "--rtol", 0, "--examples", 14)
    assert done.code == 1
    assert "FAIL  allclose" in done.out
    assert "INCONSISTENT" in done.out


def test_check_judges_several_and_exits_2_where_one_cannot_be(
    run: Run, minute_archive: Path
) -> None:
    done = run("check", "RN51", minute_archive, "--examples", 1)
    assert done.code == 2
    assert "'RN50'" in done.out
    assert "NOT JUDGED: 1 of 2 checkpoints could not be judged, 1 passed." in done.out


def test_a_notice_is_one_line_and_other_warnings_are_as_ever(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object, **__: object) -> checking.Result:
        warnings.simplefilter("always")
        warnings.warn("look\x1b here", Notice, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return checking.Result((PASSED,), ENVIRONMENT)

    monkeypatch.setattr(checking, "check", judge)
    with pytest.warns(UserWarning, match="something else") as caught:
        done = run("check", minute_archive)
    assert done.err == "clipcheck: look\\x1b here\n"
    assert len(caught) == 1


def test_json_on_stdout_is_alone_there(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive, "--json", "-", "--examples", 3)
    document = json.loads(done.out)
    assert document["results"][0]["examples"] == 3
    assert done.code == 0


def test_json_in_a_file_comes_beside_the_text(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    done = run("check", minute_archive, "--json", path, "--examples", 1)
    assert "CONSISTENT" in done.out
    assert json.loads(path.read_text())["passed"] is True
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_json_file_that_cannot_be_written_is_an_error(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "missing" / "result.json"
    done = run("check", minute_archive, "--json", path, "--examples", 1)
    assert done.code == 2
    assert "result.json: cannot be written" in done.err


def test_the_options_reach_the_check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def spy(checkpoints: list[str], **options: object) -> checking.Result:
        seen.update(options, checkpoints=checkpoints)
        return checking.Result((), {})

    monkeypatch.setattr(checking, "check", spy)
    options = ["--device", "cpu", "--device", "mps", "--examples", 3, "--seed", 4]
    options += ["--dtype", "float32", "--dtype", "bfloat16", "--exhaustive"]
    options += ["--backend", "jit", "--backend", "compile:dynamic=auto"]
    options += ["--key", "k", "--reference", "r", "--no-cache", "--isolation", "none"]
    options += ["--architecture", "ViT-B/32"]
    run("check", "a", "b", *options, "--atol", 0.5, "--rtol", 0.25, "--download-root", "x")
    seen.pop("progress")
    assert seen == {
        "checkpoints": ["a", "b"],
        "backend": ["jit", "compile:dynamic=auto"],
        "key": "k",
        "reference": "r",
        "architecture": "ViT-B/32",
        "cache": False,
        "isolation": "none",
        "device": ["cpu", "mps"],
        "dtype": ["float32", "bfloat16"],
        "exhaustive": True,
        "examples": 3,
        "seed": 4,
        "atol": 0.5,
        "rtol": 0.25,
        "download_root": Path("x"),
    }


def test_synthesize_writes_what_was_asked_for(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    done = run("synthesize", "tiny-vit", "-o", path, "--format", "safetensors", "--seed", 3)
    assert done.code == 0
    assert "seeded weights, not trained ones, of tiny-vit" in done.out
    opened = open_checkpoint(path)
    assert (opened.format, opened.architecture.name) == ("safetensors", "tiny-vit")


def test_an_unknown_architecture_is_refused_with_the_nearest_name(run: Run, tmp_path: Path) -> None:
    done = run("synthesize", "ViT-Z", "-o", tmp_path / "t.pt")
    assert done.code == 2
    assert "'ViT-Z'" in done.err
    assert "The nearest name is 'ViT-L/14'." in done.err
    assert not list(tmp_path.iterdir())


def test_a_state_dict_becomes_an_archive_that_was_checked(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    weights, archive = tmp_path / "weights.pt", tmp_path / "archive.pt"
    assert run("convert", minute_archive, "-o", weights, "--format", "state-dict").code == 0
    assert run("check", weights).code == 2
    done = run("convert", weights, "-o", archive)
    assert (done.code, done.out) == (2, "")
    assert "these weights do not tell how the model computes" in done.err
    done = run("convert", weights, "-o", archive, "--architecture", minute_config(tmp_path))
    assert done.code == 0
    count = len(open_checkpoint(weights).tensors)
    assert f"\nread back: {count} tensors, bit for bit those of {weights}\n" in done.out
    assert re.search(r"\bjit\s+cpu\b", done.out)
    assert done.out.endswith("CONSISTENT: 1 checkpoint agrees between JIT and eager.\n")
    assert run("check", archive, "--examples", 1).code == 0


def test_an_archive_of_another_architecture_is_not_converted_before_that_is_told(
    run: Run, tmp_path: Path
) -> None:
    path, output = tmp_path / "gelu.pt", tmp_path / "a.safetensors"
    gelu = MINUTE.with_blocks(activation=Activation.GELU)
    write_archive(MINUTE, minute_weights(), path, alter=fault_named("gelu-for-quickgelu").plant)
    for options in ((), ("--isolation", "none")):
        done = run("convert", path, "-o", output, *options)
        assert (done.code, done.out) == (2, "")
        assert f"clipcheck: {path}: this candidate computes GELU in the image and text" in done.err
        assert "Say which it is with --architecture: " in done.err
        assert not output.exists()
    config = minute_config(tmp_path, gelu)
    done = run("convert", path, "-o", output, "--architecture", config)
    assert done.code == 0
    assert f"\ncomputes {gelu.summary()}: from --architecture {config}\n" in done.out


def test_an_archive_that_does_not_pass_is_not_kept(
    run: Run,
    minute_archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "check", lambda *a, **k: checking.Result((), {}))
    done = run("convert", minute_archive, "-o", tmp_path / "a.pt")
    assert done.code == 2
    assert "was not kept" in done.err
    assert not list(tmp_path.iterdir())


def test_convert_can_change_the_dtype(run: Run, minute_archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    done = run("convert", minute_archive, "-o", path, "--dtype", "float32", "--quiet")
    assert done.code == 0
    assert f"bit for bit those of {minute_archive}, cast to float32\nCONSISTENT: 1 " in done.out
    assert open_checkpoint(path).dtypes == ["float32"]


def test_a_name_that_says_another_format_is_refused_before_anything_is_read(
    run: Run, tmp_path: Path
) -> None:
    for command in ("convert", "synthesize"):
        done = run(command, "gone.pt", "-o", tmp_path / "x.onnx", "--format", "archive")
        assert done.code == 2
        assert "x.onnx: its suffix means onnx, and --format asks for archive" in done.err
    done = run("convert", "gone.pt", "-o", f"{tmp_path}/new/")
    assert done.err.endswith("Give --format transformers or --format open_clip.\n")
    assert not list(tmp_path.iterdir())


def test_inspect_tells_all_and_runs_nothing(
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
    assert facts["SHA-256"] == (
        f"{open_checkpoint(tiny_archive).sha256} (none of the released files)"
    )
    assert facts["checksums"].startswith("right in all ")
    assert re.match(r"2 cpu, \d+ cuda:0 \(constants to patch\)", facts["devices"])
    assert re.match(
        r"\d+ float16 \(rewritten .*\), \d+ float32, \d+ int64 \(left as", facts["casts"]
    )


def test_inspect_tells_where_in_a_file_the_model_was_found(run: Run, tmp_path: Path) -> None:
    weights = {f"model.{key}": tensor for key, tensor in minute_weights().items()}
    weights["head.weight"] = weights["model.ln_final.weight"]
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved({"state_dict": weights}))
    done = run("inspect", path)
    assert (done.code, done.err) == (0, "")
    told = "read from 'state_dict', without 'model.'; left out: head.weight"
    assert f"\nmodel         {told}\n" in done.out


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A training checkpoint of two models; the weights of the second are those of the other way."""
    weights = minute_weights()
    other = {key: -tensor if key == "visual.proj" else tensor for key, tensor in weights.items()}
    path = tmp_path / "several.ckpt"
    path.write_bytes(saved({"model": weights, "model_ema": other}))
    return path


def test_of_several_models_the_user_names_one(run: Run, several: Path, tmp_path: Path) -> None:
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
    done = run("localize", several, "--key", "model")
    assert "holds weights alone" in done.err
    assert "with --architecture ARCH and --key NAME where it needs them" in done.err
    done = run("convert", several, "--key", "nothing", "-o", path)
    assert done.code == 2
    assert "expected a CLIP model under 'nothing'; it has model, model_ema. Give" in done.err


def test_a_model_of_a_training_checkpoint_is_judged(run: Run, several: Path) -> None:
    asked = ("--backend", "eager", "--examples", "1", "--reference", minute_path(several.parent))
    for key, code in (("model", 0), ("model_ema", 1)):
        done = run("check", several, "--key", key, *asked, "--json", "-")
        (result,) = json.loads(done.out)["results"]
        assert (done.code, result["origin"]) == (code, f"read from {key!r}"), result["error"]


def minute_path(folder: Path) -> Path:
    path = folder / "reference.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


def test_models_lists_names_sizes_and_what_is_in_the_cache(run: Run, tmp_path: Path) -> None:
    done = run("models", "--download-root", tmp_path)
    lines = done.out.splitlines()
    assert lines[0] == f"cache: {tmp_path}"
    assert [line.split()[0] for line in lines[1:]] == registry.available_models()
    assert lines[6].split()[1:] == ["354.0", "MB", "not", "in", "the", "cache"]


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest architectures can be named, and the demo is of them."""
    monkeypatch.setitem(ARCHITECTURES, "minute", MINUTE)
    monkeypatch.setitem(ARCHITECTURES, "minute-resnet", MINUTE_RESNET)
    monkeypatch.setattr(cli, "DEMO", "minute")
    monkeypatch.setattr(cli, "DEMO_RESNET", "minute-resnet")


def test_the_demo_is_of_full_size() -> None:
    """The consistency tests write and judge a full-size ViT-B/32."""
    assert (cli.DEMO, cli.DEMO_RESNET) == ("ViT-B/32", "RN50")


@pytest.mark.usefixtures("minutes")
def test_demo_writes_an_archive_and_finds_it_consistent(run: Run) -> None:
    done = run("demo")
    assert done.code == 0
    assert "minute.pt" in done.out
    assert "seeded" in done.out
    assert "CONSISTENT" in done.out
    assert done.out.endswith("\nNext: clipcheck check YOUR_CHECKPOINT\n")
    assert len(run("demo", "-q").out.splitlines()) <= 5


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
    assert "1. the verdict    not passed: fidelity, modules" in tour
    assert "2. the module     transformer.resblocks.0.mlp.gelu\n" in tour
    assert "the smallest that fails" in tour
    assert "4. the page       clipcheck-demo/report.html" in tour
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


@pytest.mark.usefixtures("minutes")
def test_demo_takes_a_resnet_for_a_fault_that_no_vision_transformer_has(
    run: Run, tmp_path: Path
) -> None:
    done = run("demo", "--fault", "max-pool-in-stem", "--report", tmp_path / "x")
    assert "2. the module     visual.avgpool\n" in done.out
    assert (tmp_path / "x" / "minute-resnet.pt").exists()


def test_demo_refuses_a_fault_that_there_is_not_before_anything_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("demo", "--fault", "gelu")
    assert done.code == 2
    assert "gelu-for-quickgelu" in done.err
    assert not list(tmp_path.iterdir())


def test_localize_names_the_module_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    plant = fault_named("activation-clipped").plant
    write_archive(MINUTE, minute_weights(), path, alter=plant)
    done = run("localize", path)
    assert done.code == 1
    assert "  text tower   transformer.resblocks.0.mlp.gelu\n" in done.out
    assert "  image tower  nothing departs\n" in done.out
    assert "  logits       not looked at\n" in done.out
    assert "DEPARTS: text tower.\n" in done.out
    assert f"clipcheck check {path} --report clip-report" in unfolded(done.out)
    assert run("localize", path, "-q").out == "DEPARTS: text tower.\n"
    document = json.loads(run("localize", path, "--json", "-").out)
    assert (document["schema"], document["passed"]) == (1, False)
    assert [tower["module"] for tower in document["towers"]] == [
        None, "transformer.resblocks.0.mlp.gelu", None
    ]  # fmt: skip
    assert document["towers"][1]["figures"]["allowed"] == 10
    assert run("localize", tmp_path / "gone.pt").code == 2


def test_localize_exits_with_0_where_nothing_departs(
    run: Run, seeded_archive: SeededArchive
) -> None:
    done = run("localize", seeded_archive(), "--dtype", "float32", "--device", "cpu")
    assert done.code == 0
    assert done.out.endswith("NOTHING DEPARTS in what was looked at.\n")


def test_what_failed_is_not_kept_where_the_command_happens_to_be_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYPOTHESIS_STORAGE_DIRECTORY")
    run("--version")
    folder = Path(os.environ["HYPOTHESIS_STORAGE_DIRECTORY"])
    assert folder.is_absolute()
    assert folder.is_relative_to(Path.home())
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", "mine")
    run("--version")
    assert os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] == "mine"


def test_the_version_and_the_help_need_no_checkpoint(run: Run) -> None:
    assert run("--version").out == f"clipcheck {clipcheck.__version__}\n"
    done = run("--help")
    for command in ("check", "demo", "synthesize", "convert", "inspect", "diff", "models"):
        assert command in done.out
    assert "0 consistent, 1 inconsistent, 2 could not be judged" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "x.pt", "--examples", "0"),
        ("check", "x.pt", "--atol", "-1"),
        ("check", "x.pt", "--nonsense"),
        ("convert", "x.pt"),
        ("synthesize", "tiny-vit", "-o", "x.pt", "--format", "onnx"),
        ("nonsense",),
    ],
)
def test_usage_that_makes_no_sense_exits_2_with_one_reason(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_traceback_is_shown_only_when_asked_for(run: Run, command: str) -> None:
    assert "Traceback" not in run(command, "gone.pt").err
    assert "Traceback" in run("--debug", command, "gone.pt").err
    assert "Traceback" not in run(command, "gone.pt").err


def test_a_defect_of_our_own_is_not_taken_for_an_inconsistent_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "check", lambda *a, **k: 1 / 0)
    done = run("check", "x.pt")
    assert done.code == 2
    assert "ZeroDivisionError" in done.err
    assert "please report" in done.err


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipcheck", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"clipcheck {clipcheck.__version__}\n"


def test_progress_goes_to_whoever_looks_on(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    quiet: list[bool] = []

    @contextmanager
    def progress(wanted: bool = False) -> Iterator[Progress]:
        quiet.append(wanted)
        yield told.append

    monkeypatch.setattr(terminal, "progress", progress)
    done = run("check", minute_archive, "--examples", 1)
    assert f"{minute_archive}: jit: running" in told
    assert "running the archive" not in done.out + done.err
    run("check", minute_archive, "--quiet", "--examples", 1)
    assert quiet == [False, True]


def test_the_defaults_of_the_command_are_those_of_the_function() -> None:
    command = inspect.signature(cli.check).parameters
    function = inspect.signature(checking.check).parameters
    for name in ("examples", "seed", "atol", "rtol", "device", "download_root"):
        assert command[name].default == function[name].default


def test_audit_plants_into_the_backends_that_are_named_and_exits_0_when_all_is_right(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipcheck.audit import bench as audit

    def threads(number: int, _: object, *initially: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(number, "", *initially)

    # Processes would import torch anew; the tests of the audit have them.
    monkeypatch.setattr(audit, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
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
    from clipcheck.audit import bench as audit

    clean = wrong.startswith("a clean")
    gate = "fidelity" if clean else None
    finding = audit.Finding(
        "x", "f", "r", clean, "tiny-vit", 3, "seeded", "float32", gate, 2.0, False
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
        "backends": ("jit",), "only": (), "localize": False,
    }  # fmt: skip


def test_audit_refuses_what_it_does_not_know(run: Run) -> None:
    done = run("audit", "--only", "no-such-fault")
    assert done.code == 2
    assert "no-such-fault" in done.err


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> checking.Result:
    """What every check finds: one that passes, one that fails, one that is not there."""
    result = failing_result()
    monkeypatch.setattr(checking, "check", lambda *a, **k: result)
    return result


def test_junit_xml_comes_beside_the_text(run: Run, found: checking.Result, tmp_path: Path) -> None:
    done = run("check", "x.pt", "--junit", tmp_path / "junit.xml")
    assert "INCONSISTENT" in done.out
    assert (tmp_path / "junit.xml").read_text(encoding="utf-8") == junit.render(found)


def test_on_github_there_are_annotations_and_a_summary(
    run: Run, found: checking.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    lines = annotations.render(found)
    done = run("check", "x.pt")
    assert [line for line in done.out.splitlines() if line.startswith("::")] == lines
    assert done.err == ""
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == markdown.render(found)
    done = run("check", "x.pt", "--json", "-")
    assert json.loads(done.out)["schema"] == 1
    assert done.err.splitlines() == lines


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    run: Run, minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    done = run("check", minute_archive, "--examples", 2)
    assert done.code == 0
    assert done.err.startswith(f"clipcheck: {tmp_path}: the summary cannot be written (")


def test_elsewhere_there_are_no_annotations(run: Run, found: checking.Result) -> None:
    assert "::" not in run("check", "x.pt").out


@pytest.mark.parametrize("option", ["--report", "--json", "--junit"])
@pytest.mark.parametrize("reason", ["below a file", "a full disk"])
def test_the_verdict_is_printed_whatever_cannot_be_written(
    run: Run,
    found: checking.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    reason: str,
) -> None:
    target = tmp_path / "there"
    if reason == "below a file":
        target.touch()
        target /= "below"
    else:

        def full(*_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_text", full)
    done = run("check", "x.pt", option, target)
    assert done.code == 2
    assert done.out.startswith(text.render(found))
    (line,) = done.err.splitlines()
    assert line.startswith(f"clipcheck: {target}")
    assert reason != "a full disk" or "(No space left on device). Give another" in line


def test_all_that_cannot_be_written_is_told_and_what_can_be_is(
    run: Run, found: checking.Result, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    options = ["--report", below, "--json", below, "--junit", tmp_path / "junit.xml"]
    done = run("check", "x.pt", *options)
    assert done.code == 2
    assert len(done.err.splitlines()) == 2
    assert (tmp_path / "junit.xml").exists()


def test_a_failing_input_that_cannot_be_kept_does_not_hide_the_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsaved = replace(failed(), saved=None)
    result = checking.Result((unsaved,), ENVIRONMENT)
    monkeypatch.setattr(checking, "check", lambda *a, **k: result)

    def none(**_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    done = run("check", "x.pt")
    assert done.code == 2
    again = ("clipcheck", *sys.argv[1:], "--report", text.KEPT)
    assert done.out == f"{text.render(result, rerun=again)}\n"
    assert "expected a temporary folder for the inputs that fail, found none" in done.err


UNJUDGED = """
from clipcheck.harness import checking
from clipcheck.cli import app as cli
from clipcheck.results.judgement import Judgement, Result

found = Result((Judgement("gone.pt", "cpu", error="not found"),), {"clipcheck": "0"})
checking.check = lambda *_, **__: found
cli.main()
"""
"""The command, which finds this without importing torch."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize(
    ("options", "on_github"), [((), False), (("--json", "-"), False), ((), True)]
)
def test_a_full_stdout_is_told_on_stderr(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], on_github: bool
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if on_github else "false")
    # What is written at once is not still there at the end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", UNJUDGED, "check", "gone.pt", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("clipcheck: what was found cannot be written to stdout (No")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("arguments", [("--version",), ("models",), ("backends",)])
def test_so_it_is_by_what_judges_nothing(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "clipcheck", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("clipcheck: what was found cannot be written to stdout (No space")


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The results of two checks; the second is worse."""
    better = checking.Result((PASSED,), ENVIRONMENT)
    worse = checking.Result((replace(failed(), checkpoint="model.pt"),), ENVIRONMENT)
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, result in zip(paths, (better, worse), strict=True):
        path.write_text(json_report.render(result), encoding="utf-8")
    return paths


def test_diff_tells_what_got_worse_and_exits_1(run: Run, runs: tuple[Path, Path]) -> None:
    old, new = runs
    done = run("diff", old, new)
    assert done.code == 1
    assert done.out.startswith("new failure: model.pt, jit on cpu in float32\n")
    assert done.out.endswith("\nWORSE: 1 new failure.\n")
    done = run("diff", new, old)
    assert done.code == 0
    assert done.out.endswith("\nNOT WORSE: 1 mended.\n")
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


def minute(path: Path) -> Path:
    """An archive of a few hundred kilobytes."""
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


CONVERSIONS: list[tuple[str, str | None]] = [
    ("pt2", None),
    ("onnx", "float16"),
    ("transformers", None),
    ("open_clip", None),
]
"""Each format, and a dtype once: the two are asked for apart. A long run has both of each."""
if THOROUGH:
    CONVERSIONS += [("pt2", "float16"), ("onnx", None)]


@pytest.mark.parametrize(("form", "dtype"), CONVERSIONS)
def test_what_is_converted_is_checked_and_can_be_checked_again(
    run: Run, tmp_path: Path, form: str, dtype: str | None
) -> None:
    archive, path = minute(tmp_path / "minute.pt"), tmp_path / f"minute.{form}"
    options = [] if dtype is None else ["--dtype", dtype]
    given = ["--format", form] if path.suffix in (".transformers", ".open_clip") else []
    done = run("convert", archive, "-o", path, *given, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{path}: ")
    assert f" MB, weights of {archive}\n" in done.out
    assert f"\ncomputes {MINUTE.summary()}: from its own code, which was run\n" in done.out
    precise = "precision" if dtype else "fidelity"
    assert re.search(rf"integrity +allclose +{precise} ", done.out)
    assert done.out.endswith("CONSISTENT: 1 checkpoint agrees with the reference.\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([archive.name, path.name])
    check = run("check", path, "--reference", archive, "--examples", 1, *options)
    assert check.code == 0, check.out


def test_weights_come_back_from_a_folder_as_they_were(run: Run, tmp_path: Path) -> None:
    archive = minute(tmp_path / "minute.pt")
    folder, back = tmp_path / "folder", tmp_path / "back.pt"
    assert run("convert", archive, "-o", folder, "--format", "transformers").code == 0
    assert run("convert", folder, "-o", back, "--format", "state-dict").code == 0
    first, last = open_checkpoint(archive).tensors, open_checkpoint(back).tensors
    floats = [key for key, tensor in first.items() if tensor.is_floating_point()]
    assert all(same_bits(first[key], last[key]) for key in floats)
    assert len(floats) > 20


@pytest.mark.parametrize("form", ["pt2", "onnx"] if THOROUGH else ["pt2"])
def test_a_program_that_computes_something_else_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import torch

    from clipcheck.models import whole

    forward = whole.Whole.forward

    def negating(self: whole.Whole, pixels: torch.Tensor, tokens: torch.Tensor) -> Any:
        found = forward(self, pixels, tokens)
        return {**found, "text_features": -found["text_features"]}

    monkeypatch.setattr(whole.Whole, "forward", negating)
    archive, path = minute(tmp_path / "minute.pt"), tmp_path / "program"
    path.write_bytes(b"what was there before")
    done = run("convert", archive, "-o", path, "--format", form)
    assert done.code == 2
    assert done.err.startswith(f"clipcheck: the {form} does not compute what it should")
    assert "FAIL  fidelity " in done.err
    assert done.err.endswith(" Report this: clipcheck wrote it.\n")
    assert path.read_bytes() == b"what was there before"
    assert {each.name for each in tmp_path.iterdir()} == {archive.name, path.name}


@pytest.mark.parametrize("form", ["transformers", "open_clip"])
def test_a_folder_whose_weights_are_others_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from clipcheck.backends import modules

    run_method = modules.ModuleBackend.outputs

    def negating(self: modules.ModuleBackend, *given: object) -> dict[str, object]:
        found = run_method(self, *given)
        return {name: -array if name == "text_features" else array for name, array in found.items()}

    monkeypatch.setattr(modules.ModuleBackend, "outputs", negating)
    archive = minute(tmp_path / "minute.pt")
    done = run("convert", archive, "-o", tmp_path / "folder", "--format", form)
    assert done.code == 2
    assert f"the {form} does not compute what it should, and was not kept" in done.err
    assert [each.name for each in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("form", ["transformers", "open_clip"])
def test_a_folder_takes_no_dtype(run: Run, tmp_path: Path, form: str) -> None:
    options = ["-o", tmp_path / "folder", "--format", form, "--dtype", "float16"]
    done = run("convert", tmp_path / "gone.pt", *options)
    assert done.code == 2
    assert done.err == (
        f"clipcheck: --dtype is not for folders of {form}, which keep the weights bit for bit. "
        "Convert to safetensors with --dtype first, and that file to the folder.\n"
    )


@pytest.mark.parametrize(
    ("form", "backend"),
    [("onnx", "onnxruntime"), ("transformers", "transformers"), ("open_clip", "open_clip")],
)
def test_without_the_library_that_would_check_it_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, backend: str
) -> None:
    missing = Missing(f"{backend} is not installed", "Install it.")
    monkeypatch.setattr(way(backend), "available", lambda: missing)
    archive = minute(tmp_path / "minute.pt")
    done = run("convert", archive, "-o", tmp_path / "made", "--format", form)
    assert done.code == 2
    assert done.err == f"clipcheck: {backend}: {backend} is not installed. Install it.\n"
    assert [each.name for each in tmp_path.iterdir()] == [archive.name]


def test_backends_are_listed_with_what_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Missing("onnxruntime is not installed", "Install it: pip install 'clipcheck[onnx]'.")
    monkeypatch.setattr(way("onnxruntime"), "available", lambda: missing)
    done = run("backends")
    assert (done.code, done.err) == (0, "")
    assert "onnxruntime   cannot run here: onnxruntime is not installed.\n" in done.out
    assert "pip install 'clipcheck[onnx]'" in done.out
    starts = [line.split()[0] for line in done.out.splitlines() if line[:1] not in ("", " ")]
    assert starts[: len(BACKENDS)] == list(BACKENDS)


def test_check_runs_the_backends_that_are_asked_for_against_a_reference(
    run: Run, tmp_path: Path
) -> None:
    archive, weights = minute(tmp_path / "minute.pt"), tmp_path / "weights.pt"
    assert run("convert", archive, "-o", weights, "--format", "state-dict").code == 0
    options = ["--reference", archive, "--examples", 1, "--no-cache", "--json", "-"]
    done = run("check", weights, "--backend", "eager", "--backend", "trace", *options)
    assert done.code == 0
    found = json.loads(done.out)["results"]
    assert [each["backend"] for each in found] == ["eager", "trace"]
    assert {each["reference_checkpoint"] for each in found} == {str(archive)}
    assert {each["gates"][0]["name"] for each in found} == {"weights"}


def test_a_backend_that_there_is_not_exits_2_with_the_nearest(run: Run) -> None:
    done = run("check", "gone.pt", "--backend", "tracer")
    assert done.code == 2
    assert done.err.startswith("clipcheck: expected a backend, found 'tracer'. The nearest name is")


def test_inspect_tells_what_folders_and_programs_are(run: Run, tmp_path: Path) -> None:
    archive, folder = minute(tmp_path / "minute.pt"), tmp_path / "folder"
    assert run("convert", archive, "-o", folder, "--format", "open_clip").code == 0
    done = run("inspect", folder)
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert facts["format"].startswith("folder of open_clip")
    assert facts["SHA-256"].startswith(open_checkpoint(folder).sha256)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "check x.pt --dtype fp16",
            "expected a dtype, found 'fp16'. The nearest name is 'float16'; all of them: float32, ",
        ),
        (
            "demo --fault gelu-for-quickgeli",
            "found 'gelu-for-quickgeli'. The nearest name is 'gelu-for-quickgelu'; `clipcheck "
            "audit --list` lists all.",
        ),
        (
            "audit --only gelu-for-quickgeli",
            "'gelu-for-quickgeli'. The nearest name is 'gelu-for-quickgelu'; `clipcheck audit --li",
        ),
        ("audit --arch ViT-B-32", "named 'ViT-B-32'. The nearest name is 'ViT-B/32'; all of them"),
    ],
)
def test_a_name_that_is_not_known_is_answered_with_the_nearest(
    run: Run, arguments: str, told: str
) -> None:
    done = run(*arguments.split())
    assert done.code == 2
    assert done.err.startswith("clipcheck: ")
    assert told in done.err


def test_the_audit_lists_all_names_and_judges_nothing(run: Run) -> None:
    from clipcheck.audit.faults import CLEAN, FAULTS
    from clipcheck.audit.faults.ways import CLEAN_WAYS, WAY_FAULTS

    done = run("audit", "--list")
    assert (done.code, done.err) == (0, "")
    faults, clean = done.out.split("\n\n")
    for part, variants in ((faults, (*FAULTS, *WAY_FAULTS)), (clean, (*CLEAN, *CLEAN_WAYS))):
        title, *lines = part.strip().splitlines()
        assert title.startswith(f"{len(variants)} ")
        assert [line.split()[0] for line in lines] == [each.name for each in variants]
        assert all(each.reason in line for line, each in zip(lines, variants, strict=True))
