"""The tokenizer in a folder of a library's model, as the library itself reads and calls it.

Nothing is fetched, and no code of a folder is run: what asks for that is refused.
"""

from __future__ import annotations

import functools
import json
import string
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipcheck.checkpoints.directories import read_json
from clipcheck.checkpoints.library import refuse_code
from clipcheck.errors import ClipcheckError, VocabularyError, first_line

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Files that are a tokenizer together, the first of which is taken."""

_CONFIG = "tokenizer_config.json"

_REMEDY = (
    "Copy the tokenizer that belongs to the weights into the folder, or take it out: ids are drawn "
    "directly then."
)

Encode: TypeAlias = Callable[[str, int], Sequence[int]]
"""Makes a row of a text and a length."""


def at_hand(folder: Path | None) -> str:
    """The files of a folder that are a tokenizer, for people; empty where there are none."""
    found = (
        files for files in _FILES if folder and all((folder / name).is_file() for name in files)
    )
    return " and ".join(next(found, ()))


@dataclass(frozen=True)
class LibraryTokenizer:
    """A tokenizer in a folder: a `clipcheck.inputs.rules.Tokenizes`. It is read on the first use.

    Attributes:
        files: of it, for people.
        vocab_size: the model takes ids below it.
    """

    folder: Path
    files: str
    vocab_size: int

    @property
    def name(self) -> str:
        """Which it is, for people."""
        return f"the folder's {self.files}"

    def row(self, text: str, length: int) -> NDArray[np.int32]:
        """A row [length] of a text, cut and padded as the library does.

        Raises:
            VocabularyError: it is damaged, or gives what the model does not take.
        """
        encode, _ = _loaded(self)
        with self._translating(f"fails on {ascii(text)[:60]}"):
            ids = list(encode(text, length))
        strange = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if strange is not None:
            raise self._error(
                f"gives the id {strange} for {ascii(text)[:60]}, and the model takes ids from 0 to "
                f"{self.vocab_size - 1}"
            )
        if len(ids) != length:
            raise self._error(
                f"gives {len(ids)} ids for {ascii(text)[:60]}, and the model takes {length}"
            )
        return np.array(ids, dtype=np.int32)

    def spell(self, ids: Sequence[int]) -> str:
        """The text of the ids of a row, without its special ones."""
        _, tokenizer = _loaded(self)
        with self._translating(f"fails to spell {len(ids)} ids"):
            text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @abstractmethod
    def load(self) -> tuple[Encode, Any]:
        """Return what makes rows, and transformers' tokenizer that it is made of."""

    def read(self) -> tuple[Encode, Any]:
        """Load it, from a folder without code.

        Raises:
            VocabularyError: it is damaged.
        """
        config = self.folder / _CONFIG
        if config.is_file():
            refuse_code([read_json(config)], config)
        with self._translating("cannot be read"):
            return self.load()

    @contextmanager
    def _translating(self, problem: str) -> Iterator[None]:
        try:
            with quiet():
                yield
        except ClipcheckError:
            raise
        # Of whatever library: tokenizers raises plain exceptions.
        except Exception as error:
            raise self._error(f"{problem} ({first_line(error)[:160]})") from error

    def _error(self, problem: str) -> VocabularyError:
        return VocabularyError(f"the tokenizer {problem}", remedy=_REMEDY, path=self._path)

    @property
    def _path(self) -> Path:
        return self.folder / self.files.partition(" ")[0]


@functools.lru_cache(maxsize=4)
def _loaded(tokenizer: LibraryTokenizer) -> tuple[Encode, Any]:
    return tokenizer.read()


@dataclass(frozen=True)
class TransformersTokenizer(LibraryTokenizer):
    """That of a folder of transformers, as ``AutoTokenizer`` reads it.

    Attributes:
        pad: the id of padding, where the tokenizer has none itself.
        canonical: whether texts are lowered and lose their punctuation first, unless the folder
            names another class than SigLIP's.
    """

    pad: int = 0
    canonical: bool = False

    def load(self) -> tuple[Encode, Any]:
        """Return what makes rows, and transformers' tokenizer that it is made of."""
        import transformers

        config = self.folder / _CONFIG
        named = read_json(config).get("tokenizer_class") if config.is_file() else None
        siglip = self.canonical and named in (None, "SiglipTokenizer")
        # SigLIP's class reads a file of sentencepiece alone. Other files say the same of ids.
        chosen = transformers.PreTrainedTokenizerFast if siglip else transformers.AutoTokenizer
        tokenizer: Any = chosen.from_pretrained(
            str(self.folder), local_files_only=True, trust_remote_code=False
        )
        pad = self.pad if tokenizer.pad_token_id is None else tokenizer.pad_token_id

        def encode(text: str, length: int) -> list[int]:
            written = _canonical(text) if siglip else text
            ids: list[int] = tokenizer(written, truncation=True, max_length=length)["input_ids"]
            padding = [pad] * (length - len(ids))
            return padding + ids if tokenizer.padding_side == "left" else ids + padding

        return encode, tokenizer


def _canonical(text: str) -> str:
    """A text as SigLIP's own tokenizer takes it: in lower case, without punctuation."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class OpenClipTokenizer(LibraryTokenizer):
    """That of a folder of open_clip, as its ``HFTokenizer`` reads it.

    Attributes:
        options: of the configuration, as JSON: how a text is cleaned, and the like.
    """

    options: str = "{}"

    def load(self) -> tuple[Encode, Any]:
        """Return what makes rows, and transformers' tokenizer that it is made of."""
        from open_clip.tokenizer import HFTokenizer

        own = {"local_files_only": True, "trust_remote_code": False}
        made = HFTokenizer(str(self.folder), **{**json.loads(self.options), **own})
        return lambda text, length: made([text], length)[0].tolist(), made.tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: its warnings, and its progress bar."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
