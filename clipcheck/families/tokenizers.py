"""Read and call the tokenizer in a folder of a library's model as the library does.

Nothing is downloaded, and no code of a folder is run: a configuration that asks for code is
refused.
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
from clipcheck.system.transformers_logging import quiet

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Sets of files that are a tokenizer; the first complete set is used."""

_CONFIG = "tokenizer_config.json"

_REMEDY = (
    "Copy the tokenizer of the weights into the folder, or remove the tokenizer: then ids are "
    "drawn at random."
)

Encode: TypeAlias = Callable[[str, int], Sequence[int]]
"""A function of a text and a length that returns a row of ids."""


def at_hand(folder: Path | None) -> str:
    """List the files of a folder that are a tokenizer; empty if there is none."""
    found = (
        files for files in _FILES if folder and all((folder / name).is_file() for name in files)
    )
    return " and ".join(next(found, ()))


@dataclass(frozen=True)
class LibraryTokenizer:
    """A tokenizer in a folder: a `clipcheck.inputs.rules.Tokenizes`. It is read on the first use.

    Attributes:
        files: names of its files, for messages.
        vocab_size: of the model, whose ids are below it.
    """

    folder: Path
    files: str
    vocab_size: int

    @property
    def name(self) -> str:
        """Description of the tokenizer."""
        return f"the folder's {self.files}"

    def row(self, text: str, length: int) -> NDArray[np.int32]:
        """Return the row of ids [length] of a text, truncated and padded as in the library.

        Raises:
            VocabularyError: the tokenizer is damaged, or its ids do not fit the model.
        """
        encode, _ = _loaded(self)
        with self._translating(f"fails on {ascii(text)[:60]}"):
            ids = list(encode(text, length))
        strange = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if strange is not None:
            raise self._error(
                f"gives the id {strange} for {ascii(text)[:60]}, but the model takes ids from 0 to "
                f"{self.vocab_size - 1}"
            )
        if len(ids) != length:
            raise self._error(
                f"gives {len(ids)} ids for {ascii(text)[:60]}, but the model takes {length}"
            )
        return np.array(ids, dtype=np.int32)

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of a row of ids, without special ids."""
        _, tokenizer = _loaded(self)
        with self._translating(f"fails to spell {len(ids)} ids"):
            text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @abstractmethod
    def load(self) -> tuple[Encode, Any]:
        """Return the function that makes rows, and transformers' tokenizer that it calls."""

    def read(self) -> tuple[Encode, Any]:
        """Load the tokenizer, after checking that its configuration asks for no code.

        Raises:
            VocabularyError: the tokenizer is damaged.
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
        # Libraries may raise any exception here: tokenizers raises plain `Exception`s.
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
    """The tokenizer of a folder of transformers, as ``AutoTokenizer`` reads it.

    Attributes:
        pad: padding id, if the tokenizer has none itself.
        canonical: whether texts are first converted to lower case without punctuation, unless the
            folder names another class than SigLIP's.
    """

    pad: int = 0
    canonical: bool = False

    def load(self) -> tuple[Encode, Any]:
        """Return the function that makes rows, and transformers' tokenizer that it calls."""
        import transformers

        config = self.folder / _CONFIG
        named = read_json(config).get("tokenizer_class") if config.is_file() else None
        siglip = self.canonical and named in (None, "SiglipTokenizer")
        # SigLIP's class reads only a file of sentencepiece. Other files have the same ids.
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
    """Convert a text as SigLIP's own tokenizer does: to lower case, without punctuation."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class OpenClipTokenizer(LibraryTokenizer):
    """The tokenizer of a folder of open_clip, as its ``HFTokenizer`` reads it.

    Attributes:
        options: of the configuration, as JSON, such as for cleaning texts.
    """

    options: str = "{}"

    def load(self) -> tuple[Encode, Any]:
        """Return the function that makes rows, and transformers' tokenizer that it calls."""
        from open_clip.tokenizer import HFTokenizer

        own = {"local_files_only": True, "trust_remote_code": False}
        made = HFTokenizer(str(self.folder), **{**json.loads(self.options), **own})
        return lambda text, length: made([text], length)[0].tolist(), made.tokenizer
