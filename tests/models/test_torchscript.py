"""The pitfalls of traced archives, each with a naive patch that fails on it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipcheck
from clipcheck.checkpoints.architecture import Architecture, ResNet
from clipcheck.checkpoints.dimensions import infer
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import DamagedError, UnavailableError
from clipcheck.families import eager
from clipcheck.models import torchscript
from clipcheck.models.archives import LoadedArchive
from clipcheck.models.torchscript import (
    SCALAR_TYPES,
    device_constants,
    float_casts,
    graphs,
    load_archive,
    patch,
    used_weights,
)
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import architecture_named, synthesize
from conftest import SeededArchive
from tests.models import assert_near, inputs, outputs, small
from tests.oracles import reference_clip
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import parametrize

CPU = torch.device("cpu")
HALF = SCALAR_TYPES[torch.float16]
FLOAT = SCALAR_TYPES[torch.float32]

FIVE = Architecture(
    embed_dim=64,
    image_resolution=64,
    vision=ResNet((1, 1, 1, 1), 10),
    text_width=128,
    text_layers=1,
    vocab_size=300,
)
"""Five attention heads and five positions in the attention pool: 5 is the number of half, too."""


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trace the reference's model in half: its attention has the number of heads as a literal."""
    path = tmp_path_factory.mktemp("five") / "five.pt"
    return traced_by_others(path, FIVE, half=True)


def to_float(module: Any) -> Any:
    """Cast only the weights, like ``module.float()``."""
    with torchscript_support.silenced():
        return module.float()


def devices(module: Any) -> set[str]:
    return {node.s("value") for graph in graphs(module) for node in device_constants(graph)}


def dtypes(module: Any) -> set[int]:
    return {number for graph in graphs(module) for *_, number in float_casts(graph)}


# ------------------------------------------------------------------- patches that are too simple


def naive_devices(graph: Any, device: str, old: str = "cuda") -> None:
    for node in device_constants(graph):
        if node.s("value").startswith(old):
            node.s_("value", device)


def naive_floats(graph: Any) -> None:
    """Change the constant itself, which may also be another value's constant."""
    for node in graph.findAllNodes("aten::to"):
        for number in list(node.inputs())[1:3]:
            constant = number.node()
            is_int = constant.hasAttribute("value") and constant.kindOf("value") == "i"
            if is_int and constant.i("value") == HALF:
                constant.i_("value", FLOAT)


def separate_floats(graph: Any) -> None:
    for node, index, number in float_casts(graph):
        if number == HALF:
            torchscript._replace_float(graph, node, index, FLOAT)


def patch_named(
    module: Any, names: tuple[str, ...], floats: Callable[[Any], None] = separate_floats
) -> None:
    """Patch only the methods of these names, and the root's."""
    for submodule in module.modules():
        script = submodule._c
        for name in script._method_names():
            if name in names or submodule is module:
                graph = script._get_method(name).graph
                naive_devices(graph, "cpu")
                floats(graph)


def fails(module: Any, *batch: Tensor, match: str | None = None) -> None:
    with pytest.raises(RuntimeError, match=match):
        outputs(module, *batch)


# --------------------------------------------------------------------------- pooled constants


@pytest.mark.thorough
def test_a_dimension_of_five_is_not_taken_for_half(five: Path) -> None:
    batch = inputs(FIVE)
    jit, reference, _ = clipcheck.load_both(five, device="cpu")
    assert_near(outputs(jit, *batch), outputs(reference, *batch), 1e-5)

    naive = to_float(load_archive(five, CPU))
    patch_named(naive, ("forward", "forward1"), naive_floats)
    fails(naive, *batch, match=r"shape '\[.*\]' is invalid")


def test_a_cast_gets_a_constant_of_its_own(five: Path) -> None:
    module = load_archive(five, CPU)
    fives = [n for g in graphs(module) for n in integers(g, HALF)]
    shared = [n for n in fives if {use.user.kind() for use in n.output().uses()} > {"aten::to"}]
    assert shared, "the archive has no pooled constant, and this test shows nothing"
    others = [other_uses(node) for node in shared]
    patch(module, CPU, torch.float32, ["float16"])
    assert [other_uses(node) for node in shared] == others
    assert {node.i("value") for node in shared} == {HALF}


def test_a_dtype_is_recognised_by_its_place_in_the_operator() -> None:
    graph = torch._C.parse_ir("""
        graph(%x : Tensor, %device : Device, %size : int[]):
          %no : bool = prim::Constant[value=0]()
          %none : NoneType = prim::Constant()
          %dim : int = prim::Constant[value=0]()
          %five : int = prim::Constant[value=5]()
          %float : int = prim::Constant[value=6]()
          %a : Tensor = aten::select(%x, %dim, %five)
          %b : Tensor = aten::unsqueeze(%a, %five)
          %c : Tensor = aten::add(%b, %five, %float)
          %d : Tensor = aten::to(%c, %device, %five, %no, %no, %none)
          %e : Tensor = aten::to(%d, %five, %no, %no, %none)
          %f : Tensor = aten::zeros(%size, %five, %none, %device, %no)
          %g : Tensor = aten::full(%size, %five, %float, %none, %device, %no)
          %h : Tensor = aten::arange(%five, %five, %five, %five, %none, %device, %no)
          %i : Tensor = aten::softmax(%h, %five, %float)
          %list : int[] = prim::ListConstruct(%five, %float)
          return (%list)
    """)
    found = [(node.kind().removeprefix("aten::"), *rest) for node, *rest in float_casts(graph)]
    assert sorted(found) == [
        ("arange", 3, HALF),
        ("full", 2, FLOAT),
        ("softmax", 2, FLOAT),
        ("to", 1, HALF),
        ("to", 2, HALF),
        ("zeros", 1, HALF),
    ]


def integers(graph: Any, value: int) -> Iterator[Any]:
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "i" and node.i("value") == value:
            yield node


def other_uses(constant: Any) -> list[str]:
    kinds = (use.user.kind() for use in constant.output().uses())
    return sorted(kind for kind in kinds if kind != "aten::to")


@pytest.mark.thorough
@parametrize("dtype", [torch.bfloat16, torch.float64], quick=1)
def test_other_dtypes_than_half_are_replaced_as_well(tmp_path: Path, dtype: torch.dtype) -> None:
    """Else the code would cast to a dtype that the float32 weights no longer have."""
    weights = synthesize(FIVE)
    for key, tensor in weights.items():
        weights[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    write_archive(FIVE, weights, tmp_path / "model.pt")
    assert SCALAR_TYPES[dtype] in dtypes(load_archive(tmp_path / "model.pt", CPU))
    jit, _ = clipcheck.load(tmp_path / "model.pt", device="cpu", jit=True)
    assert dtypes(jit) == {FLOAT}
    with torch.inference_mode(), torchscript_support.silenced():
        jit(*inputs(FIVE))


def with_a_layer_in(dtype: torch.dtype) -> Callable[[Any], None]:
    def alter(model: Any) -> None:
        gelu = model.transformer.resblocks[0].mlp.gelu
        gelu.forward = lambda x: (x * torch.sigmoid(1.702 * x)).to(dtype).type(x.dtype)

    return alter


@parametrize(
    ("weights", "layer"),
    [
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    quick=1,
)
def test_a_layer_in_another_dtype_than_the_models_stays_in_it(
    tmp_path: Path, weights: torch.dtype, layer: torch.dtype
) -> None:
    """It would be a fault that loading mends, and nobody would see."""
    tensors = synthesize(FIVE)
    for key, tensor in tensors.items():
        tensors[key] = tensor.to(weights) if tensor.dtype == torch.float16 else tensor
    write_archive(FIVE, tensors, tmp_path / "model.pt", alter=with_a_layer_in(layer))
    jit, _ = clipcheck.load(tmp_path / "model.pt", device="cpu", jit=True)
    assert dtypes(jit) == {FLOAT, SCALAR_TYPES[layer]}


# --------------------------------------------------------------------------- the dtype of the code


@parametrize("dtype", SCALAR_TYPES, quick=2)
@parametrize("a", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_casts_to_the_dtype_of_the_weights_are_rewritten(
    tmp_path: Path, a: Architecture, dtype: torch.dtype
) -> None:
    weights = {
        key: tensor.to(dtype) if tensor.dtype == torch.float16 else tensor
        for key, tensor in synthesize(a).items()
    }
    write_archive(a, weights, tmp_path / "model.pt")
    stored = open_checkpoint(tmp_path / "model.pt").weight_dtypes
    assert stored == [str(dtype).removeprefix("torch.")]
    module = load_archive(tmp_path / "model.pt", CPU)
    assert dtypes(module) == {FLOAT, SCALAR_TYPES[dtype]}  # Normalisations are in float32.
    patched = patch(module, CPU, torch.float32, stored)
    assert dtypes(module) == {FLOAT}
    assert set(patched.casts) == set(stored) - {"float32"}
    assert patched.devices["cuda:0"] > 5


class Casts(nn.Module):
    def __init__(self, half: int, single: int, double: int) -> None:
        super().__init__()
        self.half, self.single, self.double = half, single, double

    def forward(self, x: Tensor) -> Tensor:
        for dtype, count in (
            (torch.float16, self.half),
            (torch.float32, self.single),
            (torch.float64, self.double),
        ):
            for _ in range(count):
                x = x.type(dtype) + 1
        return x


@pytest.mark.parametrize(
    ("weights", "casts", "kept"),
    [
        (["float16"], {"float16": 3}, {"float32": 7, "float64": 2}),
        (["float32"], {"float32": 7}, {"float16": 3, "float64": 2}),
        (["float16", "float32"], {"float16": 3, "float32": 7}, {"float64": 2}),
        (["float64"], {"float64": 2}, {"float16": 3, "float32": 7}),
        (["bfloat16"], {}, {"float16": 3, "float32": 7, "float64": 2}),
    ],
)
def test_the_weights_decide_which_casts_are_rewritten_and_no_count_of_casts_does(
    weights: list[str], casts: dict[str, int], kept: dict[str, int]
) -> None:
    with torchscript_support.silenced():
        module = torch.jit.trace(Casts(3, 7, 2), torch.zeros(2), check_trace=False)
    patched = patch(module, CPU, torch.bfloat16, weights)
    assert (patched.casts, patched.kept, patched.dtype) == (casts, kept, "bfloat16")
    left = {SCALAR_TYPES[getattr(torch, name)] for name in kept}
    assert dtypes(module) == left | ({SCALAR_TYPES[torch.bfloat16]} if casts else set())


class Normalised(nn.Module):
    """The input of the second normalisation is used elsewhere too."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(x.to(torch.float64).float(), [2])
        z = (y + 1).to(torch.float64).float()
        return nn.functional.layer_norm(z, [2]) + z


def test_values_used_only_by_normalisations_stay_in_float32() -> None:
    with torchscript_support.silenced():
        module = torch.jit.trace(Normalised(), torch.zeros(2, 2), check_trace=False)
    patched = patch(module, CPU, torch.float16, ["float32"])
    assert (patched.casts, patched.kept) == ({"float32": 1}, {"float32": 1, "float64": 2})


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


def test_code_that_modules_share_is_rewritten_and_counted_once() -> None:
    with torchscript_support.silenced():
        module = torch.jit.script(nn.Sequential(Cast(), Cast()))
    assert patch(module, CPU, torch.float32, ["bfloat16"]).kept == {"float16": 1}
    assert patch(module, CPU, torch.float32, ["float16"]).casts == {"float16": 1}
    assert dtypes(module) == {FLOAT}


# --------------------------------------------------------------------------- weights in use


def eager_weights(a: Architecture) -> dict[str, set[str]]:
    return eager.build(a, synthesize(a)).weights_of_methods()


def test_a_sound_archive_uses_all_its_weights(tiny_archive: Path) -> None:
    module = load_archive(tiny_archive, CPU)
    keys = set(module.state_dict())
    for method, expected in eager_weights(open_checkpoint(tiny_archive).architecture).items():
        found = used_weights(module, method)
        assert expected <= found <= keys, method
    image, text = used_weights(module, "encode_image"), used_weights(module, "encode_text")
    assert all(key.startswith("visual.") for key in image)
    assert not any(key.startswith("visual.conv") for key in text)
    assert "logit_scale" not in image | text
    assert "logit_scale" in used_weights(module, "forward")


def test_looking_for_weights_in_use_changes_nothing(seeded_archive: SeededArchive) -> None:
    module = load_archive(seeded_archive("tiny-vit"), CPU)
    before = [str(graph) for graph in graphs(module)]
    for method in ("encode_image", "encode_text", "forward"):
        assert used_weights(module, method) == used_weights(module, method)
    assert [str(graph) for graph in graphs(module)] == before


def skip_a_block(model: Any) -> None:
    """Run a block, and ignore its result."""
    first, second = model.transformer.resblocks

    def forward(x: Tensor) -> Tensor:
        first(x)
        return second(x)

    model.transformer.resblocks.forward = forward


def drop_a_bias(model: Any) -> None:
    linear = model.visual.transformer.resblocks[1].mlp.c_fc
    linear.forward = lambda x: nn.functional.linear(x, linear.weight)


def constant_scale(model: Any) -> None:
    def forward(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = nn.functional.normalize(model.encode_image(image), dim=-1)
        texts = nn.functional.normalize(model.encode_text(text), dim=-1)
        return 100 * images @ texts.t(), 100 * texts @ images.t()

    model.forward = forward


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("alter", "unused"),
    [
        (
            skip_a_block,
            {"encode_image": 0, "encode_text": 12, "forward": 12, "of": "transformer.resblocks.0."},
        ),
        (
            drop_a_bias,
            {
                "encode_image": 1,
                "encode_text": 0,
                "forward": 1,
                "of": "visual.transformer.resblocks.1.mlp.c_fc.bias",
            },
        ),
        (constant_scale, {"encode_image": 0, "encode_text": 0, "forward": 1, "of": "logit_scale"}),
    ],
)
def test_weights_that_nothing_depends_on_are_not_in_use(
    tmp_path: Path, alter: Callable[[Any], None], unused: dict[str, Any]
) -> None:
    a = small("tiny-vit")
    write_archive(a, synthesize(a), tmp_path / "model.pt", alter=alter)
    module = load_archive(tmp_path / "model.pt", CPU)
    for method, expected in eager_weights(a).items():
        missing = expected - used_weights(module, method)
        assert len(missing) == unused[method], method
        assert all(key.startswith(unused["of"]) for key in missing)


# --------------------------------------------------------------------------- methods


def test_forward1_is_patched(minute_archive: Path) -> None:
    a = open_checkpoint(minute_archive).architecture
    pixels, tokens = inputs(a)
    naive = to_float(load_archive(minute_archive, CPU))
    patch_named(naive, ("forward",))
    with torch.inference_mode(), torchscript_support.silenced():
        naive.encode_image(pixels)  # Through each submodule's `forward`: works.
        with pytest.raises(RuntimeError):
            naive(pixels, tokens)  # Through `forward1`.

    ours, _ = clipcheck.load(minute_archive, device="cpu", jit=True)
    outputs(ours, pixels, tokens)


@pytest.mark.parametrize("forgotten", ["encode_image", "encode_text", "forward"])
def test_every_method_of_the_root_is_patched(minute_archive: Path, forgotten: str) -> None:
    path = minute_archive
    batch = inputs(MINUTE)
    naive = to_float(load_archive(path, CPU))
    for submodule in naive.modules():
        for name in submodule._c._method_names():
            if submodule is not naive or name != forgotten:
                graph = submodule._c._get_method(name).graph
                naive_devices(graph, "cpu")
                separate_floats(graph)
    fails(naive, *batch)


class Norm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.to(x.device, torch.float32))
        return y.to(x.device, torch.float16)


class Thrice(nn.Module):
    """Calls one norm three times in a pass, as the ResNets call their ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.to(x.device, torch.float16)).to(torch.float32)
        return self.norm(self.norm(y.half())).to(self.linear.weight.dtype)


def traced(module: nn.Module, path: Path, **methods: Any) -> Any:
    with torchscript_support.silenced():
        # Shapes that become constants: the tracer warns of each.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        module.eval()
        script = torch.jit.trace_module(module, methods, check_trace=False, _store_inputs=False)
        script.save(str(path))
    return script


def cuda_archive(path: Path) -> Any:
    """Trace on the CPU, then let the code name a GPU."""
    with torchscript_support.silenced():
        script = torch.jit.trace(Thrice(), torch.zeros(2, 8), check_trace=False)
        for graph in graphs(script):
            for node in device_constants(graph):
                node.s_("value", "cuda:0")
        script.save(str(path))
    return load_archive(path, CPU)


def test_forward2_is_patched(tmp_path: Path) -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    naive = cuda_archive(tmp_path / "thrice.pt")
    assert naive.norm._c._method_names() == ["forward", "forward1", "forward2"]
    patch_named(naive, ("forward", "forward1"))
    assert devices(naive) == {"cuda:0", "cpu"}

    ours = cuda_archive(tmp_path / "thrice.pt")
    patch(ours, CPU, torch.float32, ["float16"])
    assert devices(ours) == {"cpu"}
    assert dtypes(ours) == {FLOAT}
    with torchscript_support.silenced():
        assert ours(x).dtype == torch.float32
    if not torch.cuda.is_available():
        with torchscript_support.silenced(), pytest.raises(RuntimeError):
            naive(x)


def test_the_methods_of_a_released_archive_go_far_beyond_forward1(
    seeded_archive: SeededArchive,
) -> None:
    module = load_archive(seeded_archive("tiny-resnet"), CPU)
    names = {name for m in module.modules() for name in m._c._method_names()}
    assert {"forward", "forward1", "forward2", "forward3", "forward4", "forward5"} < names
    methods = sum(len(m._c._method_names()) for m in module.modules())
    assert len(list(graphs(module))) == methods


def test_a_module_without_methods_is_no_obstacle(tiny_archive: Path) -> None:
    module = load_archive(tiny_archive, CPU)
    modules = dict(module.named_modules())
    out_proj = modules["transformer.resblocks.0.attn.out_proj"]
    with pytest.raises(RuntimeError):
        _ = out_proj.graph
    assert out_proj._c._method_names() == []
    assert list(graphs(out_proj)) == []
    assert len(list(graphs(module))) > 0


# --------------------------------------------------------------------------- when and what


def test_patching_after_a_failed_call_is_too_late(seeded_archive: SeededArchive) -> None:
    path = seeded_archive("tiny-vit")
    batch = inputs(architecture_named("tiny-vit"))
    naive = to_float(load_archive(path, CPU))
    fails(naive, *batch)
    patch(naive, CPU, torch.float32, ["float16"])
    assert devices(naive) == {"cpu"}
    fails(naive, *batch)


def test_casting_the_weights_alone_is_not_enough(minute_archive: Path) -> None:
    batch = inputs(MINUTE)
    naive = to_float(load_archive(minute_archive, CPU))
    patch(naive, CPU)
    fails(naive, *batch)


def test_the_code_is_untouched_without_a_dtype(tiny_archive: Path) -> None:
    module = load_archive(tiny_archive, CPU)
    patch(module, torch.device("cuda:1"))
    assert dtypes(module) == {HALF, FLOAT}


def test_cpu_with_index_0_counts_as_the_cpu(minute_archive: Path) -> None:
    a = open_checkpoint(minute_archive).architecture
    jit, _ = clipcheck.load(minute_archive, device="cpu:0", jit=True)
    assert devices(jit) == {"cpu"}
    assert dtypes(jit) == {FLOAT}
    found = outputs(jit, *inputs(a))
    assert {value.dtype for value in found.values()} == {torch.float32}
    # The reference compares with "cpu", and stays in half.
    with torchscript_support.silenced():
        naive, _ = reference_clip().load(str(minute_archive), device="cpu:0", jit=True)
    assert HALF in dtypes(naive)


@pytest.mark.parametrize("device", ["cuda:1", "cuda", "mps", "cpu"])
def test_no_other_device_and_no_half_is_left(tiny_archive: Path, device: str) -> None:
    module = load_archive(tiny_archive, CPU)
    assert devices(module) == {"cuda:0", "cpu"}
    patch(module, torch.device(device), torch.float32, ["float16"])
    assert devices(module) == {device}
    assert dtypes(module) == {FLOAT}

    naive = load_archive(tiny_archive, CPU)
    for graph in graphs(naive):
        naive_devices(graph, device)
    assert devices(naive) == {device, "cpu"}  # What is made on the CPU stays there.


def test_nested_blocks_are_searched() -> None:
    graph = torch._C.parse_ir("""
        graph(%x : Tensor, %condition : bool):
          %no : bool = prim::Constant[value=0]()
          %none : NoneType = prim::Constant()
          %result : Tensor = prim::If(%condition)
            block0():
              %device : Device = prim::Constant[value="cuda:0"]()
              %five : int = prim::Constant[value=5]()
              %half : Tensor = aten::to(%x, %device, %five, %no, %no, %none)
              -> (%half)
            block1():
              -> (%x)
          return (%result)
    """)
    assert [node.s("value") for node in device_constants(graph)] == ["cuda:0"]
    assert [(node.kind(), *rest) for node, *rest in float_casts(graph)] == [("aten::to", 2, HALF)]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            zeros = torch.zeros(2, dtype=torch.half, device=torch.device("cuda:3"))
            if x.max() > 1:
                x = x + torch.ones(2, dtype=torch.half, device=torch.device("cuda:2"))
            return x + zeros
        return x


def test_nested_blocks_are_patched() -> None:
    with torchscript_support.silenced():
        module = torch.jit.script(Branch())
    assert devices(module) == {"cuda:2", "cuda:3"}
    patch(module, torch.device("mps"), torch.float32, ["float16"])
    assert devices(module) == {"mps"}
    assert dtypes(module) == {FLOAT}
    patch(module, CPU, torch.float32, ["float16"])
    with torchscript_support.silenced():
        assert module(torch.tensor([3.0, 4.0])).tolist() == [4.0, 5.0]


# --------------------------------------------------------------------------- other people's traces


class TwoTowers(nn.Module):
    """Has other classes and other code than the reference's."""

    def __init__(self, model: eager.CLIP) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image.to(self.text_projection.device, self.text_projection.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text).type(self.text_projection.dtype)
        x = (x + self.positional_embedding.type(x.dtype)).transpose(0, 1)
        mask = torch.full(
            (x.shape[0], x.shape[0]), float("-inf"), dtype=x.dtype, device=x.device
        ).triu(1)
        x = self.ln_final(self.transformer(x, mask).transpose(0, 1))
        return x[torch.arange(text.shape[0]), text.argmax(-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = nn.functional.normalize(self.encode_image(image), dim=-1)
        texts = nn.functional.normalize(self.encode_text(text), dim=-1)
        per_image = self.logit_scale.exp() * images @ texts.T
        return per_image, per_image.T


def reference_model(weights: dict[str, Tensor], half: bool) -> nn.Module:
    model: nn.Module = reference_clip().model.build_model(dict(weights))
    return model if half else model.float()


def another_model(weights: dict[str, Tensor], half: bool) -> nn.Module:
    float32 = {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}
    return TwoTowers(eager.build(infer(weights, "weights"), weights if half else float32))


def traced_by_others(
    path: Path,
    a: Architecture,
    make: Callable[[dict[str, Tensor], bool], nn.Module] = reference_model,
    *,
    half: bool = False,
    methods: tuple[str, ...] = ("encode_image", "encode_text", "forward"),
) -> Path:
    image, text = torch.zeros(2, 3, a.image_resolution, a.image_resolution), inputs(a, 1)[1]
    arguments = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    traced(make(synthesize(a), half), path, **{key: arguments[key] for key in methods})
    return path


@pytest.mark.thorough
@parametrize(
    ("make", "half"),
    [(reference_model, False), (reference_model, True), (another_model, False)],
    quick=1,
    ids=["reference-float32", "reference-half", "another-float32"],
)
@pytest.mark.parametrize("a", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_archives_of_other_people_load(
    tmp_path: Path,
    a: Architecture,
    make: Callable[[dict[str, Tensor], bool], nn.Module],
    half: bool,
) -> None:
    path = traced_by_others(tmp_path / "other.pt", a, make, half=half)
    checkpoint = open_checkpoint(path)
    assert checkpoint.architecture == a
    assert "input_resolution" not in checkpoint.tensors
    module = load_archive(path, CPU)
    assert "Multimodal" not in module._c._type().qualified_name()
    assert devices(module) <= {"cpu"}

    batch = inputs(checkpoint.architecture)
    jit, reference, _ = clipcheck.load_both(path, device="cpu")
    alone, _ = clipcheck.load(path, device="cpu", jit=True)
    assert dtypes(jit) <= {FLOAT}
    expected = outputs(reference, *batch)
    assert_near(outputs(jit, *batch), expected, 1e-5)
    assert_near(outputs(alone, *batch), expected, 1e-5)


def test_an_archive_of_other_people_is_patched_for_another_device(tmp_path: Path) -> None:
    path = traced_by_others(tmp_path / "other.pt", MINUTE)
    module = load_archive(path, CPU)
    patch(module, torch.device("cuda:1"))
    assert devices(module) == {"cuda:1"}
    naive = load_archive(path, CPU)
    for graph in graphs(naive):
        naive_devices(graph, "cuda:1")
    assert devices(naive) == {"cpu"}


@parametrize("missing", ["encode_image", "encode_text"])
def test_an_archive_without_a_method_loads_and_the_check_names_it(
    tmp_path: Path, missing: str
) -> None:
    methods = [name for name in ("encode_image", "encode_text", "forward") if name != missing]
    a = MINUTE
    path = traced_by_others(tmp_path / "other.pt", a, methods=tuple(methods))
    jit, reference, _ = clipcheck.load_both(path, device="cpu")
    pixels, tokens = inputs(a)
    with torch.inference_mode(), torchscript_support.silenced():
        found, expected = jit(pixels, tokens)[0], reference(pixels, tokens)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    (judgement,) = clipcheck.check(path, device="cpu", examples=1).judgements
    assert judgement.passed
    assert judgement.absent == (missing.replace("encode_", "") + "_features",)


# --------------------------------------------------------------------------- availability


def no_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscript_support, "_FIRST_PYTHON_WITHOUT", (3, 0))


def write_tiny(path: Path) -> None:
    a = architecture_named("tiny-vit")
    write_archive(a, synthesize(a), path.with_name("another.pt"))


@pytest.mark.parametrize(
    "use",
    [
        lambda path: clipcheck.load(path, device="cpu", jit=True),
        lambda path: clipcheck.load_both(path, device="cpu"),
        write_tiny,
    ],
    ids=["load", "load_both", "write"],
)
def test_without_torchscript_the_jit_way_is_unavailable_with_the_reason(
    seeded_archive: SeededArchive, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    path = seeded_archive("tiny-vit")
    no_torchscript(monkeypatch)
    found = ".".join(map(str, sys.version_info[:2]))
    with pytest.raises(UnavailableError, match=f"this is Python {found}") as caught:
        use(path)
    assert "TorchScript is not available" in str(caught.value)
    assert not path.with_name("another.pt").exists()


def test_without_torchscript_the_eager_way_works(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_torchscript(monkeypatch)
    model, _ = clipcheck.load(tiny_archive, device="cpu")
    outputs(model, *inputs(open_checkpoint(tiny_archive).architecture))


def test_a_torch_without_jit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchscript_support.unavailable() is None
    monkeypatch.delattr(torch.jit, "load")
    assert torchscript_support.unavailable() == (
        f"torch {torch.__version__} has no TorchScript (torch.jit.load)"
    )


@pytest.mark.filterwarnings("error")  # also where a run makes exceptions of some
def test_only_the_warnings_of_torchscript_are_silenced() -> None:
    with torchscript_support.silenced():
        warnings.warn("`torch.jit.load` is deprecated.", DeprecationWarning, stacklevel=1)
        warnings.warn("`torch.jit.load` is not supported.", FutureWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="else"):
            warnings.warn("something else", UserWarning, stacklevel=1)
        with pytest.raises(FutureWarning, match="else"):
            warnings.warn("something else", FutureWarning, stacklevel=1)
    with pytest.raises(DeprecationWarning):
        warnings.warn("`torch.jit.load` is deprecated.", DeprecationWarning, stacklevel=1)


def test_what_the_interpreter_cannot_load_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(DamagedError, match="TorchScript cannot load this archive") as caught:
        load_archive(path, CPU)
    assert caught.value.path == str(path)
    assert caught.value.remedy.endswith(torchscript.ANEW)


def test_a_dimension_that_is_no_number_is_damage_that_writing_anew_mends(
    minute_archive: Path,
) -> None:
    naming = open_checkpoint(minute_archive).naming
    archive = LoadedArchive(minute_archive, CPU, None, (), naming)
    archive.module = type("Module", (), {"input_resolution": torch.zeros(2)})()
    with pytest.raises(DamagedError, match="as input_resolution, found Tensor") as caught:
        archive._dimension("input_resolution")
    assert caught.value.remedy.endswith(torchscript.ANEW)


def test_it_is_loaded_in_evaluation_mode(tiny_archive: Path) -> None:
    assert not any(module.training for module in load_archive(tiny_archive, CPU).modules())
