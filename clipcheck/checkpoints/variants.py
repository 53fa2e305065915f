"""Refuse checkpoints of models with known additions to CLIP, by the keys of their weights.

Without the additions' weights the others would still load, but compute another model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from clipcheck.checkpoints.dimensions import ASKED, listed
from clipcheck.errors import ArchitectureError

_ANOTHER = "Give a checkpoint that has the modules of the released models and no others."
_OPEN_CLIPS = (
    f"If it is a model of open_clip, give its weights, and its configuration with {ASKED}: "
    "open_clip:NAME, or the path of its open_clip_config.json; or give its folder with "
    "--reference. Then open_clip's own model is the reference."
)
_MERGE = "Merge them into the weights (peft: merge_and_unload()), then save the state dict."
_GATHER = "Gather the whole state dict (StateDictType.FULL_STATE_DICT), then save that."
_UNPRUNE = "Make them permanent (torch.nn.utils.parametrize.remove_parametrizations), then save."
_UNQUANTIZED = "Give the checkpoint that it was quantized from."

_VARIANTS = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning, remedy)
    for pattern, meaning, remedy in (
        (r"positional_embedding_res$", "Long-CLIP's second positional embedding", _ANOTHER),
        (r"(^|\.)conv1_alpha\.", "Alpha-CLIP's convolution of the alpha channel", _ANOTHER),
        (r"(^|[._])lora_|\.base_layer\.", "LoRA's weights, which are not merged", _MERGE),
        (r"(^|\.)logit_bias$", "the bias of a sigmoid loss", _OPEN_CLIPS),
        (r"(^|[._])(adapter|adaptmlp)s?\d*([._]|$)", "an adapter", _ANOTHER),
        (r"(^|\.)(prompt_learner|\w*prompt_embeddings?|ctx)(\.|$)", "learned prompts, as CoOp's",
         _ANOTHER),
        (r"\.ls_?[12]\.gamma$", "LayerScale", _OPEN_CLIPS),
        (r"attn\.(ln_[qk]|[qk]_norm|norm_[qk])\.", "normalised queries and keys", _OPEN_CLIPS),
        (r"attn\.(logit_scale|head_scale)$", "an attention with scales of its own", _OPEN_CLIPS),
        (r"\.(ln_attn|attn\.ln_inner|mlp\.ln)\.", "further norms in its blocks", _OPEN_CLIPS),
        (r"(^|\.)visual\.attn_pool", "an attention pooler, as CoCa's", _OPEN_CLIPS),
        (r"(^|\.)cls_emb$", "a class token of the text tower, as CoCa's", _OPEN_CLIPS),
        (r"(^|\.)visual\.trunk\.", "an image tower of timm", _OPEN_CLIPS),
        (r"(^|\.)text\.transformer\.(embeddings|encoder)\.", "a text tower of transformers",
         _OPEN_CLIPS),
        (r"(^|[._])flat_param", "FSDP's flattened weights", _GATHER),
        (r"(weight|bias)_(orig|mask)$|\.parametrizations\.|\.weight_[gv]$", "parametrized weights",
         _UNPRUNE),
        (r"\.(SCB|absmax|quant_state|qweight|qzeros|weight_scale)(\.|$)|_packed_params",
         "quantized weights", _UNQUANTIZED),
    )
)  # fmt: skip
"""A pattern of keys, the addition with such keys, and a remedy."""


def require_usual(keys: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Raise if weights belong to a known addition.

    Raises:
        ArchitectureError: the message names the addition.
    """
    keys = list(keys)
    for pattern, meaning, remedy in _VARIANTS:
        found = [key for key in keys if pattern.search(key)]
        if found:
            named = listed("it has", found, 2).replace(":", "", 1)
            another = " than the released ones" if remedy == _OPEN_CLIPS else ", not supported"
            raise ArchitectureError(
                f"{named}, {meaning}: another model{another}",
                remedy=remedy,
                path=path,
            )
