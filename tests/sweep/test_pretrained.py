from __future__ import annotations

import open_clip
import pytest

from clipcheck.checkpoints.architecture import ARCHITECTURES, Activation
from clipcheck.checkpoints.registry import RELEASED
from clipcheck.checkpoints.told import named
from clipcheck.sweep.jobs import Source
from clipcheck.sweep.pretrained import entry_of, pretrained

MODEL = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
PLACE = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights"


def test_openais_models_in_the_list_are_known_by_their_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = [pair for pair in open_clip.list_pretrained() if pair[1] == "openai"]
    monkeypatch.setattr(open_clip, "list_pretrained", lambda: listed)
    entries = {entry.label: entry for entry in pretrained()}
    released = {entry.source.sha256 for entry in entries.values() if not entry.unfit}
    assert released == {known.sha256 for known in RELEASED.values()}
    entry = entries["ViT-B-32/openai"]
    known = RELEASED["ViT-B/32"]
    assert entry.source == Source("url", known.url, known.sha256, known.size)
    assert entry.architecture == "open_clip:ViT-B-32/openai"
    assert entry.dimensions == ARCHITECTURES["ViT-B/32"]
    assert entry.backends == ("",)


@pytest.mark.thorough
def test_every_entry_of_the_list_can_be_judged_or_says_why_not() -> None:
    entries = pretrained()
    for entry in entries:
        assert bool(entry.unfit) != (entry.architecture is not None), entry.label
        assert not entry.unfit.endswith(".")
        if entry.architecture is not None and entry.label.startswith("ViT-B-32/"):
            assert named(entry.architecture).architecture == entry.dimensions
    unfit = [entry for entry in entries if entry.unfit]
    assert len(entries) - len(unfit) >= 187
    assert all("of transformers, whose configuration" in entry.unfit for entry in unfit)


def test_the_tag_shows_the_activation() -> None:
    gelu, quick = (
        entry_of("m/t", MODEL, {"url": "https://example.org/m.pt", **more}).dimensions
        for more in ({}, {"quick_gelu": True})
    )
    assert quick == ARCHITECTURES["ViT-B/32"]
    assert gelu == ARCHITECTURES["ViT-B/32"].with_blocks(activation=Activation.GELU)


def test_open_clip_runs_its_weights_and_their_address_has_the_start_of_their_hash() -> None:
    url = f"{PLACE}/vit_b_32-quickgelu-laion400m_e32-46683a32.pt"
    entry = entry_of("m/t", MODEL, {"url": url, "quick_gelu": True})
    assert entry.backends == ("open_clip",)
    assert entry.source.sha256 == "46683a32"
    assert entry.source.estimated
    assert entry.source.size == pytest.approx(605e6, rel=0.01)


def test_weights_of_the_hub_are_taken_from_there() -> None:
    entry = entry_of("m/t", MODEL, {"url": "", "hf_hub": "timm/vit/", "quick_gelu": True})
    assert (entry.source.kind, entry.source.place) == ("hub", "timm/vit/")


def test_what_open_clip_computes_is_exported_from_it() -> None:
    model = {**MODEL, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160}}
    entry = entry_of("m/t", model, {"url": "", "hf_hub": "timm/vit/"})
    assert (entry.unfit, entry.backends, entry.architecture) == ("", ("export",), "open_clip:m/t")
    assert entry.source.size == pytest.approx(257e6, rel=0.05)


def test_an_address_without_a_hash_has_none() -> None:
    url = "https://example.org/46683a32/model-46683a32.pt"
    assert entry_of("m/t", MODEL, {"url": url, "quick_gelu": True}).source.sha256 == ""


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (None, "expected an object under 'model_cfg.vision_cfg', found nothing"),
        ({**MODEL, "vision_cfg": {"timm_model_name": "no_net"}}, "Unknown model (no_net)"),
        ({**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "layers": [1, 2]}}, r"layers is [1, 2]"),  # type: ignore[dict-item]
        ({**MODEL, "multimodal_cfg": {"warp": 9}}, "warp"),
        ({**MODEL, "text_cfg": {"hf_model_name": "roberta-base"}}, "'roberta-base' of transf"),
    ],
)
def test_another_model_is_left_out(model: dict[str, object] | None, told: str) -> None:
    entry = entry_of("m/t", model, {"url": "https://example.org/m.pt", "quick_gelu": True})
    assert told in entry.unfit
