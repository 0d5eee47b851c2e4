"""The exception tree: its drawing is true, and each branch has its exit code."""

import inspect
import re

import pytest

from moetool import errors

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.MoetoolError)
]


def test_the_drawing_names_every_class():
    """The tree in the module's docstring is the tree in the code."""
    drawn = re.findall(r"\b[A-Z][a-z]+[A-Za-z]+\b", errors.__doc__.split("MoetoolError", 1)[1])
    assert {kind.__name__ for kind in CLASSES} - {"MoetoolError"} <= set(drawn)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_has_a_documented_exit_code(kind):
    """Every leaf leaves with the code of its branch."""
    assert kind.exit_code in {1, 2, 3, 4, 5, 6, 7, 130}


def test_a_message_says_where_and_what():
    """Where comes first, the hint stays apart."""
    error = errors.TruncatedFile("ends at byte 5", where="a.pth", hint="fetch it again")
    assert str(error) == "a.pth: ends at byte 5"
    assert error.hint == "fetch it again"


def test_a_terminated_run_leaves_with_143():
    """SIGTERM is told apart from Ctrl-C."""
    assert errors.Interrupted("terminated", exit_code=143).exit_code == 143
