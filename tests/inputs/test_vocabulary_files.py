from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, default_tokenizer
from clipcheck.inputs.vocabulary_files import vocabulary_files
from tests.oracles import open_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vocabulary")
    vocabulary_files(made)
    return made


def test_the_names_have_the_ids_that_open_clip_gives_them(folder: Path) -> None:
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    theirs = dict(open_clip().tokenizer.SimpleTokenizer().encoder)
    # It calls the two special tokens otherwise.
    theirs["<|startoftext|>"] = theirs.pop("<start_of_text>")
    theirs["<|endoftext|>"] = theirs.pop("<end_of_text>")
    assert ids == theirs
    assert sorted(ids.values()) == list(range(VOCABULARY_SIZE))


def test_the_merges_are_those_of_open_clip_in_order(folder: Path) -> None:
    ranks = open_clip().tokenizer.SimpleTokenizer().bpe_ranks
    headline, *lines = (folder / "merges.txt").read_bytes().decode().split("\n")
    assert headline == "#version: 0.2"
    assert lines == [*(" ".join(pair) for pair in sorted(ranks, key=ranks.__getitem__)), ""]


@pytest.mark.parametrize("text", ["a photo of a dog.", "rock'n'roll, 1977!", "d\u00e9j\u00e0 vu"])
def test_transformers_makes_of_them_a_tokenizer_with_the_same_ids(folder: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids[1:-1] == default_tokenizer().encode(text)
