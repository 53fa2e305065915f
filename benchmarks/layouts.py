"""Judge programs in the layouts in which they are shipped: sound ones, and ones with a fault.

Each layout is built with seeded weights as its exporter builds it: names, shapes and dtypes of
inputs and outputs, one file or two. Then `clipcheck check` judges it, once sound and once with a
fault planted before the export.

    python -m benchmarks.layouts
    python -m benchmarks.layouts --tables docs/evidence/tables
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import tables
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families import eager
from clipcheck.gates.result import GateResult
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.results.judgement import Judgement
from clipcheck.system import torchscript_support
from clipcheck.testing import check
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import architecture_named, synthesize

Model = eager.CLIP
Write = Callable[[Model, Path], str]


class Images(nn.Module):
    """The image tower alone; with ``unit``, features of length 1."""

    def __init__(self, model: Model, *, unit: bool = False) -> None:
        super().__init__()
        self.model, self.unit = model, unit

    def forward(self, image: Tensor) -> Tensor:
        return _unit(self.model.encode_image(image), self.unit)


class Texts(Images):
    """The text tower alone."""

    def forward(self, text: Tensor) -> Tensor:
        return _unit(self.model.encode_text(text), self.unit)


class MaskedTexts(Images):
    """The text tower as optimum exports it: with a mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # CLIP's attention is causal: tokens after the end have no effect, masked or not.
        kept = input_ids * attention_mask
        return _unit(self.model.encode_text(kept), self.unit)


class Optimum(nn.Module):
    """transformers' ``CLIPModel``, as optimum exports it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        image = self.model.encode_image(pixel_values)
        text = self.model.encode_text(input_ids * attention_mask)
        per_image, per_text = self.model.logits(image, text)
        return per_image, per_text, _unit(text, True), _unit(image, True)


class Sentences(Optimum):
    """CLIP as sentence-transformers exports it: both embeddings, no logits."""

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        return super().forward(input_ids, pixel_values, attention_mask)[2:]


class Pictures(Images):
    """The image tower for uint8 pictures, which it normalises itself."""

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
        return super().forward((image.float() / 255 - mean) / std)


class Colours(Pictures):
    """The image tower for colours from 0 to 1, which it normalises itself."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image * 255)


def _unit(features: Tensor, wanted: bool) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True) if wanted else features


def example(model: Model, images: int, texts: int, ids: torch.dtype) -> dict[str, Tensor]:
    """Example inputs of a model, by the names that exporters use."""
    side, length = model.image_resolution, model.context_length
    pixels = torch.rand(images, 3, side, side)
    tokens = torch.ones(texts, length, dtype=ids)
    return {
        "image": pixels,
        "pixel_values": pixels,
        "picture": (pixels * 255).to(torch.uint8),
        "text": tokens,
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


def onnx_file(
    module: nn.Module,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    batch: tuple[int, int] | None = None,
    ids: torch.dtype = torch.int64,
) -> None:
    """Export a module by names.

    Args:
        module: over an eager model.
        path: where to.
        inputs: of `example`, in its order.
        outputs: names, in its order.
        batch: the only numbers of images and texts; None for any.
        ids: the dtype of ids.
    """
    model = module.model
    given = example(model, *(batch or (2, 3)), ids)
    rows = {"input_ids": "texts", "attention_mask": "texts", "text": "texts"}
    axes = {name: {0: rows.get(name, "images")} for name in inputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Most files were made by this exporter; torch warns that it is deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(given[name] for name in inputs),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=None if batch else axes,
            opset_version=17,
            dynamo=False,
        )


def immich(model: Model, folder: Path) -> str:
    one = (1, 1)
    images, texts = Images(model, unit=True), Texts(model, unit=True)
    onnx_file(images, folder / "visual/model.onnx", ["image"], ["embedding"], batch=one)
    textual = folder / "textual/model.onnx"
    onnx_file(texts, textual, ["text"], ["embedding"], batch=one, ids=torch.int32)
    return str(folder)


def transformers_js(model: Model, folder: Path) -> str:
    images, texts = folder / "onnx/vision_model.onnx", folder / "onnx/text_model.onnx"
    onnx_file(Images(model), images, ["pixel_values"], ["image_embeds"])
    onnx_file(Texts(model), texts, ["input_ids"], ["text_embeds"])
    return str(folder)


def _optimum(module: nn.Module, folder: Path, outputs: Sequence[str]) -> str:
    inputs = ["input_ids", "pixel_values", "attention_mask"]
    onnx_file(module, folder / "model.onnx", inputs, outputs)
    return str(folder / "model.onnx")


OPTIMUM = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


def optimum(model: Model, folder: Path) -> str:
    return _optimum(Optimum(model), folder, OPTIMUM)


def sentence_transformers(model: Model, folder: Path) -> str:
    return _optimum(Sentences(model), folder, OPTIMUM[2:])


def fastembed(model: Model, folder: Path) -> str:
    path = folder / "model.onnx"
    inputs = ["input_ids", "attention_mask"]
    onnx_file(MaskedTexts(model, unit=True), path, inputs, ["text_embeds"])
    return str(path)


def clip_onnx(model: Model, folder: Path) -> str:
    images, texts = folder / "a.onnx", folder / "b.onnx"
    onnx_file(Images(model), images, ["image"], ["output"])
    onnx_file(Texts(model), texts, ["text"], ["output"])
    return f"image={images},text={texts}"


def pictures(model: Model, folder: Path) -> str:
    path = folder / "model.onnx"
    onnx_file(Pictures(model), path, ["picture"], ["image_features"])
    return str(path)


def colours(model: Model, folder: Path) -> str:
    path = folder / "model.onnx"
    onnx_file(Colours(model), path, ["image"], ["image_features"])
    return str(path)


def fixed_pt2(model: Model, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.pt2"
    given = example(model, 2, 3, torch.int64)
    program = torch.export.export(model.eval(), (given["image"], given["text"]), strict=False)
    torch.export.save(program, path)
    return str(path)


def half(model: Model, folder: Path, *, keep: bool) -> str:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = optimum(model, folder)
    with warnings.catch_warnings():
        # The converter warns of weights that it rounds to the smallest float16.
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=keep), path)
    return path


def half_inside(model: Model, folder: Path) -> str:
    return half(model, folder, keep=True)


def half_throughout(model: Model, folder: Path) -> str:
    return half(model, folder, keep=False)


def stored(model: Model, folder: Path, *, dtype: torch.dtype) -> str:
    """Store the weights of an ONNX program in another dtype, each with a cast to float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = optimum(model, folder)
    program = onnx.load(path)
    kinds = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}
    casts = []
    for each in program.graph.initializer:
        if each.data_type == TensorProto.FLOAT and each.dims:
            rounded = torch.from_numpy(numpy_helper.to_array(each).copy()).to(dtype)
            raw = rounded.view(torch.int16).numpy().tobytes()
            name = f"{each.name}_stored"
            casts.append(helper.make_node("Cast", [name], [each.name], to=TensorProto.FLOAT))
            each.CopyFrom(helper.make_tensor(name, kinds[dtype], each.dims, raw, raw=True))
    nodes = [*casts, *program.graph.node]
    del program.graph.node[:]
    program.graph.node.extend(nodes)
    onnx.save(program, path)
    return path


def stored_in_float16(model: Model, folder: Path) -> str:
    return stored(model, folder, dtype=torch.float16)


def stored_in_bfloat16(model: Model, folder: Path) -> str:
    return stored(model, folder, dtype=torch.bfloat16)


def int8(model: Model, folder: Path) -> str:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = optimum(model, folder)
    written = str(folder / "model_quantized.onnx")
    logging.disable(logging.WARNING)  # advice to optimise the program first
    quantize_dynamic(path, written, weight_type=QuantType.QInt8, per_channel=True)
    logging.disable(logging.NOTSET)
    return written


def fixed_archive(model: Model, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    model, path = copy.deepcopy(model).eval(), folder / "model.pt"
    given = example(model, 2, 3, torch.int64)
    for part, kind in ((model.visual, "image"), (model.token_embedding, "text")):
        shape = tuple(given[kind].shape)
        part.register_forward_pre_hook(lambda _, taken, shape=shape: taken[0].reshape(shape))
    image, text = given["image"], given["text"]
    methods = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    with torch.no_grad(), torchscript_support.silenced(), warnings.catch_warnings():
        # Tracing warns of the comparisons of shapes in torch's own attention.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace_module(model, methods, check_trace=False), path)
    return str(path)


@dataclass(frozen=True)
class Layout:
    """A way to ship a model.

    Attributes:
        name: description for the table.
        write: writes the model into a folder, and returns the argument of `clipcheck check`.
        shown: this argument, as the table shows it, with its options.
        budget: of the check; None for none.
        names: its option ``--map``; None for none.
        steps: of the changed weight: half of the number of its values.
    """

    name: str
    write: Write
    shown: str
    budget: str | None = None
    names: str | None = None
    steps: int = 127


LAYOUTS = (
    Layout("Immich: two files, batch 1, normalised `embedding`, int32 ids", immich, "FOLDER"),
    Layout("transformers.js: `vision_model.onnx`, `text_model.onnx`", transformers_js, "FOLDER"),
    Layout("CLIP-ONNX: two files of any names", clip_onnx, "image=a.onnx,text=b.onnx"),
    Layout("optimum: one file, normalised embeddings and logits", optimum, "model.onnx"),
    Layout("sentence-transformers: embeddings alone", sentence_transformers, "model.onnx"),
    Layout("fastembed: text tower alone, with a mask", fastembed, "model.onnx"),
    Layout("image tower of uint8 pictures, normalised inside", pictures, "model.onnx"),
    Layout(
        "image tower of colours from 0 to 1, normalised inside",
        colours,
        "model.onnx --map image=colours",
        names="image=colours",
    ),
    Layout("torch.export of 2 images and 3 texts only", fixed_pt2, "model.pt2"),
    Layout("float16 inside, float32 in and out", half_inside, "model.onnx"),
    Layout("float16 throughout", half_throughout, "model.onnx"),
    Layout("float16 weights, each cast to float32", stored_in_float16, "model.onnx"),
    Layout("bfloat16 weights, each cast to float32", stored_in_bfloat16, "model.onnx"),
    Layout("TorchScript archive of 2 images and 3 texts only", fixed_archive, "model.pt"),
    Layout(
        "dynamic int8 by channel",
        int8,
        "model_quantized.onnx --budget int8",
        budget="int8",
        steps=7,
    ),
)


def broken(model: Model, steps: int = 127) -> Model:
    """Copy a model, with one weight of each tower changed as by rounding to ``steps`` values of
    each sign: 127 for 8 bits."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for blocks in (found.visual.transformer, found.transformer):
            weight = blocks.resblocks[0].mlp.c_fc.weight
            step = weight.abs().max() / steps
            weight.copy_((weight / step).round() * step)
    return found


def judge(layout: Layout, model: Model, folder: Path, reference: Path) -> Judgement:
    """Write a model in a layout and check it."""
    name = layout.write(model, folder)
    how = {"device": "cpu", "isolation": "none", "budget": layout.budget, "map": layout.names}
    (found,) = check(name, reference=reference, **how).judgements
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    architecture = architecture_named("tiny-vit")
    weights = synthesize(architecture)
    model = eager.build(architecture, {key: tensor.float() for key, tensor in weights.items()})
    columns = [
        "layout",
        "`clipcheck check ... --reference model.pt`",
        "sound",
        "one weight changed",
    ]
    with (
        tempfile.TemporaryDirectory() as place,
        tables.table("layouts", columns, arguments.tables) as row,
    ):
        reference = Path(place) / "reference.pt"
        write(architecture, weights, reference, Format.ARCHIVE)
        for number, layout in enumerate(LAYOUTS):
            found = [
                judge(layout, each, Path(place) / f"{number}-{kind}", reference)
                for kind, each in enumerate((model, broken(model, layout.steps)))
            ]
            row(layout.name, f"`{layout.shown}`", *map(verdict, found))


def verdict(judgement: Judgement) -> str:
    """Describe a verdict: its state, and the gate closest to its limit."""
    if judgement.error is not None:
        return f"not judged: {judgement.error}"
    judged = [gate for gate in judgement.gates if gate.judged]
    worst: GateResult = max(judged, key=lambda gate: gate.margin)
    margin = "" if worst.margin == float("inf") else f", {worst.margin:.2g} times its limit"
    return f"{judgement.state} in {judgement.dtype} ({worst.name}{margin})"


if __name__ == "__main__":
    main()
