"""Possible contents of configurations, compared with the libraries' own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from clipcheck.checkpoints import configs_of_open_clip, configs_of_transformers
from clipcheck.checkpoints.architecture import ARCHITECTURES, Activation, Architecture, Blocks, ViT
from clipcheck.checkpoints.configs_of_open_clip import of_open_clip, open_clip_config
from clipcheck.checkpoints.configs_of_transformers import (
    note_of,
    of_transformers,
    transformers_config,
)
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import ArchitectureError
from clipcheck.families import eager
from tests.oracles import open_clip
from tests.samples import MINUTE, MINUTE_RESNET

PATH = Path("config.json")
B32 = ARCHITECTURES["ViT-B/32"]
L14 = ARCHITECTURES["ViT-L/14"]
VITS = {name: a for name, a in ARCHITECTURES.items() if isinstance(a.vision, ViT)}
Config = dict[str, Any]
Read = Callable[[Any, Path], Architecture]


def set_at(config: Config, place: str, value: Any) -> Config:
    altered = copy.deepcopy(config)
    *outer, last = place.split(".")
    section = altered
    for name in outer:
        section = section[name]
    section[last] = value
    return altered


# ------------------------------------------------------------------ the libraries' own


@pytest.mark.parametrize("name", VITS)
def test_configurations_go_to_transformers_and_back(
    name: str,
) -> None:
    ours = transformers_config(VITS[name])
    theirs = transformers.CLIPConfig(**ours)
    for section in ("text_config", "vision_config"):
        held = getattr(theirs, section).to_dict()
        assert {key: held[key] for key in ours[section]} == ours[section]
    assert theirs.projection_dim == ours["projection_dim"]
    for config in (ours, theirs.to_dict(), theirs.to_diff_dict()):
        assert of_transformers(config, PATH) == VITS[name]


def test_keys_missing_in_a_transformers_config_have_the_librarys_default() -> None:
    text, vision = transformers.CLIPTextConfig(), transformers.CLIPVisionConfig()
    assert {
        key: getattr(text, key) for key in configs_of_transformers._TEXT_DEFAULTS
    } == configs_of_transformers._TEXT_DEFAULTS
    found = {key: getattr(vision, key) for key in configs_of_transformers._VISION_DEFAULTS}
    assert found == configs_of_transformers._VISION_DEFAULTS
    assert transformers.CLIPConfig().projection_dim == configs_of_transformers._PROJECTION_DEFAULT
    assert of_transformers({"text_config": {}, "vision_config": {}}, PATH) == B32


def test_keys_missing_in_an_open_clip_config_have_the_librarys_default() -> None:
    model = open_clip().model
    for cls, defaults, usual in (
        (
            model.CLIPVisionCfg,
            configs_of_open_clip._OPEN_CLIP_VISION,
            configs_of_open_clip._USUAL_VISION,
        ),
        (model.CLIPTextCfg, configs_of_open_clip._OPEN_CLIP_TEXT, configs_of_open_clip._USUAL_TEXT),
    ):
        held = dataclasses.asdict(cls())
        assert {key: held[key] for key in defaults} == defaults
        for key, allowed in usual.items():
            assert held[key] in allowed
        assert configs_of_open_clip._BLOCKS.items() <= held.items()


def test_every_option_of_open_clips_towers_is_known() -> None:
    model = open_clip().model
    for section, cls in (("vision_cfg", model.CLIPVisionCfg), ("text_cfg", model.CLIPTextCfg)):
        config = open_clip_config(MINUTE)
        config[section] = {**dataclasses.asdict(cls()), **config[section]}
        assert of_open_clip(config, PATH) == MINUTE


def test_switches_of_open_clips_towers_are_refused_unless_they_change_nothing() -> None:
    model = open_clip().model
    taken = set()
    for section, cls in (("vision_cfg", model.CLIPVisionCfg), ("text_cfg", model.CLIPTextCfg)):
        switches = {k: v for k, v in dataclasses.asdict(cls()).items() if isinstance(v, bool)}
        for key, usual in switches.items():
            config = set_at(open_clip_config(MINUTE), f"{section}.{key}", not usual)
            with contextlib.suppress(ArchitectureError):
                assert of_open_clip(config, PATH) == MINUTE
                taken.add(key)
    idle = {"timm_model_pretrained", "timm_proj_bias", "hf_model_pretrained"}
    assert taken == {"output_tokens", *idle}


RELEASED = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


@pytest.mark.parametrize("name", RELEASED)
def test_our_config_of_a_released_model_equals_open_clips(name: str) -> None:
    theirs = open_clip().get_model_config(RELEASED[name])
    assert of_open_clip(theirs, PATH) == ARCHITECTURES[name]
    ours = open_clip_config(ARCHITECTURES[name])
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert {**value, **ours[key]} == value
        else:
            assert ours[key] == value


@pytest.mark.parametrize("name", RELEASED)
def test_the_same_without_quick_gelu_computes_gelu(name: str) -> None:
    theirs = open_clip().get_model_config(RELEASED[name].removesuffix("-quickgelu"))
    expected = ARCHITECTURES[name].with_blocks(activation=Activation.GELU)
    assert of_open_clip(theirs, PATH) == expected


def test_the_large_configs_of_open_clip_have_other_heads_and_perceptrons() -> None:
    tower = {
        "ViT-H-14": (32, 1280, Blocks(80, 4.0, Activation.GELU)),
        "ViT-g-14": (40, 1408, Blocks(88, 6144 / 1408, Activation.GELU)),
        "ViT-bigG-14": (48, 1664, Blocks(104, 8192 / 1664, Activation.GELU)),
    }
    for name, (layers, width, blocks) in tower.items():
        found = of_open_clip(open_clip().get_model_config(name), PATH)
        assert found.vision == ViT(layers, width, 14, blocks=blocks)
        assert found.text_blocks == Blocks(activation=Activation.GELU)


# ------------------------------------------------------------------ other blocks

OTHER_BLOCKS = Blocks(16, 71 / 64, Activation.GELU_TANH, 1e-6)
CHANGED = dataclasses.replace(
    MINUTE,
    vision=dataclasses.replace(MINUTE.vision, blocks=OTHER_BLOCKS),
    text_blocks=Blocks(32, 2.5, Activation.GELU),
)


@pytest.mark.parametrize(
    ("write", "read"), [(transformers_config, of_transformers), (open_clip_config, of_open_clip)]
)
def test_other_blocks_are_read_as_they_are_written(
    write: Callable[[Architecture], Config], read: Read
) -> None:
    assert read(write(CHANGED), PATH) == CHANGED
    changed = MINUTE_RESNET.with_blocks(head_width=16, activation=Activation.GELU)
    assert of_open_clip(open_clip_config(changed), PATH) == changed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", Activation.GELU),
        ("gelu_python", Activation.GELU),
        ("gelu_new", Activation.GELU_TANH),
        ("gelu_accurate", Activation.GELU_TANH),
        ("gelu_pytorch_tanh", Activation.GELU_TANH),
        ("quick_gelu", Activation.QUICK_GELU),
    ],
)
def test_the_names_of_activations_are_those_of_transformers(
    name: str, expected: Activation
) -> None:
    config = set_at(transformers_config(MINUTE), "text_config.hidden_act", name)
    blocks = of_transformers(config, PATH).text_blocks
    assert blocks.activation is expected
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    ours = eager.perceptron(4, blocks).gelu(x)
    torch.testing.assert_close(ours, ACT2FN[name](x), rtol=0, atol=1e-14)


def test_open_clip_has_as_many_heads_as_go_into_the_width() -> None:
    config = set_at(open_clip_config(MINUTE), "vision_cfg.width", 320)
    config["vision_cfg"]["head_width"] = 70
    with torch.device("meta"):
        theirs = open_clip().CLIP(**config)
    heads = theirs.visual.transformer.resblocks[0].attn.num_heads
    assert of_open_clip(config, PATH).vision.heads == heads == 4


# ------------------------------------------------------------------ as the hub has them


def test_the_end_of_text_may_be_the_legacy_one() -> None:
    config = set_at(transformers_config(B32), "text_config.eos_token_id", 2)
    assert of_transformers(config, PATH) == B32


def legacy() -> Config:
    """Return the large model's configuration from the hub, whose ``_dict`` sections are the right
    ones."""
    text = {
        key: transformers_config(L14)["text_config"][key]
        for key in configs_of_transformers._TEXT_DEFAULTS
    }
    vision = transformers_config(L14)["vision_config"]
    return {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 1, "eos_token_id": 0},
        "text_config_dict": {
            k: v for k, v in text.items() if v != configs_of_transformers._TEXT_DEFAULTS[k]
        },
        "vision_config": {**vision, "num_channels": 7},
        "vision_config_dict": {k: v for k, v in vision.items() if k != "num_channels"},
    }


def test_sections_of_old_files_override_the_others_with_their_defaults_as_well() -> None:
    theirs = transformers.CLIPConfig(**copy.deepcopy(legacy()))
    assert (theirs.text_config.hidden_size, theirs.text_config.eos_token_id) == (768, 49407)
    assert theirs.vision_config.num_channels == 3
    assert of_transformers(legacy(), PATH) == L14
    for name in ("text", "vision"):
        with pytest.raises(ArchitectureError, match=f"{name}_config"):
            of_transformers({**legacy(), f"{name}_config_dict": None}, PATH)


# ------------------------------------------------------------------ other models

WHOLE = "in place of a whole number from 1 to 1"
OTHER: list[tuple[str, Any, str]] = [
    ("vision_config.hidden_act", "relu", "vision_config.hidden_act is 'relu' in place of one of"),
    ("vision_config.hidden_act", None, "vision_config.hidden_act is None"),
    ("text_config.hidden_act", ["gelu"], r"text_config.hidden_act is \['gelu'\] in place of one"),
    ("projection_dim", 0, f"projection_dim is 0 {WHOLE}"),
    ("text_config.num_attention_heads", 3, "is 3 in place of one that divides the width of 64"),
    ("vision_config.num_attention_heads", -4, f"num_attention_heads is -4 {WHOLE}"),
    ("text_config.layer_norm_eps", 0, "text_config.layer_norm_eps is 0 in place of a number above"),
    ("vision_config.layer_norm_eps", "1e-12", "vision_config.layer_norm_eps is '1e-12'"),
    ("vision_config.layer_norm_eps", math.nan, "vision_config.layer_norm_eps is nan"),
    ("vision_config.num_channels", 4, "vision_config.num_channels is 4 in place of 3"),
    ("text_config.eos_token_id", 98, "text_config.eos_token_id is 98 in place of 99"),
    ("text_config.eos_token_id", [99], "text_config.eos_token_id is .99. in place of 99"),
    ("text_config.eos_token_id", None, "text_config.eos_token_id is None in place of 99"),
    ("text_config.intermediate_size", 2**21, "text_config.intermediate_size is 2097152"),
    ("vision_config.image_size", [16, 16], f"vision_config.image_size is .16, 16. {WHOLE}"),
    ("vision_config.patch_size", "8", f"vision_config.patch_size is '8' {WHOLE}"),
    ("vision_config.num_hidden_layers", True, f"num_hidden_layers is True {WHOLE}"),
    ("vision_config.num_hidden_layers", 1.0, f"num_hidden_layers is 1.0 {WHOLE}"),
    ("vision_config.num_hidden_layers", 10**9, f"num_hidden_layers is 1000000000 {WHOLE}"),
    ("text_config", [], "expected an object under 'text_config', found a list"),
    ("vision_config", None, "expected an object under 'vision_config', found nothing"),
    ("text_config_dict", 3, "expected an object under 'text_config_dict', found a int"),
]


@pytest.mark.parametrize(("place", "value", "message"), OTHER)
def test_a_transformers_config_of_another_model_is_refused(
    place: str, value: Any, message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        of_transformers(set_at(transformers_config(MINUTE), place, value), PATH)


OTHER_OPEN_CLIP: list[tuple[str, Any, str]] = [
    ("quick_gelu", 1, "model_cfg.quick_gelu is 1 in place of False"),
    ("embed_dim", None, f"model_cfg.embed_dim is None {WHOLE}"),
    ("init_logit_bias", -10, "model_cfg.init_logit_bias is -10 in place of None"),
    ("custom_text", "yes", "model_cfg.custom_text is 'yes' in place of False"),
    ("multimodal_cfg", {}, "model_cfg.multimodal_cfg, which no CLIP model of the released kind"),
    ("vision_cfg", None, "expected an object under 'model_cfg.vision_cfg', found nothing"),
    ("vision_cfg.layers", [1, 2], r"model_cfg.vision_cfg.layers is \[1, 2\] in place of"),
    ("vision_cfg.layers", [1, 1, 1, 0], f"model_cfg.vision_cfg.layers is 0 {WHOLE}"),
    ("vision_cfg.image_size", [16, 24], "model_cfg.vision_cfg.image_size is .16, 24. in place"),
    ("vision_cfg.head_width", 128, "head_width is 128 in place of one that divides the width"),
    ("vision_cfg.mlp_ratio", 0.001, f"model_cfg.vision_cfg.mlp_ratio is 0 {WHOLE}"),
    ("vision_cfg.mlp_ratio", math.inf, "model_cfg.vision_cfg.mlp_ratio is inf in place of a num"),
    ("vision_cfg.norm_kwargs", {"bias": False}, "model_cfg.vision_cfg.norm_kwargs is"),
    ("vision_cfg.norm_kwargs", {"eps": 2}, "model_cfg.vision_cfg.norm_kwargs.eps is 2 in place"),
    ("vision_cfg.no_ln_pre", True, "model_cfg.vision_cfg.no_ln_pre is True in place of False"),
    ("vision_cfg.ls_init_value", 1e-5, "model_cfg.vision_cfg.ls_init_value is 1e-05 in place"),
    ("vision_cfg.pool_type", "avg", "model_cfg.vision_cfg.pool_type is 'avg' in place of 'tok'"),
    ("vision_cfg.timm_model_name", "x", "model_cfg.vision_cfg.timm_model_name is 'x'"),
    ("vision_cfg.colour", "blue", "model_cfg.vision_cfg.colour, which no CLIP model"),
    ("text_cfg.heads", 5, "model_cfg.text_cfg.heads is 5 in place of one that divides the width"),
    ("text_cfg.no_causal_mask", True, "model_cfg.text_cfg.no_causal_mask is True"),
    ("text_cfg.pool_type", "last", "model_cfg.text_cfg.pool_type is 'last'"),
    ("text_cfg.hf_model_name", "bert", "model_cfg.text_cfg.hf_model_name is 'bert'"),
    ("text_cfg.proj_type", "none", "model_cfg.text_cfg.proj_type is 'none' in place of 'linear'"),
    ("text_cfg.ls_init_value", 1e-5, "model_cfg.text_cfg.ls_init_value is 1e-05 in place"),
    ("vision_cfg.pos_embed_type", "sin_cos_2d", "vision_cfg.pos_embed_type is 'sin_cos_2d'"),
    # QuickGELU takes none.
    ("text_cfg.act_kwargs", {"approximate": "tanh"}, "model_cfg.text_cfg.act_kwargs is"),
    ("text_cfg.act_kwargs", False, "model_cfg.text_cfg.act_kwargs is False"),
]


@pytest.mark.parametrize(("place", "value", "message"), OTHER_OPEN_CLIP)
def test_an_open_clip_config_of_another_model_is_refused(
    place: str, value: Any, message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        of_open_clip(set_at(open_clip_config(MINUTE), place, value), PATH)


SAME_OPEN_CLIP: list[tuple[str, Any]] = [
    ("custom_text", True),
    ("nonscalar_logit_scale", True),
    ("init_logit_scale", 2.6),
    ("vision_cfg.image_size", [16, 16]),
    ("vision_cfg.patch_dropout", 0.5),
    ("vision_cfg.mlp_ratio", 4),
    ("vision_cfg.norm_kwargs", {}),
    ("text_cfg.hf_tokenizer_name", "somewhere/else"),
    ("text_cfg.pad_id", 1),
]


@pytest.mark.parametrize(("place", "value"), SAME_OPEN_CLIP)
def test_options_without_effect_in_evaluation_may_have_any_value(place: str, value: Any) -> None:
    assert of_open_clip(set_at(open_clip_config(MINUTE), place, value), PATH) == MINUTE


def test_five_of_many_problems_are_named() -> None:
    text = dict.fromkeys(configs_of_transformers._TEXT_DEFAULTS, 0)
    with pytest.raises(ArchitectureError, match=r"text_config.*and \d more\. Take"):
        of_transformers({**transformers_config(MINUTE), "text_config": text}, PATH)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(config: Config, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += places(value, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize(
    ("make", "read"),
    [(transformers_config, of_transformers), (open_clip_config, of_open_clip)],
    ids=["transformers", "open_clip"],
)
@given(data=st.data())
def test_any_configuration_is_accepted_or_refused(
    make: Callable[[Architecture], Config], read: Read, data: st.DataObject
) -> None:
    config = make(MINUTE)
    place = data.draw(st.sampled_from(places(config)))
    with contextlib.suppress(ArchitectureError):
        found = read(set_at(config, place, data.draw(json_values)), PATH)
        assert found.vision.width % found.vision.heads == 0
        assert len(list(specs(found))) > 0


ADDED = dataclasses.replace(B32, vocab_size=49410)
"""Two tokens were added behind CLIP's own."""


def test_added_tokens_and_the_end_token_are_not_comparable() -> None:
    config = set_at(transformers_config(ADDED), "text_config.eos_token_id", 49407)
    with pytest.raises(ArchitectureError, match=r"vocab_size 49410, 2 more .* not comparable") as e:
        of_transformers(config, PATH)
    assert e.value.remedy.startswith("Leave eos_token_id as it is: another one breaks the model.")


def test_added_tokens_and_the_legacy_end_are_noted() -> None:
    config = set_at(transformers_config(ADDED), "text_config.eos_token_id", 2)
    assert of_transformers(config, PATH) == ADDED
    assert note_of(config, PATH).startswith(
        "text_config has vocab_size 49410, 2 more than CLIP's tokenizer, and the legacy "
        "eos_token_id 2: text features are taken at the greatest id"
    )
    assert note_of(set_at(transformers_config(B32), "text_config.eos_token_id", 2), PATH) == ""


def test_added_tokens_that_end_with_the_end_token_are_as_in_the_reference() -> None:
    assert of_transformers(transformers_config(ADDED), PATH) == ADDED
    assert note_of(transformers_config(ADDED), PATH) == ""
