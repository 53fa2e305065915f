"""Archives that others traced: how they are judged, and what is reported of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipcheck
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.errors import ArchitectureError
from clipcheck.gates.alternative import Departure
from clipcheck.gates.result import LOGITS, OUTPUTS
from clipcheck.harness.localising import localize
from clipcheck.report import patched, text
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system import torchscript_support
from clipcheck.writers.synthesize import synthesize
from tests.archives import (
    reference,
    traced,
    traced_forward,
    with_epsilon,
    with_gelu,
    with_heads,
)
from tests.models import inputs
from tests.oracles import open_clip, reference_clip
from tests.samples import MINUTE, MINUTE_RESNET, minute_config, minute_weights
from tests.thorough import parametrize


def checked(
    path: Path, dtype: str = "float32", isolation: str | None = "none", **options: Any
) -> Judgement:
    """Return the judgement of a short check, by default in this process."""
    result = clipcheck.check(path, dtype=dtype, examples=2, isolation=isolation, **options)
    (judgement,) = result.judgements
    return judgement


def failed(judgement: Judgement) -> set[str]:
    assert judgement.error is None, judgement.error
    return {gate.name for gate in judgement.gates if not gate.passed}


# --------------------------------------------------------------------------- the dtype of the code


class WrittenOut(nn.LayerNorm):
    """A LayerNorm in float32, written out step by step."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        mean = y.mean(-1, keepdim=True)
        variance = (y - mean).square().mean(-1, keepdim=True)
        y = (y - mean) / torch.sqrt(variance + self.eps)
        return (y * self.weight.float() + self.bias.float()).type(x.dtype)


def written_out(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = WrittenOut
    return model


@pytest.mark.thorough
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_an_archive_traced_under_autocast_is_judged_in_its_own_dtypes(
    tmp_path: Path, lower: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype=lower):
        path = traced(reference().float(), tmp_path / "autocast.pt")
    judged = checked(path)
    assert {"fidelity", "modules"} <= failed(judged)
    name = str(lower).removeprefix("torch.")
    assert judged.patched is not None
    count = judged.patched.kept[name]
    assert patched.suspicion(judged.patched) == (
        f"its code casts to {name} in {count} places, though its weights are float32: if it was "
        "traced under autocast, trace it again without autocast"
    )
    assert count > 20
    assert checked(traced(reference().float(), tmp_path / "sound.pt")).passed


@parametrize("dtype", ["float32", "float16", "bfloat16"], quick=1)
def test_normalisations_written_out_in_float32_do_not_outvote_the_half_weights(
    tmp_path: Path, dtype: str
) -> None:
    path = traced(written_out(reference()), tmp_path / "half.pt")
    judged = checked(path, dtype)
    assert failed(judged) == set()
    assert judged.patched is not None
    casts, kept = judged.patched.casts, judged.patched.kept
    assert set(kept) == {"float32"}
    if dtype != "float16":
        assert 0 < casts["float16"] < kept["float32"]


# --------------------------------------------------------------------------- archives of open_clip


def open_clip_model(
    kind: str = "CLIP", dtype: torch.dtype = torch.float32, *, quick: bool = True, **options: Any
) -> nn.Module:
    """Return open_clip's model of the same weights; ``kind`` is the name of its class."""
    library = open_clip().model
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    cast = None if dtype == torch.float32 else dtype
    model: nn.Module = getattr(library, kind)(
        64, vision, text, quick_gelu=quick, cast_dtype=cast, **options
    )
    layout = Layout.OPEN_CLIP if kind == "CLIP" else Layout.CUSTOM_TEXT
    model.load_state_dict(to_layout(minute_weights(), layout), strict=False)
    if cast is not None:
        library.convert_weights_to_lp(model, cast)
    return model.eval().requires_grad_(False)


def scripted(model: nn.Module, path: Path) -> Path:
    with torchscript_support.silenced():
        torch.jit.save(torch.jit.script(model), path)
    return path


class Wrapped(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.clip = model

    def encode_image(self, image: Tensor) -> Any:
        return self.clip.encode_image(image)

    def encode_text(self, text: Tensor) -> Any:
        return self.clip.encode_text(text)

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.clip(image, text)


@parametrize(
    ("write", "kind", "options"),
    [
        (scripted, "CLIP", {}),
        (scripted, "CustomTextCLIP", {"output_dict": True}),
        (traced, "CLIP", {"output_dict": True}),
        (lambda model, path: traced(Wrapped(model), path), "CustomTextCLIP", {}),
    ],
    quick=1,
)
def test_archives_of_open_clip_are_judged_like_those_of_the_reference(
    tmp_path: Path, write: Callable[..., Path], kind: str, options: dict[str, Any]
) -> None:
    path = write(open_clip_model(kind, **options), tmp_path / "model.pt")
    judged = checked(path)
    assert failed(judged) == set()
    (found,) = (gate for gate in judged.gates if gate.name == "modules")
    assert found.figures["coverage"] == {"judged": 19, "not_judged": 0}


@pytest.mark.thorough
def test_archives_of_open_clip_in_half_take_pixels_in_half(tmp_path: Path) -> None:
    model = open_clip_model(dtype=torch.float16)
    path = traced(model, tmp_path / "model.pt", pixels=torch.float16)
    for dtype in ("float16", "bfloat16", "float32"):
        assert failed(checked(path, dtype)) == set()


@pytest.mark.thorough
def test_a_fault_in_an_archive_of_open_clip_is_found_by_the_reference_s_names(
    tmp_path: Path,
) -> None:
    model = open_clip_model("CustomTextCLIP", quick=False, output_dict=True)
    # In a process of its own, where names and tensors cross.
    judged = checked(scripted(model, tmp_path / "model.pt"), isolation=None)
    assert failed(judged) == {"fidelity", "modules"}
    assert [place.module for place in judged.departures] == [
        "visual.transformer.resblocks.0.mlp.gelu",
        "transformer.resblocks.0.mlp.gelu",
    ]


# --------------------------------------------------------------------------- outputs that are not


@parametrize(
    ("methods", "absent", "gates"),
    [
        (("forward",), ("image_features", "text_features"), 6),
        (("encode_image", "encode_text"), LOGITS, 4),
        (("encode_text",), ("image_features", *LOGITS), 4),
    ],
    quick=1,
)
def test_existing_outputs_are_judged_and_missing_ones_listed(
    tmp_path: Path, methods: tuple[str, ...], absent: tuple[str, ...], gates: int
) -> None:
    judged = checked(traced(reference().float(), tmp_path / "model.pt", methods))
    assert failed(judged) == set()
    assert judged.absent == absent
    assert len(judged.gates) == gates
    there = {2: "all 2 outputs present", 1: "the one output present"}[4 - len(absent)]
    assert there in judged.gates[0].message
    told = " ".join(text.render(Result((judged,), {"clipcheck": "0"})).split())
    assert f"not in this file: {', '.join(absent)}" in told


def normalised(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)


FORWARDS: dict[str, tuple[str, Callable[..., Any], tuple[str, ...]]] = {
    "image": ("i", lambda c, off, i: c.encode_image(i) + off, ("image_features",)),
    "text": ("t", lambda c, off, t: c.encode_text(t) + off, ("text_features",)),
    "per-image": ("it", lambda c, off, i, t: c(i, t)[0] + off, ("logits_per_image",)),
    "per-text": ("it", lambda c, off, i, t: c(i, t)[1] + off, ("logits_per_text",)),
    "features": (
        "it",
        lambda c, off, i, t: (c.encode_image(i), c.encode_text(t) + off),
        ("image_features", "text_features"),
    ),
    "named": (
        "it",
        lambda c, off, _, t: {"text_features": c.encode_text(t) + off},
        ("text_features",),
    ),
    "all": (
        "it",
        lambda c, off, i, t: (c.encode_image(i), c.encode_text(t) + off, *c(i, t)),
        tuple(OUTPUTS),
    ),
}
"""By name what ``forward`` takes, what it gives, with ``off`` added to some, and what that is."""


@parametrize("name", FORWARDS, quick=1)
def test_outputs_of_forward_are_judged_and_missing_ones_listed(tmp_path: Path, name: str) -> None:
    takes, give, there = FORWARDS[name]
    judged = checked(traced_forward(tmp_path / "model.pt", takes, give))
    assert failed(judged) == set()
    assert judged.absent == tuple(each for each in OUTPUTS if each not in there)


@parametrize(
    ("name", "output", "tower"),
    [
        ("image", "image_features", "image"),
        ("per-text", "logits_per_text", "logits"),
        ("named", "text_features", "text"),
    ],
    quick=1,
)
def test_a_fault_in_the_outputs_of_forward_is_found(
    tmp_path: Path, name: str, output: str, tower: str
) -> None:
    takes, give, _ = FORWARDS[name]
    judged = checked(traced_forward(tmp_path / "model.pt", takes, give, off=0.01))
    assert failed(judged) == {"fidelity"}
    assert judged.failing is not None
    assert judged.failing.measure.output == output
    assert [place.tower for place in judged.departures] == [tower]


@pytest.mark.thorough
@parametrize("name", ["image", "features"], quick=1)
def test_a_forward_beside_the_encoders_has_to_agree_with_them(tmp_path: Path, name: str) -> None:
    takes, give, _ = FORWARDS[name]
    for off, expected in ((0.0, set()), (0.01, {"repeatability"})):
        path = tmp_path / f"{off}.pt"
        traced_forward(path, takes, give, "encode_image", "encode_text", off=off)
        judged = checked(path)
        assert failed(judged) == expected
        assert judged.absent == LOGITS


@parametrize(
    ("takes", "give", "problem"),
    [
        (
            "it",
            lambda c, _, i, t: (normalised(c.encode_image(i)), normalised(c.encode_text(t))),
            "forward gave normalised features and no scale, expected logits per image and per",
        ),
        ("it", lambda c, _, i, t: (c(i, t)[0].sum(),) * 3, "forward gave a tuple of a tensor of"),
        (
            "itt",
            lambda c, _, i, t, u: c(i, t + 0 * u),
            "forward takes 3 tensors, expected pixels and",
        ),
    ],
    quick=1,
    ids=["normalised", "sums", "three"],
)
def test_an_unrecognised_forward_is_reported_in_one_line_with_what_was_expected(
    tmp_path: Path, takes: str, give: Callable[..., Any], problem: str
) -> None:
    path = tmp_path / "model.pt"
    judged = checked(traced_forward(path, takes, give))
    assert judged.gates == ()
    assert str(judged.error).startswith(f"jit: {problem}")
    judged = checked(traced_forward(path, takes, give, "encode_image", "encode_text"))
    assert failed(judged) == {"integrity"}
    assert judged.gates[0].message.startswith(f"jit: {problem}")
    assert ";" not in judged.gates[0].message
    assert judged.absent == LOGITS


class Idle(nn.Module):
    """Holds a model and has none of its methods, or one that fails."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in model.named_children():
            self.add_module(name, child)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_projection[tokens.long() + 1000]

    def other(self, tokens: Tensor) -> Tensor:
        return tokens + 1


@pytest.mark.parametrize("promised", [True, False])
def test_a_failing_method_is_a_failure_and_an_archive_without_methods_is_not_judged(
    tmp_path: Path, promised: bool
) -> None:
    path = tmp_path / "model.pt"
    model = Idle(reference().float())
    tokens = torch.full((1, 8), -1000)
    name = "encode_text" if promised else "other"
    with torchscript_support.silenced():
        module = torch.jit.trace_module(model, {name: (tokens,)}, check_trace=False)
        torch.jit.save(module, path)
    judged = checked(path)
    if promised:
        assert {"integrity", "fidelity"} <= failed(judged)
        assert "encode_text failed" in judged.gates[0].message
    else:
        assert judged.error is not None
        assert "jit: it gives none of image_features, text_features" in judged.error


# --------------------------------------------------------------------------- fixed batches


class OfThree(nn.Embedding):
    """Embeds the ids of 3 texts, the last one with an error."""

    off = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        last = torch.tensor([0.0, 0.0, self.off]).reshape(3, 1, 1)
        found = super().forward(ids.reshape(3, MINUTE.context_length))
        return found * (1 + last)


def of_one_size(path: Path, off: float = 0.0) -> Path:
    """Return an archive that runs only 2 images and 3 texts, the last one with an error."""
    model = reference().float()
    model.visual.register_forward_pre_hook(lambda _, given: given[0].reshape(2, 3, 16, 16))
    model.token_embedding.__class__ = OfThree
    model.token_embedding.off = off
    return traced(model, path, images=2, texts=3)


def test_an_archive_of_one_batch_size_gets_batches_of_that_size(tmp_path: Path) -> None:
    judged = checked(of_one_size(tmp_path / "model.pt"))
    assert failed(judged) == set()
    assert judged.batches == ((2, 3),)
    told = text.render(Result((judged,), {"clipcheck": "0"}))
    assert "runs batches of 2 images and 3 texts only" in told


@pytest.mark.thorough
def test_other_batch_sizes_may_be_required(tmp_path: Path) -> None:
    path = of_one_size(tmp_path / "model.pt")
    required = checked(path, isolation="process", require="dynamic-batch")
    assert failed(required) == {"integrity"}
    assert localize(path).passed


def test_a_fault_of_one_row_of_the_batch_is_found(tmp_path: Path) -> None:
    judged = checked(of_one_size(tmp_path / "model.pt", 1e-3))
    assert {"fidelity", "modules", "repeatability"} <= failed(judged)
    assert "integrity" not in failed(judged)
    assert [place.module for place in judged.departures] == ["token_embedding"]


# --------------------------------------------------------------------------- other architectures


GELU = Departure("GELU", "QuickGELU")


@pytest.mark.thorough
@parametrize(
    ("alter", "expected"),
    [
        (lambda m: with_gelu(m, ""), {"image": GELU, "text": GELU}),
        (
            lambda m: with_gelu(m, "transformer", "tanh"),
            {"text": Departure("GELU approximated by tanh", "QuickGELU")},
        ),
        (
            lambda m: with_heads(with_gelu(m, "visual"), 4),
            {"image": Departure("GELU and 4 heads", "QuickGELU and 1 head")},
        ),
        (
            lambda m: with_epsilon(m, 1e-12),
            {"text": Departure("epsilon 1e-12", "epsilon 1e-05")},
        ),
    ],
    quick=2,
    ids=["gelu", "text-tanh", "gelu-heads", "epsilon"],
)
def test_the_architecture_that_an_archive_computes_is_reported(
    tmp_path: Path, alter: Callable[[Any], Any], expected: dict[str, Departure]
) -> None:
    judged = checked(traced(alter(reference().float()), tmp_path / "model.pt"))
    assert failed(judged)
    assert judged.assumed
    assert judged.alternative == expected


@pytest.mark.thorough
def test_the_heads_of_a_resnet_are_reported(tmp_path: Path) -> None:
    model = reference_clip().model.build_model(synthesize(MINUTE_RESNET)).eval().float()
    model.requires_grad_(False).visual.attnpool.num_heads = 2
    judged = checked(traced(model, tmp_path / "model.pt", architecture=MINUTE_RESNET))
    assert judged.alternative == {"image": Departure("2 heads", "1 head")}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        # Nearer to 1e-12 in all of the tower than to 1e-5, by chance.
        pytest.param("visual.ln_pre", "eps", 1e-6, id="ln_pre"),
        pytest.param("visual.transformer.resblocks.0.mlp", "gelu", nn.ReLU(), id="relu"),
    ],
)
def test_a_fault_is_not_reported_as_another_architecture(
    tmp_path: Path, module: str, name: str, value: object
) -> None:
    model = reference().float()
    setattr(model.get_submodule(module), name, value)
    judged = checked(traced(model, tmp_path / "model.pt"))
    assert failed(judged)
    assert judged.alternative is None


@pytest.mark.thorough
def test_a_fault_with_another_activation_is_reported_as_nearer_to_that_activation(
    tmp_path: Path,
) -> None:
    model = with_gelu(reference().float(), "visual")
    model.visual.ln_post.eps = 1e-4
    path = traced(model, tmp_path / "model.pt")
    judged = checked(path)
    assert failed(judged)
    assert judged.alternative == {"image": replace(GELU, equal=False)}
    judged = checked(path, architecture=minute_config(tmp_path))
    assert failed(judged)
    assert judged.alternative is None


@pytest.mark.thorough
@pytest.mark.parametrize(("activation", "towers"), [("GELU", ["image", "text"]), ("", [])])
def test_the_nearer_activation_is_reported_for_an_archive_traced_under_autocast(
    tmp_path: Path, activation: str, towers: list[str]
) -> None:
    model = reference().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        path = traced(with_gelu(model, "") if activation else model, tmp_path / "autocast.pt")
    judged = checked(path)
    assert failed(judged)
    assert list(judged.alternative or {}) == towers
    plain = " ".join(text.render(Result((judged,), {"clipcheck": "0"})).split())
    # What converts it, or does not, is told what it is of.
    assert ("--architecture ARCH -o fixed.pt" in plain) is (not towers)
    assert ("clipcheck convert" in plain) is (not towers)


# --------------------------------------------------------------------------- archives without keys


def frozen(model: nn.Module, path: Path) -> Path:
    module = torch.jit.load(traced(model, path)).eval()
    kept = ["encode_image", "encode_text", "logit_scale"]
    torch.jit.save(torch.jit.freeze(module, preserved_attrs=kept), path)
    return path


def quantized(model: nn.Module, path: Path, dtype: torch.dtype) -> Path:
    kinds = {nn.Linear}
    return traced(torch.ao.quantization.quantize_dynamic(model, kinds, dtype=dtype), path)


def with_a_quantized_buffer(model: nn.Module, path: Path) -> Path:
    model.register_buffer("buffer", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    return traced(model, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (frozen, "it is frozen: its weights are constants of its code"),
        (partial(quantized, dtype=torch.qint8), "it is quantized"),
        (partial(quantized, dtype=torch.float16), "it is quantized"),
        (with_a_quantized_buffer, "it is quantized: its pickle names torch._utils"),
    ],
    ids=["frozen", "int8", "float16", "buffer"],
)
def test_archives_whose_weights_have_no_names_are_distinguished(
    tmp_path: Path, write: Callable[..., Path], message: str
) -> None:
    with torchscript_support.silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantization, which torch is about to drop
        path = write(reference().float(), tmp_path / "model.pt")
    with pytest.raises(ArchitectureError, match=message):
        open_checkpoint(path)


def test_an_archive_with_a_logit_bias_is_refused(tmp_path: Path) -> None:
    path = scripted(open_clip_model(init_logit_bias=-10.0), tmp_path / "model.pt")
    with pytest.raises(ArchitectureError, match="logit_bias"):
        open_checkpoint(path)


def test_an_archive_of_open_clip_loads_as_with_the_reference_package(tmp_path: Path) -> None:
    path = scripted(open_clip_model("CustomTextCLIP"), tmp_path / "model.pt")
    jit, eager, _ = clipcheck.load_both(path, device="cpu")
    with torch.inference_mode(), torchscript_support.silenced():
        image, _ = inputs(MINUTE)
        torch.testing.assert_close(jit.encode_image(image), eager.encode_image(image))
    assert jit.text.ln_final.weight.data_ptr() == eager.ln_final.weight.data_ptr()
