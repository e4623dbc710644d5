"""Built books in a real browser: what a reader sees, hears and can reach.

Needs built books, Chromium and axe-core, so it runs only when asked for:

    apt-get install chromium
    npm ci --prefix tests/axe
    python -m pytest -m browser                          # all books in runs/
    BOOKS=runs/fast/html python -m pytest -m browser     # one of them
"""

import functools
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from dummy_project import ROOT

from minddiff_utils.evaluation.metrics import read_metrics

pytestmark = pytest.mark.browser

AXE = ROOT / "tests/axe/node_modules/axe-core/axe.min.js"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += [f"--disable-{part}" for part in ("background-networking", "component-update", "sync")]
DESK, PHONE = (1400, 900), (360, 740)  # CSS pixels
GIVEN = os.environ.get("BOOKS", "").split(os.pathsep)
BOOKS = [Path(b).resolve() for b in GIVEN if b] or sorted((ROOT / "runs").glob("*/html"))
PAGES = [path for book in BOOKS for path in sorted(book.rglob("*.html"))]
PAGES = [path for path in PAGES if "_static" not in path.parts]
GALLERIES = [path for path in PAGES if path.name == "gallery.html"]


def name(path):
    return f"{path.parents[1].name}/{path.name}" if path in BOOKS else "/".join(path.parts[-3:])


def test_there_are_books_to_look_at():
    """Without one, everything below would be left out in silence."""
    assert PAGES, f"no book in {ROOT / 'runs'}: run `make book` first, or name folders in BOOKS"


@pytest.fixture(scope="session")
def context(tmp_path_factory):
    """A headless Chromium with an empty profile that reaches no network."""
    playwright = pytest.importorskip("playwright.sync_api", exc_type=ModuleNotFoundError)
    program = shutil.which("chromium")
    assert program, "Chromium is missing: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        opened = driver.chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=ARGUMENTS
        )
        yield opened
        opened.close()


class Visit:
    """A page in the browser, and what went wrong while it was loaded."""

    def __init__(self, context, address):
        self.errors = []
        self.page = context.new_page()
        self.page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
        self.page.emulate_media(color_scheme="light", reduced_motion="reduce")
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(f"script: {error}"))
        self.page.on("requestfailed", lambda r: self.errors.append(f"not loaded: {r.url}"))
        self.page.on("request", self._see)
        self.page.goto(address)
        # Colours fade from one theme to the other: no time for that.
        self.page.add_style_tag(content="* { transition: none !important; }")

    def _hear(self, message):
        if message.type == "error":
            self.errors.append(f"console: {message.text}")

    def _see(self, request):
        if urlsplit(request.url).hostname not in (None, "", "127.0.0.1"):
            self.errors.append(f"asks the network: {request.url}")


@pytest.fixture(scope="module", params=PAGES, ids=name)
def visit(request, context):
    """Each page in turn, from its file, as a reader opens it."""
    visit = Visit(context, request.param.as_uri())
    yield visit
    visit.page.close()


# --- every page -----------------------------------------------------------------------------------


def test_page_loads_without_errors(visit):
    assert visit.errors == []
    assert visit.page.locator("h1").count() >= 1


@functools.cache
def anchors(path):
    """The ids of a page."""
    page = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    return {tag["id"] for tag in page.find_all(id=True)}


def dead(address):
    """Why an address leads nowhere; "" if it leads somewhere, or out of the book."""
    parts = urlsplit(address)
    if parts.scheme != "file":
        return ""
    path = Path(unquote(parts.path))
    if not path.is_file():
        return f"{address}: no such file"
    if parts.fragment and path.suffix == ".html" and unquote(parts.fragment) not in anchors(path):
        return f"{address}: no such place on the page"
    return ""


def test_links_and_pictures_lead_somewhere(visit):
    found = visit.page.evaluate(
        """() => [...document.querySelectorAll("[href], [src]")].map(
               (one) => [one.getAttribute("href") ?? one.getAttribute("src"), one.href ?? one.src]
           ).filter(([written, address]) => written !== "#" && typeof address === "string")
           .map(([written, address]) => address)"""
    )
    assert len(found) > 20
    made = visit.page.evaluate("() => [...document.querySelectorAll('[id]')].map((one) => one.id)")
    made = {f"{visit.page.url.split('#')[0]}#{one}" for one in made}  # by scripts, too
    found = sorted(set(found) - made)
    assert [trouble for address in found if (trouble := dead(address))] == []


def test_pictures_have_alternative_texts(visit):
    """Every figure says what it shows. (The logo stands beside the title, so its text is empty.)"""
    mute = visit.page.evaluate(
        """() => [...document.querySelectorAll("img")].filter((one) => one.closest("article") ?
               !(one.alt.trim().length > 5) : !one.hasAttribute("alt")
           ).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert mute == []


MOST = 2000  # words of a page


def test_page_is_read_in_one_sitting(visit):
    """Prose, captions and tables count; code, formulas and what is folded away do not."""
    words = visit.page.evaluate(
        """() => {
            const page = (document.querySelector("article") ?? document.body).cloneNode(true);
            const rest = "pre, script, style, details, .dropdown, .math, mjx-container";
            page.querySelectorAll(rest).forEach((one) => one.replaceWith(" "));
            page.querySelectorAll("td, th, p, li, h1, h2").forEach((one) => one.append(" "));
            return page.textContent.split(/\\s+/).length;
        }"""
    )
    assert words <= MOST or visit.page.url.endswith("gallery.html")


def test_page_is_not_wider_than_a_phone(visit):
    visit.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    wide = visit.page.evaluate(
        """(width) => document.scrollingElement.scrollWidth <= width ? [] :
               [...document.querySelectorAll("main *")].filter(
                   (one) => one.getBoundingClientRect().right > width + 1
               ).map((one) => one.outerHTML.slice(0, 120)).slice(0, 5).concat("too wide")""",
        PHONE[0],
    )
    visit.page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
    assert wide == []


def test_what_scrolls_on_a_phone_is_reached_by_the_keyboard(visit):
    """And what is written in a figure is not shrunk until nobody can read it."""
    assert AXE.is_file(), "axe-core is missing: npm ci --prefix tests/axe"
    page = visit.page
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=AXE)
    page.wait_for_timeout(600)  # the theme looks at code 0.3 s after the window has changed
    rule = {"type": "rule", "values": ["scrollable-region-focusable"]}
    found = page.evaluate("(asked) => axe.run({runOnly: asked})", rule)
    shrunk = page.evaluate(
        """() => [...document.querySelectorAll(".cell_output figure img[src$='.svg']")].map(
               (one) => one.getBoundingClientRect().width / one.naturalWidth)"""
    )
    page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
    assert [node["html"][:150] for one in found["violations"] for node in one["nodes"]] == []
    assert all(12 * 96 / 72 * share > 8 for share in shrunk)  # px of letters of 12 points


LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest.mark.parametrize(
    ("theme", "asked"),
    [("light", LEVELS), ("dark", {"type": "rule", "values": ["color-contrast"]})],
    ids=["light", "dark"],
)
def test_page_passes_axe(visit, theme, asked):
    """WCAG 2.1, levels A and AA, by axe-core; in the dark the contrast, which alone can differ."""
    assert AXE.is_file(), "axe-core is missing: npm ci --prefix tests/axe"
    page = visit.page
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=AXE)
    found = page.evaluate("(asked) => axe.run({runOnly: asked})", asked)
    faults = [
        f"{rule['id']}: {node['html'][:150]} {(node['any'] or node['all'] or node['none'])[:1]}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]
    assert faults == []
    assert found["passes"], "axe has looked at nothing"


# --- the gallery ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GALLERIES, ids=name)
def gallery(request, context):
    visit = Visit(context, request.param.as_uri())
    values = read_metrics(request.param.parents[2], [request.param.parent.name])
    visit.values = values.pivot_table(
        index="stimulus_id", columns=["method", "metric"], values="value"
    )
    yield visit
    visit.page.close()


def order(page):
    return [
        int(number)
        for number in page.locator(".gallery-cards > li").evaluate_all(
            "(cards) => cards.map((card) => card.dataset.id)"
        )
    ]


def choose(page, **values):
    for label, value in values.items():
        page.select_option(f"select[data-sort={label}]", value)


def test_every_book_with_reconstructions_has_a_gallery():
    subjects = {
        path.parents[1] for book in BOOKS for path in book.parent.glob("*/reconstructions/truth.h5")
    }
    assert {path.parents[2] / path.parent.name for path in GALLERIES} == subjects


@pytest.mark.parametrize("direction", ["high", "low"])
def test_gallery_sorts_by_every_number(gallery, direction):
    page, values = gallery.page, gallery.values
    for metric in page.locator("select[data-sort=metric] option").evaluate_all(
        "(options) => options.map((option) => option.value)"
    ):
        for method in page.locator("select[data-sort=method] option").evaluate_all(
            "(options) => options.map((option) => option.value)"
        ):
            choose(page, metric=metric, method=method, order=direction)
            shown = order(page)
            assert sorted(shown) == sorted(values.index)
            if metric == "id":
                expected = pd.Series(values.index, values.index)
            elif "-" in method:
                after, before = method.split("-")
                expected = values[after][metric] - values[before][metric]
            else:
                expected = values[method][metric]
            steps = expected.reindex(shown).dropna().diff().dropna()
            assert ((steps <= 2e-4) if direction == "high" else (steps >= -2e-4)).all()
            missing = expected.reindex(shown).isna()
            assert missing.is_monotonic_increasing  # pictures without a number come last


def test_gallery_shows_every_picture_with_its_numbers(gallery):
    page, values = gallery.page, gallery.values
    loaded = page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll(".gallery-cards img")];
            images.forEach((image) => { image.loading = "eager"; });
            await Promise.all(images.map((image) => image.decode()));
            return images.map((image) => [image.naturalWidth, image.naturalHeight]);
        }"""
    )
    n_parts = page.locator(".gallery-cards > li").first.locator("figure").count()
    assert len(loaded) == n_parts * len(values)
    assert all(width == n_parts * height and height > 0 for width, height in loaded)
    card = page.locator(".gallery-cards > li").first
    card.locator("summary").click()
    card.locator("tbody tr").first.wait_for()  # the table is made when the browser says it opened
    rows = card.locator("tbody tr").all_inner_texts()
    assert len(rows) == values.columns.get_level_values("method").nunique()
    number = int(card.get_attribute("data-id"))
    first = list(values.loc[number].xs("stage1").round(2))
    assert set(f"{abs(value):.2f}" for value in first) <= set(re.findall(r"[\d.]+", " ".join(rows)))


def test_gallery_obeys_the_keyboard_and_says_so(gallery):
    page = gallery.page
    choose(page, metric="id", method="stage1", order="high")
    page.focus("select[data-sort=order]")
    page.keyboard.press("ArrowDown")
    assert order(page) == sorted(order(page))
    assert "lowest first" in page.locator("[role=status]").inner_text()
    page.keyboard.press("Tab")
    box = page.locator(".gallery-form input").first
    assert box.evaluate("(one) => one === document.activeElement")
    figures = page.locator(f"figure[data-method={box.get_attribute('id').split('-')[-1]}]")
    shown = figures.first.is_visible()
    page.keyboard.press("Space")
    assert figures.first.is_visible() is not shown
    page.keyboard.press("Space")


def test_each_picture_has_an_address_that_opens_it(gallery):
    page, wanted = gallery.page, order(gallery.page)[-1]
    here = page.url.split("#")[0]
    page.evaluate("(number) => { location.hash = 'picture-' + number; }", wanted)
    dialog = page.locator(".gallery-dialog")
    assert dialog.is_visible() and f"Image {wanted}" in dialog.inner_text()
    page.focus(".gallery-dialog input[type=range]")
    page.keyboard.press("ArrowRight")
    place = dialog.locator(".compare").evaluate("(box) => box.style.getPropertyValue('--at')")
    assert place == "51%"
    page.locator(".gallery-steps a").last.click()
    page.wait_for_function("(name) => !document.querySelector('#gallery-large').innerText"
                           ".endsWith(' ' + name)", arg=str(wanted))  # fmt: skip
    page.locator(".gallery-dialog button").click()
    assert not dialog.is_visible() and page.url == here


@pytest.mark.parametrize("book", BOOKS, ids=name)
def test_border_between_two_images_obeys_the_keyboard(book, context):
    if not list(book.parent.glob("*/reconstructions/truth.h5")):
        pytest.skip("a book without reconstructions")
    visit = Visit(context, (book / "index.html").as_uri())
    box = visit.page.locator(".compare").first
    over = box.locator(".compare-over")
    before = over.evaluate("(image) => getComputedStyle(image).clipPath")
    visit.page.focus(".compare input[type=range]")
    visit.page.keyboard.press("End")
    assert over.evaluate("(image) => getComputedStyle(image).clipPath") != before
    visit.page.close()


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("book", BOOKS, ids=name)
def test_every_entry_of_the_search_leads_somewhere(book):
    text = (book / "searchindex.js").read_text("utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\);?\s*", text, re.DOTALL)[1])
    pages = [book / f"{document}.html" for document in index["docnames"]]
    assert pages and [str(page) for page in pages if not page.is_file()] == []
    places = [place for found in index["alltitles"].values() for place in found]
    places += [place[:2] for found in index["indexentries"].values() for place in found]
    lost = [
        (pages[n].name, place) for n, place in places if place and place not in anchors(pages[n])
    ]
    assert lost == []
