"""Written archives have the layout of the released ones, and load elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import clipcheck
from clipcheck.checkpoints.architecture import BUFFERS, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.unpickle import read_tensors
from clipcheck.models.torchscript import device_constants, float_casts, graphs, load_archive
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import buffers, write_archive
from clipcheck.writers.synthesize import synthesize
from tests.models import TINY, inputs, outputs
from tests.oracles import open_clip, reference_clip
from tests.samples import MINUTE, MINUTE_RESNET, minute_weights

MODEL = "__torch__.multimodal.model"

CUDA_LINES = {"tiny-vit": 64, "tiny-resnet": 30}
"""For each pass, and there are two: image, two for each LayerNorm, mask for each text layer, class
embedding of a ViT, and the two indices of the pooling."""


@pytest.fixture(scope="module")
def checkpoint(tiny_archive: Path) -> Checkpoint:
    return open_checkpoint(tiny_archive)


@pytest.fixture(scope="module")
def records(tiny_archive: Path) -> Records:
    return Records(MappedFile(tiny_archive))


@pytest.fixture(scope="module")
def code(records: Records) -> str:
    return "\n".join(records.read(name).decode() for name in records.names("code/"))


@pytest.fixture(scope="module")
def module(tiny_archive: Path) -> Any:
    """Load it without patches; tests must not patch it."""
    return load_archive(tiny_archive, torch.device("cpu"))


def class_of(module: Any) -> str:
    return re.sub(r"___torch_mangle_\d+\.", "", module._c._type().qualified_name())


def methods(module: Any) -> list[str]:
    return module._c._method_names()


# --------------------------------------------------------------------------- other loaders


@pytest.mark.parametrize("jit", [False, True])
def test_the_reference_loads_it_and_agrees(tiny_archive: Path, jit: bool) -> None:
    batch = inputs(open_checkpoint(tiny_archive).architecture)
    with torchscript_support.silenced():
        theirs, _ = reference_clip().load(str(tiny_archive), device="cpu", jit=jit)
    ours, _ = clipcheck.load(tiny_archive, device="cpu", jit=jit)
    found, expected = outputs(theirs, *batch), outputs(ours, *batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


def test_open_clip_loads_it_and_agrees(tiny_archive: Path) -> None:
    pixels, tokens = inputs(open_checkpoint(tiny_archive).architecture)
    with torchscript_support.silenced():
        theirs = open_clip().openai.load_openai_model(str(tiny_archive), "fp32", "cpu")
    theirs.eval()
    ours, _ = clipcheck.load(tiny_archive, device="cpu")
    with torch.inference_mode():
        images = theirs.encode_image(pixels, normalize=True)
        texts = theirs.encode_text(tokens, normalize=True)
        logits = theirs.logit_scale.exp() * images @ texts.T
    expected = outputs(ours, pixels, tokens)["logits_per_image"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_it_needs_map_location_as_the_released_files_do(tiny_archive: Path) -> None:
    with torchscript_support.silenced(), pytest.raises(RuntimeError, match=r"CUDA|NVIDIA"):
        torch.jit.load(str(tiny_archive))


@pytest.mark.parametrize("images", [1, 3])
def test_it_takes_batches_of_any_size(tiny_archive: Path, images: int) -> None:
    """Though none of the sizes is that of the batch that was traced."""
    batch = inputs(open_checkpoint(tiny_archive).architecture, images)
    jit, eager, _ = clipcheck.load_both(tiny_archive, device="cpu")
    found, expected = outputs(jit, *batch), outputs(eager, *batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------- layout


def test_the_classes_are_the_released_ones(checkpoint: Checkpoint, module: Any) -> None:
    assert class_of(module) == f"{MODEL}.multimodal_transformer.Multimodal"
    assert class_of(module.transformer) == f"{MODEL}.multimodal_transformer.Transformer"
    assert class_of(module.ln_final) == f"{MODEL}.multimodal_transformer.LayerNorm"
    classes = {class_of(submodule).removeprefix(f"{MODEL}.") for submodule in module.modules()}
    assert {"multimodal_transformer.ResidualAttentionBlock", "multimodal_transformer.QuickGELU"} < (
        classes
    )
    is_vit = isinstance(checkpoint.architecture.vision, ViT)
    visual = (
        "multimodal_transformer.VisualTransformer" if is_vit else "modified_resnet.ModifiedResNet"
    )
    assert class_of(module.visual) == f"{MODEL}.{visual}"


def test_the_methods_are_the_released_ones(module: Any) -> None:
    assert methods(module) == ["encode_image", "encode_text", "forward"]
    for submodule in (module.visual, module.transformer, module.ln_final, module.token_embedding):
        assert methods(submodule) == ["forward", "forward1"]
    projections = [m for name, m in module.named_modules() if name.endswith("out_proj")]
    assert projections
    assert all(methods(projection) == [] for projection in projections)


def test_the_shared_relu_of_a_resnet_has_further_methods(
    checkpoint: Checkpoint, module: Any
) -> None:
    relus = [m for name, m in module.named_modules() if name.endswith("relu")]
    assert len(relus) == (0 if isinstance(checkpoint.architecture.vision, ViT) else 6)
    for relu in relus:
        assert methods(relu) == ["forward", *(f"forward{number}" for number in range(1, 6))]


def test_every_device_is_the_released_one_but_that_of_arange(module: Any) -> None:
    on_cpu, others = set(), set()
    for graph in graphs(module):
        for node in device_constants(graph):
            uses = {use.user.kind() for use in node.output().uses()}
            (on_cpu if node.s("value") == "cpu" else others).update({(node.s("value"), *uses)})
    assert on_cpu == {("cpu", "aten::arange")}
    assert {device for device, *_ in others} == {"cuda:0"}
    assert "aten::arange" not in {kind for _, *kinds in others for kind in kinds}


def test_as_many_lines_name_the_device_as_the_casts_need(checkpoint: Checkpoint, code: str) -> None:
    lines = [line for line in code.splitlines() if "torch.device(" in line]
    on_cpu = [line for line in lines if 'torch.device("cpu")' in line]
    assert len(on_cpu) == 2
    assert all("torch.arange(" in line for line in on_cpu)
    on_gpu = [line for line in lines if 'torch.device("cuda:0")' in line]
    assert len(on_gpu) == CUDA_LINES[str(checkpoint.architecture.name)]
    assert len(lines) == len(on_cpu) + len(on_gpu)


def test_the_code_has_the_casts_of_the_released_ones(checkpoint: Checkpoint, code: str) -> None:
    assert re.search(r'torch\.to\(image, torch\.device\("cuda:0"\), 5', code)
    assert re.search(r'torch\.to\(CONSTANTS\.c\d+, torch\.device\("cuda:0"\), 5', code)
    assert re.search(r"torch\.to\(positional_embedding, 5", code)
    assert re.search(r'torch\.to\(\w+, torch\.device\("cuda:0"\), 6', code)
    assert re.search(r'torch\.to\(\w+, torch\.device\("cuda:0"\), 4', code)
    assert re.search(r"torch\.argmax\(text, -1", code)
    zeros = re.search(r'torch\.zeros\(.*dtype=5, .*device=torch\.device\("cuda:0"\)', code)
    assert bool(zeros) == isinstance(checkpoint.architecture.vision, ViT)


def test_each_text_block_casts_the_mask(checkpoint: Checkpoint, code: str) -> None:
    casts = re.findall(r'torch\.to\(CONSTANTS\.(c\d+), torch\.device\("cuda:0"\), 5', code)
    assert len(casts) == 2 * checkpoint.architecture.text_layers
    assert len(set(casts)) == 1


def test_all_storages_come_from_the_released_device(records: Records) -> None:
    found = read_tensors(records).values()
    assert len(found) > 70
    assert {tensor.storage.location for tensor in found} == {"cuda:0"}
    constants = records.read("constants.pkl")
    assert b"cuda:0" in constants
    assert b"cpu" not in constants


def test_the_keys_shapes_and_dtypes_are_the_released_ones_in_their_order(
    checkpoint: Checkpoint, records: Records
) -> None:
    expected = [(k, s.shape, s.released_dtype) for k, s in specs(checkpoint.architecture)]
    found = [(key, t.shape, t.storage.dtype) for key, t in read_tensors(records).items()]
    assert found == expected


def test_the_buffers_have_the_dimensions(checkpoint: Checkpoint) -> None:
    a = checkpoint.architecture
    values = [int(checkpoint.tensors[key]) for key in BUFFERS]
    assert values == [a.image_resolution, a.context_length, a.vocab_size]
    assert {tensor.dtype for tensor in buffers(a).values()} == {torch.int64}
    assert {tensor.shape for tensor in buffers(a).values()} == {()}


def test_the_casts_are_to_half_and_in_the_norms_to_float32(module: Any) -> None:
    for name, submodule in module.named_modules():
        numbers = {n for graph in _own_graphs(submodule) for *_, n in float_casts(graph)}
        if "LayerNorm" in class_of(submodule):
            assert numbers == {5, 6}, name
        else:
            assert numbers <= {5}, name


def _own_graphs(module: Any) -> Iterator[Any]:
    return (module._c._get_method(name).graph for name in methods(module))


# --------------------------------------------------------------------------- the file itself


def test_no_path_of_this_machine_is_in_it(tiny_archive: Path, records: Records) -> None:
    content = tiny_archive.read_bytes()
    homes = {Path(clipcheck.__file__).parents[1], Path(torch.__file__).parents[1], Path.cwd()}
    for folder in (*homes, Path.home(), Path(sys.prefix), tiny_archive.parent):
        assert str(folder).encode() not in content, folder
    assert not [name for name in records.names() if name.endswith(".debug_pkl")]
    assert b"site-packages" not in content


def test_the_top_folder_is_named_after_the_file(tiny_archive: Path, records: Records) -> None:
    assert records.root == tiny_archive.stem


@pytest.mark.parametrize("name", ["traced.pt", "model.pt.traced", "model", "a b.jit.pt", "ä.pt"])
def test_the_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    weights = minute_weights()
    write_archive(MINUTE, weights, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = open_checkpoint(tmp_path / name).tensors
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())


WRITE = """
import os, sys
from pathlib import Path
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import architecture_named, synthesize
children = []
for folder in sys.argv[1:]:
    children.append(os.fork())  # Before anything is traced.
    if children[-1] == 0:
        for name in ("tiny-vit", "tiny-resnet"):
            a = architecture_named(name)
            write_archive(a, synthesize(a), Path(folder) / f"{name}.pt")
        sys.exit()
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.thorough
def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """In processes of their own: within one, TorchScript numbers equal class names on and on."""
    folders = [tmp_path / str(number) for number in range(2)]
    for folder in folders:
        folder.mkdir()
    subprocess.run([sys.executable, "-c", WRITE, *map(str, folders)], check=True, timeout=120)
    for name in TINY:
        one, other = (folder / f"{name}.pt" for folder in folders)
        assert one.read_bytes() == other.read_bytes()


def test_counters_and_buffers_that_are_missing_are_added(tmp_path: Path) -> None:
    a = MINUTE_RESNET
    bare = {key: t for key, t in synthesize(a).items() if t.is_floating_point()}
    write_archive(a, {**bare, "logit_scale": bare["logit_scale"].reshape(1)}, tmp_path / "m.pt")
    found = open_checkpoint(tmp_path / "m.pt").tensors
    assert list(found) == [key for key, _ in specs(a)]
    assert found["logit_scale"].shape == ()
    assert int(found["visual.bn1.num_batches_tracked"]) == 0
