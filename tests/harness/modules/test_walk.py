"""The first place where altered archives depart from the eager model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults import CLEAN, FAULTS
from clipcheck.audit.faults.steps import attend, out_projection, split
from clipcheck.backends import archives
from clipcheck.backends.archives import Inside
from clipcheck.checkpoints.architecture import Architecture, ViT
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.connections import LAST, End
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.localisation import Localisation, tower_of
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules import walk as walking
from clipcheck.harness.modules.twins import Twins
from clipcheck.harness.modules.walk import walk
from clipcheck.inputs.batches import Batch, for_modules
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import Alter, write_archive
from clipcheck.writers.synthesize import synthesize
from tests.models import small
from tests.thorough import parametrize

CPU = torch.device("cpu")
FLOAT = LIMITS["float32"]
VIT, RESNET = (
    replace(small("tiny-vit"), vision=ViT(1, 64, 8), text_width=64),
    replace(small("tiny-resnet"), text_layers=1, text_width=64),
)
PLANTS = {variant.name: variant.plant for variant in (*FAULTS, *CLEAN)}

Walked = Callable[..., Localisation]
Written = Callable[[Architecture, Alter | None], Path]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torchscript_support.silenced():
        yield
    torchscript_support.forget_classes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes an archive with altered code, each once for all tests."""

    @functools.cache
    def write(a: Architecture, alter: Alter | None) -> Path:
        path = tmp_path_factory.mktemp("walked") / "model.pt"
        write_archive(a, synthesize(a), path, alter=alter)
        return path

    return write


@pytest.fixture
def walked(written: Written) -> Walked:
    """Writes an archive with altered code, and walks through it."""

    def run(
        a: Architecture, alter: Alter | None = None, change: Callable[[Batch], Batch] | None = None
    ) -> Localisation:
        checkpoint = open_checkpoint(written(a, alter))
        both = load_checkpoint_both(checkpoint, CPU)
        batch = for_modules(inputs_of(a), 0)
        given = change(batch) if change else batch
        return walk(Inside(both.archive), both.eager_model, given, CPU, FLOAT, "a batch")

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the modules that run, eager and in float64, in order."""
    names: list[str] = []
    original = Twins.run

    def counted(self: Twins, name: str, given: Any) -> Any:
        names.append(name)
        return original(self, name, given)

    monkeypatch.setattr(Twins, "run", counted)
    return names


def named(found: Localisation) -> list[tuple[str, str]]:
    return [(str(place.module), place.part) for place in found.found]


@pytest.mark.parametrize("a", [VIT, RESNET], ids=["vit", "resnet"])
def test_nothing_departs_in_a_sound_archive_and_all_of_it_was_looked_at(
    walked: Walked, a: Architecture
) -> None:
    found = walked(a)
    assert not found.found
    assert [place.reason for place in found.places] == ["nothing departs"] * 3


@pytest.mark.thorough
@parametrize(
    "variant", ["batch-turned", "batch-first", "fused-attention", "linear-by-addmm"], quick=2
)
def test_nothing_departs_where_the_same_is_computed_in_another_way(
    walked: Walked, variant: str
) -> None:
    assert not walked(VIT, PLANTS[variant]).found


@parametrize(
    ("fault", "place"),
    [
        ("quickgelu-slope-1.7", ("transformer.resblocks.0.mlp.gelu", "")),
        ("text-block-twice", ("transformer.resblocks.1", "what it is given")),
        ("pooled-at-last-position", ("text_projection", "pooling")),
        ("residual-left-out", ("transformer.resblocks.0", "residual sum behind mlp")),
        ("text-blocks-swapped", ("transformer.resblocks.0", "itself, or positions")),
        ("text-positions-left-out", ("positional_embedding", "positions")),
        ("text-features-scaled-by-two", ("text_projection", "pooling and projection")),
        ("text-block-skipped", ("transformer.resblocks.1", "")),
        ("final-norm-missing", ("ln_final", "itself, or pooling and projection")),
        ("tokens-cut-at-40", ("token_embedding", "what it is given")),
    ],
    quick=2,
)
def test_a_fault_of_the_text_tower_is_found_where_it_was_planted(
    walked: Walked, fault: str, place: tuple[str, str]
) -> None:
    assert place in named(walked(VIT, PLANTS[fault]))


@parametrize(
    ("fault", "place"),
    [
        ("image-positions-transposed", "class token and positions"),
        ("mean-of-image-tokens", "pooling before it"),
        ("image-encoder-normalises", "projection"),
        ("pixels-in-half", "what it is given"),
    ],
    quick=2,
)
def test_what_lies_between_the_modules_of_a_vision_transformer_has_a_place(
    walked: Walked, fault: str, place: str
) -> None:
    ((_, part),) = named(walked(VIT, PLANTS[fault]))
    assert part == place


@pytest.mark.thorough
@parametrize(
    ("fault", "place"),
    [
        ("leaky-relu-in-one-bottleneck", ("visual.layer2.0.relu1", "")),
        (
            "relu-behind-sum-left-out",
            ("visual.layer2.0.relu3", "itself, or residual sum behind bn3"),
        ),
        ("image-encoder-normalises", ("visual.attnpool", "what follows it")),
        ("max-pool-in-stem", ("visual.avgpool", "")),
    ],
    quick=1,
)
def test_a_resnet_whose_archive_has_one_relu_for_three_is_walked_through(
    walked: Walked, fault: str, place: tuple[str, str]
) -> None:
    ((module, part),) = named(walked(RESNET, PLANTS[fault]))
    assert (module.rpartition(".")[2], part) == (place[0].rpartition(".")[2], place[1])


@parametrize(
    "fault",
    [
        "per-text-not-transposed",
        "logit-scale-clipped-at-4.6",
        "components-rotated-in-forward-alone",
    ],
    quick=1,
)
def test_what_forward_does_with_the_features_is_a_place(walked: Walked, fault: str) -> None:
    (place,) = walked(VIT, PLANTS[fault]).found
    assert (place.tower, place.module) == ("logits", "forward")


def test_a_forward_that_gives_a_number_is_at_fault(walked: Walked) -> None:
    def alter(model: Any) -> None:
        forward = model.forward
        model.forward = lambda image, text: forward(image, text)[0].sum()

    (place,) = walked(VIT, alter).found
    assert (place.tower, place.part) == ("logits", f"{walking.HEAD} (its shape)")


@pytest.mark.thorough
def test_logits_are_not_at_fault_for_features_that_an_encoder_gives_in_another_way(
    walked: Walked,
) -> None:
    """The logits of this archive are right, and so are those of its features."""
    found = walked(VIT, PLANTS["image-encoder-normalises"])
    assert [place.tower for place in found.found] == ["image"]


@pytest.mark.thorough
def test_a_logit_scale_that_each_call_lowers_is_held_against_what_it_was(walked: Walked) -> None:
    assert ("forward", walking.HEAD) in named(walked(VIT, PLANTS["logit-scale-drifts"]))


def test_a_tower_that_is_given_no_rows_is_not_run(walked: Walked) -> None:
    def texts_alone(batch: Batch) -> Batch:
        return batch.select([], [0, 1, 2])

    found = walked(VIT, PLANTS["gelu-for-quickgelu"], texts_alone)
    assert [place.tower for place in found.found] == ["text"]
    assert found.places[0].reason == "not compared"


def test_a_single_row_is_enough(walked: Walked) -> None:
    found = walked(VIT, PLANTS["quickgelu-slope-1.7"], lambda batch: batch.select([0], [0]))
    assert [place.part for place in found.found] == ["", ""]


@pytest.mark.thorough
def test_what_is_not_finite_is_a_departure_and_what_follows_from_it_is_not(walked: Walked) -> None:
    def alter(model: Any) -> None:
        norm = model.transformer.resblocks[0].ln_2
        original = norm.forward
        norm.forward = lambda x: original(x) / 0.0

    ((module, part),) = named(walked(VIT, alter))
    assert (module, part) == ("transformer.resblocks.0.ln_2", "")


def test_where_a_method_breaks_off_is_a_place_and_the_other_tower_is_looked_at(
    walked: Walked,
) -> None:
    def alter(model: Any) -> None:
        norm = model.transformer.resblocks[1].ln_1
        original: Callable[[Tensor], Tensor] = norm.forward
        table = torch.zeros(3, 1, dtype=torch.float16)

        def lookup(x: Tensor) -> Tensor:
            # Out of range, and so it fails; but not when it is traced, with no rows.
            return original(x + functional.embedding(x[..., 0].long() * 0 + 9, table).type_as(x))

        norm.forward = lookup

    found = walked(VIT, alter)
    (place,) = found.found
    assert (place.tower, place.module) == ("text", "transformer.resblocks.1.ln_1")
    assert "encode_text failed" in place.reason
    assert found.places[0].reason == "nothing departs"


def test_forward_is_run_only_where_both_towers_are_as_they_should_be(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = archives.run_method

    def counted(name: str, module: Any, method: str, *inputs: Tensor) -> Any:
        calls.append(method)
        return original(name, module, method, *inputs)

    monkeypatch.setattr(archives, "run_method", counted)
    walked(VIT)
    assert calls == ["encode_image", "encode_text", "forward"]
    calls.clear()
    walked(VIT, PLANTS["residual-left-out"])
    assert calls == ["encode_image", "encode_text"]


def test_every_module_of_a_sound_archive_runs_once_and_no_block_as_a_whole(
    walked: Walked, ran: list[str]
) -> None:
    """Three passes of a tower: the archive's, the eager modules', and theirs in float64."""
    walked(VIT)
    assert len(ran) == len(set(ran))
    assert not [name for name in ran if name.rpartition(".")[2].isdigit()]
    assert "visual.transformer.resblocks.0.mlp.gelu" in ran


def test_behind_the_first_departure_of_a_tower_nothing_is_run(
    walked: Walked, ran: list[str]
) -> None:
    walked(VIT, PLANTS["quickgelu-slope-1.7"])
    assert not [name for name in ran if "resblocks.1" in name]
    assert "transformer.resblocks.0.mlp.gelu" in ran


@pytest.mark.thorough
def test_no_more_is_held_than_two_blocks_of_each_tower_and_the_ends_of_the_towers(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[set[str]] = []
    keep = walking._Held.keep

    def watched(self: Any, end: Any, tensors: Any) -> None:
        keep(self, end, tensors)
        most.append({self._whole(held) for held in self._tensors if held.side != "model"})

    monkeypatch.setattr(walking._Held, "keep", watched)
    assert not walked(small("tiny-vit")).found
    towers = [Counter(map(tower_of, held - set(LAST))) for held in most]
    assert max(each for tower in towers for each in tower.values()) == 2


def test_the_end_of_one_tower_is_kept_while_the_other_one_runs() -> None:
    """A program returns the features of both towers behind both."""
    held = walking._Held({}, stay=True)
    held.begin({})
    for name in ("visual.0", "visual.1", "visual.2", "0", "1", "2"):
        held.enter(End(name, "out"))
        held.keep(End(name, "out"), [torch.zeros(1)])
    kept = [name for name in ("visual.0", "visual.2", "0", "2") if held.tensors(End(name, "out"))]
    assert kept == ["visual.2", "2"]


def test_the_same_rows_in_another_order_are_distinguished_from_other_rows() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    order = walking._order(rows[[2, 0, 1]], rows)
    assert order is not None
    np.testing.assert_array_equal(order, [2, 0, 1])
    assert walking._order(rows[[0, 0, 1]], rows) is None
    assert walking._order(rows + 1e-6, rows) is None
    assert walking._order(rows[:2], rows) is None


def test_an_altered_row_is_not_taken_for_a_reordering() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    altered = rows.clone()
    altered[0] += 1e-6
    assert walking._order(altered, rows) is None


def test_where_one_tower_has_no_rows_forward_is_not_run(walked: Walked) -> None:
    found = walked(VIT, None, lambda batch: batch.select([], [0, 1, 2]))
    assert [place.reason for place in found.places] == [
        "not compared", "nothing departs", "not compared"
    ]  # fmt: skip


def shares_out_otherwise(block: Any) -> None:
    """Double the outputs of modules and halve them again: the block computes the same."""
    norm, attend = block.ln_1.forward, block.attn.forward
    project, perceptron = block.mlp.c_proj.forward, block.mlp.forward
    block.ln_1.forward = lambda x: 2 * norm(x)
    block.attn.forward = lambda x, mask: attend(x / 2, mask)
    block.mlp.c_proj.forward = lambda x: 2 * project(x)
    block.mlp.forward = lambda x: perceptron(x) / 2


@pytest.mark.thorough
def test_a_block_that_shares_out_its_work_otherwise_is_no_departure(walked: Walked) -> None:
    found = walked(VIT, lambda model: shares_out_otherwise(model.transformer.resblocks[0]))
    assert not found.found
    assert [place.reason for place in found.places] == ["nothing departs"] * 3


@pytest.mark.thorough
def test_what_forward_does_is_looked_at_behind_a_block_that_shares_out_its_work_otherwise(
    walked: Walked,
) -> None:
    def alter(model: Any) -> None:
        shares_out_otherwise(model.transformer.resblocks[0])
        plant = PLANTS["logit-scale-clipped-at-4.6"]
        assert plant is not None
        plant(model)

    assert named(walked(VIT, alter)) == [("forward", walking.HEAD)]


@pytest.mark.thorough
def test_what_departs_behind_such_a_block_is_found_after_another_tower_has_departed(
    walked: Walked,
) -> None:
    def alter(model: Any) -> None:
        model.visual.ln_post.eps = 1e-3
        shares_out_otherwise(model.transformer.resblocks[0])
        model.ln_final.eps = 1e-3

    assert named(walked(VIT, alter)) == [("visual.ln_post", ""), ("ln_final", "")]


@pytest.mark.thorough
def test_if_one_of_several_input_tensors_is_right_the_others_do_not_count(
    walked: Walked,
) -> None:
    def alter(model: Any) -> None:
        block = model.visual.transformer.resblocks[0]
        norm = block.ln_1.forward

        def several(broken: Tensor, x: Tensor, after: Tensor) -> Tensor:
            nothing = 0 * torch.nan_to_num(broken)  # It comes first, as in the trace.
            return nothing + norm(x) + 0 * after

        def forward(x: Tensor) -> Tensor:
            x = x + block.attn(block.ln_1(x * float("nan"), x, x * x), None)
            return x + block.mlp(block.ln_2(x))

        block.ln_1.forward = several
        block.forward = forward

    assert not walked(VIT, alter).found


@pytest.mark.thorough
def test_the_sums_after_attention_and_after_the_mlp_are_distinguished(walked: Walked) -> None:
    def alter(model: Any) -> None:
        block = model.visual.transformer.resblocks[0]

        def forward(x: Tensor) -> Tensor:
            x = x + 1.001 * block.attn(block.ln_1(x), None)
            return x + block.mlp(block.ln_2(x))

        block.forward = forward

    block = "visual.transformer.resblocks.0"
    assert named(walked(VIT, alter)) == [(block, "residual sum behind attn")]


def test_an_attention_that_is_not_shown_is_judged_by_the_sum_behind_it(
    walked: Walked,
) -> None:
    """The sum behind it has operands in two layouts: embeddings have the rows first."""

    def without(faulty: bool) -> Alter:
        def alter(model: Any) -> None:
            (block,) = model.visual.transformer.resblocks
            attention = block.attn

            def forward(x: Tensor) -> Tensor:
                bias = None if faulty else attention.in_proj_bias
                y = functional.linear(block.ln_1(x), attention.in_proj_weight, bias)
                q, k, v = (split(each, attention.heads) for each in y.chunk(3, dim=-1))
                y = attend(q, k, v, None).transpose(0, 1).contiguous()
                y = y.view(x.shape[0], x.shape[1], x.shape[2])
                x = x + out_projection(attention, y)
                return x + block.mlp(block.ln_2(x))

            model.visual.transformer.forward = forward

        return alter

    assert not walked(VIT, without(faulty=False)).found
    block = "visual.transformer.resblocks.0"
    ((module, part),) = named(walked(VIT, without(faulty=True)))
    assert module == f"{block}.attn"
    assert part == "itself, or residual sum behind attn"


@pytest.mark.thorough
def test_modules_over_whole_sequences_and_over_what_was_pooled_before_are_walked_through(
    walked: Walked,
) -> None:
    def norm_of_all(model: Any) -> None:
        visual = model.visual

        def forward(x: Tensor) -> Tensor:
            x = visual.conv1(x).flatten(start_dim=2).transpose(1, 2)
            start = visual.class_embedding.type(x.dtype) + x.new_zeros(x.shape[0], 1, x.shape[2])
            x = torch.cat([start, x], dim=1) + visual.positional_embedding.type(x.dtype)
            x = visual.transformer(visual.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
            return visual.ln_post(x)[:, 0] @ visual.proj

        visual.forward = forward

    def pooled_before(model: Any) -> None:
        def encode_text(text: Tensor) -> Tensor:
            x = model.token_embedding(text).type(model.dtype)
            x = x + model.positional_embedding.type(model.dtype)
            x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
            x = x[torch.arange(x.shape[0]), text.argmax(dim=-1)]
            return model.ln_final(x) @ model.text_projection

        model.encode_text = encode_text

    for alter in (norm_of_all, pooled_before):
        assert not walked(VIT, alter).found


@pytest.mark.thorough
def test_a_module_over_other_shapes_does_not_end_the_walk(walked: Walked) -> None:
    def alter(model: Any) -> None:
        visual, conv1 = model.visual, model.visual.conv1
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
        visual.ln_post.eps = 1e-3

    assert named(walked(VIT, alter)) == [("visual.ln_post", "")]


@pytest.mark.thorough
def test_what_broke_off_in_one_method_is_not_taken_for_where_the_next_one_did(
    walked: Walked,
) -> None:
    table = torch.zeros(3, 1, dtype=torch.float16)

    def broken(x: Tensor) -> Tensor:
        # Out of range, and so it fails; but not when it is traced, with no rows.
        return x + functional.embedding(x[..., 0].long() * 0 + 9, table).type_as(x)

    def alter(model: Any) -> None:
        norm, encode = model.visual.ln_pre.forward, model.encode_text
        model.visual.ln_pre.forward = lambda x: norm(broken(x))
        model.encode_text = lambda text: broken(encode(text))

    assert named(walked(VIT, alter)) == [
        ("visual.ln_pre", ""), ("encode_text", "outside of its modules")
    ]  # fmt: skip


@pytest.mark.thorough
def test_pooling_is_not_separated_from_a_module_before_it_that_is_not_called(
    walked: Walked,
) -> None:
    def alter(model: Any) -> None:
        norm = model.ln_final

        def encode_text(text: Tensor) -> Tensor:
            x = model.token_embedding(text).type(model.dtype)
            x = x + model.positional_embedding.type(model.dtype)
            x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
            shape = (x.shape[2],)
            x = functional.layer_norm(x.float(), shape, norm.weight, norm.bias).type(x.dtype)
            return x[:, -1] @ model.text_projection

        model.encode_text = encode_text

    assert named(walked(VIT, alter)) == [("ln_final", "itself, or pooling and projection")]
