"""CLIP's vocabulary as the two tokenizer files of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from clipcheck.inputs.tokenizer import merges, names, read_vocabulary

VOCABULARY_FILE = "vocab.json"
"""Ids by name of the token."""
MERGES_FILE = "merges.txt"
"""A headline, then one merge per line, the most frequent one first."""

_HEADLINE = "#version: 0.2"


def vocabulary_texts() -> dict[str, str]:
    """Return by name the contents of `VOCABULARY_FILE` and `MERGES_FILE`.

    They are the same for every released model, whatever its resolution or context length.

    Raises:
        VocabularyError: from `clipcheck.inputs.tokenizer.read_vocabulary`.
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
        VocabularyError: from `clipcheck.inputs.tokenizer.read_vocabulary`.
    """
    for name, text in vocabulary_texts().items():
        # Without newline="\n" the file would differ on Windows.
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
