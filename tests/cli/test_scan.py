"""`moetool scan` as a user and as a script sees it."""

from __future__ import annotations

import json
import re
import shutil
import struct

import pytest

from moetool.formats import create, open_checkpoint
from moetool.tensors import DType, TensorInfo

W2 = "layers.1.feed_forward.experts.3.w2.weight"
NAN = struct.pack("<H", 0x7FC0)


@pytest.fixture
def copy(tiny_release, tmp_path):
    """A copy of the trained release that may be damaged."""
    return shutil.copytree(tiny_release, tmp_path / "copy")


def write_into(folder, tensor, change):
    """Change the bytes of a tensor where the file has them."""
    with open_checkpoint(folder) as checkpoint:
        extent = checkpoint.catalog.extents[tensor]
        data, info = bytearray(checkpoint.read(tensor)), checkpoint.catalog.tensors[tensor]
    change(data, info.shape[1] * 2)
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(data)


def nan_at(row, column):
    def change(data, row_nbytes):
        at = row * row_nbytes + 2 * column
        data[at : at + 2] = NAN

    return change


def test_the_release_has_nothing_to_say_of(moetool, tiny_release):
    done = moetool("scan", tiny_release, "--strict", check=0)
    assert re.search(r"^0 errors, 0 warnings, 0 notes  in 127 tensors, 14\.27 MiB looked at$",
                     done.stdout, re.MULTILINE)  # fmt: skip
    assert "only a digest tells" in done.stdout
    assert "healthy" not in done.stdout


def test_an_error_is_named_and_leaves_with_3(moetool, copy):
    write_into(copy, W2, nan_at(5, 9))
    done = moetool("scan", copy, check=3)
    line = next(line for line in done.stdout.splitlines() if line.startswith("error"))
    assert re.split(r"  +", line) == ["error", "nan", W2, "row 5 column 9", "the value is NaN"]
    assert "1 error, 0 warnings" in done.stdout


def test_the_document_says_the_same(moetool, copy):
    write_into(copy, W2, nan_at(5, 9))
    document = json.loads(moetool("scan", copy, "--json", check=3).stdout)
    assert (document["schema"], document["version"], document["ok"]) == ("moetool.scan", 1, False)
    assert document["findings"] == [
        {
            "code": "nan", "severity": "error", "tensor": W2, "reason": "the value is NaN",
            "stored": "", "layer": 1, "expert": 3, "rows": [5, 5], "column": 9, "count": 1,
        }
    ]  # fmt: skip
    assert (document["n_tensors"], document["not_covered"]) == (127, [])


def test_warnings_count_only_where_asked(moetool, copy):
    def tiny(data, row_nbytes):
        data[3 * row_nbytes : 3 * row_nbytes + 2] = struct.pack("<H", 0x1C80)

    write_into(copy, W2, tiny)
    assert "tiny-value" in moetool("scan", copy, check=0).stdout
    done = moetool("scan", copy, "--strict", "--json", check=3)
    document = json.loads(done.stdout)
    assert (document["ok"], document["strict"]) == (False, True)


def test_a_converted_checkpoint_has_both_names(moetool, copy, tmp_path):
    out = tmp_path / "hf"
    moetool("convert", copy, "--out", out, "--to", "safetensors", "--layout", "hf", check=0)
    stored = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    write_into(out, stored, nan_at(5, 9))
    assert f"{W2} (stored in {stored})" in moetool("scan", out, check=3).stdout


def strange(folder, tensors):
    """A checkpoint of names that belong to no model: {name: (type, shape, bytes)}."""
    folder.mkdir()
    infos = [TensorInfo(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
    sink = create(folder / "model.safetensors", infos, {})
    for name, (_, _, data) in tensors.items():
        sink.write(name, [data])
    sink.close()
    return folder


def test_an_unknown_model_is_scanned_and_markup_in_its_names_stays_text(moetool, tmp_path):
    name = "[red]x[/red] :bomb: <b>"
    data = bytearray(struct.pack("<f", 0.5) * 64)
    data[20:24] = struct.pack("<f", float("nan"))
    folder = strange(tmp_path / "odd", {name: (DType.F32, (4, 16), bytes(data))})
    done = moetool("scan", folder, check=3, env={"FORCE_COLOR": "1"})
    assert "not recognised" in done.stdout
    assert "row 0 column 5" in done.stdout
    assert name in done.stdout
    document = json.loads(moetool("scan", folder, "--json", check=3).stdout)
    assert document["findings"][0]["tensor"] == name
    assert document["layout"] == ""
    assert document["reason"]


def test_a_name_that_no_terminal_should_see_is_refused_harmlessly(moetool, tmp_path):
    folder = strange(tmp_path / "odd", {"\x1b[2Jx\u202e": (DType.F32, (4,), bytes(16))})
    done = moetool("scan", folder, check=4)
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_what_is_not_read_is_said(moetool, tmp_path):
    folder = strange(
        tmp_path / "packed",
        {
            "packed": (DType.I8, (30, 16), bytes(480)),
            "scale": (DType.F32, (30,), struct.pack("<30f", *range(30))),
        },
    )
    done = moetool("scan", folder, check=0)
    assert "NOT COVERED  i8: 1 tensors, 480 B, 80.0% of all bytes (packed)" in done.stdout
    assert "in 1 tensors, 120 B looked at; 1 tensors NOT COVERED" in done.stdout


def test_a_long_list_is_cut_and_says_so(moetool, copy):
    with open_checkpoint(copy) as checkpoint:
        names = [name for name in checkpoint.catalog.tensors if ".w2." in name]
        names += [name for name in checkpoint.catalog.tensors if ".w1." in name]
    for name in names:
        write_into(copy, name, nan_at(0, 0))
    done = moetool("scan", copy, check=3)
    assert sum(line.startswith("error") for line in done.stdout.splitlines()) == 40
    assert f"… {len(names) - 40} more with --json" in done.stdout
    document = json.loads(moetool("scan", copy, "--json", check=3).stdout)
    assert len(document["findings"]) == len(names)
