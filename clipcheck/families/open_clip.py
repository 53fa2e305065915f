"""Models of open_clip that clipcheck does not build itself: towers of timm, CoCa, attention pools,
text models of transformers. open_clip's own modules are the reference.

Nothing is downloaded: the weights are the checkpoint's, and the configuration of a text model of
transformers must be in the folder, as ``text_config.json``.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipcheck.checkpoints.directories import OPEN_CLIP_CONFIG
from clipcheck.checkpoints.library import TEXT_CONFIG, LibraryArchitecture
from clipcheck.errors import ArchitectureError, UnavailableError, first_line
from clipcheck.families.base import DualEncoder
from clipcheck.families.building import Uninitialised, assign, dtype_of
from clipcheck.families.open_clip_config import checked, images_of, side_of
from clipcheck.families.sizes import Sizes
from clipcheck.families.tokenizers import OpenClipTokenizer, at_hand
from clipcheck.inputs.rules import TextRules, clip_texts
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE


class OpenClip(DualEncoder):
    """A model of open_clip, called through its public interface."""

    def __init__(self, model: nn.Module, architecture: LibraryArchitecture) -> None:
        found = sizes(architecture)
        super().__init__(found.image_resolution, found.context_length)
        self.model: Any = model
        self.image_dtype = dtype_of(model, _is_visual, visual=True)
        self.forward_pairs = hasattr(model, "text_decoder")  # CoCa's, which also computes captions

    def own(self) -> nn.Module:
        """The library's model."""
        found: nn.Module = self.model
        return found

    def is_visual(self, key: str) -> bool:
        """Whether a key of the state dict is one of the image tower's."""
        return _is_visual(key.removeprefix("model."))

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E], not normalised."""
        features: Tensor = self.model.encode_image(image.to(self.image_dtype), normalize=False)
        return features

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E], not normalised."""
        features: Tensor = self.model.encode_text(text.long(), normalize=False)
        return features

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E]."""
        image_features = nn.functional.normalize(image_features, dim=-1)
        text_features = nn.functional.normalize(text_features, dim=-1)
        logits: Tensor = self.model.logit_scale.exp() * image_features @ text_features.t()
        if self.model.logit_bias is not None:
            logits = logits + self.model.logit_bias
        return logits, logits.t()

    def log_scale(self) -> Tensor:
        """Return the natural logarithm of the factor of the cosines: one number."""
        scale: Tensor = self.model.logit_scale
        return scale


# --------------------------------------------------------------------------- sizes


def sizes(architecture: LibraryArchitecture) -> Sizes:
    """Return the sizes of a model's inputs, from its configuration."""
    model, preprocess = checked(architecture)
    vision, text = model["vision_cfg"], model["text_cfg"]
    side = side_of(vision.get("image_size", 224))
    patch = side_of(vision.get("patch_size") or 16)
    hf = _text_config(architecture) if text.get("hf_model_name") else {}
    context_length = text.get("context_length", 77)
    vocab_size = hf.get("vocab_size") or text.get("vocab_size", VOCABULARY_SIZE)
    return Sizes(
        image_resolution=side,
        context_length=context_length,
        vocab_size=vocab_size,
        embed_dim=model["embed_dim"],
        grid=max(1, side // (32 if vision.get("timm_model_name") else patch)),
        images=images_of(preprocess),
        texts=_texts(text, hf, vocab_size, architecture.folder, sigmoid="init_logit_bias" in model),
        sigmoid=model.get("init_logit_bias") is not None,
        tokenizer=f"the tokenizer {text.get('hf_tokenizer_name') or 'of CLIP'}",
    )


def _texts(
    text: Mapping[str, Any],
    hf: Mapping[str, Any],
    vocab_size: int,
    folder: Path | None,
    *,
    sigmoid: bool,
) -> TextRules:
    """Return the rules for rows of ids: with CLIP's tokenizer, or with transformers' tokenizer that
    the configuration names, if the folder has it."""
    drawn = _drawn_texts(text, hf, vocab_size, sigmoid=sigmoid)
    files = at_hand(folder) if text.get("hf_tokenizer_name") else ""
    if folder is None or not files:
        return drawn
    options = {"tokenizer_mode": text.get("tokenizer_mode"), **(text.get("tokenizer_kwargs") or {})}
    found = OpenClipTokenizer(folder, files, vocab_size, json.dumps(options))
    return dataclasses.replace(drawn, tokenizer=found)


def _drawn_texts(
    text: Mapping[str, Any], hf: Mapping[str, Any], vocab_size: int, *, sigmoid: bool
) -> TextRules:
    """Return the rules for rows of ids with CLIP's tokenizer, or without a tokenizer: then ids are
    drawn at random between the special ids of the configuration."""
    if hf:
        specials = [hf.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
        start, end, pad = specials
        first = 1 + max(each for each in (*specials, 0) if each is not None)
        return TextRules(start=start, end=end, pad=pad or 0, first=first, last=vocab_size - 1)
    if text.get("hf_tokenizer_name") is None:
        return clip_texts(min(vocab_size, VOCABULARY_SIZE), text.get("pad_id", 0))
    if text.get("pool_type") == "eos":
        end = text.get("eos_id", 2)
        return TextRules(start=0, end=end, pad=1, first=max(end, 1) + 1, last=vocab_size - 1)
    # SigLIP's tokenizers end and pad with id 1; CLIPA's pads with 0.
    pad = 1 if sigmoid else text.get("pad_id", 0)
    return TextRules(start=None, end=None, pad=pad, first=pad + 1, last=vocab_size - 1)


def shallow(architecture: LibraryArchitecture, layers: int) -> LibraryArchitecture:
    """Return the architecture with ``layers`` layers in each tower, except timm's, whose name
    determines the depth."""
    settings = architecture.settings
    model = settings["model_cfg"]
    for name in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if name in model and not model[name].get("timm_model_name"):
            model[name]["layers"] = layers
    files = tuple(
        (name, json.dumps({**json.loads(text), **dict.fromkeys(_DEPTHS, layers)}, sort_keys=True))
        for name, text in architecture.files
    )
    return dataclasses.replace(
        architecture, config=json.dumps(settings, sort_keys=True), files=files
    )


_DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers")
"""Settings for the number of layers in configurations of transformers' text models."""


# --------------------------------------------------------------------------- building


def build(architecture: LibraryArchitecture, tensors: Mapping[str, Tensor]) -> OpenClip:
    """Return the library's model with these tensors, which are assigned, not copied."""
    model = empty(architecture)
    assign(model, tensors, _is_visual, OPEN_CLIP_CONFIG)
    return OpenClip(model, architecture).eval()


def _is_visual(key: str) -> bool:
    return key.startswith("visual.")


def empty(architecture: LibraryArchitecture) -> nn.Module:
    """Return the library's model with uninitialised weights."""
    config, _ = checked(architecture)
    classes = _open_clip()
    custom = config.pop("custom_text", False) or bool(config["text_cfg"].get("hf_model_name"))
    chosen = "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP" if custom else "CLIP"
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    with _local_text(architecture, config["text_cfg"]), Uninitialised():
        try:
            built: nn.Module = classes[chosen](**config)
        # Any library may raise any exception for a wrong configuration.
        except Exception as error:
            raise ArchitectureError(
                f"open_clip cannot build its configuration's model ({first_line(error)[:200]})",
                remedy=_remedy(config, str(error)),
            ) from error
    return built


def _remedy(config: Mapping[str, Any], problem: str) -> str:
    timm = config["vision_cfg"].get("timm_model_name")
    if timm and ("Unknown model" in problem or "Invalid pretrained tag" in problem):
        from importlib.metadata import version

        return (
            f"The timm installed here, {version('timm')}, does not have the model {timm!r}: "
            "install one that does."
        )
    return "Take the open_clip_config.json that belongs to the weights."


def _open_clip() -> dict[str, type[nn.Module]]:
    try:
        import open_clip
    except ImportError as error:
        raise UnavailableError(
            "open_clip is not installed; its own model is the reference of this one",
            remedy="Run: pip install open_clip_torch.",
        ) from error
    return {name: getattr(open_clip, name) for name in ("CLIP", "CustomTextCLIP", "CoCa")}


@contextmanager
def _local_text(architecture: LibraryArchitecture, text: dict[str, Any]) -> Iterator[None]:
    """Build a text model of transformers from the configuration in the folder: the library would
    download it by name from the hub."""
    if not text.get("hf_model_name"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="clipcheck-") as folder:
        Path(folder, "config.json").write_text(json.dumps(_text_config(architecture)))
        text.update(hf_model_name=folder, hf_model_pretrained=False)
        yield


def _text_config(architecture: LibraryArchitecture) -> dict[str, Any]:
    """Return the configuration of the text model of transformers."""
    found = dict(architecture.files).get(TEXT_CONFIG)
    if found is None:
        name = architecture.settings["model_cfg"]["text_cfg"]["hf_model_name"]
        raise ArchitectureError(
            f"its text tower is {name!r} of transformers, whose configuration open_clip would "
            "download from the hub; clipcheck downloads no models",
            remedy=f"Put the config.json of {name} into the folder, as {TEXT_CONFIG}.",
        )
    import transformers

    given = json.loads(found)
    try:
        # Includes the defaults that the file leaves out.
        config: dict[str, Any] = transformers.AutoConfig.for_model(**given).to_dict()
        config = {key: value for key, value in config.items() if value is not None}
    except (TypeError, ValueError) as error:
        raise ArchitectureError(
            f"transformers cannot read its {TEXT_CONFIG} ({first_line(error)[:120]})",
            remedy="Take the config.json that belongs to the text model.",
        ) from error
    return config
