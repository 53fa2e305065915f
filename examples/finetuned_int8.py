"""Fine-tune a model of open_clip, quantise it to int8, and judge what that cost by a budget.

    python examples/finetuned_int8.py FOLDER int8.onnx

FOLDER is one of open_clip's: open_clip_config.json and weights. Needs clipcheck[onnx].
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import open_clip
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import save_file

import clipcheck

WEIGHTS = "open_clip_model.safetensors"


def fine_tune(folder: Path, tuned: Path) -> None:
    """Write a model that was trained further; a few steps on noise stand for your training."""
    model = open_clip.create_model(f"local-dir:{folder}")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    side = model.visual.image_size
    side = side[0] if isinstance(side, tuple) else side
    for _ in range(2):
        images = torch.randn(4, 3, side, side)
        texts = torch.randint(1, model.vocab_size - 2, (4, model.context_length))
        texts[:, -1] = model.vocab_size - 1
        image_features, text_features, scale = model(images, texts)[:3]
        loss = open_clip.ClipLoss()(image_features, text_features, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned.mkdir()
    shutil.copy(folder / "open_clip_config.json", tuned)
    save_file({k: t.contiguous() for k, t in model.state_dict().items()}, tuned / WEIGHTS)


def main(folder: Path, output: Path) -> clipcheck.Result:
    """Fine-tune, export, quantise, and judge against the fine-tuned weights."""
    with tempfile.TemporaryDirectory() as scratch:
        tuned, program = Path(scratch, "tuned"), Path(scratch, "model.onnx")
        fine_tune(folder, tuned)
        command = ["clipcheck", "convert", str(tuned), "-o", str(program)]
        subprocess.run([sys.executable, "-m", *command], check=True)
        quantize_dynamic(program, output, weight_type=QuantType.QInt8, per_channel=True)
        return clipcheck.check(output, reference=tuned, budget="int8")


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(result)
    sys.exit(result.exit_code)
