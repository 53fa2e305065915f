"""Show where libraries compute another model than the weights were trained as; see docs/findings.

``siglip``: the weights of transformers' SiglipModel in open_clip's configurations of SigLIP and
SigLIP 2. ``tag``: weights that were trained with QuickGELU, opened by ``open_clip.create_model``
with the name of their architecture and their path. ``aimv2``: one text of transformers' Aimv2Model,
alone and in a batch, by each implementation of attention.

In the first two, the model of one library is exported, and judged against the eager model of the
other. Then only the activation is exchanged and the model is judged again: remaining differences
have other causes.

    python -m benchmarks.findings siglip --tables docs/evidence/tables
    python -m benchmarks.findings tag
    python -m benchmarks.findings aimv2 --layers 2
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipcheck
from benchmarks.tables import add_option, table
from benchmarks.zoo import make_shallow
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.told import OPEN_CLIP, TRANSFORMERS, named
from clipcheck.families import open_clip as family
from clipcheck.families import transformers as of_transformers
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.programs import write_pt2
from clipcheck.writers.synthesize import shallow

EXAMPLES = 8
COLUMNS = [
    "computed by",
    "activation, images",
    "activation, texts",
    "gates that fail",
    "fidelity, times its limit",
    "1 - least cosine",
    "top-1 agrees",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("finding", choices=("siglip", "tag", "aimv2"))
    parser.add_argument("--layers", type=int, default=12, help="layers of each tower")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if arguments.finding == "siglip":
            siglip(Path(folder), arguments.layers, arguments.tables)
        elif arguments.finding == "aimv2":
            aimv2(arguments.layers, arguments.tables)
        else:
            tag(Path(folder), arguments.tables)


# ------------------------------------------------------------------------------ SigLIP


def siglip(folder: Path, layers: int, tables: Path | None) -> None:
    """Judge open_clip's ViT-B-16-SigLIP and -SigLIP2 against transformers' SiglipModel."""
    reference = shallow(named(f"{TRANSFORMERS}SiglipModel").model, layers)
    assert isinstance(reference, LibraryArchitecture)
    write_folder(reference, folder / "reference")
    weights = as_open_clip(draw(reference))
    with table("finding-siglip", COLUMNS, tables) as row:
        for name in ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"):
            found = named(f"{OPEN_CLIP}{name}").model
            assert isinstance(found, LibraryArchitecture)
            settings = found.settings
            settings["model_cfg"]["text_cfg"] |= {"layers": layers, "vocab_size": 32000}
            make_shallow(settings["model_cfg"]["vision_cfg"], folder, layers)
            model = family.build(_configured(settings), weights)
            row(*judged(f"open_clip, {name}", model, folder))
        for module in model.modules():
            if isinstance(module, nn.GELU) or type(module).__name__ == "GELUTanh":
                module.forward = partial(nn.functional.gelu, approximate="tanh")
        row(*judged("the last one, with tanh GELU in both towers", model, folder))


def _configured(settings: Mapping[str, Any]) -> LibraryArchitecture:
    return LibraryArchitecture("open_clip", json.dumps(settings, sort_keys=True), "")


KEYS = (
    (r"vision_model\.embeddings\.patch_embedding", "visual.trunk.patch_embed.proj"),
    (r"vision_model\.encoder\.layers", "visual.trunk.blocks"),
    (r"vision_model\.post_layernorm", "visual.trunk.norm"),
    (r"vision_model\.head\.attention\.out_proj", "visual.trunk.attn_pool.proj"),
    (r"vision_model\.head\.layernorm", "visual.trunk.attn_pool.norm"),
    (r"vision_model\.head\.mlp", "visual.trunk.attn_pool.mlp"),
    (r"vision_model\.head\.probe", "visual.trunk.attn_pool.latent"),
    (r"(visual.*)\.layer_norm", r"\1.norm"),
    (r"(visual.*)\.self_attn\.out_proj", r"\1.attn.proj"),
    (r"text_model\.embeddings\.token_embedding", "text.token_embedding"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (r"text_model\.encoder\.layers", "text.transformer.resblocks"),
    (r"text_model\.final_layer_norm", "text.ln_final"),
    (r"text_model\.head", "text.text_projection"),
    (r"(text.*)\.layer_norm", r"\1.ln_"),
    (r"(text.*)\.self_attn\.out_proj", r"\1.attn.out_proj"),
    (r"(text.*)\.mlp\.fc1", r"\1.mlp.c_fc"),
    (r"(text.*)\.mlp\.fc2", r"\1.mlp.c_proj"),
)
"""Patterns of keys in transformers, with their replacement in open_clip, in order."""


def as_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a SiglipModel to the keys of open_clip's CustomTextCLIP."""
    found = {}
    for key, tensor in weights.items():
        for pattern, name in KEYS:
            key = re.sub(f"^{pattern}", name, key)
        found[key] = tensor
    positions = found.pop("vision_model.embeddings.position_embedding.weight")
    found["visual.trunk.pos_embed"] = positions[None]
    for part in ("weight", "bias"):
        # The probe is the query of the pooling.
        inside = found.pop(f"vision_model.head.attention.in_proj_{part}")
        query, key_and_value = inside.tensor_split([len(inside) // 3])
        found[f"visual.trunk.attn_pool.q.{part}"] = query
        found[f"visual.trunk.attn_pool.kv.{part}"] = key_and_value
        for key in [key for key in found if key.endswith(f".self_attn.q_proj.{part}")]:
            block = key.removesuffix(f".self_attn.q_proj.{part}")
            parts = [found.pop(f"{block}.self_attn.{each}_proj.{part}") for each in "qkv"]
            joined = f"attn.qkv.{part}" if "visual" in block else f"attn.in_proj_{part}"
            found[f"{block}.{joined}"] = torch.cat(parts)
    return found


# ------------------------------------------------------------------------------ AIMv2


def aimv2(layers: int, tables: Path | None) -> None:
    """Compare the features of one text without padding, alone and beside a shorter text, with
    float64 and attention written out, where each position sees only those before it."""
    reference = shallow(named(f"{TRANSFORMERS}Aimv2Model").model, layers)
    assert isinstance(reference, LibraryArchitecture)
    model: Any = of_transformers.build(reference, draw(reference))
    texts = model.model.config.text_config
    ids = torch.arange(1000, 1000 + 2 * texts.max_position_embeddings).reshape(2, -1)
    ids[0, -1] = ids[1, 8] = texts.eos_token_id
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0

    def features(dtype: torch.dtype, attention: str, rows: int, masked: bool = True) -> Tensor:
        model.model.to(dtype).set_attn_implementation(attention)
        given = {"attention_mask": mask[:rows]} if masked else {}
        found = model.model.get_text_features(input_ids=ids[:rows], **given).pooler_output
        return found[0].double()

    exact = features(torch.float64, "eager", 2)
    columns = ["attention", "in a batch with a shorter text", "alone", "alone, without a mask"]
    with table("finding-aimv2", columns, tables) as row:
        for attention in ("eager", "sdpa"):
            found = (features(torch.float32, attention, *how) for how in ((2,), (1,), (1, False)))
            row(attention, *(f"{(each - exact).norm() / exact.norm():.1e}" for each in found))


# ------------------------------------------------------------------------------ tags


def tag(folder: Path, tables: Path | None) -> None:
    """Judge the model that ``create_model`` builds from weights trained with QuickGELU."""
    import open_clip
    from safetensors.torch import save_file

    from clipcheck.writers.synthesize import synthesize

    reference = named("ViT-B/32").model
    assert isinstance(reference, Architecture)
    weights = {key: tensor.float() for key, tensor in synthesize(reference).items()}
    buffers = ("input_resolution", "context_length", "vocab_size")
    save_file({k: v for k, v in weights.items() if k not in buffers}, folder / "reference")
    (folder / "reference").rename(folder / "reference.safetensors")
    with table("finding-tag", COLUMNS, tables) as row, warnings.catch_warnings(record=True) as told:
        for name in ("ViT-B-32", "ViT-B-32-quickgelu"):
            model = open_clip.create_model(name, pretrained=str(folder / "reference.safetensors"))
            settings = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
            whole = family.OpenClip(model.eval().requires_grad_(False), _configured(settings))
            row(*judged(f"create_model({name!r}, pretrained=PATH)", whole, folder))
    print(f"warnings of it: {[str(each.message) for each in told if 'GELU' in str(each.message)]}")


# ------------------------------------------------------------------------------ judging


def judged(name: str, model: family.OpenClip, folder: Path) -> list[object]:
    """Export a model, and judge the program against the reference in the folder."""
    program = folder / "program.pt2"
    write_pt2(model, program)
    beside = folder / "reference"
    result = clipcheck.check(
        program,
        reference=beside if beside.is_dir() else beside.with_suffix(".safetensors"),
        examples=EXAMPLES,
        isolation="none",
        cache=False,
        ignore="integrity",  # a library joins weights, so they differ from those of the file
        architecture=None if beside.is_dir() else "ViT-B/32",
    )
    print(result)
    (found,) = result.judgements
    gates = {gate.name: gate for gate in found.gates}
    agreement = found.agreement
    return [
        name,
        _activation(model, visual=True),
        _activation(model, visual=False),
        ", ".join(gate.name for gate in found.gates if not gate.passed) or "none",
        f"{gates['fidelity'].margin:,.2g}",
        f"{1 - float(agreement['cosine']):.1e}",
        f"{agreement['top1']} of {agreement['rows']}",
    ]


def _activation(model: family.OpenClip, *, visual: bool) -> str:
    """Name the activations of a tower by their function."""
    x = torch.linspace(-4, 4, 9)
    known = {
        "GELU": nn.functional.gelu(x),
        "tanh GELU": nn.functional.gelu(x, approximate="tanh"),
        "QuickGELU": x * torch.sigmoid(1.702 * x),
    }
    found = {
        next(name for name, y in known.items() if torch.allclose(module(x), y, atol=1e-6))
        for key, module in model.named_modules()
        if "GELU" in type(module).__name__ and model.is_visual(key) == visual
    }
    return ", ".join(sorted(found))


if __name__ == "__main__":
    main()
