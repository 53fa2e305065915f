"""Weights that were really trained: a small model learns to tell drawn pictures by their captions.

A picture is a coloured shape on grey noise, its caption says which, and the loss is the contrastive
one of the paper (Radford et al. 2021, figure 3). The logit scale rises to 100, which it ends at in
the released models. Nothing is fetched, and the same seed trains the same weights on the same
machine.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.download import cache_directory
from clipcheck.checkpoints.keys import count_parameters
from clipcheck.errors import UsageError
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.inputs.subjects import CAPTIONS, SUBJECTS, Plane, Subject, caption, colours_of
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, tokenize
from clipcheck.system.locks import locked_where_possible
from clipcheck.writers.synthesize import DRAWN, LOGIT_SCALE, synthesize

if TYPE_CHECKING:
    import torch

STEPS = 300
"""Steps of training: about half a minute for a small architecture on one core."""

MOST_PARAMETERS = 20_000_000
"""Of an architecture that is trained: a released one would take days."""

_RECIPE = 1
"""Raised by each change that trains other weights: what the cache has of them is old then."""

_RATE = 1e-3
_FIRST_SCALE = math.log(1 / 0.07)
"""The logit scale that the paper begins with."""

_LONG = 16
"""In one step of so many the captions fill the context; else they are cut behind the longest."""


def picture(subject: Subject, resolution: int, generator: np.random.Generator) -> Plane:
    """Draw a picture, and preprocess it: float32 [3, resolution, resolution]. See `colours_of`."""
    scaled = (colours_of(subject, resolution, generator) / 255 - MEAN) / STD
    return scaled.transpose(2, 0, 1).astype(np.float32)


KINDS = (*DRAWN, "trained")
"""Of weights, all that there are."""


def weights_of(architecture: Architecture, seed: int, kind: str) -> dict[str, torch.Tensor]:
    """Drawn or trained weights, in the dtypes of the released files.

    Trained ones are kept in the folder ``trained`` of the cache of released files.

    Args:
        architecture: the model's dimensions.
        seed: the same seed gives the same weights.
        kind: one of `KINDS`.

    Raises:
        UsageError: the architecture is not one that can be trained here.
    """
    return (
        _cached(architecture, seed) if kind == "trained" else synthesize(architecture, seed, kind)
    )


def _cached(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file, save_file

    require_trainable(architecture)
    recipe = repr((architecture, seed, STEPS, _RECIPE))
    name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = cache_directory(None) / "trained" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_where_possible(path.with_suffix(".lock")):
        if not path.exists():
            scratch = path.with_suffix(f".{os.getpid()}.part")
            save_file(train(architecture, seed, STEPS), scratch)
            scratch.replace(path)
    return dict(load_file(path))


def train(architecture: Architecture, seed: int = 0, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Train a model from initial weights.

    Args:
        architecture: a small one.
        seed: of the initial weights and of all that is drawn.
        steps: how many.

    Returns:
        The tensors by the released keys, in the dtypes of the released files.

    Raises:
        UsageError: the architecture is too large to be trained here, or has another vocabulary.
    """
    import torch
    from torch.nn import functional

    from clipcheck.families import eager

    require_trainable(architecture)
    initial = synthesize(architecture, seed, "initial")
    pairs = Pairs(architecture, seed)
    # No other row of the table gets a gradient: it is trained without them, in half the time.
    small = replace(architecture, vocab_size=len(pairs.used))
    begin = {key: t.float() if t.is_floating_point() else t for key, t in initial.items()}
    begin["token_embedding.weight"] = begin["token_embedding.weight"][pairs.used]
    begin["logit_scale"] = torch.tensor(_FIRST_SCALE)
    model = eager.build(small, begin).train()
    others = [weight for name, weight in model.named_parameters() if name != "logit_scale"]
    optimiser = torch.optim.AdamW(others, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    labels = torch.arange(len(SUBJECTS))
    for step, (pixels, tokens) in enumerate(itertools.islice(pairs, steps), start=1):
        rise = (LOGIT_SCALE - _FIRST_SCALE) * step / steps
        model.logit_scale.data.fill_(_FIRST_SCALE + rise)
        per_image, per_text = model(pixels, tokens)
        loss = functional.cross_entropy(per_image, labels)
        loss = loss + functional.cross_entropy(per_text, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    weights = {**initial, **{key: tensor.detach() for key, tensor in model.state_dict().items()}}
    table = initial["token_embedding.weight"].clone()
    table[pairs.used] = weights["token_embedding.weight"].to(table.dtype)
    weights["token_embedding.weight"] = table
    return {key: tensor.to(initial[key].dtype) for key, tensor in weights.items()}


def require_trainable(architecture: Architecture) -> None:
    """See that an architecture can be trained in a minute or so.

    Raises:
        UsageError: it is too large, or has another vocabulary than CLIP's.
    """
    if architecture.vocab_size != VOCABULARY_SIZE:
        raise UsageError(
            f"expected a model with CLIP's vocabulary of {VOCABULARY_SIZE} ids, found one of "
            f"{architecture.vocab_size}",
            remedy="Seeded weights fit every vocabulary.",
        )
    if count_parameters(architecture) > MOST_PARAMETERS:
        raise UsageError(
            f"expected an architecture of at most {MOST_PARAMETERS:,} parameters to train, found "
            f"one of {count_parameters(architecture):,}",
            remedy="Train tiny-vit or tiny-resnet; others take --weights seeded or outliers.",
        )


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate: it rises over 20 steps, and falls along a cosine."""
    return min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2


class Pairs:
    """Without an end: batches of pictures, and of their captions' ids.

    Attributes:
        used: the ids that captions have, in order. In a batch an id is its place in these, so that
            the end token is still the highest.
    """

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self._resolution = architecture.image_resolution
        self._generator = np.random.default_rng([seed, 2])
        texts = [
            caption(subject, number) for subject in SUBJECTS for number in range(len(CAPTIONS))
        ]
        ids = tokenize(texts, architecture.context_length).numpy()
        self.used, places = np.unique(ids, return_inverse=True)
        self._rows = places.reshape(ids.shape)  # [subjects * captions, L]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        draw = self._generator
        for step in itertools.count():
            subjects = np.arange(len(SUBJECTS))
            drawn = [picture(subject, self._resolution, draw) for subject in SUBJECTS]
            templates = draw.integers(0, len(CAPTIONS), len(SUBJECTS))
            rows = self._rows[subjects * len(CAPTIONS) + templates]
            if step % _LONG:
                rows = rows[:, : int(rows.argmax(axis=1).max()) + 1]
            yield torch.from_numpy(np.stack(drawn)), torch.from_numpy(rows)
