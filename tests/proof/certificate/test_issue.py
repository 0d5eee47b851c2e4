"""What a certificate says of conversions, good and bad, and of outputs that others made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from moetool.errors import DigestMismatch
from moetool.proof.certificate.comparison import Verdict
from moetool.proof.certificate.issue import certify
from moetool.proof.certificate.record import CERTIFICATE, read_record

W1 = "layers.0.feed_forward.experts.1.w1.weight"
W3 = "layers.0.feed_forward.experts.1.w3.weight"


@pytest.mark.parametrize(
    ("to", "layout"),
    [("safetensors", "hf"), ("safetensors", "hf-fused"), ("pth", "mistral-packed"),
     ("pth", "mistral"), ("gguf", None)],
)  # fmt: skip
def test_a_lossless_conversion_has_the_source_s_root(to, layout, small_tensors, write_release,
                                                     convert):  # fmt: skip
    """Whatever the layout; and the record beside it says so too."""
    found, out = convert(write_release("raw", small_tensors), to, layout)
    assert found.verdict is Verdict.EQUAL
    assert found.output.root == found.source.root
    assert (found.parent_root, found.bounds) == ("", ())
    assert read_record(out).output["root"] == found.source.root
    assert {*found.output.files} == {p.name for p in out.iterdir()} - {
        CERTIFICATE, "moetool-manifest.json"
    }  # fmt: skip


def test_a_cast_is_rounded_with_bounds(small_tensors, write_release, convert):
    """Each tensor that changed is there, its distance is that of the values, no other is."""
    w1 = small_tensors[W1]
    w1[:] = 0.25  # which f16 holds
    w1[3, 5] = 2.0**-24 * 1.5
    found, _ = convert(write_release("raw", small_tensors), dtype="f16")
    assert found.verdict is Verdict.ROUNDED
    assert found.parent_root == found.source.root != found.output.root
    bound = next(bound for bound in found.bounds if bound.name == W1)
    assert (bound.numel, bound.differing, bound.rounded) == (w1.numel(), 1, True)
    assert bound.max_abs == 2.0**-25
    assert bound.rel_rms == pytest.approx(2.0**-25 / float(w1.double().square().sum().sqrt()))
    exact = {
        name for name, tensor in small_tensors.items()
        if torch.equal(tensor.half().float(), tensor.float())
    }  # fmt: skip
    assert {bound.name for bound in found.bounds} == {*small_tensors} - exact


def test_values_that_are_lost_are_bounded_too(small_tensors, write_release, convert):
    """Overflow is rounding, its distance is no number, and the record is JSON all the same."""
    small_tensors[W1][0, 0] = 1e6
    found, out = convert(write_release("raw", small_tensors), dtype="f16")
    assert next(b for b in found.bounds if b.name == W1).max_abs is None
    assert f"{W1}  bf16 to f16, rounded" in next(line for line in found.lines() if "bound" in line)
    assert read_record(out).table["bounds"]


def test_damage_behind_the_read_back_keeps_the_output_from_its_name(
    small_tensors, write_release, convert, tmp_path
):
    """A byte of a weight that changes after the file was read back: exit 3, the tensor named."""

    def damage(work):
        path = work / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1000] ^= 0x10
        path.write_bytes(content)

    with pytest.raises(DigestMismatch) as caught:
        convert(write_release("raw", small_tensors), before=damage)
    assert len(caught.value.findings) == 1
    assert "has other values" in caught.value.findings[0]
    assert not (tmp_path / "out").exists()


def test_the_output_of_another_tool(small_tensors, write_release):
    """Equal, renumbered, rounded by another, and wrong in ways that shapes do not show."""
    source = write_release("raw", small_tensors)
    assert certify(source, write_release("same", small_tensors)).verdict is Verdict.EQUAL
    halves = {name: tensor.half() for name, tensor in small_tensors.items()}
    assert certify(source, write_release("half", halves)).verdict is Verdict.ROUNDED
    swapped = small_tensors | {W1: small_tensors[W3], W3: small_tensors[W1]}
    found = certify(source, write_release("swapped", swapped))
    assert found.verdict is Verdict.DIFFERENT
    assert {bound.name for bound in found.bounds if not bound.rounded} == {W1, W3}
    nearly = {name: tensor.half() for name, tensor in small_tensors.items()}
    nearly[W1][2, 2] = torch.nextafter(nearly[W1][2, 2], torch.tensor(9.0, dtype=torch.half))
    found = certify(source, write_release("nearly", nearly))
    assert [bound.name for bound in found.bounds if not bound.rounded] == [W1]


def test_renumbered_experts_are_the_same_model(small_tensors, write_release):
    """With their router rows; without them it is another."""
    source = write_release("raw", small_tensors)
    other = dict(small_tensors)
    for role in ("w1", "w2", "w3"):
        for new, old in enumerate((2, 0, 1)):
            name = "layers.1.feed_forward.experts.{}." + role + ".weight"
            other[name.format(new)] = small_tensors[name.format(old)]
    assert certify(source, write_release("torn", other)).verdict is Verdict.DIFFERENT
    gate = "layers.1.feed_forward.gate.weight"
    other[gate] = small_tensors[gate][[2, 0, 1]].clone()
    found = certify(source, write_release("renumbered", other))
    assert found.verdict is Verdict.RENUMBERED
    assert found.output.any_order_root == found.source.any_order_root


def test_settings_and_shapes_are_reasons(small_tensors, write_release, small_args):
    """The same weights under another angle are another model."""
    source = write_release("raw", small_tensors)
    other = write_release("theta", small_tensors, replace(small_args, rope_theta=1e4))
    found = certify(source, other)
    assert found.verdict is Verdict.DIFFERENT
    assert "rope_theta" in found.reasons[0]
    assert found.output.root == found.source.root


def test_the_chain_says_what_was_found_and_by_whom(tiny_release, convert):
    """Of a release with a torrent and a RELEASE, everything is settled by `certify`."""
    _, out = convert(tiny_release)
    found = certify(tiny_release, out)
    words = {(link.of, link.word) for link in found.chain}
    assert words == {("origin", "UNPROVEN"), ("torrent", "MATCH"), ("content", "MATCH")}
    weights = next(link for link in found.chain if "consolidated" in link.text)
    assert "by RELEASE" in weights.text
    assert "settled now" in str(weights)


def test_a_conversion_alone_has_looked_at_no_digest(tiny_release, convert):
    """Nobody verified the folder: then nothing is said to match."""
    found, _ = convert(tiny_release)
    assert {link.word for link in found.chain} == {"UNPROVEN", "NOT COVERED"}


def test_an_output_of_an_output_has_a_lineage(small_tensors, write_release, convert):
    """The certificate in the source's folder is quoted; that its root is the source's, shown."""
    first, out = convert(write_release("raw", small_tensors))
    second, _ = convert(out, to="gguf", name="second")
    lineage = [link for link in second.chain if link.of == "lineage"]
    assert lineage[0].word == "MATCH"
    assert first.source.root in lineage[0].text
    assert {link.word for link in lineage[1:]} == {"NOT COVERED"}


def test_the_same_work_has_the_same_record(small_tensors, write_release, convert):
    """Nothing in it depends on when or where."""
    source = write_release("raw", small_tensors)
    records = []
    for number in range(2):
        _, out = convert(source, name=f"{number}/out")
        records.append((out / CERTIFICATE).read_bytes())
    assert records[0] == records[1]
    assert json.loads(records[0])["verdict"] == "EQUAL"


@pytest.mark.parametrize("dtype", ["keep", "f16"])
def test_a_source_that_does_not_read_the_same_twice(
    dtype, small_tensors, write_release, convert, monkeypatch, tmp_path
):
    """A bit that changes on its way into the identity is no rounding: exit 3, no output."""
    from moetool.proof.canonical import Weights

    plain, count = Weights.read, {"n": 0}

    def read(self, slot):
        for block in plain(self, slot):
            if str(slot) == "layers.0 expert 1 w1" and not count["n"]:
                count["n"] += 1
                changed = bytearray(block)
                changed[7] ^= 4
                yield changed
            else:
                yield block

    monkeypatch.setattr(Weights, "read", read)
    with pytest.raises(DigestMismatch, match="twice"):
        convert(write_release("raw", small_tensors), dtype=dtype)
    assert count["n"] == 1
    assert not (tmp_path / "out").exists()


def test_zeros_of_another_sign_are_no_rounding(small_tensors, write_release):
    """No value differs, and yet it is not what was there."""
    small_tensors[W1][0, 0] = 0.0
    source = write_release("raw", small_tensors)
    small_tensors[W1][0, 0] = -0.0
    assert certify(source, write_release("other", small_tensors)).verdict is Verdict.DIFFERENT
