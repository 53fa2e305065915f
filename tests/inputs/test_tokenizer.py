from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipcheck.errors import UsageError, VocabularyError
from clipcheck.inputs.tokenizer import (
    CONTEXT_LENGTH,
    END_TOKEN,
    START_TOKEN,
    VOCABULARY_SIZE,
    default_tokenizer,
    read_vocabulary,
    tokenize,
)
from tests.oracles import open_clip, reference_clip

REINSTALL = "Run: pip install --force-reinstall open_clip_torch"

# Each reaches a step that letters alone do not: cleaning, case, the pattern, bytes, merges.
PIECES = [
    "a photo of a dog",
    "it's they're WE'LL I'd've 'm 't '",
    "it'\u017f",  # the long s is an s where case is ignored
    "K\u212a \u212b \u0130stanbul \u01c5 STRASSE \u1e9e",
    "\u039f\u0394\u039f\u03a3 \u03a3",  # the last sigma of a word has its own lowercase
    "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "e\u0301 a\u0328\u0301 \u0915\u094d\u0937 Z\u0335\u0321\u0322",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    "\u732b\u306e\u5199\u771f \uace0\uc591\uc774 \uff21\uff22\uff23\uff11",
    "&amp; &amp;amp;amp;lt; &lt;p&gt; <&amp;amp;lt; &#x41;&#65 &eacute; &nosuch; &#xD800;&#28;",
    "\u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u0153caf\u00c3\u00a9\u00e2\u20ac\u009d",  # mojibake
    "\x00\x01\x1b[31mred\x1b[0m\x7f\x85\x9f",
    " \t\n\r\n\x0b\x0c\x1c\x1d\x1e\x1f\xa0\u2003\u2028\u3000\u200b",
    "\u201cquotes\u201d \u2018s \ufb01ne \u2026 \u2014",
    "0123 \u0663 \u2167 \u00bd 3.14 1e-5",
    "</w> <w> w> ##!!?? -- __init__ http://example.org/?a=b&c=d",
    "\ud800 \udfff \ud83d",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaa",
]
SPECIAL_TOKENS = ["<|startoftext|>", "<|EndOfText|>", "x<|endoftext|>y", "<|\u017ftartoftext|>"]

texts = st.lists(st.sampled_from(PIECES + SPECIAL_TOKENS) | st.text(), max_size=6).map("".join)
# Hypothesis tries the strings of the module under test too, so the special tokens come up anyway.
plain_texts = texts.filter(lambda text: "text" not in text.lower())
token_ids = st.integers(0, VOCABULARY_SIZE - 1)


@functools.cache
def reference():
    return reference_clip().simple_tokenizer.SimpleTokenizer()


@functools.cache
def open_clip_tokenizer():
    return open_clip().tokenizer.SimpleTokenizer(clean="lower")


def outcome(tokenize, text):
    """Return the ids in a context of 12, or the message of the error."""
    try:
        return tokenize(text, 12).tolist()
    except RuntimeError as error:
        return str(error)


@pytest.fixture
def fake_open_clip(tmp_path, monkeypatch):
    """Put an empty package `open_clip` before the installed one."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_its_constants_are_those_of_the_reference():
    assert reference().encoder["<|startoftext|>"] == START_TOKEN
    assert reference().encoder["<|endoftext|>"] == END_TOKEN
    assert len(reference().encoder) == VOCABULARY_SIZE
    assert CONTEXT_LENGTH == 77


@pytest.mark.parametrize("text", ["", *PIECES, *SPECIAL_TOKENS])
def test_it_encodes_each_piece_as_the_reference_does(text):
    assert default_tokenizer().encode(text) == reference().encode(text)


@settings(deadline=None)
@given(texts)
def test_it_encodes_any_text_as_the_reference_does(text):
    assert default_tokenizer().encode(text) == reference().encode(text)


@settings(deadline=None)
@given(plain_texts)
def test_it_encodes_as_open_clip_does_where_no_special_token_is_named(text):
    assert default_tokenizer().encode(text) == open_clip_tokenizer().encode(text)


def test_it_encodes_every_character_of_the_basic_plane_as_the_reference_does():
    characters = [chr(code) for code in range(0x10000)]
    lines = [" ".join(characters[i : i + 64]) for i in range(0, len(characters), 64)]
    ours = [default_tokenizer().encode(line) for line in lines]
    assert ours == [reference().encode(line) for line in lines]


def test_it_encodes_a_known_sentence():
    # Written out, so that this holds without another package.
    assert tokenize(["a diagram", "a dog"], context_length=5).tolist() == [
        [49406, 320, 22697, 49407, 0],
        [49406, 320, 1929, 49407, 0],
    ]


@settings(deadline=None)
@given(st.lists(token_ids))
def test_it_decodes_any_ids_as_the_reference_does(ids):
    assert default_tokenizer().decode(ids) == reference().decode(ids)


def test_it_decodes_every_token_as_the_reference_does():
    decoded = [default_tokenizer().decode([i]) for i in range(VOCABULARY_SIZE)]
    assert decoded == [reference().decode([i]) for i in range(VOCABULARY_SIZE)]


@settings(deadline=None)
@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1)))
def test_it_decodes_what_it_encoded(words):
    ids = default_tokenizer().encode(" ".join(words))
    assert default_tokenizer().decode(ids) == "".join(word + " " for word in words)


def test_it_decodes_a_row_of_a_tensor():
    assert (
        default_tokenizer().decode(tokenize("a dog", 4)[0]) == "<|startoftext|>a dog <|endoftext|>"
    )


@pytest.mark.parametrize("token", [-1, VOCABULARY_SIZE])
def test_it_refuses_to_decode_an_id_outside_the_vocabulary(token):
    with pytest.raises(UsageError) as error:
        default_tokenizer().decode([320, token])
    assert str(error.value) == (
        f"Expected token ids from 0 to 49407, but got {token}. "
        "Pass ids that `encode` or `tokenize` returned."
    )


@settings(deadline=None)
@given(st.lists(texts, max_size=4) | texts, st.integers(1, 100))
def test_it_tokenizes_as_the_reference_does(batch, context_length):
    ours = tokenize(batch, context_length, truncate=True)
    expected = reference_clip().tokenize(batch, context_length, truncate=True)
    assert ours.dtype == torch.int32
    assert ours.shape == expected.shape
    assert ours.tolist() == expected.tolist()


@settings(deadline=None)
@given(texts)
def test_it_refuses_what_the_reference_refuses(text):
    expected = outcome(reference_clip().tokenize, text)
    ours = outcome(tokenize, text)
    # A refusal goes on with the remedy.
    assert ours.startswith(expected) if isinstance(expected, str) else ours == expected


def test_it_takes_77_tokens_and_does_not_truncate_by_default():
    assert tokenize("dog " * 75).shape == (1, 77)
    with pytest.raises(RuntimeError, match="is too long for context length 77"):
        tokenize("dog " * 76)


def test_it_truncates_to_the_context_and_keeps_the_end_token():
    assert tokenize("a dog and a cat", context_length=4, truncate=True).tolist() == [
        [START_TOKEN, 320, 1929, END_TOKEN]
    ]


def test_it_says_how_to_mend_a_text_that_is_too_long():
    with pytest.raises(UsageError) as error:
        tokenize(["a dog", "a dog and a cat"], context_length=4)
    assert str(error.value) == (
        "Input a dog and a cat is too long for context length 4. "
        "It has 7 tokens. Shorten it, or truncate it with truncate=True."
    )


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("length", [0, -1])
def test_it_refuses_a_context_without_tokens(length, truncate):
    with pytest.raises(UsageError) as error:
        tokenize("a dog", context_length=length, truncate=truncate)
    assert str(error.value) == (
        f"Expected a context length of at least 1, but got {length}. Released models have 77."
    )


def test_it_gives_no_rows_for_no_texts():
    assert tokenize([]).shape == (0, 77)


def test_the_default_tokenizer_is_built_once():
    assert default_tokenizer() is default_tokenizer()


def test_it_reads_the_vocabulary_without_importing_torch_or_open_clip():
    program = (
        "import sys\n"
        "from clipcheck.inputs.tokenizer import default_tokenizer\n"
        "print(default_tokenizer().encode('a dog'))\n"
        "print({'torch', 'open_clip', 'numpy'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["[320, 1929]", "set()"], run.stderr


def test_it_says_when_open_clip_is_not_installed(monkeypatch):
    # None is what Python's import system keeps for a module that must not be found.
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(VocabularyError) as error:
        read_vocabulary()
    assert error.value.path is None
    assert str(error.value) == (
        "Expected the package open_clip_torch, which has CLIP's vocabulary "
        f"bpe_simple_vocab_16e6.txt.gz, but it is not installed. {REINSTALL}"
    )


def test_it_says_when_the_vocabulary_is_missing(fake_open_clip):
    with pytest.raises(VocabularyError) as error:
        read_vocabulary()
    path = fake_open_clip / "bpe_simple_vocab_16e6.txt.gz"
    assert error.value.path == str(path)
    assert str(error.value) == (
        f"{path}: Expected CLIP's vocabulary, which open_clip_torch installs, but reading it "
        f"failed (No such file or directory). {REINSTALL}"
    )


def test_it_says_when_the_vocabulary_was_altered(fake_open_clip):
    path = fake_open_clip / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(b"altered")
    with pytest.raises(VocabularyError) as error:
        read_vocabulary()
    assert error.value.path == str(path)
    assert str(error.value) == (
        f"{path}: Expected CLIP's vocabulary with the SHA-256 "
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a, but found "
        f"4aa009153649a0a7c1425387f3da9c72330ad069ea9f69ce1640abe46f92a83b. {REINSTALL}"
    )


def test_it_refuses_a_vocabulary_with_one_bit_changed(fake_open_clip):
    released = Path(reference_clip().simple_tokenizer.default_bpe())
    packed = bytearray(released.read_bytes())
    packed[5] ^= 1  # in the time stamp, so gzip would unpack the same text
    (fake_open_clip / released.name).write_bytes(packed)
    with pytest.raises(VocabularyError):
        read_vocabulary()


@pytest.mark.parametrize("word", ["a", "dog", "s", "antidisestablishmentarianism"])
def test_a_word_of_letters_needs_no_cleaning(word: str) -> None:
    assert list(default_tokenizer().encode_word(word)) == default_tokenizer().encode(word)
