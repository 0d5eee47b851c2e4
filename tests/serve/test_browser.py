"""The playground in a real browser: typing, streaming, hovering, keys, A and B, pictures."""

from __future__ import annotations

import importlib.util
import re
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from moetool.model.generate import generate
from moetool.model.mixtral import Transformer
from moetool.serve.server import Service
from tests.serve.talking import PORT, TOKEN, serving

pytest.importorskip("playwright", reason="playwright is not installed")
_SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"
_SPEC = importlib.util.spec_from_file_location("screenshots", _SCRIPT)
screenshots = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(screenshots)
pytestmark = pytest.mark.skipif(
    screenshots.chromium() is None, reason="no Chromium on the PATH nor in MOETOOL_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser():
    with screenshots.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def live(subject):
    """A is the tiny release, B the same with one expert for each token."""
    one = Transformer(replace(subject.model.args, n_experts_per_tok=1), subject.model.weights)
    both = {subject.name: subject, "one-expert": replace(subject, name="one-expert", model=one)}
    bugs = []
    service = Service(both, TOKEN, PORT, bugs.append)
    with serving(service):
        yield service
    service.close()
    assert not bugs


@pytest.fixture(scope="module")
def url(live):
    return f"http://127.0.0.1:{live.port}/#token={TOKEN}"


@pytest.fixture(scope="module")
def tab(browser, url):
    """A tab, what it asked for, and what its console said."""
    context = browser.new_context(viewport=screenshots.WIDE)
    opened = context.new_page()
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(url)
    yield opened, asked, said
    context.close()


@pytest.fixture
def page(tab, url):
    """The page, anew; it asks nobody but us, and complains of nothing."""
    opened, asked, said = tab
    opened.reload()
    opened.wait_for_selector("#models:not(:empty)")
    yield opened
    origin = url.split("#")[0]
    assert asked
    assert [each for each in asked if not each.startswith((origin, "data:,"))] == []
    assert said == []
    said.clear()


def texts(page, of="article >> nth=0"):
    """The texts of the tokens of an answer, the prompt's first."""
    return page.locator(f"{of} >> .token").all_text_contents()


def write(page, prompt, n=24, *, both=False):
    if page.is_visible("#compare"):
        page.locator("#both").set_checked(both)
    page.fill("#prompt", prompt)
    page.fill("#max_tokens", str(n))
    before = int(page.get_attribute("#written", "data-texts") or 0)
    page.click("#run")
    page.wait_for_selector(f"#written[data-texts='{before + 1}']", timeout=60_000)


def test_a_prompt_is_typed_and_text_streams(page, subject, monkeypatch):
    """Text is there while the model has not written the rest: it is held at the tenth token."""
    released, seen, logits = threading.Event(), [], subject.model.logits

    def held(h_TD):
        seen.append(h_TD)
        assert len(seen) < 10 or released.wait(60)
        return logits(h_TD)

    monkeypatch.setattr(subject.model, "logits", held)
    page.locator("#both").set_checked(False)
    page.locator("#prompt").fill("")
    page.locator("#prompt").press_sequentially("The old")
    page.fill("#max_tokens", "40")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector(".token:not(.prompt) >> nth=7")
    assert page.is_disabled("#run")
    assert len(texts(page)) == len(subject.tokenizer.encode("The old")) + 8
    released.set()
    page.wait_for_selector("#run:enabled", timeout=60_000)
    whole = "".join(texts(page))
    assert whole.startswith("The old")
    state = page.text_content(".state")
    assert re.match(r"\d+ tokens, \d+\.\d tokens/s, ended by (length|stop)", state), state
    ids = subject.tokenizer.encode("The old")
    assert whole == subject.tokenizer.decode([*ids, *generate(subject.model, ids, 40)])


def test_escape_stops_the_writing(page, live):
    page.locator("#both").set_checked(False)
    page.fill("#max_tokens", "4000")
    page.click("#run")
    page.wait_for_selector(".token:not(.prompt) >> nth=3")
    page.keyboard.press("Escape")
    page.wait_for_selector("#run:enabled")
    assert "stopped" in page.text_content(".state")
    assert page.is_hidden("#trouble")
    for _ in range(200):
        if live.lane.state["running"] is None:
            break
        page.wait_for_timeout(20)
    assert live.lane.state["running"] is None


def test_a_token_that_is_hovered_shows_its_experts_in_every_layer(page, subject):
    import torch

    from moetool.experts.trace import Tracer

    write(page, "2 + 3 =", 8)
    page.hover(".token >> nth=3")
    assert page.get_attribute(".token >> nth=3", "aria-selected") == "true"
    shown = page.locator(".layer").all_text_contents()
    ids = subject.tokenizer.encode("2 + 3 =")
    tracer = Tracer(subject.model)
    subject.model.hidden(torch.tensor(ids), subject.model.new_cache(len(ids)), tracer)
    experts = tracer.take().experts_TLA[3].tolist()
    assert len(shown) == 4
    for layer, (text, pair) in enumerate(zip(shown, experts, strict=True)):
        assert text.startswith(f"layer {layer}{pair[0]}: ")
        assert f"%{pair[1]}: " in text
    assert "id " + str(ids[3]) in page.text_content(".seen")


def test_the_lanes_are_lit_and_lead_to_tokens(page):
    """There is colour in each lane; a place in them is a token of the text."""
    write(page, "The old", 10)
    page.wait_for_timeout(200)
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    assert box["height"] > 4 * 8 * 2
    canvas.hover(position={"x": 9 * 6 + 4, "y": 5})
    assert page.get_attribute(".token >> nth=6", "aria-selected") == "true"
    colours = canvas.evaluate(
        """canvas => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const lane = data.length / 4 / 4;
            const colour = n => data.slice(4 * n, 4 * n + 3).join();
            return [0, 1, 2, 3].map(layer => new Set(Array.from(
                { length: lane }, (_, n) => colour(layer * lane + n)
            )).size);
        }"""
    )
    assert min(colours) > 3


def test_keys_walk_the_tokens(page):
    write(page, "The old", 6)
    page.focus(".token >> nth=0")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.get_attribute(".token >> nth=1", "aria-selected") == "true"
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("End")
    assert page.get_attribute(".token >> nth=-1", "aria-selected") == "true"
    assert page.locator(".token[tabindex='0']").count() == 1


def test_everything_is_reached_by_the_tab_key(page):
    """And in the order in which it stands."""
    page.focus("#prompt")
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order[4:11] == ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "both"]
    assert order[11] == "run"


def test_a_and_b_on_one_prompt_with_the_first_difference_marked(page):
    write(page, "The old", 10, both=True)
    a, b = (texts(page, f"article >> nth={n}") for n in (0, 1))
    at = next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    said = page.text_content("#difference")
    assert said.startswith(f"First difference at token {at}: ")
    assert page.locator(".different").count() == 2
    for n in (0, 1):
        marked = page.locator(f"article >> nth={n} >> .different")
        assert marked.get_attribute("data-index") == str(at)
    page.hover(f"article >> nth=0 >> .token >> nth={at}")  # the same place in both
    other = page.locator(f"article >> nth=1 >> .token >> nth={at}")
    assert other.get_attribute("aria-selected") == "true"
    assert page.locator("article >> nth=1 >> .layer").first.text_content().count("%") == 1


def test_two_that_do_not_differ_say_so(page, live, subject, monkeypatch):
    monkeypatch.setitem(live.subjects, "one-expert", replace(subject, name="one-expert"))
    write(page, "The old", 6, both=True)
    assert page.text_content("#difference").startswith("No difference: ")
    assert page.locator(".different").count() == 0


def test_the_second_waits_its_turn_in_sight(page):
    page.locator("#both").set_checked(True)
    page.fill("#max_tokens", "4000")
    page.click("#run")
    page.wait_for_selector("article >> text=1 before this one")  # who came first is chance
    page.wait_for_selector("#queue >> text=writing, 1 waiting")
    page.keyboard.press("Escape")
    page.wait_for_selector("#run:enabled")


def test_the_card_is_what_inspect_says(page):
    page.click("summary >> nth=0")
    card = page.text_content("#cards table")
    for words in ("7,481,600", "top 2 of 8 experts", "mistral", "no template"):
        assert words in card


def test_parameters_are_heeded(page):
    page.fill("#stop", "old")
    page.fill("#temperature", "1.5")
    page.fill("#seed", "5")
    page.fill("#top_k", "20")
    write(page, "The", 16)
    first = texts(page)
    write(page, "The", 16)
    assert texts(page) == first
    page.fill("#seed", "6")
    write(page, "The", 16)
    assert texts(page) != first


def test_a_line_break_is_a_stop_text(page):
    page.fill("#stop", "\\n")
    write(page, "def get_total(price, count):", 40)
    assert "".join(texts(page)) == "def get_total(price, count):"
    assert "ended by stop" in page.text_content(".state")


def test_what_goes_wrong_is_said(page, monkeypatch):
    monkeypatch.setattr("moetool.serve.writing.free_nbytes", lambda: 1)
    write(page, "x", 5)
    assert "bytes are needed" in page.text_content("#trouble")


def test_a_text_is_never_markup(page):
    write(page, '<img src="x" onerror="alert(1)"><script>alert(2)</script>', 3)
    assert page.locator("#answers img, #answers script").count() == 0
    assert "<script>alert(2)</script>" in "".join(texts(page))


def test_without_the_token_the_page_says_what_to_do(browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.goto(url.split("#")[0])
    page.wait_for_selector("#trouble:visible")
    assert "moetool serve printed" in page.text_content("#trouble")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark_and_on_narrow_screens(browser, url, scheme):
    """Ink on paper has the contrast that WCAG asks for (4.5), and nothing is cut at 360 pixels."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#models:not(:empty)")
    write(page, "Diary of Tom", 20)
    page.hover(".token >> nth=4")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("body", ".token.routed", ".state", ".chip", "small", "summary"):
        ink, paper = page.locator(selector).first.evaluate(
            """node => {
                const ink = getComputedStyle(node).color;
                const paper = at => getComputedStyle(at).backgroundColor;
                let at = node;
                while (paper(at) === "rgba(0, 0, 0, 0)") at = at.parentElement;
                return [ink, paper(at)];
            }"""
        )
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    context.close()


def contrast(*colours):
    """The ratio of two colours' luminance (WCAG 2.2: 1.4.3)."""

    def luminance(colour):
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_the_pictures_of_the_documentation_are_taken(browser, url, tmp_path):
    """By the script that takes them; what the docs show is of the same sizes."""
    taken = screenshots.take(browser, url, tmp_path, 20)
    shown = sorted(path.name for path in screenshots.FOLDER.glob("playground*.png"))
    assert sorted(path.name for path in taken) == shown
    for path in taken:
        data = path.read_bytes()
        width, _height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG")
        assert width == struct.unpack(">I", (screenshots.FOLDER / path.name).read_bytes()[16:20])[0]
        assert len(data) > 20_000  # not blank
