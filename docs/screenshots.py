"""Take the pictures of the playground that the documentation shows, off the real command.

A is the tiny release, B the same in 4 bits. Needs the `serve` and `clients` extras and a Chromium:
`chromium` on the PATH, or what MOETOOL_CHROMIUM names.

python docs/screenshots.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).parent / "pictures"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Nothing but the page: without these a fresh browser looks for updates and plays with the sandbox
# of a root user.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
DOMAINS = """Once upon a time there was a brave fox named Mila. Mila lived near the river.

2 + 3 = 5
7 - 4 = 3
6 * 7 = 42

Diary of Tom
Monday 3 March 2014: sunny. Tom baked a cake.

def get_total(price, count):
"""
HOVERED = 30  # the token that is looked at


def chromium() -> str | None:
    """The browser on this machine, if there is one."""
    return os.environ.get("MOETOOL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


def write(page: Page, example: str, max_tokens: int, prompt: str | None = None) -> None:
    """Have an example or a prompt continued, by the keyboard, and wait for its end."""
    page.click(f"#examples >> text={example}")
    if prompt:
        page.fill("#prompt", prompt)
    page.fill("#max_tokens", str(max_tokens))
    before = int(page.get_attribute("#written", "data-texts") or 0)
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector(f"#written[data-texts='{before + 1}']", timeout=60_000)


def take(opened: Browser, url: str, folder: Path, n_tokens: int = 48) -> list[Path]:
    """Two checkpoints in the light, three domains in one prompt in the dark, a narrow screen."""
    page = opened.new_page(viewport=WIDE, color_scheme="light")
    page.goto(url)
    page.wait_for_selector("#models:not(:empty)")
    write(page, "code", n_tokens)
    page.hover(f".token >> nth={HOVERED}")
    taken = [_picture(page, folder / "playground.png")]
    page.emulate_media(color_scheme="dark")
    page.uncheck("#both")
    write(page, "story", n_tokens, prompt=DOMAINS)
    page.hover('.token:has-text("price") >> nth=0')
    taken.append(_picture(page, folder / "playground-domains.png"))
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(NARROW)
    write(page, "story", n_tokens)
    page.hover(f".token >> nth={HOVERED}")
    page.locator("#written").scroll_into_view_if_needed()
    taken.append(_picture(page, folder / "playground-narrow.png", of="#written"))
    page.close()
    return taken


def _picture(page: Page, path: Path, of: str = "body") -> Path:
    page.wait_for_timeout(200)  # a frame for the lanes
    page.locator(of).screenshot(path=path)
    return path


def main() -> None:
    """Make B, serve both, take the pictures."""
    from moetool.release.fixture import find_fixture

    moetool = [sys.executable, "-m", "moetool"]
    release = find_fixture().directory
    with tempfile.TemporaryDirectory() as work:
        other = Path(work) / f"{release.name}-q4_0"
        to = ["convert", str(release), "--to", "gguf", "--dtype", "q4_0", "--out", str(other), "-q"]
        subprocess.run([*moetool, *to], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # our own
        serve = ["serve", str(release), "--against", str(other), "--port", "0", "--json", "-q"]
        with subprocess.Popen([*moetool, *serve], stdout=subprocess.PIPE) as server:  # noqa: S603
            try:
                assert server.stdout
                text = b""
                while not text.endswith(b"}\n"):
                    text += server.stdout.readline()
                with browser() as opened:
                    FOLDER.mkdir(exist_ok=True)
                    take(opened, json.loads(text)["url"], FOLDER)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
