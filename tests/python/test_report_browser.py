"""Reports in a browser without a window: headless Chromium."""

from __future__ import annotations

import importlib.util
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amct_pytorch as amct
import pytest
from amct_pytorch._report_names import MINUS
from report_files import NASTY, Odd, calibrated_files, evaluation_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed; apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="playwright is not installed; make test does that",
    ),
]

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}

# The worst contrast of text to the background that it stands on, over all elements that have some.
CONTRAST = """() => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg text, script") === null && e.closest("svg, script")) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const own = getComputedStyle(e);
    const [a, b] = [light(e.closest("svg") ? own.fill : own.color), light(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 120)];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root there is no sandbox, and in a container little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a file; at the end nothing must have gone wrong, and nothing else been asked for."""
    troubles: list[str] = []
    contexts = []

    def visit(path: Path, viewport: dict[str, int] = DESK, **options: Any) -> Any:
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on(
            "request",
            lambda request: (
                troubles.append(request.url)
                if request.url.split("#")[0] != path.as_uri() and not request.url.startswith("data:")
                else None
            ),
        )
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a comparison, an evaluation and findings."""
    folder = tmp_path_factory.mktemp("report")
    record, counts = calibrated_files(folder, seen=2, asked=3)
    other = folder / "int4.txt"
    amct.solve_counts(counts, other, act_algo="mse", num_bits=4, quant_granularity="per_tensor")
    amct.report(
        other,
        counts,
        folder / "report.html",
        compare=record,
        evaluation=evaluation_of("int4:per_tensor:mse", "int8+int4:per_channel:percentile"),
    )
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_it_fits_and_is_legible(visit: Open, page_file: Path, viewport: dict[str, int], scheme: str) -> None:
    from PIL import Image

    page = visit(page_file, viewport, color_scheme=scheme)
    page.evaluate("for (const layer of document.querySelectorAll('details')) layer.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    image = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert image.size == (viewport["width"], viewport["height"])
    corner = image.getpixel((2, viewport["height"] // 2))
    assert isinstance(corner, int)
    assert corner > 200 if scheme == "light" else corner < 60
    assert image.getextrema() != (corner, corner)


def column(page: Any, place: int) -> list[float]:
    texts = page.locator(f"#layers tbody tr > :nth-child({place})").all_inner_texts()
    return [float(text.replace(MINUS, "-").rstrip("%")) for text in texts]


def test_sorting(visit: Open, page_file: Path) -> None:
    page = visit(page_file)
    heading = page.locator("#layers th", has_text="SQNR")
    before = column(page, 3)
    heading.locator("button").click()
    assert column(page, 3) == sorted(before)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert column(page, 3) == sorted(before, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    page.locator("#layers th button", has_text="Layer").click()
    assert column(page, 3) == before
    assert heading.get_attribute("aria-sort") is None


def test_a_link_opens_its_layer(visit: Open, page_file: Path) -> None:
    page = visit(page_file, PHONE)
    page.locator("#layers tbody a").nth(3).click()
    layer = page.locator("#layer-3")
    page.wait_for_function("document.querySelector('#layer-3').open")
    assert layer.locator("svg").first.is_visible()
    layer.locator("summary").click()
    page.locator("#layers tbody a").nth(3).click()
    page.wait_for_function("document.querySelector('#layer-3').open")


def test_without_scripts(visit: Open, page_file: Path) -> None:
    page = visit(page_file, java_script_enabled=False)
    assert page.locator("#layers tbody tr").count() == 4
    assert page.locator("#layers th button").count() == 0
    page.locator("#layer-2 summary").click()
    assert page.locator("#layer-2 svg").first.is_visible()


def test_charts_are_there(visit: Open, page_file: Path) -> None:
    page = visit(page_file)
    open_layer = page.locator("details[open] svg")
    assert open_layer.count() == 3
    for place in range(3):
        box = open_layer.nth(place).bounding_box()
        assert box is not None
        assert box["width"] > 250
        assert box["height"] > 100


def test_names_do_nothing(visit: Open, tmp_path: Path) -> None:
    record, counts = calibrated_files(tmp_path, Odd(NASTY), layers=NASTY)
    path = tmp_path / "report.html"
    amct.report(record, counts, path, title=NASTY[0], evaluation={NASTY[1]: NASTY[2]})
    page = visit(path, PHONE)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("h1").inner_text() == NASTY[0]
    assert page.locator("img").count() == 0
