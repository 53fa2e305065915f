"""Write a checkpoint as a folder of transformers or open_clip, and read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.checkpoints.architecture import Architecture, ResNet
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config, open_clip_lacks
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.directories import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_CONFIG,
    TRANSFORMERS_WEIGHTS,
)
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keymaps import Layout, no_resnet, to_layout
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import UnfitError
from clipcheck.inputs import tokenizer
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.inputs.vocabulary_files import vocabulary_texts
from clipcheck.writers.convert import Judge, apart, require_equal, save
from clipcheck.writers.output import creating

if TYPE_CHECKING:
    import torch

_BICUBIC = 3
"""PIL.Image.Resampling.BICUBIC: configurations have the number."""


def write_transformers(checkpoint: Checkpoint, folder: Path, *, judge: Judge | None = None) -> None:
    """Write a folder for ``CLIPModel.from_pretrained`` and ``CLIPProcessor.from_pretrained``.

    The weights keep their dtypes. The tokenizer's files are written only if the vocabulary has the
    released size: any other vocabulary is unknown.

    Args:
        checkpoint: first its checksums and weights are checked.
        folder: to create; it may exist if it is empty.
        judge: called with the written folder before it gets its name; if it raises, the folder is
            deleted.

    Raises:
        UnfitError: the image tower is a ModifiedResNet, which transformers does not have.
        DamagedError, NotFiniteError: the checkpoint is damaged or has weights that are not finite.
        OutputError: the folder cannot be written, or differs when it is read back.
    """
    architecture = checkpoint.architecture
    if isinstance(architecture.vision, ResNet):
        raise no_resnet()
    config = transformers_config(architecture)
    # In which transformers loads all weights by default.
    dtype = str(checkpoint.tensors["visual.conv1.weight"].dtype).removeprefix("torch.")
    texts = {
        TRANSFORMERS_CONFIG: _json({**config, "torch_dtype": dtype}),
        "preprocessor_config.json": _json(_image_processor(architecture.image_resolution)),
        **_tokenizer(architecture),
    }
    _write(checkpoint, folder, Layout.TRANSFORMERS, TRANSFORMERS_WEIGHTS, texts, judge)


def write_open_clip(checkpoint: Checkpoint, folder: Path, *, judge: Judge | None = None) -> None:
    """Write a folder for ``open_clip.create_model("local-dir:FOLDER")``.

    Raises:
        UnfitError: the library does not have the architecture.
        DamagedError, NotFiniteError: the checkpoint is damaged or has weights that are not finite.
        OutputError: the folder cannot be written, or differs when it is read back.
    """
    lacking = open_clip_lacks(checkpoint.architecture)
    if lacking:
        raise UnfitError(lacking, remedy="Use transformers, safetensors or an archive.")
    config = {
        "model_cfg": open_clip_config(checkpoint.architecture),
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    texts = {OPEN_CLIP_CONFIG: _json(config)}
    _write(checkpoint, folder, Layout.OPEN_CLIP, OPEN_CLIP_WEIGHTS, texts, judge)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    layout: Layout,
    weights: str,
    texts: Mapping[str, str],
    judge: Judge | None,
) -> None:
    checkpoint.verify()
    ordered = {key: _shaped(checkpoint, key) for key, _ in specs(checkpoint.architecture)}
    whole = {key: tensor for key, tensor in ordered.items() if tensor is not None}
    tensors = apart(to_layout(whole, layout))
    room = sum(tensor.nbytes for tensor in tensors.values())
    with creating(folder, room=room) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        save(tensors, temporary / weights, folder)
        # Folders do not have the integer buffers.
        require_equal(open_checkpoint(temporary), to_layout(whole, Layout.OPEN_CLIP), folder)
        if judge is not None:
            judge(temporary)


def _shaped(checkpoint: Checkpoint, key: str) -> torch.Tensor | None:
    tensor = checkpoint.tensors.get(key)
    # openai/CLIP#67: some training code gives it a dimension.
    return tensor.reshape(()) if tensor is not None and key == "logit_scale" else tensor


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _image_processor(resolution: int) -> dict[str, Any]:
    """Return the image processor's configuration, as in CLIP's folders on the hub."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resolution},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": resolution, "width": resolution},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _tokenizer(architecture: Architecture) -> dict[str, str]:
    if architecture.vocab_size != tokenizer.VOCABULARY_SIZE:
        return {}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": architecture.context_length,
        "do_lower_case": True,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    return {**vocabulary_texts(), "tokenizer_config.json": _json(config)}
