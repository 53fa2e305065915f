"""Record the calls of an archive's modules."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.models import taps
from clipcheck.models.taps import Site, listening, tap
from clipcheck.models.torchscript import load_archive, patch
from clipcheck.system import torchscript_support
from conftest import SeededArchive
from tests.models import inputs

CPU = torch.device("cpu")

Heard = list[tuple[str, str, bool, list[tuple[int, ...]]]]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torchscript_support.silenced(), torch.inference_mode():
        yield


def loaded(path: Path) -> torch.jit.ScriptModule:
    """Run as it is on the CPU."""
    module = load_archive(path, CPU)
    for key, tensor in module.state_dict().items():
        if tensor.dtype == torch.float16:
            held = module
            *path_to, name = key.split(".")
            for part in path_to:
                held = getattr(held, part)
            getattr(held, name).data = tensor.float()
    patch(module, CPU, torch.float32, ["float16"])
    return module


class Recorder:
    """Records names and shapes, and no tensors."""

    def __init__(self) -> None:
        self.heard: Heard = []

    def __call__(self, site: Site, entering: bool, tensors: Sequence[Tensor]) -> None:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        self.heard.append((site.module, site.method, entering, shapes))

    def calls(self) -> list[tuple[str, str]]:
        """Return modules and methods in the order in which the calls began."""
        return [(module, method) for module, method, entering, _ in self.heard if entering]

    def shapes(self, module: str, *, entering: bool) -> list[tuple[int, ...]]:
        """Return the shapes of the first call."""
        return next(s for m, _, begins, s in self.heard if (m, begins) == (module, entering))


BLOCK = ["", ".ln_1", ".attn", ".ln_2", ".mlp", ".mlp.c_fc", ".mlp.gelu", ".mlp.c_proj"]


def blocks(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{i}{part}" for i in range(count) for part in BLOCK]


def vit_calls() -> tuple[list[str], list[str]]:
    image = [
        "visual",
        "visual.conv1",
        "visual.ln_pre",
        "visual.transformer",
        "visual.transformer.resblocks",
        *blocks("visual.transformer.resblocks", 3),
        "visual.ln_post",
    ]
    text = ["token_embedding", "transformer", "transformer.resblocks"]
    return image, [*text, *blocks("transformer.resblocks", 2), "ln_final"]


def test_every_submodule_that_is_called_is_heard_in_the_order_of_the_calls(
    seeded_archive: SeededArchive,
) -> None:
    path = seeded_archive("tiny-vit")
    module = loaded(path)
    tap(module)
    pixels, tokens = inputs(open_checkpoint(path).architecture)
    image, text = vit_calls()
    recorder = Recorder()
    with listening(recorder):
        module.encode_image(pixels)
        assert recorder.calls() == [(name, "forward") for name in image]
        recorder.heard.clear()
        module.encode_text(tokens)
        assert recorder.calls() == [(name, "forward") for name in text]
        recorder.heard.clear()
        module(pixels, tokens)
        assert recorder.calls() == [(name, "forward1") for name in [*image, *text]]


def test_a_call_ends_with_what_comes_out_after_all_calls_inside_of_it(tiny_archive: Path) -> None:
    module = loaded(tiny_archive)
    tap(module)
    recorder = Recorder()
    with listening(recorder):
        module(*inputs(open_checkpoint(tiny_archive).architecture))
    open_calls: list[tuple[str, str]] = []
    for name, method, entering, _ in recorder.heard:
        if entering:
            assert not open_calls or name.startswith(open_calls[-1][0])
            open_calls.append((name, method))
        else:
            assert open_calls.pop() == (name, method)
    assert open_calls == []
    assert len(recorder.heard) > 2 * 20


def test_tensors_are_those_that_go_in_and_come_out(seeded_archive: SeededArchive) -> None:
    path = seeded_archive("tiny-vit")
    a = open_checkpoint(path).architecture
    module = loaded(path)
    tap(module)
    pixels, tokens = inputs(a)  # Two images, three texts.
    recorder = Recorder()
    with listening(recorder):
        module(pixels, tokens)
    side, width = a.image_resolution, 128
    assert recorder.shapes("visual", entering=True) == [(2, 3, side, side)]
    assert recorder.shapes("visual", entering=False) == [(2, a.embed_dim)]
    assert recorder.shapes("visual.conv1", entering=False) == [(2, width, a.grid, a.grid)]
    positions = (a.grid**2 + 1, 2, width)
    for part in ("", ".attn"):
        name = f"visual.transformer.resblocks.1{part}"
        # The eager model's attention takes [L, N, D] as well; the released one a mask, too.
        assert recorder.shapes(name, entering=True)[0] == positions
        assert recorder.shapes(name, entering=False) == [positions]
    assert recorder.shapes("transformer.resblocks.1.mlp.gelu", entering=True) == [
        (a.context_length, 3, 4 * width)
    ]
    assert recorder.shapes("token_embedding", entering=True) == [(3, a.context_length)]
    assert recorder.shapes("ln_final", entering=False) == [(3, a.context_length, width)]


def test_the_values_are_those_of_the_module_itself(seeded_archive: SeededArchive) -> None:
    path = seeded_archive("tiny-vit")
    module = loaded(path)
    tap(module)
    pixels, _ = inputs(open_checkpoint(path).architecture)
    found: dict[bool, Tensor] = {}

    def listener(site: Site, entering: bool, tensors: Sequence[Tensor]) -> None:
        if site.module == "visual.conv1":
            found[entering] = tensors[0].clone()

    with listening(listener):
        module.encode_image(pixels)
    assert torch.equal(found[True], pixels)
    weight = module.visual.conv1.weight
    expected = nn.functional.conv2d(pixels, weight, stride=weight.shape[-1])
    assert torch.equal(found[False], expected)


def test_outputs_are_those_of_an_archive_without_taps_bit_for_bit(tiny_archive: Path) -> None:
    pixels, tokens = inputs(open_checkpoint(tiny_archive).architecture)
    plain, tapped = loaded(tiny_archive), loaded(tiny_archive)
    tap(tapped)
    with listening(Recorder()):
        for _ in range(3):  # The interpreter may change its plan from one call to the next.
            for method, batch in (
                ("encode_image", (pixels,)),
                ("encode_text", (tokens,)),
                ("forward", (pixels, tokens)),
            ):
                expected, found = getattr(plain, method)(*batch), getattr(tapped, method)(*batch)
                if isinstance(expected, Tensor):
                    expected, found = (expected,), (found,)
                for one, other in zip(expected, found, strict=True):
                    assert torch.equal(one, other), method


def test_calls_are_reported_during_the_run_and_no_tensor_is_kept(tiny_archive: Path) -> None:
    module = loaded(tiny_archive)
    tap(module)
    alive: list[weakref.ref[Tensor]] = []
    most = calls = 0

    def listener(site: Site, entering: bool, tensors: Sequence[Tensor]) -> None:
        nonlocal most, calls
        calls += 1
        most = max(most, sum(ref() is not None for ref in alive))
        alive.extend(weakref.ref(tensor) for tensor in tensors)

    with listening(listener):
        module.encode_image(inputs(open_checkpoint(tiny_archive).architecture)[0])
    gc.collect()
    assert calls > 20
    # Some are what enclosing modules work on. They are not all there at once.
    assert most < len(alive) / 3
    assert not any(ref() is not None for ref in alive)


def test_a_listener_that_raises_ends_the_run(tiny_archive: Path) -> None:
    module = loaded(tiny_archive)
    tap(module)

    def listener(site: Site, entering: bool, tensors: Sequence[Tensor]) -> None:
        raise ValueError(f"heard {site.module}")

    with listening(listener), pytest.raises(Exception, match="heard visual"):
        module.encode_image(inputs(open_checkpoint(tiny_archive).architecture)[0])
    assert taps._listeners == []


# --------------------------------------------------------------------------- modules of our own


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x[:1] * 2


class Leaf(nn.Module):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * factor


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.leaf = Leaf()

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.pair(x)
        return self.leaf(y, 3.0) + z


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = Leaf()
        self.high = Leaf()

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = self.high(x, 2.0)
            for _ in range(2):
                if bool(x.max() > 100):
                    x = self.low(x, 0.5)
        return x


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    script: torch.jit.ScriptModule = torch.jit.script(module.eval())
    return script


def test_tuples_are_unpacked() -> None:
    module = scripted(Whole())
    tap(module)
    recorder = Recorder()
    with listening(recorder):
        found = module(torch.ones(2, 3))
    assert torch.equal(found, torch.full((2, 3), 8.0))
    assert recorder.heard == [
        ("pair", "forward", True, [(2, 3)]),
        ("pair", "forward", False, [(2, 3), (1, 3)]),
        # The factor is no tensor.
        ("leaf", "forward", True, [(2, 3)]),
        ("leaf", "forward", False, [(2, 3)]),
    ]


def test_calls_inside_of_branches_are_heard_where_they_happen() -> None:
    module = scripted(Branching())
    tap(module)
    for x, calls, result in (
        ([-1.0, -2.0], [], [-1.0, -2.0]),
        ([1.0, 2.0], ["high"], [2.0, 4.0]),
        ([1.0, 70.0], ["high", "low"], [1.0, 70.0]),
        ([1.0, 170.0], ["high", "low", "low"], [0.5, 85.0]),
    ):
        recorder = Recorder()
        with listening(recorder):
            found = module(torch.tensor(x))
        assert [module for module, _ in recorder.calls()] == calls
        assert len(recorder.heard) == 2 * len(calls)
        assert found.tolist() == result


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    def forward(self, x: Tensor) -> Tensor:
        self.leaf(x, 3.0)
        return x


def test_a_call_whose_result_nobody_uses_is_heard_if_it_happens_at_all() -> None:
    module = scripted(Unused())
    tap(module)
    recorder = Recorder()
    with listening(recorder):
        for _ in range(3):
            module(torch.ones(2))
    assert recorder.calls() == [("leaf", "forward")] * 3


def test_two_archives_with_taps_do_not_mix_up_their_sites() -> None:
    first, second = scripted(Whole()), scripted(Branching())
    tap(first)
    tap(second)
    recorder = Recorder()
    with listening(recorder):
        second(torch.ones(2))
        first(torch.ones(2, 3))
    assert [module for module, _ in recorder.calls()] == ["high", "pair", "leaf"]


def test_a_nested_listener_replaces_the_outer_one_until_it_ends() -> None:
    module = scripted(Whole())
    tap(module)
    outer, inner = Recorder(), Recorder()
    with listening(outer):
        module(torch.ones(2, 3))
        with listening(inner):
            module(torch.ones(5, 3))
        with pytest.raises(ZeroDivisionError), listening(inner):
            _ = 1 / 0
        module(torch.ones(4, 3))
    assert [shapes[0][0] for *_, entering, shapes in outer.heard if entering] == [2, 2, 4, 4]
    assert [shapes[0][0] for *_, entering, shapes in inner.heard if entering] == [5, 5]
    assert taps._listeners == []


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Whole(), Whole()

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


def test_modules_that_share_their_code_are_heard_by_their_own_names() -> None:
    module = scripted(Twice())
    assert module.one._c._type() == module.other._c._type()
    tap(module)
    recorder = Recorder()
    with listening(recorder):
        module(torch.ones(2, 3))
    names = ["one", "one.pair", "one.leaf", "other", "other.pair", "other.leaf"]
    assert [name for name, _ in recorder.calls()] == names
