from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from clipcheck.errors import UsageError
from clipcheck.harness.preprocessing.differences import PADDED_WITH_END, REFUSED, UNTRUNCATED
from clipcheck.harness.preprocessing.texts import settled, tokens
from clipcheck.inputs.strategies import prompts
from clipcheck.inputs.tokenizer import tokenize
from tests.harness.preprocessing.samples import LENGTH, SMALL


@given(prompts(context_length=LENGTH))
def test_without_differences_it_is_the_tokenizer(text: str) -> None:
    assert np.array_equal(tokens(text, LENGTH), SMALL.tokens(text))


def test_a_text_that_is_too_long_is_cut_or_left_or_refused() -> None:
    long = "dog " * 30
    assert len(tokens(long, LENGTH)) == LENGTH
    whole = tokens(long, LENGTH, [UNTRUNCATED])
    assert np.array_equal(whole, tokenize(long, 32).numpy()[0])
    with pytest.raises(UsageError, match="is too long for context length 20"):
        tokens(long, LENGTH, [REFUSED])


def test_padding_comes_after_the_end() -> None:
    assert tokens("dog", 6, [PADDED_WITH_END]).tolist() == [49406, 1929, *[49407] * 4]
    assert tokens("dog", 6).tolist() == [49406, 1929, 49407, 0, 0, 0]


@pytest.mark.parametrize("text", ["", "a dog", "\u72ac", "\x00\U0010ffff", "\U000e0fff"])
def test_texts_of_known_letters_are_settled(text: str) -> None:
    assert settled(text)


def test_a_letter_that_python_does_not_know_is_not_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unicodedata.category", lambda each: "Cn" if each == "\u0119" else "Ll")
    assert not settled("a \u0119")
    assert settled("a b")
