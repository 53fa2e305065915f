from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import clipcheck
from clipcheck.backends import registry
from clipcheck.backends.base import Backend, Missing
from clipcheck.backends.names import BACKENDS
from clipcheck.backends.registry import (
    Choice,
    backend_named,
    chosen,
    default_for,
    find,
    listing,
    parse,
    require_available,
)
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UnavailableError, UsageError


def test_every_backend_is_listed_with_what_its_file_says() -> None:
    found = listing()
    assert tuple(each.name for each in found) == BACKENDS
    for each in found:
        assert each.summary == find(each.name).summary
        assert each.options == find(each.name).options
        assert bool(each.version) == (each.missing is None)


def test_an_unavailable_backend_is_not_asked_for_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version() -> str:
        raise AssertionError("its library is not there")

    missing = Missing("it is not installed", "Install it.")
    monkeypatch.setattr(find("onnxruntime"), "available", lambda: missing)
    monkeypatch.setattr(find("onnxruntime"), "version", version)
    found = {each.name: each for each in registry.listing()}["onnxruntime"]
    assert found.missing == missing
    assert found.version == ""


def test_a_backend_is_read_with_its_options_in_one_order() -> None:
    assert parse("jit") == Choice("jit")
    assert parse("jit:") == Choice("jit")
    found = parse("compile:mode=max-autotune,dynamic=false")
    assert found == Choice("compile", {"dynamic": "false", "mode": "max-autotune"})
    assert str(found) == "compile:dynamic=false,mode=max-autotune"
    assert str(parse("compile:dynamic=false,mode=max-autotune")) == str(found)
    assert parse(str(found)) == found


def test_an_option_that_its_library_knows_may_be_anything() -> None:
    choice = parse("onnxruntime:providers=A+B=C")
    assert choice.options == {"providers": "A+B=C"}


def test_options_that_are_not_given_have_their_default() -> None:
    assert parse("compile:dynamic=auto").settings == {"mode": "default", "dynamic": "auto"}
    assert Choice("jit").settings == {}


@pytest.mark.parametrize(
    ("written", "told", "remedy"),
    [
        ("onnx", "expected a backend, found 'onnx'", "The nearest name is 'onnxruntime'; all of "),
        ("JIT", "expected a backend, found 'JIT'", ", ".join(BACKENDS)),
        ("", "expected a backend, found ''", ", ".join(BACKENDS)),
        ("all", "expected a backend, found 'all'", "The nearest name is 'all'"),
        ("jit:x=1", "jit has no options, found 'x=1'", "Write --backend jit. `clipcheck backends`"),
        (
            "compile:dynamic",
            "compile: expected dynamic to be one of true, false, auto, found 'dynamic'",
            "Leave it out for 'true'.",
        ),
        ("compile:,", "compile: expected an option, found ''", "all of them: mode, dynamic."),
        ("compile:x=1", "compile: expected an option, found 'x'", "all of them: mode, dynamic."),
        (
            "onnxruntime:optimisation=all",
            "onnxruntime: expected an option, found 'optimisation'",
            "The nearest name is 'optimization'; all of them: optimization, config, providers. "
            "`clipcheck backends` lists all.",
        ),
        (
            "onnxruntime:optimization=extend",
            "onnxruntime: expected optimization to be one of disable, basic, extended, layout, "
            "all, found 'extend'",
            "The nearest name is 'extended'. Leave it out for 'all'. `clipcheck backends` lists",
        ),
        ("onnxruntime:providers", "onnxruntime: expected providers=VALUE, found 'providers'", ""),
        (
            "compile:dynamic=maybe",
            "compile: expected dynamic to be one of true, false, auto, found 'maybe'",
            "Leave it out for 'true'.",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(
    written: str, told: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(written)
    assert caught.value.problem == told
    assert remedy in caught.value.remedy


def test_all_stands_for_every_variant_of_every_backend() -> None:
    found = chosen(["all"])
    assert [str(choice) for choice in found] == [
        str(Choice(name, variant)) for name in BACKENDS for variant in find(name).variants
    ]
    assert all(choice.optional for choice in found)
    assert [str(choice) for choice in found if choice.name == "transformers"] == [
        "transformers:attention=sdpa",
        "transformers:attention=eager",
    ]


def test_a_backend_named_with_all_is_not_left_out() -> None:
    found = {str(choice): choice for choice in chosen(["all", "clip", "compile:dynamic=auto"])}
    assert len(found) == len(chosen(["all"])) + 1
    named = {name for name, choice in found.items() if not choice.optional}
    assert named == {"clip", "compile:dynamic=auto"}


def test_each_backend_is_chosen_once_in_the_given_order() -> None:
    assert chosen(["clip", "jit", "clip"]) == (Choice("clip"), Choice("jit"))
    assert chosen([]) == ()


def test_an_unavailable_backend_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_available(Choice("clip"))
    monkeypatch.setattr(find("clip"), "available", lambda: Missing("it is not there", "Get it."))
    with pytest.raises(UnavailableError, match=r"^clip: it is not there\. Get it\.$"):
        require_available(Choice("clip"))


PAGE = Path(__file__).parents[2] / "docs/guide/write-a-backend.md"
CHANNELS_LAST = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
"""The example of the documentation."""

Brings = Callable[..., None]


@pytest.fixture
def brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Brings]:
    """Install a package that brings backends."""

    def install(code: str, *points: str) -> None:
        (tmp_path / "brought.py").write_text(code)
        info = tmp_path / "brought-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *points]))
        monkeypatch.syspath_prepend(tmp_path)
        forget()

    def forget() -> None:
        registry._brought.cache_clear()
        find.cache_clear()
        sys.modules.pop("brought", None)

    yield install
    monkeypatch.undo()
    forget()


def test_another_package_can_provide_a_backend(brings: Brings, minute_archive: Path) -> None:
    brings(CHANNELS_LAST, "channels-last = brought:ChannelsLast", "jit = brought:ChannelsLast")
    assert registry.names() == (*BACKENDS, "channels-last")
    listed = listing()[-1]
    assert (listed.name, listed.missing) == ("channels-last", None)
    assert listed.version.startswith("torch ")
    assert str(chosen(["all"])[-1]) == "channels-last"
    assert find("jit").__module__ == "clipcheck.backends.jit"
    options = {"device": "cpu", "isolation": "none", "examples": 1}
    result = clipcheck.check(minute_archive, backend="channels-last", **options)
    assert [each.backend for each in result.judgements] == ["channels-last"]
    assert result, str(result)


@pytest.mark.parametrize(
    ("code", "point", "reason"),
    [
        ("import nowhere_to_be_found", "ours = brought:Ours", "ModuleNotFoundError"),
        ("", "ours = brought:Ours", "AttributeError"),
        ("1 / 0", "ours = brought:Ours", "ZeroDivisionError"),
    ],
)
def test_a_backend_that_cannot_be_imported_names_its_package(
    brings: Brings, code: str, point: str, reason: str
) -> None:
    brings(code, point)
    listed = listing()[-1]
    assert listed.missing is not None
    assert listed.missing.reason.startswith(f"brought:Ours could not be imported ({reason}")
    with pytest.raises(UnavailableError, match="uninstall the package that provides it, brought"):
        require_available(parse("ours"))


@pytest.mark.parametrize("code", ["class Ours:\n    summary = 'ours'", "Ours = 3"])
def test_an_invalid_backend_is_reported_with_its_package(brings: Brings, code: str) -> None:
    brings(code, "ours = brought:Ours")
    with pytest.raises(UnavailableError) as caught:
        require_available(parse("ours"))
    assert caught.value.problem == (
        "ours: brought:Ours is no class derived from clipcheck.backends.base.Backend"
    )
    assert "provides it, brought." in caught.value.remedy


def test_an_unknown_backend_has_no_abilities() -> None:
    assert backend_named("of-another-machine:a=b") is Backend
    assert backend_named("transformers:attention=sdpa") is find("transformers")


def test_the_format_of_a_file_decides_its_backend() -> None:
    assert {form.value: default_for(form) for form in Format} == {
        "archive": "jit",
        "state-dict": "",
        "safetensors": "",
        "pt2": "export",
        "onnx": "onnxruntime",
        "openvino": "openvino",
        "executorch": "executorch",
        "transformers": "transformers",
        "open_clip": "open_clip",
    }


def test_an_unknown_backend_is_refused_with_the_known_ones(brings: Brings) -> None:
    brings(CHANNELS_LAST, "channels-last = brought:ChannelsLast")
    with pytest.raises(UsageError, match="nearest name is 'channels-last'"):
        parse("channel-last")
