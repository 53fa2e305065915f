"""What configurations may say, against the libraries' own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints import configs
from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture, ViT
from clipcheck.checkpoints.configs import (
    open_clip_config,
    require_open_clip,
    require_transformers,
    transformers_config,
)
from clipcheck.errors import ArchitectureError
from tests.oracles import open_clip
from tests.samples import MINUTE

PATH = Path("config.json")
B32 = ARCHITECTURES["ViT-B/32"]
L14 = ARCHITECTURES["ViT-L/14"]
VITS = {name: a for name, a in ARCHITECTURES.items() if isinstance(a.vision, ViT)}
Config = dict[str, Any]
Require = Callable[[Any, Architecture, Path], None]


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
def test_transformers_reads_what_is_written_and_it_is_read_as_transformers_writes_it(
    name: str,
) -> None:
    ours = transformers_config(VITS[name])
    theirs = transformers.CLIPConfig(**ours)
    for section in ("text_config", "vision_config"):
        held = getattr(theirs, section).to_dict()
        assert {key: held[key] for key in ours[section]} == ours[section]
    assert theirs.projection_dim == ours["projection_dim"]
    for config in (ours, theirs.to_dict(), theirs.to_diff_dict()):
        require_transformers(config, VITS[name], PATH)


def test_what_a_transformers_config_leaves_out_has_the_librarys_own_default() -> None:
    text, vision = transformers.CLIPTextConfig(), transformers.CLIPVisionConfig()
    assert {key: getattr(text, key) for key in configs._TEXT_DEFAULTS} == configs._TEXT_DEFAULTS
    found = {key: getattr(vision, key) for key in configs._VISION_DEFAULTS}
    assert found == configs._VISION_DEFAULTS
    assert transformers.CLIPConfig().projection_dim == configs._PROJECTION_DEFAULT
    require_transformers({"text_config": {}, "vision_config": {}}, B32, PATH)


def test_what_an_open_clip_config_leaves_out_has_the_librarys_own_default() -> None:
    model = open_clip().model
    for cls, defaults, usual in (
        (model.CLIPVisionCfg, configs._OPEN_CLIP_VISION, configs._USUAL_VISION),
        (model.CLIPTextCfg, configs._OPEN_CLIP_TEXT, configs._USUAL_TEXT),
    ):
        held = dataclasses.asdict(cls())
        assert {key: held[key] for key in defaults} == defaults
        for key, allowed in usual.items():
            assert held[key] in allowed


def test_every_option_of_open_clips_towers_is_known() -> None:
    model = open_clip().model
    for section, cls in (("vision_cfg", model.CLIPVisionCfg), ("text_cfg", model.CLIPTextCfg)):
        config = open_clip_config(MINUTE)
        config[section] = {**dataclasses.asdict(cls()), **config[section]}
        require_open_clip(config, MINUTE, PATH)


RELEASED = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


@pytest.mark.parametrize("name", RELEASED)
def test_open_clips_own_config_of_a_released_model_is_the_one_that_is_made(name: str) -> None:
    theirs = open_clip().get_model_config(RELEASED[name])
    require_open_clip(theirs, ARCHITECTURES[name], PATH)
    ours = open_clip_config(ARCHITECTURES[name])
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert {**value, **ours[key]} == value
        else:
            assert ours[key] == value


@pytest.mark.parametrize("name", RELEASED)
def test_the_same_without_quick_gelu_is_another_model(name: str) -> None:
    theirs = open_clip().get_model_config(RELEASED[name].removesuffix("-quickgelu"))
    with pytest.raises(ArchitectureError, match="no quick_gelu, so GELU, and the released"):
        require_open_clip(theirs, ARCHITECTURES[name], PATH)


# ------------------------------------------------------------------ as the hub has them


def test_the_end_of_text_may_be_the_legacy_one() -> None:
    config = set_at(transformers_config(B32), "text_config.eos_token_id", 2)
    require_transformers(config, B32, PATH)


def legacy() -> Config:
    """The large model's on the hub: what is right stands in the ``_dict`` sections."""
    text = {key: transformers_config(L14)["text_config"][key] for key in configs._TEXT_DEFAULTS}
    vision = transformers_config(L14)["vision_config"]
    return {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 1, "eos_token_id": 0},
        "text_config_dict": {k: v for k, v in text.items() if v != configs._TEXT_DEFAULTS[k]},
        "vision_config": {**vision, "num_channels": 7},
        "vision_config_dict": {k: v for k, v in vision.items() if k != "num_channels"},
    }


def test_sections_of_old_files_override_the_others_with_their_defaults_as_well() -> None:
    theirs = transformers.CLIPConfig(**copy.deepcopy(legacy()))
    assert (theirs.text_config.hidden_size, theirs.text_config.eos_token_id) == (768, 49407)
    assert theirs.vision_config.num_channels == 3
    require_transformers(legacy(), L14, PATH)
    for name in ("text", "vision"):
        with pytest.raises(ArchitectureError, match=f"{name}_config"):
            require_transformers({**legacy(), f"{name}_config_dict": None}, L14, PATH)


# ------------------------------------------------------------------ other models

GELU = "QuickGELU: this is another model. If the weights were trained with QuickGELU, put "
OTHER: list[tuple[str, Any, str]] = [
    ("text_config.hidden_act", "gelu", f"text_config has hidden_act 'gelu', .* {GELU}"),
    ("vision_config.hidden_act", "gelu", f"vision_config has hidden_act 'gelu', .* {GELU}"),
    ("vision_config.hidden_act", None, "vision_config has hidden_act None"),
    ("projection_dim", 63, "projection_dim is 63 in place of 64"),
    ("text_config.num_attention_heads", 2, "text_config.num_attention_heads is 2 in place of 1"),
    ("vision_config.num_attention_heads", 4, "vision_config.num_attention_heads is 4"),
    ("text_config.layer_norm_eps", 1e-6, "text_config.layer_norm_eps is 1e-06 in place of 1e-05"),
    ("vision_config.layer_norm_eps", 1e-12, "vision_config.layer_norm_eps is 1e-12"),
    ("text_config.eos_token_id", 98, "text_config.eos_token_id is 98 in place of 99"),
    ("text_config.eos_token_id", [99], "text_config.eos_token_id is .99. in place of 99"),
    ("text_config.eos_token_id", None, "text_config.eos_token_id is None in place of 99"),
    ("text_config.intermediate_size", 255, "text_config.intermediate_size is 255"),
    ("text_config.vocab_size", 101, "text_config.vocab_size is 101 in place of 100"),
    ("text_config.max_position_embeddings", 77, "text_config.max_position_embeddings is 77"),
    ("vision_config.image_size", 17, "vision_config.image_size is 17 in place of 16"),
    ("vision_config.image_size", [16, 16], "vision_config.image_size is .16, 16. in place of"),
    ("vision_config.patch_size", "8", "vision_config.patch_size is '8' in place of 8"),
    ("vision_config.num_hidden_layers", True, "num_hidden_layers is True in place of 1"),
    ("vision_config.num_hidden_layers", 1.0, "num_hidden_layers is 1.0 in place of 1"),
    ("text_config", [], "expected an object under 'text_config', found a list"),
    ("vision_config", None, "expected an object under 'vision_config', found nothing"),
    ("text_config_dict", 3, "expected an object under 'text_config_dict', found a int"),
]


@pytest.mark.parametrize(("place", "value", "message"), OTHER)
def test_a_transformers_config_of_another_model_is_refused(
    place: str, value: Any, message: str
) -> None:
    require_transformers(transformers_config(MINUTE), MINUTE, PATH)
    with pytest.raises(ArchitectureError, match=message):
        require_transformers(set_at(transformers_config(MINUTE), place, value), MINUTE, PATH)


OTHER_OPEN_CLIP: list[tuple[str, Any, str]] = [
    ("quick_gelu", False, f"model_cfg has quick_gelu False, .* {GELU}"),
    ("quick_gelu", 1, "model_cfg has quick_gelu 1"),
    ("embed_dim", 63, "model_cfg.embed_dim is 63 in place of 64"),
    ("init_logit_bias", -10, "model_cfg.init_logit_bias is -10 in place of None"),
    ("custom_text", "yes", "model_cfg.custom_text is 'yes' in place of False"),
    ("multimodal_cfg", {}, "model_cfg.multimodal_cfg, which no CLIP model of the released kind"),
    ("vision_cfg", None, "expected an object under 'model_cfg.vision_cfg', found nothing"),
    ("vision_cfg.layers", 2, "model_cfg.vision_cfg.layers is 2 in place of 1"),
    ("vision_cfg.image_size", [16, 24], "model_cfg.vision_cfg.image_size is .16, 24. in place"),
    ("vision_cfg.head_width", 32, "model_cfg.vision_cfg.head_width is 32 in place of 64"),
    ("vision_cfg.mlp_ratio", 3.5, "model_cfg.vision_cfg.mlp_ratio is 3.5 in place of 4.0"),
    ("vision_cfg.norm_kwargs", {"eps": 1e-6}, "model_cfg.vision_cfg.norm_kwargs is"),
    ("vision_cfg.pool_type", "avg", "model_cfg.vision_cfg.pool_type is 'avg' in place of 'tok'"),
    ("vision_cfg.timm_model_name", "x", "model_cfg.vision_cfg.timm_model_name is 'x'"),
    ("vision_cfg.colour", "blue", "model_cfg.vision_cfg.colour, which no CLIP model"),
    ("text_cfg.heads", 8, "model_cfg.text_cfg.heads is 8 in place of 1"),
    ("text_cfg.no_causal_mask", True, "model_cfg.text_cfg.no_causal_mask is True"),
    ("text_cfg.pool_type", "last", "model_cfg.text_cfg.pool_type is 'last'"),
    ("text_cfg.hf_model_name", "bert", "model_cfg.text_cfg.hf_model_name is 'bert'"),
    ("text_cfg.act_kwargs", {"approximate": "tanh"}, "model_cfg.text_cfg.act_kwargs is"),
]


@pytest.mark.parametrize(("place", "value", "message"), OTHER_OPEN_CLIP)
def test_an_open_clip_config_of_another_model_is_refused(
    place: str, value: Any, message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        require_open_clip(set_at(open_clip_config(MINUTE), place, value), MINUTE, PATH)


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
def test_what_changes_nothing_in_evaluation_may_be_anything(place: str, value: Any) -> None:
    require_open_clip(set_at(open_clip_config(MINUTE), place, value), MINUTE, PATH)


def test_of_many_differences_five_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"projection_dim is 512.*and 9 more\. Put"):
        require_transformers({**transformers_config(B32), "projection_dim": 512}, MINUTE, PATH)


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
    ("make", "require"),
    [(transformers_config, require_transformers), (open_clip_config, require_open_clip)],
    ids=["transformers", "open_clip"],
)
@given(data=st.data())
def test_whatever_stands_there_is_accepted_or_refused(
    make: Callable[[Architecture], Config], require: Require, data: st.DataObject
) -> None:
    config = make(MINUTE)
    place = data.draw(st.sampled_from(places(config)))
    with contextlib.suppress(ArchitectureError):
        require(set_at(config, place, data.draw(json_values)), MINUTE, PATH)


ADDED = dataclasses.replace(B32, vocab_size=49410)
"""Two tokens were added behind CLIP's own."""


def test_added_tokens_and_the_end_token_are_not_comparable() -> None:
    config = set_at(transformers_config(ADDED), "text_config.eos_token_id", 49407)
    with pytest.raises(ArchitectureError, match=r"vocab_size 49410, 2 more .* not comparable") as e:
        require_transformers(config, ADDED, PATH)
    assert e.value.remedy.startswith("Leave eos_token_id as it is: another one breaks the model.")


def test_added_tokens_and_the_legacy_end_are_warned_of() -> None:
    config = set_at(transformers_config(ADDED), "text_config.eos_token_id", 2)
    with pytest.warns(UserWarning, match="49410, 2 more .* legacy eos_token_id 2: .* greatest"):
        require_transformers(config, ADDED, PATH)


def test_added_tokens_of_which_the_last_is_the_end_are_as_in_the_reference() -> None:
    require_transformers(transformers_config(ADDED), ADDED, PATH)
