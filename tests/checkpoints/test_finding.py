"""Files of training code: the model is found, and other contents are reported."""

from __future__ import annotations

import argparse
import datetime
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.optim.swa_utils import AveragedModel

from clipcheck.checkpoints.architecture import ARCHITECTURES, ResNet
from clipcheck.checkpoints.checkpoint import Checkpoint, same_bits
from clipcheck.checkpoints.finding import Origin, find_model
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import ArchitectureError, CheckpointError, UsageError
from tests.oracles import reference_clip
from tests.samples import MINUTE, Weights, minute_weights, saved


def opened(folder: Path, value: object, key: str | None = None, **how: bool) -> Checkpoint:
    path = folder / "file"
    path.write_bytes(saved(value, **how))
    return open_checkpoint(path, key=key)


def prefixed(prefix: str, weights: Weights | None = None) -> Weights:
    return {f"{prefix}{key}": each for key, each in (weights or minute_weights()).items()}


def others(prefix: str = "") -> Weights:
    """Return the weights of another model of the same architecture."""
    return prefixed(
        prefix,
        {
            key: tensor.flip(0) if tensor.ndim else tensor
            for key, tensor in minute_weights().items()
        },
    )


def wrapped(part: str) -> Weights:
    """Return keys with a wrapper's name in the middle, as wrapping modules within a model does."""
    return {
        key.replace("resblocks.0.", f"resblocks.0.{part}.").replace(
            "visual.", f"visual.{part}.", 1
        ): t
        for key, t in minute_weights().items()
    }


def optimizer() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.ones(3))
    found = torch.optim.AdamW([weight])
    weight.sum().backward()
    found.step()
    return found.state_dict()


BESIDE: dict[str, object] = {
    "best": np.float64(0.5),
    "history": np.arange(3),
    "rng": {
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    },
    "generator": np.random.default_rng(0),
    "when": datetime.datetime.now(datetime.UTC),
    "took": datetime.timedelta(1),
    "folder": PurePosixPath("a/b"),
    "args": argparse.Namespace(model="ViT-B-32", lr=1e-3, device=torch.device("cpu")),
    "names": {"a"},
    "bytes": b"abc",
    "array": bytearray(b"abc"),
    "losses": defaultdict(list, {"train": [1.0]}),
    "kind": torch.float16,
    "size": torch.Size([2]),
    "version": torch.__version__,
    "random": random.Random(1),
}
"""Objects as training code leaves them beside the weights."""

HEAD = {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
RESNET = {"teacher.layer1.0.conv1.weight": torch.ones(1), "teacher.fc.weight": torch.ones(1)}

Shape = tuple[Callable[[], object], Origin]
SHAPES: dict[str, Shape] = {
    "bare": (minute_weights, Origin()),
    "state_dict": (lambda: {"state_dict": minute_weights()}, Origin("state_dict")),
    "model": (lambda: {"model": OrderedDict(minute_weights())}, Origin("model")),
    "parallel": (lambda: prefixed("module."), Origin("", "module.")),
    "model_state_dict": (
        lambda: {
            "epoch": 3,
            "model_state_dict": minute_weights(),
            "optimizer_state_dict": optimizer(),
            "loss": torch.tensor(0.5),
        },
        Origin("model_state_dict"),
    ),
    "Lightning, model": (
        lambda: {
            "epoch": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("model."),
            "optimizer_states": [optimizer()],
            "hyper_parameters": {"lr": 1e-3},
        },
        Origin("state_dict", "model."),
    ),
    "Lightning, clip_model": (
        lambda: {"state_dict": prefixed("clip_model.")}, Origin("state_dict", "clip_model.")
    ),
    "Lightning, model.clip": (
        lambda: {"state_dict": prefixed("model.clip.")}, Origin("state_dict", "model.clip.")
    ),
    "compiled": (lambda: prefixed("_orig_mod."), Origin("", "_orig_mod.")),
    "compiled, parallel": (
        lambda: {"model": prefixed("module._orig_mod.")}, Origin("model", "module._orig_mod.")
    ),
    "sharded": (
        lambda: prefixed("_fsdp_wrapped_module."), Origin("", "_fsdp_wrapped_module.")
    ),
    "sharded in parts": (
        lambda: prefixed("_fsdp_wrapped_module.", wrapped("_fsdp_wrapped_module")),
        Origin("", "_fsdp_wrapped_module."),
    ),
    "activation checkpoints": (
        lambda: {"model": wrapped("_checkpoint_wrapped_module")}, Origin("model")
    ),
    "compiled in parts": (lambda: wrapped("_orig_mod"), Origin()),
    "parallel in parts": (lambda: wrapped("module"), Origin()),
    "sharded by old versions": (lambda: wrapped("_fpw_module"), Origin()),
    "averaged": (
        lambda: {**prefixed("module."), "n_averaged": torch.tensor(7)},
        Origin("", "module.", ("n_averaged",)),
    ),
    "ema": (lambda: {"ema": minute_weights(), "step": 3}, Origin("ema")),
    "state_dict_ema": (lambda: {"state_dict_ema": minute_weights()}, Origin("state_dict_ema")),
    "net": (lambda: {"net": minute_weights(), "acc": 81.5, "epoch": 3}, Origin("net")),
    "DeepSpeed": (
        lambda: {
            "module": minute_weights(),
            "param_shapes": [OrderedDict((k, t.shape) for k, t in minute_weights().items())],
            "ds_config": {"zero_optimization": {"stage": 1}},
            "ds_version": "0.17",
        },
        Origin("module"),
    ),
    "a head": (
        lambda: {"state_dict": {**prefixed("model."), **HEAD}},
        Origin("state_dict", "model.", tuple(HEAD)),
    ),
    "a head without a prefix": (
        lambda: {**minute_weights(), **HEAD}, Origin("", "", tuple(HEAD))
    ),
    "a teacher of another kind": (
        lambda: {**prefixed("student."), **RESNET}, Origin("", "student.", tuple(RESNET))
    ),
    "numpy numbers and other objects": (
        lambda: {"state_dict": minute_weights(), **BESIDE}, Origin("state_dict")
    ),
    "nested": (
        lambda: {"checkpoint": {"state_dict": {"model": minute_weights()}}},
        Origin("checkpoint.state_dict.model"),
    ),
    "the same tensors twice": (
        lambda: {"model": (same := minute_weights()), "state_dict": prefixed("module.", same)},
        Origin("model"),
    ),
    "parameters": (
        lambda: {
            key: torch.nn.Parameter(t) if t.is_floating_point() else t
            for key, t in minute_weights().items()
        },
        Origin(),
    ),
}  # fmt: skip


def assert_minute(checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]) -> None:
    checkpoint.verify()
    assert checkpoint.architecture == MINUTE
    assert checkpoint.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert same_bits(checkpoint.tensors[key], tensor), key


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_is_found_in_whatever_training_code_saves(
    tmp_path: Path, shape: str, legacy: bool
) -> None:
    make, origin = SHAPES[shape]
    checkpoint = opened(tmp_path, make(), legacy=legacy)
    assert_minute(checkpoint, minute_weights())
    assert checkpoint.origin == origin


@pytest.mark.parametrize("layout", [Layout.CUSTOM_TEXT, Layout.TRANSFORMERS])
def test_other_layouts_are_found_in_the_same_way(tmp_path: Path, layout: Layout) -> None:
    weights = prefixed("model.clip.", to_layout(minute_weights(), layout))
    checkpoint = opened(tmp_path, {"state_dict": {**weights, **HEAD}})
    expected = {k: t for k, t in minute_weights().items() if "_" in k or "." in k}
    assert_minute(checkpoint, {k: expected[k] for k in checkpoint.tensors})
    assert checkpoint.origin == Origin("state_dict", "model.clip.", tuple(HEAD))


def test_wrappers_of_torch_are_read(tmp_path: Path) -> None:
    model = reference_clip().model.CLIP(64, 16, 1, 64, 8, 8, 100, 64, 1, 1)
    expected = dict(model.state_dict())
    for wrapper in (AveragedModel, torch.compile, torch.nn.DataParallel):
        assert_minute(opened(tmp_path, wrapper(model).state_dict()), expected)


def test_safetensors_are_searched_in_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(save({**prefixed("model."), **HEAD}))
    checkpoint = open_checkpoint(path)
    assert_minute(checkpoint, minute_weights())
    assert str(checkpoint.origin) == "without 'model.'; left out: head.bias, head.weight"


# ------------------------------------------------------------------ several models

SEVERAL: dict[str, Callable[[], object]] = {
    "model, model_ema": lambda: {"model": minute_weights(), "model_ema": others()},
    "state_dict.student, state_dict.teacher": lambda: {
        "state_dict": {**prefixed("student."), **others("teacher.")}
    },
    "., ema": lambda: {**minute_weights(), "ema": others()},
    "model, ema.module": lambda: {**prefixed("model."), **others("ema.module.")},
    "state_dict.net, state_dict.net.module": lambda: {
        "state_dict": {**prefixed("net."), **others("net.module.")}
    },
}  # fmt: skip


@pytest.mark.parametrize("names", SEVERAL)
def test_the_user_chooses_one_of_several_models(tmp_path: Path, names: str) -> None:
    value = SEVERAL[names]()
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, value)
    assert caught.value.problem == f"expected one CLIP model, found 2: {names}"
    first, second = names.split(", ")
    assert caught.value.remedy == (
        f"Say which with --key (in pytest --clip-key, in Python key=), as {first}."
    )
    assert_minute(opened(tmp_path, value, first), minute_weights())
    assert_minute(opened(tmp_path, value, second), others())


def test_a_key_may_be_the_beginning_of_a_name(tmp_path: Path) -> None:
    value = {"a": {"b": prefixed("c.d.")}, "e": prefixed("f."), "g": others()}
    assert opened(tmp_path, value, "a.b").origin == Origin("a.b", "c.d.")
    assert opened(tmp_path, {"model": prefixed("clip.")}, "model").origin.prefix == "clip."


def test_either_of_two_names_of_the_same_tensors_may_be_given(tmp_path: Path) -> None:
    weights = minute_weights()
    value = {"model": weights, "model_ema": dict(weights), "old": others()}
    for key in ("model", "model_ema"):
        assert opened(tmp_path, value, key).origin.key == key
    with pytest.raises(CheckpointError, match="found 2: model, old"):
        opened(tmp_path, value)


def test_a_key_that_leads_to_no_model_is_refused(tmp_path: Path) -> None:
    value = {"model": minute_weights(), "ema": others(), "other": HEAD}
    for key in ("other", "mod", "", "model.x"):
        with pytest.raises(UsageError, match=f"a CLIP model under '{key}'; it has model, ema"):
            opened(tmp_path, value, key)
    with pytest.raises(UsageError, match=r"under 'model'; it has none\. Leave --key out"):
        opened(tmp_path, HEAD, "model")


def test_many_models_are_not_all_listed(tmp_path: Path) -> None:
    value = {f"m{n}": others() for n in range(10)}
    with pytest.raises(CheckpointError, match=r"found 10: m0, m1, .*, m7 and 2 more"):
        opened(tmp_path, value)


# ------------------------------------------------------------------ other models

VARIANTS = {
    "positional_embedding_res": "Long-CLIP's second positional embedding",
    "visual.conv1_alpha.weight": "Alpha-CLIP's convolution of the alpha channel",
    "visual.transformer.resblocks.0.attn.lora_A": "LoRA's weights, which are not merged",
    "transformer.resblocks.0.mlp.c_fc.lora_B.default.weight": "LoRA's weights",
    "transformer.resblocks.0.mlp.c_fc.lora_magnitude_vector": "LoRA's weights",
    "logit_bias": "the bias of a sigmoid loss",
    "visual.transformer.resblocks.0.S_Adapter.D_fc1.weight": "an adapter",
    "adapter.fc.0.weight": "an adapter",
    "prompt_learner.ctx": "learned prompts, as CoOp's",
    "transformer.resblocks.0.ls_1.gamma": "LayerScale",
    "visual.transformer.resblocks.0.attn.ln_q.weight": "normalised queries and keys",
    "visual.attn_pool.query": "an attention pooler, as CoCa's",
    "text.cls_emb": "a class token of the text tower, as CoCa's",
    "visual.trunk.patch_embed.proj.weight": "an image tower of timm",
    "visual.transformer.resblocks.0.mlp.c_fc.parametrizations.weight.0": "parametrized weights",
    "_flat_param": "FSDP's flattened weights",
}
OPEN_CLIPS = (
    "logit_bias",
    "transformer.resblocks.0.ls_1.gamma",
    "visual.transformer.resblocks.0.attn.ln_q.weight",
    "visual.attn_pool.query",
    "text.cls_emb",
    "visual.trunk.patch_embed.proj.weight",
)
"""Those of them that models of open_clip have, which are judged."""


@pytest.mark.parametrize("prefix", ["", "model."], ids=["bare", "prefix"])
@pytest.mark.parametrize("key", VARIANTS)
def test_additions_that_change_the_model_are_named(tmp_path: Path, key: str, prefix: str) -> None:
    value = {"state_dict": {**prefixed(prefix), f"{prefix}{key}": torch.ones(1)}}
    with pytest.raises(ArchitectureError) as caught:
        opened(tmp_path, value)
    assert caught.value.problem.startswith(f"it has {prefix}{key}, {VARIANTS[key]}")
    told = " than the released ones" if key in OPEN_CLIPS else ", not supported"
    assert caught.value.problem.endswith(f": another model{told}")
    # open_clip's own model would be the reference, once its configuration is named.
    assert ("--architecture" in caught.value.remedy) is (key in OPEN_CLIPS)
    assert "nothing else" not in caught.value.remedy


def test_additions_may_stand_beside_the_model(tmp_path: Path) -> None:
    value = {**prefixed("model."), "adapter.fc.weight": torch.ones(1)}
    with pytest.raises(ArchitectureError, match=r"it has adapter\.fc\.weight, an adapter"):
        opened(tmp_path, value)


def test_additions_of_another_model_beside_it_do_not_matter(tmp_path: Path) -> None:
    lora = {"teacher.visual.lora_A": torch.ones(1)}
    value = {**prefixed("student."), **others("teacher."), **lora}
    assert_minute(opened(tmp_path, value, "student"), minute_weights())
    with pytest.raises(ArchitectureError, match="LoRA"):
        opened(tmp_path, value, "teacher")


def test_additions_are_named_where_no_model_is_found(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="learned prompts"):
        opened(tmp_path, {"state_dict": {"prompt_learner.ctx": torch.ones(1)}})


@pytest.mark.parametrize("layout", Layout)
def test_no_weight_of_a_usual_model_is_an_addition_or_left_out(layout: Layout) -> None:
    for architecture in ARCHITECTURES.values():
        if layout is Layout.TRANSFORMERS and isinstance(architecture.vision, ResNet):
            continue
        with torch.device("meta"):
            weights = {key: torch.empty(spec.shape) for key, spec in specs(architecture)}
        named = dict.fromkeys(to_layout(weights, layout), 1)
        found = find_model(named, int, None, "x")
        assert (found.weights, found.origin) == (named, Origin())


def test_a_causal_mask_is_no_weight(tmp_path: Path) -> None:
    mask = torch.full((8, 8), float("-inf")).triu(1)
    value = {"model": {**prefixed("clip."), "clip.attn_mask": mask}}
    assert_minute(opened(tmp_path, value), minute_weights())
    for other in (torch.zeros(8, 8), mask.t(), mask.to(torch.float8_e5m2)):
        value["model"]["clip.attn_mask"] = other
        with pytest.raises(ArchitectureError, match="unexpected: attn_mask"):
            opened(tmp_path, value)


@pytest.mark.parametrize(
    "key", ["visual.extra", "transformer.extra", "text_extra", "ln_extra.weight"]
)
def test_unknown_weights_within_the_model_are_not_left_out(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArchitectureError, match=f"unexpected: {key}"):
        opened(tmp_path, {"model": {**prefixed("clip."), f"clip.{key}": torch.ones(1)}})


def test_a_weight_that_is_there_twice_is_refused_where_the_two_differ(tmp_path: Path) -> None:
    weights = minute_weights()
    same = {**weights, "visual._orig_mod.proj": weights["visual.proj"]}
    assert_minute(opened(tmp_path, same), weights)
    with pytest.raises(ArchitectureError, match=r"one tensor for visual\.proj, found two"):
        opened(tmp_path, {**same, "visual._orig_mod.proj": torch.ones(64, 64)})


# ------------------------------------------------------------------ in words


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin(), ""),
        (Origin("model"), "read from 'model'"),
        (Origin("", "module."), "without 'module.'"),
        (Origin("a.b", "c."), "read from 'a.b', without 'c.'"),
        (Origin("", "", ("x",)), "left out: x"),
        (
            Origin("a", "b.", tuple("xyzuv")),
            "read from 'a', without 'b.'; left out: x, y, z and 2 more",
        ),
    ],
)
def test_an_origin_is_described_in_a_phrase(origin: Origin, words: str) -> None:
    assert str(origin) == words
