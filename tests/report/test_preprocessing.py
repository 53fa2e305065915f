from __future__ import annotations

from rich.cells import cell_len

from clipcheck.gates.preprocessing import Known, PreprocessingResult, Unknown, Unlike
from clipcheck.report.preprocessing import lines

LINK = "https://example.org/issues/1"
WHITE = Known(2, "RGBA 3x4", "puts it on white; the reference does not", LINK)
IMAGES = PreprocessingResult(
    name="transformers (fast)",
    kind="image",
    version="transformers 5.24.0",
    compared=30,
    same=28,
    known={"on white": WHITE},
)


def test_what_is_known_is_counted_and_explained() -> None:
    assert lines([IMAGES]) == [
        "preprocessing of transformers 5.24.0 (fast): 28 of 30 images the same; 2 differ",
        "  as known",
        "  known: on white: 2, such as RGBA 3x4",
        "    puts it on white; the reference does not",
        "    https://example.org/issues/1",
    ]


def test_an_explanation_is_given_once() -> None:
    assert lines([IMAGES, IMAGES]) == [*lines([IMAGES]), *lines([IMAGES])[:3]]


def test_unknown_differences_are_shown_up_to_a_number() -> None:
    unknown = [Unknown(f"'{n}'", Unlike(f"id {n} in place of 0 at position 1")) for n in range(5)]
    result = PreprocessingResult(
        name="clip", kind="text", version="clip-anytorch 2.6.0", compared=5, same=0, unknown=unknown
    )
    assert lines([result]) == [
        "tokenizing of clip-anytorch 2.6.0: 0 of 5 texts the same; 5 differ otherwise",
        "  otherwise: '0': id 0 in place of 0 at position 1",
        "  otherwise: '1': id 1 in place of 0 at position 1",
        "  otherwise: '2': id 2 in place of 0 at position 1",
        "  otherwise: 2 more",
    ]


def test_a_single_difference_is_reported_in_the_singular() -> None:
    unknown = [Unknown("RGB 1x1", Unlike("other"))]
    result = PreprocessingResult(
        name="clip", kind="image", version="clip 1", compared=1, same=0, unknown=unknown
    )
    assert (
        lines([result])[0] == "preprocessing of clip 1: 0 of 1 image the same; 1 differs otherwise"
    )


def test_the_end_token_is_no_input() -> None:
    result = PreprocessingResult(
        name="transformers (config.json)",
        kind="end token",
        version="transformers 5.24.0",
        compared=1,
        same=1,
    )
    assert lines([result]) == ["end token of transformers 5.24.0 (config.json): 1 of 1 id the same"]


def test_zero_inputs_are_not_reported_as_equal() -> None:
    result = PreprocessingResult(name="clip", kind="text", version="clip 1", compared=0, same=0)
    assert lines([result]) == ["tokenizing of clip 1: no texts were compared"]
    assert lines([]) == []


def test_no_line_runs_over_and_nothing_moves_the_cursor() -> None:
    hostile = "\x1b[2J" + "\u72ac" * 90
    result = PreprocessingResult(
        name=f"x {hostile}",
        kind="image",
        version="x 1",
        compared=3,
        same=0,
        known={hostile: Known(1, hostile, hostile, LINK + "0" * 90)},
        unknown=[Unknown(hostile, Unlike(hostile))],
    )
    for line in lines([result]):
        assert cell_len(line) <= 80
        assert line.isprintable()
