"""The table of the released models agrees with the reference package and with itself."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.formats import locate
from clipcheck.checkpoints.registry import Released
from clipcheck.errors import UnknownModelError

# Parameters and width of the text transformer, from the architecture of each model.
PARAMETERS_AND_TEXT_WIDTH = {
    "RN50": (102_007_137, 512),
    "RN101": (119_688_033, 512),
    "RN50x4": (178_300_601, 640),
    "RN50x16": (290_979_217, 768),
    "RN50x64": (623_258_305, 1024),
    "ViT-B/32": (151_277_313, 512),
    "ViT-B/16": (149_620_737, 512),
    "ViT-L/14": (427_616_513, 768),
    "ViT-L/14@336px": (427_944_193, 768),
}
VOCABULARY = 49_408


def test_names_and_addresses_are_those_of_the_reference_in_its_order() -> None:
    # Read as text: importing the package would import torch and takes seconds.
    spec = importlib.util.find_spec("clip")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("clip.py").read_text(encoding="utf-8")
    reference = re.findall(r'^    "([^"]+)": "(https://[^"]+)",$', source, flags=re.MULTILINE)

    ours = [(name, registry.find(name).url) for name in registry.available_models()]

    assert len(ours) == 9
    assert ours == reference


@pytest.mark.parametrize("name", PARAMETERS_AND_TEXT_WIDTH)
def test_each_size_is_that_of_the_weights_and_a_little_code(name: str) -> None:
    parameters, width = PARAMETERS_AND_TEXT_WIDTH[name]
    # Two bytes for each parameter, and two more for the token embedding, which is in float.
    weights = 2 * parameters + 2 * VOCABULARY * width
    assert weights < registry.find(name).size < 1.007 * weights


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("ViT-B-32", "ViT-B/32"),
        ("vit-l/14", "ViT-L/14"),
        ("ViT-L/14@336", "ViT-L/14@336px"),
        ("rn50x46", "RN50x4"),
        ("/data/ViT-B-16.pt", "ViT-B/16"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(unknown: str, nearest: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        registry.find(unknown)
    assert f"The nearest name is {nearest!r};" in caught.value.remedy


def test_an_empty_name_gets_a_readable_message() -> None:
    with pytest.raises(UnknownModelError, match=r"found ''\. The nearest name is"):
        registry.find("")


def test_the_message_for_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModelError) as caught:
        registry.find("RN5O")
    assert str(caught.value) == (
        "expected a released model or an existing file, found 'RN5O'. "
        "The nearest name is 'RN50'; all of them: RN50, RN101, RN50x4, RN50x16, RN50x64, "
        "ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px."
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nofile.pt", "Check the path; relative paths start from "),
        ("folder/", "Check the path; relative paths start from "),
        ("gone/model", "Check the path: its folder 'gone' does not exist either."),
        ("model.pth", "The nearest name there is 'model.pt'."),
        ("vit-l/14", "The nearest released name is 'ViT-L/14'."),
        ("ViT-B/33", "The nearest released name is 'ViT-B/32'."),
        ("x/RN50.pt", "The name 'RN50' downloads the released file; a path must exist."),
    ],
)
def test_a_name_with_a_separator_or_a_suffix_is_a_path(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").touch()
    with pytest.raises(UnknownModelError) as caught:
        locate(name, None)
    assert str(caught.value).startswith(f"{name}: no such file or folder. {hint}")


def test_a_broken_link_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.symlink_to("gone.pt")
    with pytest.raises(UnknownModelError, match=r"a link to 'gone\.pt', which does not exist"):
        locate(path, None)


def test_a_digest_identifies_its_model() -> None:
    for name in registry.available_models():
        released = registry.find(name)
        assert registry.by_sha256(released.sha256) is released
        assert registry.by_sha256(released.sha256.upper()) is released


def test_an_unknown_digest_identifies_no_model() -> None:
    assert registry.by_sha256("0" * 64) is None


def test_the_address_follows_the_base_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BASE_ADDRESS", "http://127.0.0.1:1/models")
    released = Released("fake", "ab" * 32, 1)
    assert released.url == f"http://127.0.0.1:1/models/{'ab' * 32}/fake.pt"


def test_importing_registry_and_download_imports_no_heavy_package() -> None:
    script = (
        "import sys, clipcheck.checkpoints.registry, clipcheck.checkpoints.download;"
        "print({'torch', 'numpy', 'requests', 'urllib3', 'tqdm', 'filelock'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(registry.__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"
