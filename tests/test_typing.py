"""What users write passes their type checkers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/guide/python.md"]

LOADED = """
import clipcheck
from PIL import Image

eager, preprocess = clipcheck.load("model.pt", device="cpu")
archive, _ = clipcheck.load("model.pt", "cpu", True)
either, _ = clipcheck.load("model.pt", jit=bool(preprocess))
pixels = preprocess(Image.open("cat.png")).unsqueeze(0)
tokens = clipcheck.tokenize(["a cat"])
for model in (archive, either):
    per_image, per_text = model(pixels, tokens)
    print(model.encode_image(pixels).norm() + model.encode_text(tokens).norm() + per_image.sum())
print(eager.visual.conv1.weight.dtype, eager.encode_text(tokens).norm())
clipcheck.check("model.pt", atoll=3)
eager.encode_images(pixels).norm()
"""
"""Ends with two lines that are wrong."""


@pytest.mark.thorough
def test_the_examples_pass_a_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for page in PAGES:
        found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
        assert found, page
        for number, code in enumerate(found):
            name = f"{Path(page).stem.lower()}_{number}.py"
            (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "loaded.py").write_text(LOADED, encoding="utf-8")
    files = sorted(path.name for path in tmp_path.glob("*.py"))
    command = [sys.executable, "-m", "mypy", "--strict", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    wrong = re.findall(r"^(.*): error: ", done.stdout, re.M)
    assert wrong == ["loaded.py:14", "loaded.py:15"], done.stdout
