from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.backends.registry import parse
from clipcheck.checkpoints import towers
from clipcheck.checkpoints.registry import available_models
from clipcheck.errors import ClipcheckError, UnknownModelError, UsageError
from clipcheck.harness.options import CheckOptions
from clipcheck.plugin import subjects
from clipcheck.plugin.choices import (
    NAMES,
    NO_MODEL,
    Choices,
    gates_for,
    require_available_choices,
)
from clipcheck.plugin.offered import SEEDED_MODELS

HERE = Path("/nowhere")


def choices(folder: Path = HERE, **given: object) -> Choices:
    return Choices.of({f"--clip-{name}": value for name, value in given.items()}.get, folder)


def test_nothing_is_judged_by_default() -> None:
    chosen = choices()
    assert chosen.models == ()
    assert chosen.combinations(["clip_model"]) == [{"clip_model": NO_MODEL}]
    assert (chosen.devices, chosen.backends, chosen.dtypes) == (("cpu",), (), ())
    assert (chosen.options, chosen.report) == (CheckOptions(), None)


def test_seeded_weights_are_chosen_on_request() -> None:
    default = sorted(f"seeded:{name}" for name in SEEDED_MODELS)
    assert sorted(choices(seeded=True).models) == default
    assert choices(seeded=True, model=["RN50", "seeded:RN50"]).models == ("seeded:RN50",)
    assert choices(model=["RN50", "seeded:RN50"]).models == ("RN50", "seeded:RN50")


def test_an_architecture_is_a_name_or_a_path_from_the_folder() -> None:
    assert choices(architecture="open_clip:ViT-B-32").options.architecture == "open_clip:ViT-B-32"
    with pytest.raises(UnknownModelError) as caught:
        choices(architecture="ViT-B-32")
    assert str(caught.value).startswith("--clip-architecture: expected a released name")
    assert str(caught.value).endswith("The nearest name is 'ViT-B/32'.")


def test_given_checkpoints_are_judged() -> None:
    given = {"report": "found", "key": "ema", "budget": "int8", "map": ["x=pixels", "y=tokens"]}
    chosen = choices(atol="0.5", rtol="0", examples="3", seed="7", **given)
    assert chosen.report == HERE / "found"
    assert chosen.options == CheckOptions(
        atol=0.5, rtol=0, examples=3, seed=7, key="ema", budget="int8", map=["x=pixels", "y=tokens"]
    )


def test_paths_of_own_data_are_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a dog")
    options = choices(tmp_path, examples="0", prompts="labels.txt").options
    assert (options.examples, options.prompts) == (0, str(tmp_path / "labels.txt"))
    with pytest.raises(UsageError, match="--clip-images: expected a folder of images"):
        choices(tmp_path, images="photos")


def test_a_budget_is_judged_where_there_is_one() -> None:
    gates = [
        {each["clip_gate"] for each in choices(model=["ViT-B/32"], **given).combinations(NAMES)}
        for given in ({}, {"budget": "int8"})
    ]
    assert gates[1] - gates[0] == {"budget"}


def test_options_of_a_file_are_taken_where_none_is_given(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[tool.clipcheck]\nexamples = 40\nseed = 3\nbackend = "aotinductor"\n'
        'device = ["cpu", "mps"]\ndtype = ["float32"]\n'
        'select = ["fidelity", "modules", "weights"]\nreference = "a.pt"\n'
    )
    chosen = choices(tmp_path, model=["b.pt"], seed="4", device=["cpu"])
    assert (chosen.backends, chosen.devices, chosen.dtypes) == (
        ("aotinductor",),
        ("cpu",),
        ("float32",),
    )
    assert (chosen.options.examples, chosen.options.seed) == (40, 4)
    assert "seed" not in chosen.configuration.options
    # aotinductor has no modules; the gate weights judges where there is a reference.
    gates = [each["clip_gate"] for each in chosen.combinations(["clip_gate"])]
    assert gates == ["weights", "fidelity"]


def test_all_backends_in_a_file_are_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.clipcheck]\nbackend = "all"\n')
    with pytest.raises(UsageError) as caught:
        choices(tmp_path)
    assert caught.value.problem == f"{file}: expected the names of backends, found 'all'"


def test_large_checkpoints_come_first(tmp_path: Path) -> None:
    (tmp_path / "small.pt").write_bytes(b"1")
    (tmp_path / "large.pt").write_bytes(bytes(10**6))
    given = ["small.pt", "ViT-B/32", "large.pt", "seeded:tiny-vit"]
    found = choices(tmp_path, model=given).models
    assert found == ("ViT-B/32", "seeded:tiny-vit", "large.pt", "small.pt")


def test_all_stands_for_the_nine_released_models() -> None:
    assert sorted(choices(model=["all", "RN50"]).models) == sorted(available_models())
    seeded = sorted(f"seeded:{name}" for name in available_models())
    assert sorted(choices(model=["seeded:all"]).models) == seeded
    assert sorted(choices(model=["all"], seeded=True).models) == seeded


def test_a_checkpoint_given_twice_is_judged_once() -> None:
    chosen = choices(model=["a", "b", "a"], device=["cpu", "cpu"], dtype=["float16", "float16"])
    assert (chosen.models, chosen.devices, chosen.dtypes) == (("a", "b"), ("cpu",), ("float16",))


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", ("float32",)), ("cuda", ("float32", "float16")), ("mps", ("float32", "float16"))],
)
def test_half_is_judged_where_it_is_fast(device: str, expected: tuple[str, ...]) -> None:
    assert choices().dtypes_on(device) == expected
    assert choices(dtype=["bfloat16"]).dtypes_on(device) == ("bfloat16",)


def test_every_gate_and_dtype_is_a_test_grouped_by_checkpoint() -> None:
    found = choices(model=["a", "b"], device=["cpu", "cuda"]).combinations(NAMES)
    assert len(found) == 2 * (6 + 6 + 5)
    places = [(each["clip_model"], each["clip_device"]) for each in found]
    assert list(dict.fromkeys(places)) == [("a", "cpu"), ("a", "cuda"), ("b", "cpu"), ("b", "cuda")]
    assert places == sorted(places)
    gates = [each["clip_gate"] for each in found if each["clip_dtype"] == "float16"]
    assert gates == [*gates_for("jit", "float16")] * 2


def test_an_option_of_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="--clip-backend: compile: expected mode to be one of"):
        choices(backend=["compile:mode=fast"])


def test_the_backend_of_archives_runs_single_modules() -> None:
    """As `gates_for` takes it, which an idle worker calls: the registry of backends has numpy."""
    assert parse(OF_ARCHIVES).backend.runs_modules


def test_a_program_has_the_default_backend_of_its_format(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    program = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    content = program.SerializeToString()
    (tmp_path / "a.onnx").write_bytes(content)
    (tmp_path / "cut.onnx").write_bytes(content[:-3])
    (tmp_path / "weights.safetensors").write_bytes(b"")
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("visual", "textual"):
        (pair / f"{name}.onnx").write_bytes(content)
    models = ["a.onnx", "pair", "cut.onnx", "weights.safetensors", "seeded:tiny-vit"]
    found = choices(tmp_path, model=models).combinations(["clip_model", "clip_backend"])
    chosen = {each["clip_model"]: each["clip_backend"] for each in found}
    assert {chosen.pop(name) for name in ("a.onnx", "pair")} == {"onnxruntime"}
    assert set(chosen.values()) == {"jit"}
    assert choices(tmp_path, model=["a.onnx"], backend=["openvino"]).backends == ("openvino",)
    compared = choices(tmp_path, model=["a.onnx"], reference="weights.safetensors")
    gates = [each["clip_gate"] for each in compared.combinations(["clip_gate"])]
    assert "weights" not in gates
    assert "modules" in gates


def test_two_programs_of_a_tower_are_one_checkpoint_relative_to_the_folder(tmp_path: Path) -> None:
    for name, written in (("image", 3), ("text", 5)):
        (tmp_path / f"{name}.pte").write_bytes(b"\x10\0\0\0ET12" + bytes(written))
    pair = "image=image.pte,text=text.pte"
    found = choices(tmp_path, model=[pair])
    require_available_choices(found, tmp_path)
    assert {each["clip_backend"] for each in found.combinations(["clip_backend"])} == {"executorch"}
    subject = subjects.find(pair, tmp_path, tmp_path)
    assert towers.split(subject.checkpoint) == (tmp_path / "image.pte", tmp_path / "text.pte")
    assert (subject.label, subjects.size(pair, tmp_path)) == (pair, 24)
    with pytest.raises(UnknownModelError, match=r"found 'image=image\.pte,text=no\.pte'"):
        require_available_choices(
            choices(tmp_path, model=["image=image.pte,text=no.pte"]), tmp_path
        )


def test_backends_that_may_show_modules_have_the_gate_modules() -> None:
    """`trace` shows those of a library's model."""
    given = ["jit", "trace", "aotinductor"]
    found = choices(model=["a"], backend=given, dtype=["float32"]).combinations(NAMES)
    gates = {(each["clip_backend"], each["clip_gate"]) for each in found}
    assert [name for name in given if (name, "modules") in gates] == ["jit", "trace"]


def test_a_test_gets_only_the_fixtures_that_it_requests() -> None:
    assert choices(model=["a", "b"]).combinations(["clip_model"]) == [
        {"clip_model": "a"},
        {"clip_model": "b"},
    ]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("atol", "nan", "atol to be a number of at least 0, found nan"),
        ("rtol", "-1", "rtol to be a number of at least 0, found -1.0"),
        ("atol", "inf", "atol to be a number of at least 0, found inf"),
        ("rtol", "x", "a number, found 'x'"),
        ("examples", "0", "at least 1 example without --images or --prompts, found 0"),
        ("examples", "1.5", "a whole number, found '1.5'"),
        ("seed", "-1", "a seed of at least 0, found -1"),
        ("dtype", ["float8"], "a dtype, found 'float8'"),
        ("isolation", "full", "an isolation, found 'full'"),
        ("backend", ["onnx"], "a backend, found 'onnx'"),
        ("backend", ["all"], "the names of backends, found 'all'"),
        ("model", ["a.pt", ""], "a name or a path, found ''"),
        ("model", [" "], "a name or a path, found ' '"),
        ("report", "", "a name or a path, found ''"),
        ("key", "", "a name or a path, found ''"),
    ],
)
def test_invalid_options_are_refused(option: str, value: object, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        choices(**{option: value})
    assert caught.value.problem == f"--clip-{option}: expected {expected}"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ViT-B32", r"expected an existing file or a released name, .* name is 'ViT-B/32'"),
        ("*.pt", r"expected an existing file or a released name, found '\*\.pt'\. Released"),
        ("tiny-vit", r"has no released weights\. .* --clip-model seeded:tiny-vit\."),
        ("seeded:tiny-vti", r"an architecture for seeded .* found 'tiny-vti'.* 'tiny-vit'"),
        ("seeded:new.pt", r"found 'new\.pt'\. Known are .* leave out --clip-seeded"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(
    tmp_path: Path, model: str, expected: str
) -> None:
    (tmp_path / "new.pt").touch()
    with pytest.raises(ClipcheckError, match=f"^--clip-model: .*{expected}"):
        require_available_choices(choices(tmp_path, model=[model]), tmp_path)


def test_known_names_and_existing_files_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "new.pt").touch()
    given = ["all", "seeded:tiny-vit", "new.pt", str(tmp_path / "new.pt")]
    require_available_choices(choices(tmp_path, model=given, report="new/folder"), tmp_path)
    assert list((tmp_path / "new/folder").iterdir()) == []


@pytest.mark.parametrize(
    ("device", "expected"),
    [("gpu", "expected a device, found 'gpu'"), ("cuda", "the device 'cuda' is not available")],
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "empty", unavailable)
    with pytest.raises(ClipcheckError, match=f"^--clip-device: {expected}"):
        require_available_choices(choices(device=[device]), HERE)


def unavailable(*_: object, **__: object) -> None:
    raise RuntimeError("No CUDA GPUs are available")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_available_gpu_is_not_initialised(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("it takes memory of the GPU"))
    require_available_choices(choices(device=[device]), HERE)


def test_a_gpu_with_too_high_an_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", unavailable)
    with pytest.raises(ClipcheckError, match=r"^--clip-device: the device 'cuda:2'"):
        require_available_choices(choices(device=["cuda:2"]), HERE)


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClipcheckError, match="--clip-report: expected a writable folder") as caught:
        require_available_choices(choices(tmp_path, report="file"), tmp_path)
    assert caught.value.path == str(tmp_path / "file")
