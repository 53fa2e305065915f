"""Sources of a checkpoint's architecture, before its weights are converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipcheck.audit.faults import fault_named
from clipcheck.backends import dealing
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.told import Told, named
from clipcheck.errors import ArchitectureError, DamagedError, UnfitError
from clipcheck.harness import converting
from clipcheck.harness.converting import require_convertible
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import write_archive
from clipcheck.writers.convert import convert
from clipcheck.writers.synthesize import synthesize
from tests.archives import (
    METHODS,
    reference,
    traced,
    traced_forward,
    with_epsilon,
    with_gelu,
    with_heads,
)
from tests.samples import (
    CRC32,
    MINUTE,
    MINUTE_RESNET,
    minute_config,
    minute_weights,
    saved,
    with_field,
)
from tests.thorough import parametrize

GELU = MINUTE.with_blocks(activation=Activation.GELU)


class ByErf(nn.Module):
    """GELU, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class ByTanh(nn.Module):
    """Its approximation, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class OfOne(nn.Module):
    """Takes one image, and only the number of texts that it was traced with."""

    def __init__(self, model: Any, texts: int) -> None:
        super().__init__()
        self.clip, self.texts = model, texts

    def encode_image(self, image: Tensor) -> Any:
        return self.clip.encode_image(image.reshape(1, 3, 16, 16))

    def encode_text(self, text: Tensor) -> Any:
        return self.clip.encode_text(text.reshape(self.texts, 8))

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.clip(image.reshape(1, 3, 16, 16), text.reshape(self.texts, 8))


def with_activation(kind: Callable[[], nn.Module], prefix: str = "") -> Any:
    model = reference().float()
    for name, module in model.named_modules():
        if name.startswith(prefix) and name.endswith(".mlp"):
            module.gelu = kind()
    return model


def refused(path: Path, isolation: Any = "none") -> str:
    with pytest.raises(ArchitectureError) as caught:
        require_convertible(open_checkpoint(path), isolation)
    assert "--architecture" in caught.value.remedy
    return caught.value.problem


BOTH = "in the image and text towers, judged as"


@parametrize(
    ("alter", "methods", "message"),
    [
        (lambda: with_activation(ByErf), METHODS, f"uses GELU {BOTH} QuickGELU"),
        (lambda: with_activation(ByTanh), METHODS, f"GELU approximated by tanh {BOTH} QuickGELU"),
        (lambda: with_activation(ByErf, "visual"), METHODS, "GELU in the image tower, judged as"),
        (lambda: with_heads(reference().float(), 2), METHODS, "2 heads in the image tower, judged"),
        (
            lambda: with_epsilon(reference().float(), 1e-12),
            METHODS,
            "epsilon 1e-12 in the text tower, judged as epsilon 1e-05",
        ),
        (lambda: with_activation(ByErf), ("forward",), f"uses GELU {BOTH} QuickGELU"),
        (lambda: with_gelu(reference().float(), "visual"), ("forward",), "GELU in the image tower"),
        (
            lambda: with_activation(ByErf, "transformer"),
            ("encode_text",),
            "GELU in the text tower, judged as QuickGELU",
        ),
        (
            lambda: with_activation(ByErf, "transformer"),
            ("encode_image", "forward"),
            "GELU in the text tower, judged as QuickGELU",
        ),
    ],
    quick=2,
    ids=["erf", "tanh", "image", "heads", "epsilon", "forward", "one", "text", "two"],
)
def test_an_archive_that_computes_as_another_architecture_is_not_converted(
    tmp_path: Path, alter: Callable[[], Any], methods: tuple[str, ...], message: str
) -> None:
    path = traced(alter(), tmp_path / "model.pt", methods)
    problem = refused(path)
    assert message in problem
    assert "which was assumed; converting it as assumed would destroy a good model" in problem
    for told in (MINUTE, GELU):
        known = open_checkpoint(path, told=Told(told, "somebody"))
        assert require_convertible(known).checkpoint is known


def test_for_logits_alone_both_towers_are_changed_together(tmp_path: Path) -> None:
    # With these weights GELU in one tower alone leads no nearer.
    model = with_gelu(reference(seed=3).float(), "")
    path = traced(model, tmp_path / "model.pt", ("forward",))
    assert f"uses GELU {BOTH} QuickGELU" in refused(path)


@parametrize(
    ("takes", "give", "towers"),
    [
        ("it", lambda c, _, i, t: (c.encode_image(i), c.encode_text(t)), "image and text towers"),
        ("it", lambda c, _, i, t: c(i, t)[1], "image and text towers"),
        ("i", lambda c, _, i: c.encode_image(i), "image tower"),
        ("t", lambda c, _, t: c.encode_text(t), "text tower"),
    ],
    quick=1,
    ids=["features", "per-text", "image", "text"],
)
def test_the_outputs_of_forward_show_it_as_well(
    tmp_path: Path, takes: str, give: Callable[..., Any], towers: str
) -> None:
    path = traced_forward(tmp_path / "model.pt", takes, give, model=with_activation(ByErf))
    assert f"uses GELU in the {towers}, judged as QuickGELU" in refused(path)


@parametrize("texts", [3, 1])
def test_an_archive_of_a_single_batch_size_is_run_with_that_size(
    tmp_path: Path, texts: int
) -> None:
    sizes = {"images": 1, "texts": texts}
    path = traced(OfOne(with_activation(ByErf), texts), tmp_path / "gelu.pt", **sizes)
    assert f"uses GELU {BOTH} QuickGELU" in refused(path)
    path = traced(OfOne(reference().float(), texts), tmp_path / "quick.pt", **sizes)
    assert require_convertible(open_checkpoint(path), "none").checkpoint.told


@pytest.mark.thorough
def test_one_traced_under_autocast_is_not_converted_to_what_it_is_further_from(
    tmp_path: Path,
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        path = traced(with_activation(ByErf), tmp_path / "gelu.pt")
        quick = traced(reference().float(), tmp_path / "quick.pt")
    assert "is nearer to GELU in the image and text towers than to QuickGELU" in refused(path)
    known = require_convertible(open_checkpoint(quick), "none")
    assert known.checkpoint.told == ""
    assert "; its own code departs from the assumption (" in known.computes


def test_the_activation_comes_from_the_code_of_a_sound_archive_and_the_file_says_so(
    minute_archive: Path, tmp_path: Path
) -> None:
    known = require_convertible(open_checkpoint(minute_archive))  # in a process of its own
    assert known.computes == f"{MINUTE.summary()}: from its own code, which was run"
    assert known.checkpoint.told == "its own code, which was run"
    convert(known.checkpoint, tmp_path / "a.safetensors", Format.SAFETENSORS)
    assert open_checkpoint(tmp_path / "a.safetensors").told == "its own metadata"


def test_what_is_assumed_is_not_written_as_known(tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    write_archive(MINUTE, minute_weights(), path, alter=fault_named("final-norm-missing").plant)
    known = require_convertible(open_checkpoint(path), "none")
    start = f"{MINUTE.summary()}: assumed, as in the released models; its own code departs from"
    assert known.computes.startswith(f"{start} the assumption (worst error ")
    convert(known.checkpoint, tmp_path / "a.safetensors", Format.SAFETENSORS)
    assert open_checkpoint(tmp_path / "a.safetensors").told == ""


def test_a_tower_that_no_output_shows_is_assumed(tmp_path: Path) -> None:
    path = traced(reference().float(), tmp_path / "model.pt", ("encode_text",))
    known = require_convertible(open_checkpoint(path), "none")
    assert known.checkpoint.told == ""
    assert known.computes.endswith("models; its own code has no output of its image tower")


def test_the_code_runs_where_a_check_runs_it(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    sandbox_for = converting.sandbox_for

    def watched(subject: Checkpoint, device: torch.device, isolation: Any) -> Any:
        asked.append(isolation)
        return sandbox_for(subject, device, isolation)

    monkeypatch.setattr(converting, "sandbox_for", watched)
    for isolation in (None, "none"):
        require_convertible(open_checkpoint(minute_archive), isolation)
    assert asked == [None, "none"]


def test_code_that_cannot_be_run_shows_nothing(
    minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealing, "SIZES", ())  # a number of rows that is not tried
    path = traced(OfOne(reference().float(), 2), tmp_path / "model.pt", images=1, texts=2)
    problem = refused(path)
    assert problem.startswith(
        "only its code tells how the model computes, and it cannot be run: jit: encode_image "
        "failed ("
    )
    monkeypatch.setattr(torchscript_support, "unavailable", lambda: "it is gone")
    assert "and it cannot be run: it is gone" in refused(minute_archive)


def test_where_running_changes_the_weights_they_are_compared_with_no_other_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plant = tmp_path / "model.pt", fault_named("running-mean-updated").plant
    write_archive(MINUTE_RESNET, synthesize(MINUTE_RESNET), path, alter=plant)
    monkeypatch.setattr(converting, "find_alternative", never)
    known = require_convertible(open_checkpoint(path), "none")  # where both share their weights
    assert "its own code departs from the assumption" in known.computes


def test_a_damaged_archive_is_not_run(
    minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(with_field(minute_archive.read_bytes(), "data/0", CRC32, 0))
    monkeypatch.setattr(converting, "opened_sides", never)
    with pytest.raises(DamagedError):
        require_convertible(open_checkpoint(path))


def test_code_is_not_run_for_what_is_known(
    minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "opened_sides", never)
    told = require_convertible(open_checkpoint(minute_archive, told=Told(MINUTE, "somebody")))
    assert told.computes == f"{MINUTE.summary()}: from somebody"
    monkeypatch.setattr(registry, "by_sha256", lambda _: registry.find("ViT-B/32"))
    released = require_convertible(open_checkpoint(minute_archive))
    assert released.checkpoint.told == "the released file of ViT-B/32"
    (tmp_path / "w.pt").write_bytes(saved(minute_weights()))
    with pytest.raises(ArchitectureError, match="epsilon are not known"):
        require_convertible(open_checkpoint(tmp_path / "w.pt"))


def test_a_model_that_a_library_computes_is_not_converted(tmp_path: Path) -> None:
    config = minute_config(tmp_path)
    biased = {**json.loads(config.read_text()), "init_logit_bias": -10.0}
    config.write_text(json.dumps(biased))
    path = tmp_path / "w.pt"
    path.write_bytes(saved({**minute_weights(), "logit_bias": torch.tensor(-10.0)}))
    with pytest.raises(
        UnfitError, match=r"init_logit_bias -10\.0, which clipcheck cannot convert\. Write it"
    ):
        require_convertible(open_checkpoint(path, told=named(str(config))))


def never(*_: object, **__: object) -> Any:
    raise AssertionError("it was called")
