"""The page in a real browser: no errors, no requests, complete, and no wider than a phone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import clipcheck
from clipcheck.audit.faults import FAULTS
from clipcheck.report import evidence
from clipcheck.writers.archive import write_archive
from tests.report.html.judgements import FAILED, IN_HALF, PASSED, UNJUDGED, result, showing
from tests.samples import MINUTE, minute_weights

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CLIPCHECK_BROWSER"),
        reason="neither chromium nor google-chrome is here with its chromedriver",
    ),
]

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PHONE, DESK = 360, 1280

WAYS = ("jit", "trace", "script")

SLY = "</pre><script>document.title='run'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    assert BROWSER, "CLIPCHECK_BROWSER is set, and there is no chromium or google-chrome"
    assert DRIVER, "CLIPCHECK_BROWSER is set, and there is no chromedriver"
    options = ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return pages by name: of a check of a faulty archive, and of results made by hand."""
    folder = tmp_path_factory.mktemp("pages")
    (fault,) = (fault for fault in FAULTS if fault.name == "highlights-clipped")
    faulty = folder / "faulty.pt"
    write_archive(MINUTE, minute_weights(), faulty, alter=fault.plant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(folder / "hypothesis"))
        failing = clipcheck.check(faulty, device="cpu", examples=14)
    results = {
        "failing": failing,
        "passing": result(PASSED, IN_HALF),
        "unjudged": result(UNJUDGED),
        "six": result(
            *(replace(PASSED, checkpoint=f"{n}.pt", backend=b) for n in "ab" for b in WAYS)
        ),
        "sly": result(FAILED, showing(SLY)),
    }
    for name, each in results.items():
        (folder / name).mkdir()
        evidence.keep(each, folder / name)
    return {name: folder / name / evidence.HTML for name in results}


def show(browser: Chrome, page: Path, width: int = DESK, scheme: str = "light") -> None:
    """Open a page in a window of this width."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for log in ("browser", "performance"):
        browser.get_log(log)  # Which empties it.
    browser.get(page.as_uri())


def run(browser: Chrome, script: str) -> Any:
    return browser.execute_script(script)


@pytest.mark.parametrize("name", ["failing", "passing", "unjudged", "sly"])
def test_the_page_logs_no_errors_and_loads_nothing_else(
    browser: Chrome, pages: dict[str, Path], name: str
) -> None:
    show(browser, pages[name])
    run(browser, "document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert pages[name].as_uri() in asked
    assert [url for url in asked if url != pages[name].as_uri() and url[:5] != "data:"] == []


def test_scripts_in_a_prompt_are_not_run(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["sly"])
    assert browser.title.startswith("INCONSISTENT")
    assert SLY in run(browser, "return document.querySelector('#j2 .prompt').innerText")
    assert run(browser, "return document.scripts.length") == 0


def test_two_checkpoints_by_three_backends_that_pass_fit_on_a_few_screens(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["six"], 1200)
    assert run(browser, "return document.documentElement.scrollHeight") <= 3000


def test_a_link_to_a_run_that_passed_unfolds_it(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["six"])
    unfolded = "return [...document.querySelectorAll('details.judgement')].map(each => each.open)"
    assert run(browser, unfolded) == [False] * 6
    run(browser, "document.querySelector('a[href=\"#j3\"]').click()")
    assert run(browser, unfolded) == [False, False, True, False, False, False]


def test_sections_and_plots_are_there(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["failing"])
    headings = run(
        browser, "return [...document.querySelectorAll('#j1 h3')].map(each => each.innerText)"
    )
    for expected in (
        "The failing input",
        "Error of each module of the image tower",
        "Error of each module of the text tower",
        "Errors of all rows",
        "Differences of the logits",
        "Integrity of the weights",
        "How to repeat this check",
        "Time by phase",
    ):
        assert any(heading.startswith(expected) for heading in headings), expected
    boxes = run(
        browser,
        "return [...document.querySelectorAll('svg')].map(each => {"
        " const box = each.getBoundingClientRect(); return [box.width, box.height]; })",
    )
    assert len(boxes) == 4
    assert all(width > 400 and height > 100 for width, height in boxes)
    loaded = "return [...document.images].map(each => each.complete && each.naturalWidth > 0)"
    assert run(browser, loaded)
    assert all(run(browser, loaded))


def test_all_that_is_drawn_lies_inside_of_its_plot(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["failing"])
    outside = run(
        browser,
        "return [...document.querySelectorAll('svg')].flatMap(svg => {"
        " const all = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter(each => {"
        "  const box = each.getBoundingClientRect();"
        "  return box.left < all.left - 1 || box.right > all.right + 1"
        "   || box.top < all.top - 1 || box.bottom > all.bottom + 1; })"
        " .map(each => each.textContent); })",
    )
    assert outside == []


@pytest.mark.parametrize("name", ["failing", "passing", "unjudged", "sly"])
def test_nothing_is_wider_than_a_phone(browser: Chrome, pages: dict[str, Path], name: str) -> None:
    show(browser, pages[name], PHONE)
    run(browser, "document.querySelectorAll('details').forEach(each => each.open = true)")
    root = "document.documentElement"
    wide = run(browser, f"return [{root}.scrollWidth, {root}.clientWidth]")
    assert wide[0] <= wide[1] == PHONE


def test_plots_fit_a_phone(browser: Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["failing"], PHONE)
    widths = run(
        browser,
        "return [...document.querySelectorAll('figure .scroll')]"
        ".map(each => [each.scrollWidth, each.clientWidth])",
    )
    assert len(widths) == 4
    assert all(all_of_it <= shown for all_of_it, shown in widths)


def test_text_in_a_plot_is_not_smaller_on_a_phone_than_can_be_read(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["failing"], PHONE)
    heights = run(
        browser,
        "return [...document.querySelectorAll('svg text')].map(each => {"
        " const drawn = each.getScreenCTM();"
        " return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(drawn.a, drawn.b); })",
    )
    assert min(heights) >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(
    browser: Chrome, pages: dict[str, Path], scheme: str
) -> None:
    show(browser, pages["failing"], scheme=scheme)
    ground = run(browser, "return getComputedStyle(document.body).backgroundColor")
    letters = run(browser, "return getComputedStyle(document.querySelector('svg text')).fill")
    dark = {colour: brightness(colour) < 128 for colour in (ground, letters)}
    assert dark[ground] == (scheme == "dark")
    assert dark[letters] == (scheme == "light")


def brightness(colour: str) -> float:
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3


def test_the_page_can_be_read_by_keyboard(browser: Chrome, pages: dict[str, Path]) -> None:
    from selenium.webdriver import ActionChains, Keys

    show(browser, pages["failing"])
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert run(browser, "return document.activeElement.innerText") == "Skip to the report"
    assert run(browser, "return document.activeElement.getBoundingClientRect().top") >= 0
    assert run(browser, "return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    run(browser, "document.querySelector('summary').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert run(browser, "return document.querySelector('details').open") is True


def test_the_page_is_printed_on_white_and_nothing_is_cut_off(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["failing"], width=700, scheme="dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    ground = run(browser, "return getComputedStyle(document.body).backgroundColor")
    assert brightness(ground) == 255
    cut = run(
        browser,
        "return [...document.querySelectorAll('figure .scroll')]"
        ".filter(each => each.scrollWidth > each.clientWidth).length",
    )
    assert cut == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
