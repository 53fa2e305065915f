"""Modules of an archive, judged one by one beside their eager and their float64 twins."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.backends.archives import Inside
from clipcheck.checkpoints.architecture import Architecture, ViT
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.modules import Coverage, ModuleError, modules
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules import twins
from clipcheck.harness.modules.judge import Judge, judge_modules, nearest
from clipcheck.inputs.batches import for_modules
from clipcheck.models import taps
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import Alter, write_archive
from clipcheck.writers.synthesize import synthesize
from tests.models import small
from tests.samples import MINUTE
from tests.thorough import parametrize

CPU = torch.device("cpu")
FLOAT = LIMITS["float32"]
NOT_CALLED = "the archive does not call it"
OTHER_SHAPES = "its shapes differ from the eager module's"

VIT, RESNET = (
    replace(small("tiny-vit"), vision=ViT(2, 64, 8), text_width=64),
    replace(small("tiny-resnet"), text_layers=1, text_width=64),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torchscript_support.silenced():
        yield
    torchscript_support.forget_classes()


def judged_file(path: Path) -> Coverage:
    checkpoint = open_checkpoint(path)
    both = load_checkpoint_both(checkpoint, CPU)
    batch = for_modules(inputs_of(checkpoint.architecture), 0)
    return judge_modules(Inside(both.archive), both.eager_model, batch, CPU)


Judged = Callable[..., Coverage]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """Writes an archive with altered code, and judges its modules."""

    def judge(a: Architecture, alter: Alter | None = None) -> Coverage:
        path = tmp_path / "model.pt"
        write_archive(a, synthesize(a), path, alter=alter)
        return judged_file(path)

    return judge


def ratio(error: ModuleError) -> float:
    return error.candidate / max(error.reference, FLOAT.roundoff * error.size)


def ratios(coverage: Coverage) -> dict[str, float]:
    """Return the greatest ratio of all methods, by module."""
    found: dict[str, float] = {}
    for error in coverage.errors:
        found[error.module] = max(ratio(error), found.get(error.module, 0.0))
    return found


def off(coverage: Coverage) -> list[str]:
    return [name for name, found in ratios(coverage).items() if not found <= FLOAT.module]


# --------------------------------------------------------------------------- sound archives


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Coverage]:
    folder = tmp_path_factory.mktemp("clean")
    found = {}
    with torchscript_support.silenced():
        for name, a in (("vit", VIT), ("resnet", RESNET)):
            write_archive(a, synthesize(a), folder / name)
            found[name] = judged_file(folder / name)
    return found


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_all_modules_of_a_sound_archive_are_as_near_as_the_eager_ones(
    clean: Mapping[str, Coverage], name: str
) -> None:
    found = ratios(clean[name])
    assert all(0.4 < value < 2.5 or value == 0 for value in found.values()), found
    assert np.median(list(found.values())) == pytest.approx(1, abs=0.2)
    assert modules(clean[name], FLOAT).passed
    assert not clean[name].failures
    for error in clean[name].errors:
        assert error.size > 0.01
        assert error.reference < 1e-5 * error.size


BLOCK = ("", ".attn", ".ln_1", ".ln_2", ".mlp.c_fc", ".mlp.gelu", ".mlp.c_proj")


def test_every_module_of_a_vit_is_judged(clean: Mapping[str, Coverage]) -> None:
    judged_modules = {error.module for error in clean["vit"].errors}
    blocks = [
        *(f"visual.transformer.resblocks.{i}{part}" for i in range(2) for part in BLOCK),
        *(f"transformer.resblocks.{i}{part}" for i in range(2) for part in BLOCK),
    ]
    others = ["visual.conv1", "visual.ln_pre", "visual.ln_post", "token_embedding", "ln_final"]
    assert judged_modules == {*blocks, *others}
    assert len(judged_modules) == 33
    assert clean["vit"].skipped == {}


def test_the_relus_of_a_resnet_have_other_names_in_archives_and_are_reported(
    clean: Mapping[str, Coverage],
) -> None:
    skipped = clean["resnet"].skipped
    assert set(skipped.values()) == {NOT_CALLED}
    assert all(name.rpartition(".")[2] in {"relu1", "relu2", "relu3"} for name in skipped)
    # Three in the stem, and three in each of five bottlenecks.
    assert len(skipped) == 3 * 6
    found = ratios(clean["resnet"])
    assert not set(found) & set(skipped)
    for name in ("visual.layer2.1", "visual.layer2.1.bn2", "visual.layer4.0.downsample.1"):
        assert name in found
    for name in ("visual.conv3", "visual.bn3", "visual.avgpool", "visual.attnpool", "ln_final"):
        assert name in found


def test_modules_are_judged_in_the_order_of_the_calls_leaves_before_their_block(
    clean: Mapping[str, Coverage],
) -> None:
    names = [error.module for error in clean["vit"].errors]
    assert names[:2] == ["visual.conv1", "visual.ln_pre"]
    block = "visual.transformer.resblocks.0"
    assert names[2:9] == [
        f"{block}{part}"
        for part in (".ln_1", ".attn", ".ln_2", ".mlp.c_fc", ".mlp.gelu", ".mlp.c_proj", "")
    ]
    assert names[-1] == "ln_final"


def test_what_another_method_did_before_is_judged_once(clean: Mapping[str, Coverage]) -> None:
    for coverage in clean.values():
        names = [error.module for error in coverage.errors]
        assert len(names) == len(set(names))
        # What is called in `forward` is a method of its own; it computes the same.
        assert {error.method for error in coverage.errors} == {"forward"}


def test_a_leaf_knows_the_block_that_it_is_in(clean: Mapping[str, Coverage]) -> None:
    blocks = {e.module: e.block for coverage in clean.values() for e in coverage.errors}
    assert blocks["visual.transformer.resblocks.1.mlp.gelu"] == "visual.transformer.resblocks.1"
    assert blocks["transformer.resblocks.1.attn"] == "transformer.resblocks.1"
    assert blocks["visual.layer2.1.bn2"] == "visual.layer2.1"
    assert blocks["visual.layer4.0.downsample.0"] == "visual.layer4.0"
    outside = ("visual.transformer.resblocks.1", "visual.layer2.1", "visual.conv1", "ln_final")
    for name in (*outside, "visual.bn1", "visual.attnpool", "token_embedding", "visual.ln_post"):
        assert blocks[name] == "", name


# --------------------------------------------------------------------------- faults


def test_the_epsilon_of_one_deep_normalisation_is_seen_and_named(judged: Judged) -> None:
    def alter(model: Any) -> None:
        model.visual.transformer.resblocks[1].ln_2.eps = 1e-4

    found = judged(VIT, alter)
    block = "visual.transformer.resblocks.1"
    assert off(found) == [f"{block}.ln_2", block]
    result = modules(found, FLOAT)
    assert not result.passed
    assert result.message.startswith(f"{block}.ln_2 (forward): error ")


@pytest.mark.thorough
def test_the_epsilon_of_a_batch_normalisation_in_one_bottleneck_is_seen_and_named(
    judged: Judged,
) -> None:
    def alter(model: Any) -> None:
        model.visual.layer2[1].bn2.eps = 1e-4

    found = judged(RESNET, alter)
    assert off(found) == ["visual.layer2.1.bn2", "visual.layer2.1"]
    assert modules(found, FLOAT).message.startswith("visual.layer2.1.bn2 (forward): error ")


def attention_scaled_by(factor: float) -> Alter:
    def alter(model: Any) -> None:
        attn = model.transformer.resblocks[1].attn

        def forward(x: Tensor, mask: Tensor) -> Tensor:
            length, rows, width = x.shape
            projected = functional.linear(x, attn.in_proj_weight, attn.in_proj_bias)
            query, key, value = (
                part.reshape(length, rows * attn.heads, width // attn.heads).transpose(0, 1)
                for part in projected.chunk(3, dim=-1)
            )
            scores = (factor * (width // attn.heads) ** -0.5 * query) @ key.transpose(1, 2) + mask
            y = (scores.softmax(-1) @ value).transpose(0, 1).contiguous().view(length, rows, width)
            return functional.linear(y, attn.out_proj.weight, attn.out_proj.bias)

        attn.forward = forward

    return alter


@pytest.mark.thorough
def test_the_scale_of_attention_is_seen_and_named(judged: Judged) -> None:
    assert off(judged(VIT, attention_scaled_by(1.0))) == []
    found = judged(VIT, attention_scaled_by(1.001))
    block = "transformer.resblocks.1"
    assert off(found) == [f"{block}.attn", block]


@parametrize("faulty", ["visual.ln_pre", "visual.ln_post"])
def test_a_fault_of_forward_alone_is_seen_and_its_method_is_named(
    judged: Judged, faulty: str
) -> None:
    def alter(model: Any) -> None:
        original, norm = model.forward, model.get_submodule(faulty)

        def forward(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            norm.eps = 1e-3
            try:
                found: tuple[Tensor, Tensor] = original(image, text)
            finally:
                norm.eps = 1e-5
            return found

        model.forward = forward

    found = judged(VIT, alter)
    assert off(found) == [faulty]
    methods = [(e.method, ratio(e) > 10) for e in found.errors if e.module == faulty]
    assert methods == [("forward", False), ("forward1", True)]
    assert modules(found, FLOAT).message.startswith(f"{faulty} (forward1): error ")


@pytest.mark.thorough
def test_forward_is_not_listened_to_where_both_towers_end_as_in_the_encoders(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs as much as both encoders, and could show nothing new."""
    heard: list[tuple[str, int]] = []
    listen = Inside.listen

    def counted(self: Inside, method: str, *given: Any) -> object:
        heard.append((method, len(given[1])))
        return listen(self, method, *given)

    monkeypatch.setattr(Inside, "listen", counted)
    found = judged(VIT)
    every = heard[0][1]
    assert heard == [("encode_image", every), ("encode_text", every), ("forward", 3)]
    assert not found.skipped


def test_a_module_that_gives_nan_fails_and_those_that_get_nan_are_not_judged(
    judged: Judged,
) -> None:
    def alter(model: Any) -> None:
        norm = model.visual.ln_pre
        forward = norm.forward
        norm.forward = lambda x: forward(x) * float("nan")

    found = judged(VIT, alter)
    result = modules(found, FLOAT)
    assert not result.passed
    assert result.margin == np.inf
    assert np.isnan(ratios(found)["visual.ln_pre"])
    assert result.message.startswith("visual.ln_pre (forward)")
    block = "visual.transformer.resblocks.0"
    assert found.skipped[block] == "none of its inputs is finite"
    assert block not in ratios(found)
    # The other tower is judged as ever.
    assert "transformer.resblocks.1" in ratios(found)


# --------------------------------------------------------------------------- other ways, all right


@pytest.mark.thorough
def test_a_module_that_writes_over_its_input_is_judged_on_what_it_was_given(
    judged: Judged,
) -> None:
    def alter(model: Any) -> None:
        for block in model.visual.transformer.resblocks:
            block.mlp.gelu.forward = lambda x: x.mul_(torch.sigmoid(1.702 * x))

    found = judged(VIT, alter)
    assert off(found) == []
    assert len(ratios(found)) == 33


@pytest.mark.thorough
def test_of_several_input_tensors_the_one_used_for_computing_counts(
    judged: Judged,
) -> None:
    """Which one that is no code says. The others would give something far off."""

    def alter(model: Any) -> None:
        block = model.visual.transformer.resblocks[1]
        norm = block.ln_1.forward
        block.ln_1.forward = lambda before, x, after: norm(x) + 0 * (before + after)

        def forward(x: Tensor) -> Tensor:
            x = x + block.attn(block.ln_1(x + 1, x, x * x), None)
            return x + block.mlp(block.ln_2(x))

        block.forward = forward

    found = judged(VIT, alter)
    assert off(found) == []
    assert ratios(found)["visual.transformer.resblocks.1.ln_1"] < 2.5


def rows_first(transformer: Any) -> None:
    """Make positions the second dimension inside of the transformer."""

    def turn(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda x, *more: original(x.transpose(0, 1), *more).transpose(0, 1))

    turn(transformer, "forward")
    for block in transformer.resblocks:
        turn(block.attn, "forward")


@pytest.mark.thorough
def test_a_transformer_with_rows_first_is_judged_and_is_right(judged: Judged) -> None:
    def alter(model: Any) -> None:
        rows_first(model.visual.transformer)
        rows_first(model.transformer)

    found = judged(VIT, alter)
    assert found.skipped == {}
    assert len(ratios(found)) == 33
    assert off(found) == []
    for block in ("visual.transformer.resblocks.1", "transformer.resblocks.1"):
        for name in (block, f"{block}.attn"):
            assert 0.4 < ratios(found)[name] < 2.5, name


@pytest.mark.thorough
def test_a_fault_in_a_transformer_with_rows_first_is_seen(judged: Judged) -> None:
    def alter(model: Any) -> None:
        rows_first(model.transformer)
        model.transformer.resblocks[0].ln_1.eps = 1e-3

    block = "transformer.resblocks.0"
    assert off(judged(VIT, alter)) == [f"{block}.ln_1", block]


def patches_first(model: Any) -> None:
    """Compute the first convolution as a product with patches that were cut before."""
    visual = model.visual
    conv1 = visual.conv1
    size = conv1.kernel_size[0]

    def forward(x: Tensor) -> Tensor:
        rows, channels, side, _ = x.shape
        grid = side // size
        x = x.reshape(rows, channels, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
        x = conv1(x.reshape(rows, grid * grid, channels * size * size))
        start = visual.class_embedding.type(x.dtype) + x.new_zeros(rows, 1, x.shape[2])
        x = torch.cat([start, x], dim=1) + visual.positional_embedding.type(x.dtype)
        x = visual.transformer(visual.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        return visual.ln_post(x[:, 0]) @ visual.proj

    conv1.forward = lambda x: functional.linear(x, conv1.weight.flatten(start_dim=1))
    visual.forward = forward


@pytest.mark.thorough
def test_a_module_over_other_shapes_is_not_judged_and_says_so(judged: Judged) -> None:
    found = judged(VIT, patches_first)
    assert found.skipped == {"visual.conv1": OTHER_SHAPES}
    assert "visual.conv1" not in ratios(found)
    assert len(ratios(found)) == 32
    result = modules(found, FLOAT)
    assert result.passed
    assert result.message.endswith(f"1 not judged: visual.conv1 ({OTHER_SHAPES})")


@pytest.mark.thorough
def test_a_module_that_gives_another_shape_is_not_judged_and_says_so(judged: Judged) -> None:
    def alter(model: Any) -> None:
        visual = model.visual
        norm = visual.ln_pre.forward
        visual.ln_pre.forward = lambda x: norm(x).permute(1, 0, 2)
        transformer = visual.transformer.forward
        visual.transformer.forward = lambda x: transformer(x.permute(1, 0, 2))

    found = judged(VIT, alter)
    assert found.skipped == {"visual.ln_pre": OTHER_SHAPES}


def test_a_module_that_is_left_out_is_not_called(judged: Judged) -> None:
    def alter(model: Any) -> None:
        model.transformer.resblocks[0].mlp.forward = lambda x: 0 * x

    found = judged(VIT, alter)
    block = "transformer.resblocks.0"
    assert found.skipped == {
        f"{block}.mlp.{name}": NOT_CALLED for name in ("c_fc", "gelu", "c_proj")
    }
    assert off(found) == [block]


# --------------------------------------------------------------------------- methods that fail


def test_a_module_that_a_failure_kept_from_being_called_is_said_to_be_so() -> None:
    twins: Any = SimpleNamespace(blocks={"ln_post": "ln_post"})
    judge = Judge(twins=twins, subject="the program")
    assert judge.coverage(["it ran out of memory"]).skipped == {
        "ln_post": "the program fails before it is called"
    }
    assert judge.coverage().skipped == {"ln_post": "the program does not call it"}


def test_a_method_that_fails_leaves_its_reason_and_the_others_are_judged(judged: Judged) -> None:
    def alter(model: Any) -> None:
        encode = model.encode_text

        def with_too_few(text: Tensor) -> Tensor:
            # No rows, as the archive's writer traces it, fit into any shape.
            x = encode(text).reshape(text.shape[0], 63)
            return torch.cat([x, x[:, :1]], dim=1)

        model.encode_text = with_too_few

    found = judged(MINUTE, alter)
    assert [failure.split(" failed")[0] for failure in found.failures] == [
        "jit: encode_text",
        "jit: forward",
    ]
    assert found.failures[0].endswith("in a batch of 3 rows")
    assert found.failures[1].endswith("in a batch of 2 and 3 rows")
    assert "visual.conv1" in ratios(found)
    assert taps._listeners == []


def test_of_several_outputs_the_nearest_is_judged_even_if_another_is_nan() -> None:
    wrong, right, broken = (
        ModuleError(module="a", method="forward", candidate=candidate, reference=1e-6, size=1.0)
        for candidate in (1e-3, 1e-6, float("nan"))
    )
    assert nearest([broken, wrong, right]) is right
    assert nearest([wrong, right, broken]) is right
    assert nearest([broken]) is broken


# --------------------------------------------------------------------------- memory and devices


@pytest.mark.thorough
def test_at_most_one_block_has_a_float64_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    write_archive(VIT, synthesize(VIT), path)
    made: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def deepcopy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
        alive.append(sum(ref() is not None for ref in made))
        twin = copy.deepcopy(module, memo)
        made.append(weakref.ref(twin))
        return twin

    monkeypatch.setattr(twins, "copy", SimpleNamespace(deepcopy=deepcopy))
    judged_file(path)
    # The first of each tower, its blocks, and its last; leaves are taken from their block's twin.
    # Once more for what each is given by itself, but for the table of tokens.
    assert len(made) == 2 * ((2 + 2 + 1) + (1 + 2 + 1)) - 1
    assert max(alive) == 1
    gc.collect()
    assert all(ref() is None for ref in made)


def test_twins_are_in_float64_and_the_table_of_tokens_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    write_archive(MINUTE, synthesize(MINUTE), path)
    dtypes: dict[str, set[torch.dtype]] = {}
    of = twins.Twins._of

    def watched(self: Any, name: str) -> nn.Module:
        twin = of(self, name)
        dtypes.setdefault(name, set()).update(p.dtype for p in twin.parameters())
        return twin

    monkeypatch.setattr(twins.Twins, "_of", watched)
    found = judged_file(path)
    assert dtypes.pop("token_embedding") == {torch.float32}
    gelus = [name for name in dtypes if name.endswith("gelu")]
    assert all(dtypes.pop(name) == set() for name in gelus)
    assert set(map(frozenset, dtypes.values())) == {frozenset({torch.float64})}
    # A lookup is exact.
    (embedding,) = (error for error in found.errors if error.module == "token_embedding")
    assert (embedding.candidate, embedding.reference) == (0.0, 0.0)


def test_the_eager_model_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_archive(MINUTE, synthesize(MINUTE), path)
    checkpoint = open_checkpoint(path)
    both = load_checkpoint_both(checkpoint, CPU)
    before = {key: (t.data_ptr(), t.clone()) for key, t in both.eager_model.state_dict().items()}
    batch = for_modules(inputs_of(MINUTE), 0)
    judge_modules(Inside(both.archive), both.eager_model, batch, CPU)
    for key, tensor in both.eager_model.state_dict().items():
        address, values = before[key]
        assert tensor.data_ptr() == address
        assert torch.equal(tensor, values)


def test_a_module_that_one_method_calls_differently_is_skipped_in_that_method_alone() -> None:
    known: Any = SimpleNamespace(blocks={"conv1": "", "conv2": "", "conv3": ""})
    found = Judge(
        twins=known,
        errors=[
            ModuleError(module="conv1", method="forward", candidate=1.0, reference=1.0, size=1.0)
        ],
        skipped=[
            (taps.Site("conv1", "encode_image"), OTHER_SHAPES),
            (taps.Site("conv2", "forward"), OTHER_SHAPES),
        ],
    )
    assert found.coverage().skipped == {
        "conv1 in encode_image": OTHER_SHAPES, "conv2": OTHER_SHAPES, "conv3": NOT_CALLED
    }  # fmt: skip
