"""Measure how long the training of the audit's weights takes, and how good the model is.

Each architecture is trained without a cache. Then new pictures are drawn, as in training one of
each subject in a batch, with a caption for each. The model has to find the caption of each picture,
and the picture of each caption. Subjects and captions are those of training.

    python -m benchmarks.trained --seed 0 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.families import eager
from clipcheck.inputs.subjects import SUBJECTS
from clipcheck.writers.synthesize import architecture_named
from clipcheck.writers.trained import Pairs, train

_APART = 1_000_000
"""Offset from the seed of training to the seed of the test pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: both tiny ones")
    parser.add_argument("--seed", action="append", type=int, help="default: 0")
    parser.add_argument("--batches", type=int, default=20, help=f"batches of {len(SUBJECTS)} pairs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | seed | training, s | of it busy, s | caption found | picture found |")
    print("|---|---|---|---|---|---|")
    names, seeds = arguments.arch or ("tiny-vit", "tiny-resnet"), arguments.seed or (0,)
    for name, seed in itertools.product(names, seeds):
        architecture = architecture_named(name)
        began, busy = time.perf_counter(), time.process_time()
        weights = train(architecture, seed)
        took, busy = time.perf_counter() - began, time.process_time() - busy
        of_images, of_texts = accuracy(architecture, weights, seed + _APART, arguments.batches)
        found = f"{of_images:.1%} | {of_texts:.1%}"
        print(f"| {name} | {seed} | {took:.0f} | {busy:.0f} | {found} |", flush=True)


def accuracy(
    architecture: Architecture, weights: dict[str, torch.Tensor], seed: int, batches: int
) -> tuple[float, float]:
    """Return the shares of pictures whose caption is found, and of captions likewise."""
    whole = {key: t.float() if t.is_floating_point() else t for key, t in weights.items()}
    model = eager.build(architecture, whole)
    labels = torch.arange(len(SUBJECTS))
    pairs = Pairs(architecture, seed)
    found = torch.zeros(2)
    with torch.no_grad():
        for pixels, places in itertools.islice(pairs, batches):
            per_image, per_text = model(pixels, torch.from_numpy(pairs.used)[places])
            for number, logits in enumerate((per_image, per_text)):
                found[number] += (logits.argmax(dim=1) == labels).float().mean() / batches
    of_images, of_texts = found.tolist()
    return of_images, of_texts


if __name__ == "__main__":
    main()
