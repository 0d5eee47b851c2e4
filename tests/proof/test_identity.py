"""The identity: what changes it, what does not, and what it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from moetool.arch.schema import slots
from moetool.errors import Refused
from moetool.proof import merkle
from moetool.proof.canonical import open_weights
from moetool.proof.identity import identify


def of(path, **options):
    with open_weights(path) as weights:
        return identify(weights, **options)


def test_one_changed_value_changes_one_leaf(small_tensors, write_release, small_args):
    """Any bit of any value of any tensor: that leaf, the root, and no other leaf."""
    source = of(write_release("raw", small_tensors))
    assert [leaf.slot for leaf in source.leaves] == slots(small_args)
    for number, leaf in enumerate(source.leaves):
        flat = small_tensors[leaf.name].view(torch.int16).view(-1)
        place, bit = (7 * number) % len(flat), number % 15
        flat[place] ^= 1 << bit
        found = of(write_release(f"changed {number}", small_tensors))
        flat[place] ^= 1 << bit
        differing = [
            mine.name for mine, theirs in zip(found.leaves, source.leaves, strict=True)
            if mine.sha256 != theirs.sha256
        ]  # fmt: skip
        assert differing == [leaf.name]
        assert found.root != source.root
        assert found.fast_root != source.fast_root
        assert found.any_order_root != source.any_order_root


def test_a_leaf_is_taken_over_only_where_its_values_are_the_same(small_tensors, write_release):
    """What was just made of it: equal tensors are not hashed twice, others are what they are."""
    before = of(write_release("raw", small_tensors))
    name = "layers.1.feed_forward.experts.2.w2.weight"
    small_tensors[name][1, 1] += 1
    path = write_release("other", small_tensors)
    assert of(path, like=before).root == of(path).root != before.root


def test_a_fast_identity_has_no_strong_root(small_tensors, write_release):
    path = write_release("raw", small_tensors)
    fast, whole = of(path, fast=True), of(path)
    assert (fast.root, fast.any_order_root) == ("", "")
    assert fast.fast_root == whole.fast_root
    assert not any(leaf.sha256 for leaf in fast.leaves)


def test_progress_ends_with_all_bytes(small_tensors, write_release):
    seen = []
    found = of(write_release("raw", small_tensors), progress=lambda done, _note: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == found.nbytes == sum(t.nbytes for t in small_tensors.values())


def test_quantised_blocks_are_the_weights_they_stand_for(quantised, moetool, tmp_path):
    """Copied as blocks or decoded to f32, the identity is the same, and the certificate says so."""
    for name, options in (("copy", ["--to", "gguf"]), ("raw", ["--to", "pth", "--dtype", "f32"])):
        out = tmp_path / name
        done = moetool("convert", quantised, *options, "--out", out, check=0)
        assert "EQUAL" in done.stdout
        assert of(out).root == of(quantised).root
    done = moetool("convert", quantised, "--to", "pth", "--dtype", "f16", "--out",
                   tmp_path / "f16", check=0)  # fmt: skip
    assert "ROUNDED" in done.stdout


def test_blocks_that_are_not_decoded_have_no_identity(strangely_quantised, moetool, tmp_path):
    """The refusal says what to give instead; copies are made, and the note says what they lack."""
    with pytest.raises(Refused) as caught:
        of(strangely_quantised)
    assert "iq4_nl" in str(caught.value)
    assert "made from" in caught.value.hint
    done = moetool("convert", strangely_quantised, "--to", "gguf", "--out", tmp_path / "copy",
                   check=0)  # fmt: skip
    assert "no certificate: iq4_nl" in done.stderr
    assert not (tmp_path / "copy" / "moetool-certificate.json").exists()


@pytest.mark.parametrize("layout", ["mistral", "hf", "gguf"])
def test_layouts_without_arithmetic_need_no_torch(layout, moetool, tmp_path):
    """Importing it would take longer than the work on small models, and four times the memory."""
    moetool("tiny", tmp_path / "model", "--layout", layout, check=0)
    script = (
        "import sys\nfrom moetool.cli.app import run\n"
        f"code = run(['identity', {str(tmp_path / 'model')!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False, timeout=60)
    assert done.returncode == 0


def test_the_tree_is_that_of_certificate_transparency():
    """The test vectors of RFC 6962's reference implementation (google/certificate-transparency)."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
              "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, expected in roots.items():
        assert merkle.root([bytes.fromhex(text) for text in inputs[:count]]) == expected
