"""In what other libraries are known to differ from the reference package, as data.

Each stands for something that `images` or `texts`, beside this file, does as the other library does
it. What differs counts as known only where that gives the library's very result; what is named here
hides nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A step that a library takes in another way than the reference.

    Attributes:
        meaning: what it does, and what the reference does, in a line.
    """

    name: str
    meaning: str
    link: str


RGB_FIRST = Difference(
    "RGB before resizing",
    "converts to RGB and then resizes; the reference resizes in the image's own mode, so that "
    "palettes are not interpolated, and converts what it has cut out",
    "https://github.com/huggingface/transformers/pull/17101",
)
ON_WHITE = Difference(
    "opacity on white",
    "puts what is transparent on white; the reference drops the opacities",
    "https://github.com/huggingface/transformers/issues/49003",
)
TENSORS = Difference(
    "resized as a tensor",
    "resizes with torch's antialiasing in place of Pillow's, whose arithmetic is another",
    "https://github.com/pytorch/vision/issues/2950",
)
FLOATS = Difference(
    "resized without rounding",
    "resizes numbers from 0 to 1, which then may lie beyond and between the 256 levels; Pillow "
    "rounds to these",
    "https://github.com/pytorch/vision/pull/3615",
)
CROP_DOWN = Difference(
    "crop rounded down",
    "where the crop would begin between two pixels, begins at the first; the reference begins at "
    "the even one",
    "https://github.com/huggingface/transformers/pull/40856",
)

PADDED_WITH_END = Difference(
    "padded with the end token",
    "fills up with 49407, the end token; the reference fills up with 0",
    "https://github.com/huggingface/transformers/pull/24773",
)
UNTRUNCATED = Difference(
    "not truncated unless asked to",
    "gives more ids than the model takes; clipcheck cuts, and puts the end token last",
    "https://huggingface.co/docs/transformers/pad_truncation",
)
REFUSED = Difference(
    "refused unless truncation is asked for",
    "raises where a text is too long; clipcheck cuts, and puts the end token last",
    "https://github.com/openai/CLIP/issues/212",
)
NOT_REPAIRED = Difference(
    "no repairs by ftfy",
    "leaves mojibake, control characters, ligatures, curled quotes and full-width letters as they "
    "are, and composes to NFC alone; the reference mends them with ftfy",
    "https://github.com/huggingface/transformers/pull/15067",
)
ENTITIES_KEPT = Difference(
    "HTML entities kept",
    "leaves &amp; as it is written; the reference unescapes it, twice",
    "https://github.com/huggingface/transformers/pull/15067",
)
COMPOSED = Difference(
    "composed to NFC",
    "composes letters and their marks after HTML is unescaped; the reference does so before",
    "https://github.com/huggingface/transformers/pull/15067",
)
LOWERED_APART = Difference(
    "lowercased letter by letter",
    "makes every capital sigma the same; Python has another one for the end of a word",
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
    "calls them <start_of_text> and <end_of_text>, and has no others",
    "https://github.com/mlfoundations/open_clip/issues/453",
)
LEGACY_END = Difference(
    "legacy end token 2",
    "its configuration says 2 where the vocabulary has 49407; transformers then looks for the "
    "greatest id, as the reference does",
    "https://github.com/huggingface/transformers/pull/24773",
)
