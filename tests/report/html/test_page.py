"""The contents of the page, and that no value in it can run as code."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from clipcheck.gates.result import GateResult
from clipcheck.inputs.examples import Example
from clipcheck.report import evidence, html, text
from clipcheck.report.html import plots, render
from clipcheck.results.failing import Mismatch
from clipcheck.results.judgement import Judgement
from clipcheck.system.width import WIDTH, lines_of
from tests.report import KNOWN, saved_in, several_backends
from tests.report.html.judgements import (
    FAILED,
    IN_HALF,
    PASSED,
    UNJUDGED,
    coverage,
    gates,
    measured,
    result,
    showing,
)
from tests.report.html.reading import Page
from tests.thorough import parametrize

HTML = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"


Draw = Callable[..., plots.Plot | None]

_DRAWN: dict[bytes, plots.Plot | None] = {}
"""Plots by what they show. To draw those of a page takes a quarter of a second."""


def source_of(*judgements: Judgement) -> str:
    """Return a page; a plot that another page had is not drawn again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("drift", "distribution", "heat"):
            patch.setattr(plots, name, _drawn_once(getattr(plots, name)))
        return render(result(*judgements))


def _drawn_once(draw: Draw) -> Draw:
    def drawn(*given: object) -> plots.Plot | None:
        key = pickle.dumps((draw.__name__, given))
        if key not in _DRAWN:
            _DRAWN[key] = draw(*given)
        return _DRAWN[key]

    return drawn


def page(*judgements: Judgement) -> Page:
    return Page(source_of(*judgements))


WORSE = replace(
    FAILED,
    checkpoint="worse.pt",
    path="/models/worse.pt",
    backend="trace",
    gates=gates("float32", 4000.0, coverage()),
)


@functools.cache
def failed_page() -> Page:
    """Return the page that most tests look at."""
    return page(FAILED)


# ------------------------------------------------------------------------------------- what it says


def test_the_images_of_the_row_that_top1_failed_on_are_shown_with_their_names() -> None:
    pictures = (
        ("image 6 (black)", Image.new("RGB", (4, 4))),
        ("image 7", Image.new("RGB", (4, 4))),
    )
    found = page(
        replace(FAILED, mismatch=Mismatch("prompt 4", "image 6 (black)", "image 7", pictures))
    )
    assert (
        "For prompt 4 the candidate's best match is image 6 (black); in float64 it is image 7."
    ) in found.text
    shown = [data.get("alt") for tag, data in found.elements if tag == "img"]
    assert [name for name in shown if name in ("image 6 (black)", "image 7")] == [
        "image 6 (black)", "image 7"
    ]  # fmt: skip
    assert "The best match that differs" not in failed_page().text


@pytest.mark.parametrize(
    ("judgements", "state"),
    [
        ((PASSED, IN_HALF), "pass"),
        ((PASSED, FAILED), "fail"),
        ((FAILED, UNJUDGED), "fail"),
        ((PASSED, UNJUDGED), "unjudged"),
        ((), "unjudged"),
    ],
)
def test_the_verdict_comes_first(judgements: tuple[Judgement, ...], state: str) -> None:
    found = page(*judgements)
    verdict = text.verdict(result(*judgements))
    assert [data for tag, data in found.texts if tag in ("h1", "title")] == [verdict, verdict]
    (shown,) = [data for tag, data in found.elements if "verdict" in data.get("class", "")]
    assert shown["class"] == f"verdict {state}"
    headings = [tag for tag, _ in found.elements if tag in ("h1", "h2", "h3", "table")]
    assert headings[0] == "h1"


def test_the_matrix_has_each_gate_with_its_figure_and_the_room_that_is_left() -> None:
    matrix = page(PASSED, IN_HALF).text.partition("Gates ")[2].partition("In each cell")[0]
    assert matrix.startswith(
        "checkpoint integrity allclose fidelity modules precision top1 repeatability model.pt"
    )
    assert "jit, cpu, float32 ✓ pass 77 weights no error ✓ pass 2.40e-6 apart over 99 % left" in (
        matrix
    )
    assert (
        "✓ pass 1.2× of 8× 85 % left ✓ pass 1× of 10× 90 % left \N{EN DASH} ✓ pass 0 of 7" in matrix
    )
    half = "\N{EN DASH} \N{EN DASH} ✓ pass 1.2× of 8× 85 % left"
    assert f"{half} ✓ pass 0 of 7 wrong" in matrix
    assert "✗ FAIL 400× of 8× 50× its limit ✗ FAIL 500× of 10× 50× its limit" in failed_page().text


def test_a_gate_that_does_not_apply_has_a_dash_and_a_reason() -> None:
    found = page(PASSED, IN_HALF)
    assert found.values("title") == [
        "not for jit in float32",
        "not for jit in float16",
        "not for jit in float16",
    ]
    assert "A dash: the gate does not apply to this backend or dtype." in found.text
    assert "A dash" not in page(PASSED, UNJUDGED).text


def test_failures_come_first_and_what_passed_is_folded() -> None:
    source = source_of(PASSED, UNJUDGED, FAILED, WORSE)
    matrix = Page(source).text.partition("Gates ")[2].partition("In each cell")[0]
    order = re.findall(r"(\S+\.pt) (?:jit|trace), cpu", matrix)
    assert order == ["worse.pt", "model.pt", "gone.pt", "model.pt"]
    for number in (1, 2, 3):
        assert f'<section class="judgement" id="j{number}">' in source
    folded = source[source.index('<details class="judgement">') :]
    assert folded.index("<summary>") < folded.index('<section id="j4"')
    assert source.count('<details class="judgement">') == 1


def test_passing_gates_of_a_failed_run_are_folded() -> None:
    source = source_of(FAILED)
    shown, _, folded = source.partition("4 gates passed: integrity, allclose, top1, repeatability<")
    section = shown.partition('<section class="judgement"')[2]
    assert "400 times as far" in section
    assert "77 weights the same" not in section
    assert "77 weights the same" in folded.partition("</details>")[0]


def test_every_run_that_failed_is_named_at_the_top_the_worst_first() -> None:
    top = page(PASSED, FAILED, UNJUDGED, WORSE).text.partition("Gates ")[0]
    first = top.index("worse.pt trace, cpu, float32 : fidelity, 500x the limit.")
    second = top.index("my model.pt jit, cpu, float32 : fidelity, 50x the limit.")
    assert first < second


def test_tool_run_and_date_are_above_the_verdict() -> None:
    dated = replace(PASSED, run="d4c1", date="2026-11-30T17:40:15Z")
    found = page(dated, replace(dated, backend="trace")).text
    line = "Skip to the report clipcheck 1.2.3 · run d4c1, 2026-11-30T17:40:15Z ✓ CONSISTENT"
    assert line in found
    two = page(dated, replace(dated, run="ffff", date=None)).text
    assert "run d4c1, 2026-11-30T17:40:15Z · run ffff, no date ✓" in two


def test_the_matrix_leads_to_what_was_found_of_each() -> None:
    found = page(PASSED, IN_HALF)
    ids = found.values("id")
    assert [link["href"] for link in found.all("a")] == ["#content", "#j1", "#j2"]
    assert {"content", "j1", "j2"} <= set(ids)


@pytest.mark.parametrize("margin", [float("inf"), float("nan")])
def test_a_gate_without_a_number_says_so(margin: float) -> None:
    gate = GateResult(
        name="allclose", passed=False, message="softmax is not finite", figures={}, margin=margin
    )
    assert "✗ FAIL beyond any limit" in page(replace(PASSED, gates=(gate,))).text


def test_weights_that_are_wrong_are_counted_in_the_matrix() -> None:
    figures = {"weights": {"compared": 77, "differing": 3, "unused": 0, "changed": 1}}
    wrong = GateResult(
        name="integrity",
        passed=False,
        message="weights differ",
        figures=figures,
        margin=float("inf"),
    )
    assert "✗ FAIL 3 differing, 1 changed" in page(replace(PASSED, gates=(wrong,))).text
    other = replace(wrong, figures={"weights": {"compared": 77, "differing": 0}})
    assert "✗ FAIL beyond any limit" in page(replace(PASSED, gates=(other,))).text


def test_what_could_not_be_judged_says_why() -> None:
    found = page(UNJUDGED)
    assert "not judged gone.pt: not found. Look again." in found.text
    assert "clipcheck check gone.pt" in found.text
    assert not found.all("svg")


def test_the_first_departure_is_shown_at_the_top_and_for_each_tower() -> None:
    found = failed_page().text
    top = found.partition("Gates ")[0]
    assert "Departs first at transformer.resblocks.0.mlp , sum behind it (text), which is" in top
    table = found.partition("Where it departs first ")[2].partition("The input that fails")[0]
    assert "image nowhere text transformer.resblocks.0.mlp , sum behind it (encode_text)" in table
    assert "500× 10× 1.00e-4 prompt 3 logits its features are off" in table


def test_without_a_place_the_first_failing_gate_is_at_the_top() -> None:
    found = page(replace(FAILED, localisation=None)).text
    assert "fidelity, 50x the limit: 400 times as far." in found.partition("Gates ")[0]
    assert "Where it departs first" not in found


def test_the_next_command_is_that_of_the_text() -> None:
    command = text.next_steps(FAILED)[0].removeprefix("Next:").strip()
    assert f"Next: {command} writes an archive" in failed_page().text
    assert "Next:" not in page(PASSED).text


def test_the_failing_input_is_there_as_it_was_drawn_and_as_it_was_shrunk() -> None:
    found = failed_page()
    assert "As drawn RGB 40x20, all (9, 9, 9) a photo of a dog" in found.text
    assert "The smallest failing input RGB 1x1, all (9, 9, 9) a prompt 'a'" in found.text
    assert len(found.all("img")) == 2
    assert all(image["alt"].startswith("The image RGB") for image in found.all("img"))
    assert "clipcheck replay '/reports/failing inputs/model'" in found.text


def test_an_input_that_was_drawn_as_the_smallest_is_shown_once() -> None:
    assert FAILED.failing is not None
    same = replace(FAILED.failing, first=FAILED.failing.example)
    assert "As drawn" not in page(replace(FAILED, failing=same)).text
    another = replace(FAILED.failing, first=Example((Image.new("RGB", (1, 1), (8, 9, 9)),), ("a",)))
    assert "As drawn" in page(replace(FAILED, failing=another)).text


def test_a_batch_that_was_not_shrunk_is_not_called_the_smallest() -> None:
    assert FAILED.failing is not None
    whole = replace(FAILED.failing, shrunk=False, first=None)
    found = page(replace(FAILED, failing=whole)).text
    assert "A failing batch" in found
    assert "smallest" not in found


def test_ids_that_no_text_gives_are_shown_as_such() -> None:
    assert FAILED.failing is not None
    ids = replace(FAILED.failing, example=Example((), ((49406, 7, 49407),)), first=None)
    assert "prompt ids 49406 7 49407" in page(replace(FAILED, failing=ids)).text


def test_the_page_says_where_the_files_own_code_ran() -> None:
    apart = replace(PASSED, isolation=("no network (seccomp)", "no new privileges"))
    assert "sandboxed: no network (seccomp); no new privileges" in page(apart).text
    assert "unsandboxed" in page(replace(PASSED, isolation=())).text
    assert "its own code" not in page(replace(PASSED, isolation=None)).text


def test_the_weights_are_vouched_for() -> None:
    found = page(PASSED).text
    assert "Integrity of the weights ✓ pass 77 weights the same." in found
    assert f"SHA-256 {'ab' * 32} released not a released file" in found
    assert "released as RN50, bit for bit" in page(replace(PASSED, released="RN50")).text
    assert "weights 77 compared, 0 differing, 0 unused, 0 changed SHA-256" in found
    assert "integrity weights compared 77" in found
    unread = page(replace(UNJUDGED, sha256="ab" * 32)).text
    assert f"SHA-256 {'ab' * 32} released not a" in unread


def test_the_command_repeats_the_check() -> None:
    def command(judgement: Judgement) -> list[str]:
        (line,) = [
            data
            for tag, data in page(judgement).texts
            if tag == "pre" and data.startswith("clipcheck check")
        ]
        return shlex.split(line)

    asked = {"exhaustive": True, "require": ["dynamic-batch"], "key": "ema", "seed": 7}
    assert command(replace(FAILED, options=asked)) == [
        *("clipcheck", "check", "/models/my model.pt", "--backend", "jit", "--key", "ema"),
        *("--require", "dynamic-batch", "--device", "cpu", "--dtype", "float32"),
        *("--examples", "30", "--exhaustive", "--seed", "7"),
    ]


def test_cosine_and_top1_stand_below_the_verdict() -> None:
    agreeing = {"cosine": 0.999951, "rows": 3, "top1": 2}
    found = page(replace(FAILED, agreement=agreeing)).text
    assert "Against float64: least cosine 0.99995; top-1 agrees in 2 of 3 rows." in found


def test_with_several_backends_the_page_has_everything_that_the_text_has() -> None:
    found = Page(render(several_backends())).text
    assert "transformers:attention=eager against eager of single.pt on cpu in float32" in found
    assert f"Known: a sign is lost ( {KNOWN.link} ). Take a newer one." in found
    assert found.count("Known: a sign is lost") == 2
    assert "28 of 30 images the same; 1 differs as known; 1 differs otherwise" in found
    assert "1: puts it on white" in found
    assert "1 level apart" in found
    assert "Not compared: clip: no vocabulary. Give one." in found
    assert found.count("there is no compiler") == 1


def test_time_goes_by_phase_and_memory_is_there() -> None:
    found = page(PASSED).text
    phases = found.partition("Time by phase ")[2].partition("Environment")[0]
    assert phases.strip() == (
        "phase seconds share loading both models 0.24 11 % drawing images and prompts 0.50 22 % "
        "the eager model 1.00 45 % the candidate, all calls 0.50 22 % all 2.24"
    )
    assert "peak memory 1.2 GB" in found
    assert "peak memory not known" in page(replace(PASSED, peak_memory=None)).text


def test_versions_and_the_machine_are_at_the_end() -> None:
    assert "Environment clipcheck 1.2.3 torch 2.9.1 platform Linux cpus 2" in page(PASSED).text


# ----------------------------------------------------------------------------- what cannot happen


@pytest.mark.parametrize(
    "judgement",
    [
        showing(HTML),
        saved_in(HTML, FAILED),
        replace(FAILED, checkpoint=HTML, path=HTML),
        replace(FAILED, path=None, checkpoint=HTML, description=HTML),
        replace(UNJUDGED, error=HTML, checkpoint=HTML),
        replace(
            FAILED,
            gates=(
                GateResult(name=HTML, passed=False, message=HTML, figures={HTML: {HTML: HTML}}),
            ),
        ),
        replace(FAILED, measured=measured(text=HTML)),
        replace(
            FAILED,
            coverage=replace(
                FAILED.coverage, errors=[replace(FAILED.coverage.errors[0], module=HTML)]
            ),
        ),
    ],
    ids=["prompt", "saved", "path", "checkpoint", "error", "gate", "row", "module"],
)  # type: ignore[type-var]
def test_html_in_values_is_escaped(judgement: Judgement) -> None:
    source = source_of(judgement)
    found = Page(source)
    assert not found.all("script")
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert not [name for _, attributes in found.elements for name in attributes if name[:2] == "on"]
    assert "<script>alert(1)" in found.text.replace("/<", "<")
    assert "<script" not in source.lower()


def test_an_attribute_does_not_end_where_a_name_has_a_quote() -> None:
    sly = '" autofocus onfocus="alert(1)'
    found = page(replace(FAILED, measured=measured(text=sly)))
    assert not found.values("onfocus")
    assert any(sly in label for label in found.values("aria-label"))


@parametrize("letter", ["\0", "\x1b", "\x85", "\u202e", "\u2066", "\ud800", "\ufeff"], quick=2)
def test_invisible_characters_are_spelled_out(letter: str) -> None:
    named = replace(
        showing(f"a{letter}b"),
        checkpoint=f"x{letter}y",
        path=None,
        measured=measured(text=f"c{letter}\nd"),
    )
    source = source_of(named)
    assert letter not in source
    source.encode()
    escaped = repr(letter)[1:-1]
    assert f"a{escaped}b" in source
    assert f"x{escaped}y" in source
    assert source.count(f"c{escaped}") == 4  # A label, the table, the caption, its alternative.


def test_a_text_from_right_to_left_is_unchanged_and_isolated() -> None:
    source = source_of(showing("שלום עולם"))
    assert '<pre class="prompt" dir="auto">שלום עולם</pre>' in source
    assert ascii("שלום")[1:-1] in source


def test_the_page_has_nothing_that_runs_and_nothing_to_fetch() -> None:
    source = source_of(PASSED, FAILED, UNJUDGED)
    found = Page(source)
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert policy in [meta.get("content") for meta in found.all("meta")]
    fetched = [*found.values("src"), *found.values("href"), *re.findall(r"url\((.*?)\)", source)]
    assert {address.partition(":")[0] for address in fetched if address[0] != "#"} == {"data"}
    assert set(re.findall(r"https?://[^\"' <]*", source)) == {"http://www.w3.org/2000/svg"}


def test_ids_are_those_of_one_element_and_all_that_is_referred_to_is_there() -> None:
    source = source_of(PASSED, FAILED, PASSED)
    ids = Page(source).values("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', source)) <= set(ids)


def test_the_same_result_gives_the_same_page() -> None:
    assert render(result(FAILED, PASSED)) == render(result(FAILED, PASSED))


def test_what_others_set_up_for_their_own_plots_changes_nothing() -> None:
    expected = render(result(FAILED))
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.labelpad": 30}):
        assert render(result(FAILED)) == expected
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.thorough
def test_a_page_with_many_great_pictures_is_still_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 800, 3), dtype=np.uint8)
    images = (Image.fromarray(noise),) * 8
    source = render(result(*[showing("a", images)] * 6))
    assert len(Page(source).all("img")) == 48
    assert len(source.encode()) < 2_000_000


# ------------------------------------------------------------------------------ reaching all of it


def test_every_plot_has_an_alternative() -> None:
    found = failed_page()
    plots = found.all("svg")
    assert len(plots) == 4
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 80 for plot in plots)
    summaries = [data for tag, data in found.texts if tag == "summary"]
    assert len([summary for summary in summaries if summary.startswith("All values: ")]) == 4


def test_scrolling_areas_have_a_name_and_can_be_focused_by_keyboard() -> None:
    scrolled = [data for _, data in failed_page().elements if data.get("class") == "scroll"]
    assert scrolled
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)


def test_the_first_thing_to_reach_is_a_link_past_the_verdict() -> None:
    assert failed_page().all("a")[0] == {"class": "skip", "href": "#content"}


def test_no_heading_is_left_out() -> None:
    levels = [int(tag[1]) for tag, _ in page(FAILED, PASSED).elements if re.match(r"h\d$", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


STYLE = (Path(html.__file__).parent / "templates" / "style.css").read_text()
LIGHT, _, DARK = STYLE.partition("@media screen and (prefers-color-scheme: dark)")


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_far_enough_apart_to_be_read(scheme: str) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))
    for text_colour in ("ink", "muted", "pass", "fail", "unjudged", "link"):
        for ground in ("bg", "surface"):
            assert contrast(colours[text_colour], colours[ground]) >= 4.5, (text_colour, ground)
    for level in range(9):
        ink, ground = colours[f"heat-ink-{level}"], colours[f"heat-{level}"]
        assert contrast(ink, ground) >= 4.5, level
    for mark in ("eager", "candidate", "fail"):
        assert contrast(colours[mark], colours["bg"]) >= 3, mark


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# ---------------------------------------------------------------------------------- where it goes


def test_the_page_is_saved_next_to_the_text(tmp_path: Path) -> None:
    kept = evidence.keep(result(FAILED), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(kept)


def test_where_the_page_cannot_be_made_the_text_and_the_json_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence.html, "render", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evidence.keep(result(PASSED), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.txt", "results.json"]


def test_a_page_of_another_run_does_not_stand_in_for_one_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence.keep(result(PASSED), tmp_path)
    monkeypatch.setattr(evidence.html, "render", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evidence.keep(result(FAILED), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_text_that_is_kept_is_as_wide_as_files_are(tmp_path: Path) -> None:
    long = replace(FAILED, checkpoint="long/" * 40)
    with lines_of(100):
        kept = evidence.keep(result(long), tmp_path)
        assert max(map(len, text.render(kept).splitlines())) == 100
    assert max(map(len, (tmp_path / "report.txt").read_text().splitlines())) == WIDTH


SCRIPT = """
import json, sys
from clipcheck.cli.app import main

heavy = ("jinja2", "matplotlib")
found = {}
for name, options in json.loads(sys.argv[1]).items():
    sys.argv = ["clipcheck", "check", *options]
    try:
        main()
    except SystemExit as done:
        assert done.code == 0
    found[name] = [each for each in heavy if each in sys.modules]
print(json.dumps(found))
"""


@pytest.mark.thorough
def test_a_check_without_a_report_imports_neither_templates_nor_plots(
    minute_archive: Path, tmp_path: Path
) -> None:
    """In a process where nothing else has imported them."""
    plain = [str(minute_archive), "--examples", "1"]
    checks = {"plain": plain, "with a report": [*plain, "--report", str(tmp_path / "report")]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(checks)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis")},
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "plain": [],
        "with a report": ["jinja2", "matplotlib"],
    }
