"""CLIP's vocabulary in the two files that transformers reads a tokenizer from."""

from __future__ import annotations

import json
from pathlib import Path

from clipcheck.inputs.tokenizer import (
    END_TOKEN,
    START_TOKEN,
    merges_of,
    names_of,
    read_vocabulary,
)

VOCABULARY_FILE = "vocab.json"
"""Ids by the names of the tokens."""
MERGES_FILE = "merges.txt"
"""A headline, then one merge per line, the most frequent one first."""

START_NAME, END_NAME = "<|startoftext|>", "<|endoftext|>"
"""What transformers calls the two special tokens."""

_HEADLINE = "#version: 0.2"


def vocabulary_files(folder: Path) -> None:
    """Write `VOCABULARY_FILE` and `MERGES_FILE` into a folder that exists.

    They are the same for every released model, whatever its resolution or context length.

    Raises:
        VocabularyError: as `clipcheck.inputs.tokenizer.read_vocabulary` does.
    """
    merges = merges_of(read_vocabulary())
    ids = {name: i for i, name in enumerate(names_of(merges))}
    ids |= {START_NAME: START_TOKEN, END_NAME: END_TOKEN}
    text = json.dumps(ids, ensure_ascii=False)
    (folder / VOCABULARY_FILE).write_text(text, encoding="utf-8")
    # Without newline="\n" Windows would write another file.
    lines = "".join(f"{line}\n" for line in (_HEADLINE, *merges))
    (folder / MERGES_FILE).write_text(lines, encoding="utf-8", newline="\n")
