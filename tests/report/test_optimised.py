"""The sentences on a program that fails only when it is optimised."""

from __future__ import annotations

from dataclasses import replace

from clipcheck.gates.optimised import Optimised, Rewrite, Rewrites
from clipcheck.report import html, optimised, text
from clipcheck.results.judgement import Result
from tests.report import ENVIRONMENT, failed

PART = Rewrite(
    tensor="y",
    made=("FastGelu",),
    replaced=("Div", "Erf"),
    names=("a", "b"),
    scope="mlp.gelu",
    error=1.9e-4,
)
FOUND = Optimised(
    level="extended",
    below="basic",
    passes=("GeluApproximation",),
    reason="",
    line='options.set("KEY", "VALUE")',
    given="the failing input",
    rewrites=Rewrites(24, PART, 12),
)


def told(found: Optimised) -> list[str]:
    return list(optimised.sentences(found))


def test_the_pass_its_place_and_the_remedy_are_told() -> None:
    assert told(FOUND) == [
        "only when optimised: it passes at the level basic, and fails from extended on; without "
        "GeluApproximation it passes there, too (inputs: the failing input)",
        "replaced Div, Erf (a, b) in mlp.gelu by FastGelu, whose result is 1.9e-4 off (RMSE as a "
        "share of its size); of 23 other replaced parts, 11 as far off",
        'to leave it out: options.set( "KEY", "VALUE")',
    ]


def test_what_is_not_known_is_left_out_or_said() -> None:
    bare = replace(PART, names=(), scope="", error=None)
    assert told(replace(FOUND, rewrites=Rewrites(1, bare, 1)))[1] == (
        "replaced Div, Erf by FastGelu, which fails or gives no finite result"
    )
    none = replace(FOUND, passes=(), reason="it names none", rewrites=None)
    assert told(none)[:2] == [
        "only when optimised: it passes at the level basic, and fails from extended on (inputs: "
        "the failing input)",
        "not known further: it names none",
    ]
    several = replace(FOUND, passes=("a", "b"), rewrites=Rewrites(3, None, 0))
    assert "without a and b it passes there" in told(several)[0]
    assert len(told(several)) == 2


def test_many_operations_are_cut_short() -> None:
    many = replace(PART, replaced=("Add",) * 11, names=())
    (_, line, _) = told(replace(FOUND, rewrites=Rewrites(1, many, 1)))
    assert "Add and 2 more in mlp.gelu" in line


def test_all_reports_name_the_pass() -> None:
    result = Result((replace(failed(), optimised=FOUND),), ENVIRONMENT)
    assert "without GeluApproximation it passes" in " ".join(text.render(result).split())
    page = html.render(result)
    assert "What the optimiser did" in page
    assert "Only when optimised: GeluApproximation." in " ".join(page.split())
    why = replace(failed(), optimised_problem="the sandbox process ended")
    told = " ".join(text.render(Result((why,), ENVIRONMENT)).split())
    assert "its optimiser was not looked at: the sandbox process ended" in told
