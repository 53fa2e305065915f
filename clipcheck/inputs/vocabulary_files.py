"""CLIP's vocabulary in the two files that transformers reads a tokenizer from."""

from __future__ import annotations

import json
from pathlib import Path

from clipcheck.inputs.tokenizer import merges, names, read_vocabulary

VOCABULARY_FILE = "vocab.json"
"""Ids by the names of the tokens."""
MERGES_FILE = "merges.txt"
"""A headline, then one merge per line, the most frequent one first."""

_HEADLINE = "#version: 0.2"


def vocabulary_texts() -> dict[str, str]:
    """By name, the contents of `VOCABULARY_FILE` and `MERGES_FILE`.

    They are the same for every released model, whatever its resolution or context length.

    Raises:
        VocabularyError: as `clipcheck.inputs.tokenizer.read_vocabulary` does.
    """
    lines = merges(read_vocabulary())
    ids = {name: i for i, name in enumerate(names(lines))}
    return {
        VOCABULARY_FILE: json.dumps(ids, ensure_ascii=False),
        MERGES_FILE: "".join(f"{line}\n" for line in (_HEADLINE, *lines)),
    }


def vocabulary_files(folder: Path) -> None:
    """Write `vocabulary_texts` into a folder that exists.

    Raises:
        VocabularyError: as `clipcheck.inputs.tokenizer.read_vocabulary` does.
    """
    for name, text in vocabulary_texts().items():
        # Without newline="\n" Windows would write another file.
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
