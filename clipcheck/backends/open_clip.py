"""Run open_clip's own CLIP model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from clipcheck.backends.base import Backend, Missing, Option, too_old
from clipcheck.backends.calling import translating
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.source import Source
from clipcheck.checkpoints import directories
from clipcheck.checkpoints.architecture import Activation, Architecture, ViT
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config, open_clip_lacks
from clipcheck.checkpoints.keymaps import Layout, from_layout, layout_of, module_in, to_layout
from clipcheck.checkpoints.told import OPEN_CLIP
from clipcheck.errors import UnfitError
from clipcheck.gates.integrity import Evidence
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""open_clip's names of dtypes. In float16 it keeps normalisations and embeddings in float32."""


_OLDEST = "3.3"
"""Older versions do not work with transformers 5, or have no local folders."""


class OpenClip(ModuleBackend):
    """open_clip's CLIP model."""

    summary = "open_clip's CLIP: load_openai_model for archives, else by its model_cfg"
    options: ClassVar[Mapping[str, Option]] = {
        "load": Option(
            "model_cfg",
            ("model_cfg", "create_model"),
            "built of what tells how the weights compute, or by create_model with a folder or the "
            "name in --architecture",
        )
    }
    distributions = ("open_clip_torch",)
    default_for = frozenset({Format.OPEN_CLIP})
    runs_modules = True

    @classmethod
    def available(cls) -> Missing | None:
        """Require a version that is not too old."""
        if importlib.util.find_spec("open_clip") is None:
            return Missing("open_clip is not installed", "Install it: pip install open_clip_torch.")
        return too_old("open_clip_torch", _OLDEST)

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Return why open_clip cannot run this checkpoint, or None: it needs TorchScript to read
        archives, and has a single switch for the activation of both towers."""
        reason = torchscript_support.unavailable() if _is_released_kind(checkpoint) else None
        if reason is not None:
            return f"open_clip cannot read an archive: {reason}"
        return open_clip_lacks(checkpoint.architecture) or None

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Build the model with open_clip's public functions."""
        from clipcheck.backends.inside_modules import InsideModules  # which imports torch

        created = source.options.get("load") == "create_model"
        name = "open_clip:load=create_model" if created else "open_clip"
        make = _from_archive if _is_released_kind(source.checkpoint) else _from_config
        with translating(name, "loading"), torchscript_support.silenced():
            model = (_created if created else make)(source).to(source.device).eval()
        adapter = _Adapter(model)
        return cls(
            name,
            adapter,
            source.device,
            evidence=lambda: _evidence(source, model),
            inside=InsideModules(name, adapter, model, _namer(model), source.device),
        )


def _namer(model: Any) -> Callable[[str], str]:
    """Return a function of the name of an eager module that gives its name in open_clip's model."""
    layout = Layout.CUSTOM_TEXT if hasattr(model, "text") else Layout.OPEN_CLIP
    return partial(module_in, layout=layout)


def _is_released_kind(checkpoint: Checkpoint) -> bool:
    """Tell whether ``load_openai_model`` can read the archive; it assumes the released layout."""
    return checkpoint.format is Format.ARCHIVE and not checkpoint.architecture.departures()


def _from_archive(source: Source) -> Any:
    import open_clip

    return open_clip.load_openai_model(
        str(source.checkpoint.path), precision=_PRECISIONS[source.dtype], device=source.device
    )


def _created(source: Source) -> Any:
    """Build the model as users do: of a folder, or of a name of open_clip's and the file's path.

    Raises:
        UnfitError: it is no folder of open_clip's, and nobody said which name it has.
    """
    import open_clip

    checkpoint, path = source.checkpoint, str(source.checkpoint.path)
    if checkpoint.format is Format.OPEN_CLIP:
        model, weights = f"local-dir:{path}", None
    elif checkpoint.asked.startswith(OPEN_CLIP):
        model, weights = checkpoint.asked.removeprefix(OPEN_CLIP).partition("/")[0], path
    else:
        raise UnfitError(
            "open_clip:load=create_model needs a name that create_model is called with",
            remedy="Add --architecture open_clip:NAME or open_clip:NAME/TAG, or give a folder of "
            "open_clip's.",
            path=checkpoint.path,
        )
    return open_clip.create_model(
        model, pretrained=weights, precision=_PRECISIONS[source.dtype], device=source.device
    )


def _from_config(source: Source) -> Any:
    """Build the model as ``create_model`` does, from the folder's ``model_cfg`` or a new one."""
    import open_clip.model as library
    import torch

    config = _config(source.checkpoint)
    custom = config.pop("custom_text", False)
    dtype = getattr(torch, source.dtype)
    cast = None if dtype == torch.float32 else dtype
    model = (library.CustomTextCLIP if custom else library.CLIP)(**config, cast_dtype=cast)
    if cast is not None:
        library.convert_weights_to_lp(model, cast)
    weights = to_layout(
        source.checkpoint.tensors, Layout.CUSTOM_TEXT if custom else Layout.OPEN_CLIP
    )
    weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
    model.load_state_dict(weights)
    return model


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.format is Format.OPEN_CLIP:
        return dict(directories.read(checkpoint.path).config["model_cfg"])
    return open_clip_config(checkpoint.architecture)


class _Adapter:
    """CLIP's three methods, by the calls that open_clip's users make."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        features: torch.Tensor = self._model.encode_image(self._cast(image))
        return features

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Ids [M, L] to features [M, E], not normalised."""
        features: torch.Tensor = self._model.encode_text(text.long())
        return features

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[Any, Any]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        images, texts, scale = self._model(self._cast(image), text.long())
        logits_per_image = scale * images @ texts.t()
        return logits_per_image, logits_per_image.t()

    def _cast(self, image: torch.Tensor) -> torch.Tensor:
        return image.to(self._model.visual.conv1.weight.dtype)


def _evidence(source: Source, model: Any) -> Evidence:
    from clipcheck.backends.libraries import evidence_of

    held = model.state_dict()
    held = from_layout(held, layout_of(held), OpenClip.version())
    doubts = _doubts(model, source.checkpoint.architecture)
    return evidence_of(source.checkpoint, held, source.dtype, doubts)


def _doubts(model: Any, architecture: Architecture) -> list[str]:
    import open_clip.model as library

    doubts = []
    if type(model) not in (library.CLIP, library.CustomTextCLIP):
        doubts.append(f"its class is {type(model).__name__} and not open_clip's CLIP")
    wanted = {architecture.text_blocks.activation}
    if isinstance(architecture.vision, ViT):
        wanted.add(architecture.vision.blocks.activation)
    found = {kind for module in model.modules() if (kind := _activation(module))}
    if found != wanted:
        names = (" and ".join(sorted(kind.label for kind in kinds)) for kinds in (found, wanted))
        doubts.append("it computes with {} in place of {}".format(*names))
    return doubts


def _activation(module: Any) -> Activation | None:
    import open_clip.transformer as library
    from torch import nn

    if isinstance(module, library.QuickGELU):
        return Activation.QUICK_GELU
    if isinstance(module, nn.GELU):
        return Activation.GELU_TANH if module.approximate == "tanh" else Activation.GELU
    return None
