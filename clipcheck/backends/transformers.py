"""Run transformers' CLIPModel, with either of its attention implementations."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clipcheck.backends.base import Backend, Missing, Option, too_old
from clipcheck.backends.calling import translating
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.configs_of_transformers import ACTIVATIONS
from clipcheck.checkpoints.keymaps import Layout, from_layout, module_in
from clipcheck.gates.integrity import Evidence
from clipcheck.system.transformers_logging import quiet

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

_OLDEST = "5.9"
"""First version whose preprocessing is known here: without a slow tokenizer, and with a separate
name for the slow image processor."""


_UNMASKED = "without the tokenizer's mask, which changes only positions behind the end of a text"


class Transformers(ModuleBackend):
    """transformers' CLIPModel."""

    summary = "transformers' CLIPModel.from_pretrained, from a folder in the hub's layout"
    options: ClassVar[Mapping[str, Option]] = {
        "attention": Option(
            "sdpa", ("sdpa", "eager"), "how attention is computed, attn_implementation"
        )
    }
    variants = ({"attention": "sdpa"}, {"attention": "eager"})
    distributions = ("transformers", "safetensors")
    default_for = frozenset({Format.TRANSFORMERS})
    runs_modules = True

    @classmethod
    def available(cls) -> Missing | None:
        """Require a version that is not too old."""
        if importlib.util.find_spec("transformers") is None:
            remedy = "Install it: pip install 'clipcheck[transformers]'."
            return Missing("transformers is not installed", remedy)
        return too_old("transformers", _OLDEST)

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Refuse ModifiedResNets, which transformers does not have."""
        if isinstance(checkpoint.architecture.vision, ResNet):
            return "transformers has no ModifiedResNet: its CLIPModel has a VisionTransformer alone"
        return None

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Load the model from the checkpoint's own folder, or from a temporary one."""
        from clipcheck.backends.inside_modules import InsideModules  # which imports torch

        attention = source.options["attention"]
        name = f"transformers:attention={attention}"
        with translating(name, "loading"):
            model = _load(_folder(source), source, attention)
        return cls(
            name,
            _Adapter(model),
            source.device,
            evidence=lambda: _evidence(source, model),
            inside=InsideModules(
                name,
                _Adapter(model, pads=False),
                model,
                partial(module_in, layout=Layout.TRANSFORMERS),
                source.device,
                note=_UNMASKED,
            ),
        )


def _folder(source: Source) -> Path:
    if source.checkpoint.format is Format.TRANSFORMERS:
        return source.checkpoint.path
    from clipcheck.writers.directories import write_transformers

    folder = Path(tempfile.mkdtemp(prefix="transformers-", dir=source.scratch))
    write_transformers(source.checkpoint, folder)
    return folder


def _load(folder: Path, source: Source, attention: str) -> Any:
    import torch
    import transformers

    with quiet():  # the weights that it holds are compared afterwards
        model: Any = transformers.CLIPModel.from_pretrained(
            folder,
            dtype=getattr(torch, source.dtype),
            attn_implementation=attention,
            local_files_only=True,
        )
    return model.to(source.device).eval()


class _Adapter:
    """CLIP's three methods, by the calls that transformers' users make.

    Args:
        pads: whether the mask of a text ends with its end-of-text token, as a tokenizer's does.
    """

    def __init__(self, model: Any, *, pads: bool = True) -> None:
        self._model = model
        self._pads = pads

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        features: torch.Tensor = self._model.get_image_features(pixel_values=image).pooler_output
        return features

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Ids [M, L] to features [M, E], not normalised."""
        features: torch.Tensor = self._model.get_text_features(
            **_tokenized(text, self._pads)
        ).pooler_output
        return features

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[Any, Any]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self._model(pixel_values=image, **_tokenized(text, self._pads))
        return found.logits_per_image, found.logits_per_text


def _tokenized(text: torch.Tensor, pads: bool) -> dict[str, torch.Tensor]:
    """Return the output of a CLIPTokenizer: int64 ids, and a mask [M, L] that ends with the
    end-of-text token; or a mask of ones."""
    import torch

    if not pads:
        return {"input_ids": text.long(), "attention_mask": torch.ones_like(text).long()}
    ends = text.argmax(dim=-1, keepdim=True)
    places = torch.arange(text.shape[1], device=text.device)
    return {"input_ids": text.long(), "attention_mask": (places <= ends).long()}


def _evidence(source: Source, model: Any) -> Evidence:
    from clipcheck.backends.libraries import evidence_of

    held = from_layout(model.state_dict(), Layout.TRANSFORMERS, Transformers.version())
    return evidence_of(source.checkpoint, held, source.dtype, _doubts(model, source))


def _doubts(model: Any, source: Source) -> list[str]:
    import transformers

    config = model.config
    doubts = []
    if type(model) is not transformers.CLIPModel:
        doubts.append(f"its class is {type(model).__name__} and not transformers' CLIPModel")
    architecture = source.checkpoint.architecture
    blocks = [(config.text_config, architecture.text_blocks)]
    if isinstance(architecture.vision, ViT):
        blocks.append((config.vision_config, architecture.vision.blocks))
    for tower, wanted in blocks:
        if ACTIVATIONS.get(tower.hidden_act) is not wanted.activation:
            doubts.append(f"its {tower.model_type} computes with {tower.hidden_act}")
    if config._attn_implementation != source.options["attention"]:
        doubts.append(f"its attention is {config._attn_implementation}")
    return doubts
