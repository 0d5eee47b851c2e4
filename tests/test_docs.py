"""The documentation is true: commands documented, links alive, no page behind the code."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from moetool.cli.app import app

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_generated_pages_are_current():
    """`python docs/generate.py` writes what is there."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_the_pictures_are_what_their_script_draws():
    """The same cells and titles; a colour may be a shade off on another machine."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    for path, drawn in pictures.pictures().items():
        there, now = [ET.fromstring(text) for text in (path.read_text("utf-8"), drawn)]
        cells = [[(rect.get("x"), rect.get("y")) for rect in each.iter(f"{SVG}rect")]
                 for each in (there, now)]  # fmt: skip
        assert cells[0] == cells[1]
        values = [[float(title.text.split(": ")[1]) for title in each.iter(f"{SVG}title")]
                  for each in (there, now)]  # fmt: skip
        assert len(values[0]) == 32
        assert values[0] == pytest.approx(values[1], abs=0.02 * max(values[0]))


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_every_command_has_help_and_a_place_in_the_documentation(command):
    """A command says what it does, and README or docs show it."""
    assert command.callback.__doc__
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"moetool {command.name}" in shown


@pytest.mark.parametrize(
    ("group", "command"),
    [
        (group.typer_instance.info.name, command)
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_command_of_a_group_too(group, command):
    """The same of those that stand behind another word."""
    assert command.callback.__doc__
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"moetool {group} {command.name}" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_are_alive(page):
    """Every relative link leads to a file."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
