"""Known differences between other libraries and the reference package.

`images` and `texts` in this folder can compute each difference. A result counts as known only if
that gives exactly the library's result, so a known difference cannot hide another one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A step that a library does differently from the reference.

    Attributes:
        meaning: what the library does, and what the reference does.
    """

    name: str
    meaning: str
    link: str


RGB_FIRST = Difference(
    "RGB before resizing",
    "converts to RGB and then resizes; the reference resizes in the image's own mode, so that "
    "palettes are not interpolated, and converts after cropping",
    "https://github.com/huggingface/transformers/pull/17101",
)
ON_WHITE = Difference(
    "opacity on white",
    "composites transparent pixels on white; the reference ignores opacity",
    "https://github.com/huggingface/transformers/issues/49003",
)
TENSORS = Difference(
    "resized as a tensor",
    "resizes with torch's antialiasing; the reference uses Pillow's, which rounds differently",
    "https://github.com/pytorch/vision/issues/2950",
)
FLOATS = Difference(
    "resized without rounding",
    "resizes floats from 0 to 1, whose results may lie outside of and between the 256 levels; "
    "Pillow rounds to the levels",
    "https://github.com/pytorch/vision/pull/3615",
)
CROP_DOWN = Difference(
    "crop rounded down",
    "if the crop starts between two pixels, rounds down; the reference rounds to the even one",
    "https://github.com/huggingface/transformers/pull/40856",
)

PADDED_WITH_END = Difference(
    "padded with the end token",
    "pads with 49407, the end token; the reference pads with 0",
    "https://github.com/huggingface/transformers/pull/24773",
)
UNTRUNCATED = Difference(
    "not truncated unless asked to",
    "returns more ids than the model takes; clipcheck truncates, with the end token last",
    "https://huggingface.co/docs/transformers/pad_truncation",
)
REFUSED = Difference(
    "refused unless truncation is requested",
    "raises if a text is too long; clipcheck truncates, with the end token last",
    "https://github.com/openai/CLIP/issues/212",
)
NOT_REPAIRED = Difference(
    "no repairs by ftfy",
    "keeps mojibake, control characters, ligatures, curly quotes and full-width letters, and only "
    "composes to NFC; the reference repairs them with ftfy",
    "https://github.com/huggingface/transformers/pull/15067",
)
ENTITIES_KEPT = Difference(
    "HTML entities kept",
    "keeps &amp; as written; the reference unescapes it, twice",
    "https://github.com/huggingface/transformers/pull/15067",
)
COMPOSED = Difference(
    "composed to NFC",
    "composes letters and their marks after HTML is unescaped; the reference does so before",
    "https://github.com/huggingface/transformers/pull/15067",
)
LOWERED_APART = Difference(
    "lowercased letter by letter",
    "lowercases every capital sigma alike; Python has another one at the end of a word",
    "https://github.com/crusoecloud/fastokens/pull/72",
)
CASE_SENSITIVE = Difference(
    "contractions by their exact letters",
    "splits off 's only with an s; the reference ignores case, and the long s counts as one",
    "https://github.com/huggingface/transformers/issues/12648",
)
NAMES_AS_WRITTEN = Difference(
    "special tokens by their exact names",
    "knows <|endoftext|> in a text only in lowercase, and before the text is cleaned; the "
    "reference looks for it last, in any case",
    "https://github.com/huggingface/transformers/issues/12648",
)
OTHER_NAMES = Difference(
    "special tokens by other names",
    "names them <start_of_text> and <end_of_text> only",
    "https://github.com/mlfoundations/open_clip/issues/453",
)
LEGACY_END = Difference(
    "legacy end token 2",
    "its configuration has 2 and the vocabulary 49407; transformers then looks for the greatest "
    "id, as the reference does",
    "https://github.com/huggingface/transformers/pull/24773",
)
