"""Tokenizers of folders: each text gets the ids that the folder's own library gives it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcheck.audit.small import small
from clipcheck.checkpoints.directories import read
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import ArchitectureError, ReplayError, VocabularyError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import sizes_of, summary_of
from clipcheck.harness.checking import check_files
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.replaying import replay
from clipcheck.inputs.batches import batches, classic
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.examples import Example, Preprocessing, spelled
from clipcheck.inputs.words import PIECES
from clipcheck.report import evidence
from clipcheck.writers.library import write_folder
from clipcheck.writers.programs import write_pt2
from tests import oracles
from tests.families.conformance import built
from tests.families.test_transformers import architecture_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 8

TEXTS = [
    "a dog",
    "",
    "A DOG, and two Cats!",
    "of more words than there is room for in eight ids",
    "caf\u00e9 \u72ac",
    *(piece for pieces in PIECES.values() for piece in pieces),
]


def write_bert(folder: Path) -> None:
    """A tokenizer of BERT, with letters for words, as a ``vocab.txt``."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    named = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def write_unigram(folder: Path, ids: Sequence[str] = LETTERS) -> None:
    """A tokenizer made by sentencepiece, as a ``tokenizer.json``: texts end and are padded with
    the id 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>", "\u2581")]
    made = Tokenizer(models.Unigram([*words, *((each, -2.0) for each in ids)], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def of_transformers(folder: Path) -> Callable[[str], list[int] | None]:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder)
    fitted = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return lambda text: made(text, **fitted)["input_ids"]


def of_open_clip(folder: Path) -> Callable[[str], list[int] | None]:
    made = oracles.open_clip().get_tokenizer(f"local-dir:{folder}")
    return lambda text: made([text])[0].tolist()


def canonical(folder: Path) -> Callable[[str], list[int] | None]:
    """As open_clip calls SigLIP's: transformers' own class needs sentencepiece, and is asked for
    where the model's configuration is beside it. None for a text that open_clip would mend."""
    from open_clip.tokenizer import HFTokenizer, basic_clean

    alone = folder.with_name("alone")
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, alone)
    made = HFTokenizer(str(alone), context_length=LENGTH, clean="canonicalize")
    return lambda text: made([text])[0].tolist() if basic_clean(text) == text else None


def open_clips(kind: str, **options: Any) -> LibraryArchitecture:
    found = small(kind)
    settings = found.settings
    settings["model_cfg"]["text_cfg"] |= options
    return replace(found, config=json.dumps(settings, sort_keys=True))


CASES: dict[str, tuple[Any, Callable[[Path], None], Callable[[Path], Any]]] = {
    "chinese_clip": (lambda: architecture_of("chinese_clip"), write_bert, of_transformers),
    "siglip": (lambda: architecture_of("siglip"), write_unigram, canonical),
    "open_clip's siglip": (
        lambda: open_clips("siglip", tokenizer_kwargs={"clean": "canonicalize"}),
        write_unigram,
        of_open_clip,
    ),
    "open_clip's clipa": (
        lambda: open_clips("clipa", tokenizer_kwargs={"strip_sep_token": True}),
        write_bert,
        of_open_clip,
    ),
}


def folder_of(case: str, folder: Path) -> LibraryArchitecture:
    """A model of the case in a folder with its tokenizer, read back."""
    make, write, _ = CASES[case]
    write_folder(make(), folder)
    write(folder)
    found = read(folder).model
    assert isinstance(found, LibraryArchitecture)
    return found


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_folder_s_own_library(case: str, tmp_path: Path) -> None:
    model = folder_of(case, tmp_path / "m")
    preprocessing, theirs = Preprocessing.of(inputs_of(model)), CASES[case][2](tmp_path / "m")
    for text in TEXTS:
        row, expected = preprocessing.tokens(text), theirs(text)
        assert row.dtype == np.int32
        assert row.tolist() == expected or expected is None, text
    assert sizes_of(model).summary.startswith("ids by the folder's ")


def test_texts_are_encoded_and_decoded(tmp_path: Path) -> None:
    """Edge cases have words, and ids that a text gives are told as the text."""
    inputs = inputs_of(folder_of("chinese_clip", tmp_path / "m"))
    names = [n for batch in batches(EDGE_CASES, inputs, 0) for n in batch.rows["prompt"]]
    assert sum(name[0] in "'\"" for name in names) == 1
    preprocessing = Preprocessing.of(inputs)
    given = classic(inputs)
    assert given.rows["prompt"] == ("'a diagram'", "'a dog'", "'a cat'")
    assert given.tokens[1].tolist() == preprocessing.tokens("a dog").tolist()
    ids = tuple(preprocessing.tokens("a dog").tolist())[:6]
    told = spelled(Example(prompts=(ids, (1, 9, 9))), preprocessing).prompts
    assert [preprocessing.tokens(each).tolist() for each in told[:1]] == [
        preprocessing.tokens(ids).tolist()
    ]
    assert isinstance(told[0], str)


@pytest.mark.thorough
def test_a_failing_text_is_shrunk_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not replayed where its tokenizer is gone."""
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path / "hypothesis"))
    folder_of("chinese_clip", tmp_path / "m")
    faulty = built(architecture_of("chinese_clip"))
    with torch.no_grad():
        faulty.get_parameter("model.text_projection.weight")[0].zero_()
    write_pt2(faulty, tmp_path / "faulty.pt2")
    options = CheckOptions(
        device="cpu",
        examples=EDGE_CASES + 8,
        isolation="none",
        cache=False,
        reference=tmp_path / "m",
    )
    result = check_files(tmp_path / "faulty.pt2", options)
    (judgement,) = evidence.keep_inputs(result, tmp_path / "kept").judgements
    assert "ids by the folder's vocab.txt, padded with 0" in str(judgement.computes)
    assert judgement.failing is not None
    assert judgement.failing.example.prompts == ("a",)
    assert judgement.saved is not None
    assert not replay(Path(judgement.saved), isolation="none").passed
    (tmp_path / "m" / "vocab.txt").unlink()
    with pytest.raises(ReplayError, match="its prompt is a text, 'a', and the model's tokenizer"):
        replay(Path(judgement.saved), isolation="none")


def test_without_a_tokenizer_the_report_says_that_ids_are_drawn(tmp_path: Path) -> None:
    for make, told in (
        (lambda: architecture_of("siglip"), "without the folder's tokenizer"),
        (lambda: small("siglip"), "without the tokenizer timm/some"),
    ):
        assert f"ids drawn at random {told}" in summary_of(make())


# --------------------------------------------------------------------------- bad input


def damage(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')


def enlarge(folder: Path) -> None:
    write_unigram(folder, [*(str(number) for number in range(200)), *LETTERS])


def ask_for_code(folder: Path) -> None:
    asking = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(asking))


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (damage, VocabularyError, r"tokenizer\.json: the tokenizer cannot be read \(.*\)\. Copy"),
        (enlarge, VocabularyError, r"gives the id \d+ for .* takes ids from 0 to 119\. Copy the"),
        (ask_for_code, ArchitectureError, r"has auto_map: it asks .* clipcheck never does"),
    ],
)
def test_a_bad_tokenizer_is_reported_in_one_line(
    spoil: Callable[[Path], None], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    model = folder_of("siglip", tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(kind, match=told) as caught:
        Preprocessing.of(inputs_of(model)).tokens("a zebra")
    assert "\n" not in str(caught.value)
