"""CLIP's tokenizer: byte-level byte-pair encoding.

The vocabulary is a file of the ``open_clip_torch`` distribution. It is read after a check of its
SHA-256, and without importing ``open_clip``, which would take seconds.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import ftfy
import regex

from clipcheck.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CONTEXT_LENGTH = 77
"""Tokens per text in every released CLIP model: ``context_length`` in their checkpoints."""
VOCABULARY_SIZE = 49408
"""Rows of ``token_embedding.weight`` in every released CLIP model."""
START_TOKEN = VOCABULARY_SIZE - 2
"""First id of every text."""
END_TOKEN = VOCABULARY_SIZE - 1
"""Last id of every text. It is the greatest id, so a model finds it with ``argmax``."""

_FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_REINSTALL = "Run: pip install --force-reinstall open_clip_torch"

_SPECIAL_TOKENS = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}
# IGNORECASE although the text is lowercase here: U+017F, the long s, must match as an "s".
_WORD = regex.compile(
    r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)

# The ids 0 to 255 are the 256 bytes: first those that Latin-1 prints, in order, then the others.
# The ids 256 to 511 are the same bytes at the end of a word. Each merge adds the next id.
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = bytes((*_PRINTED, *(byte for byte in range(256) if byte not in _PRINTED)))
_ID_OF_BYTE = tuple(_BYTES.index(byte) for byte in range(256))
_WORD_END = "</w>"
_ENDING = len(_BYTES)
_FIRST_MERGED = 2 * len(_BYTES)
_MERGE_COUNT = VOCABULARY_SIZE - len(_SPECIAL_TOKENS) - _FIRST_MERGED

_CACHED_WORDS = 1 << 16


class Tokenizer:
    """Converts between text and token ids, with the vocabulary of the released CLIP models.

    Args:
        vocabulary: text of the vocabulary file, as `read_vocabulary` returns it: a headline, then
            one merge per line, two parts with a space between them, the most frequent one first.
    """

    def __init__(self, vocabulary: str) -> None:
        lines = merges(vocabulary)
        ids = {name: i for i, name in enumerate(names(lines))}
        parts = map(ids.__getitem__, " ".join(lines).split(" "))
        pairs = zip(parts, parts, strict=True)
        self._merged = {pair: i for i, pair in enumerate(pairs, start=_FIRST_MERGED)}
        self._spellings = _spellings(self._merged)
        self._ids_of_word = functools.lru_cache(_CACHED_WORDS)(self._merge_word)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without start and end token, of any length.

        The names ``<|startoftext|>`` and ``<|endoftext|>`` in the text become those tokens.
        """
        words = _WORD.findall(_cleaned(text))
        return [i for word in words for i in self._ids_of_word(word)]

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Return the token ids of a lowercase word: `encode` without cleaning and splitting."""
        return self._ids_of_word(word)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, with a space after each word.

        Bytes that are not UTF-8, such as the first half of a split character, become U+FFFD.

        Raises:
            UsageError: an id is negative, or not below `VOCABULARY_SIZE`.
        """
        spelled = b"".join([self._spelling(i) for i in ids])
        return spelled.decode("utf-8", errors="replace").replace(_WORD_END, " ")

    def _merge_word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL_TOKENS:
            return (_SPECIAL_TOKENS[word],)
        ids = [_ID_OF_BYTE[byte] for byte in word.encode()]
        ids[-1] += _ENDING
        while len(ids) > 1:
            merged = [self._merged.get(pair, VOCABULARY_SIZE) for pair in itertools.pairwise(ids)]
            # Earlier lines of the vocabulary have lower ids, and are applied first.
            best = min(merged)
            if best == VOCABULARY_SIZE:
                break
            ids = _merge_all(ids, merged, best)
        return tuple(ids)

    def _spelling(self, token: int) -> bytes:
        if not 0 <= token < VOCABULARY_SIZE:
            raise UsageError(
                f"Expected token ids from 0 to {VOCABULARY_SIZE - 1}, but got {token}",
                remedy="Pass ids that `encode` or `tokenize` returned.",
            )
        return self._spellings[token]


def read_vocabulary() -> str:
    """Return the text of the vocabulary file in the installed ``open_clip_torch``.

    Raises:
        VocabularyError: the package or the file is missing, or it is not the released file.
    """
    path = _vocabulary_path()
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise VocabularyError(
            f"Expected CLIP's vocabulary, which open_clip_torch installs, but reading it failed "
            f"({error.strerror})",
            remedy=_REINSTALL,
            path=path,
        ) from error
    found = hashlib.sha256(packed).hexdigest()
    if found != _SHA256:
        raise VocabularyError(
            f"Expected CLIP's vocabulary with the SHA-256 {_SHA256}, but found {found}",
            remedy=_REINSTALL,
            path=path,
        )
    return gzip.decompress(packed).decode()


def merges(vocabulary: str) -> list[str]:
    """Return the merges of the released models, as lines of `read_vocabulary`, most frequent first.

    The file has five times as many lines as the models use.
    """
    return vocabulary.split("\n", _MERGE_COUNT + 1)[1:-1]


def names(lines: Iterable[str]) -> list[str]:
    """Return the name of each id, in order: a character for each byte, ``</w>`` ends a word."""
    return [*_names_of_bytes(), *(line.replace(" ", "") for line in lines), *_SPECIAL_TOKENS]


@functools.cache
def default_tokenizer() -> Tokenizer:
    """Return the tokenizer of the released CLIP models, built on the first call."""
    return Tokenizer(read_vocabulary())


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's tokenizer as one that makes whole rows: a `clipcheck.inputs.rules.Tokenizes`.

    Attributes:
        pad: the id of all that is behind the end.
    """

    pad: int = 0
    name: ClassVar[str] = "CLIP's tokenizer"

    def row(self, text: str, length: int) -> NDArray[np.int32]:
        """A row [length] of a text, which is cut where it is too long.

        Raises:
            VocabularyError: as `read_vocabulary` does.
        """
        import numpy as np

        ids = _ids(text)
        row = np.full(length, self.pad, dtype=np.int32)
        row[: len(ids)] = ids if len(ids) <= length else [*ids[: length - 1], END_TOKEN]
        return row

    def spell(self, ids: Sequence[int]) -> str:
        """The text of ids between a start and an end; empty where some are none of CLIP's."""
        known = max(ids, default=0) < VOCABULARY_SIZE
        return default_tokenizer().decode(ids[1:-1]).strip() if known else ""


def tokenize(
    texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> torch.Tensor:
    """Return the token ids of one or several texts, as inputs of a CLIP model.

    Args:
        texts: one text, or a list of N texts.
        context_length: length of the rows; 77 in all released models.
        truncate: whether to truncate long texts. Their last token is then the end token.

    Returns:
        [N, context_length] int32: a start token, the text's tokens, an end token, and zeros.

    Raises:
        UsageError: a text is too long and `truncate` is false, or `context_length` is below 1.
            It is a `RuntimeError` and begins with the reference package's message.
        VocabularyError: from `read_vocabulary`.
    """
    import torch

    if context_length < 1:
        raise UsageError(
            f"Expected a context length of at least 1, but got {context_length}",
            remedy=f"Released models have {CONTEXT_LENGTH}.",
        )
    texts = [texts] if isinstance(texts, str) else texts
    rows = [_row(text, context_length, truncate) for text in texts]
    # Reshape, because an empty list of texts would otherwise give [0].
    return torch.tensor(rows, dtype=torch.int32).reshape(len(rows), context_length)


def _row(text: str, length: int, truncate: bool) -> list[int]:
    ids = _ids(text)
    if len(ids) <= length:
        return ids + [0] * (length - len(ids))
    if truncate:
        return [*ids[: length - 1], END_TOKEN]
    raise UsageError(
        f"Input {text} is too long for context length {length}",
        remedy=f"It has {len(ids)} tokens. Shorten it, or truncate it with truncate=True.",
    )


def _ids(text: str) -> list[int]:
    return [START_TOKEN, *default_tokenizer().encode(text), END_TOKEN]


def _cleaned(text: str) -> str:
    # The reference also strips and collapses whitespace, which has no effect on the words.
    return html.unescape(html.unescape(ftfy.fix_text(text))).lower()


def _vocabulary_path() -> Path:
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise VocabularyError(
            f"Expected the package open_clip_torch, which has CLIP's vocabulary {_FILE_NAME}, "
            "but it is not installed",
            remedy=_REINSTALL,
        )
    return Path(folders[0]) / _FILE_NAME


def _names_of_bytes() -> list[str]:
    # The file writes bytes that Latin-1 does not print as characters from U+0100 on.
    others = range(0x100, 0x100 + len(_BYTES) - len(_PRINTED))
    single = [chr(code) for code in (*_PRINTED, *others)]
    return [*single, *(name + _WORD_END for name in single)]


def _spellings(merged: Iterable[tuple[int, int]]) -> list[bytes]:
    single = [bytes([byte]) for byte in _BYTES]
    spellings = [*single, *(byte + _WORD_END.encode() for byte in single)]
    for first, second in merged:
        spellings.append(spellings[first] + spellings[second])
    return [*spellings, *(name.encode() for name in _SPECIAL_TOKENS)]


def _merge_all(ids: list[int], merged: list[int], best: int) -> list[int]:
    """Replace each pair that merges to `best`, from left to right."""
    result, position = [], 0
    while position < len(ids):
        found = position < len(merged) and merged[position] == best
        result.append(best if found else ids[position])
        position += 2 if found else 1
    return result
