"""The architecture holds: imports point one way, rooms stay small, starting is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moetool

PACKAGE = Path(moetool.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def test_imports_point_one_way():
    """import-linter's contracts hold: layers, no torch in the metadata plane, one door each."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"]])
def test_help_loads_nothing_heavy(words):
    """A start loads neither torch nor numpy, libtorrent or sentencepiece, nor rich."""
    code = (
        "import sys; from moetool.cli.app import run; run(sys.argv[1:]);"
        "print([m for m in ('torch', 'numpy', 'libtorrent', 'sentencepiece', 'rich',"
        " 'huggingface_hub')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_numpy_need_not_be_installed(tiny_release, tmp_path):
    """torch works without numpy, and so do a conversion that computes and a smoke-test."""
    code = (
        "import sys; sys.modules['numpy'] = None; from moetool.cli.app import run;"
        "source, out = sys.argv[1:];"
        "codes = [run(['convert', source, '--to', 'pth', '--layout', 'mistral-packed',"
        " '--out', out]), run(['smoke-test', out, '--device', 'cpu'])];"
        "sys.exit(codes != [0, 0])"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_release, tmp_path / "packed"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NumPy" not in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path):
    """No file beyond 400 lines, no function beyond 60; most are far below."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
