"""The certificate from the command line: made, checked, exported, signed, and not believed."""

from __future__ import annotations

import json

import pytest

from moetool.convert.execute.seal import sealed
from moetool.proof.certificate.record import CERTIFICATE

ec = pytest.importorskip(
    "cryptography.hazmat.primitives.asymmetric.ec", reason="signatures need the sign extra"
)


@pytest.fixture
def output(tiny_release, moetool, tmp_path):
    """A conversion of the tiny release; each test may damage it."""
    moetool("convert", tiny_release, "--out", tmp_path / "out", "-q", check=0)
    return tmp_path / "out"


def test_convert_ends_with_what_it_showed(tiny_release, moetool, tmp_path):
    """Root by root, and as one JSON document."""
    shown = moetool("convert", tiny_release, "--out", tmp_path / "one", "-q", check=0).stdout
    assert shown.rstrip().endswith("\nEQUAL")
    found = json.loads(moetool("convert", tiny_release, "--out", tmp_path / "two", "--json",
                               check=0).stdout)  # fmt: skip
    root = found["certificate"]["output"]["root"]
    assert f"output   root {root}  EQUAL" in shown
    alone = moetool("identity", tmp_path / "two", "--json", check=0).stdout
    assert json.loads(alone)["root"] == root


def test_without_a_certificate(tiny_release, moetool, tmp_path):
    """On request nothing is compared, and nothing is said."""
    done = moetool("convert", tiny_release, "--out", tmp_path / "out", "--no-certificate", check=0)
    assert "\nsource   root" not in done.stdout
    assert not (tmp_path / "out" / CERTIFICATE).exists()


def test_verify_computes_the_root_again(output, moetool):
    """And says so; what is recorded of the source is NOT COVERED."""
    shown = moetool("verify", output, check=0).stdout
    assert "root     MATCH" in shown
    assert "source   NOT COVERED" in shown
    assert shown.rstrip().splitlines()[-1].startswith("MATCH")


def test_a_forged_record_is_not_believed(output, moetool):
    """Sealed anew with another root, every digest of a file right: the values tell."""
    path = output / CERTIFICATE
    table = json.loads(path.read_bytes())
    del table["certificate_sha256"]
    table["output"]["root"] = "0" * 64
    path.write_bytes(sealed(table, "certificate_sha256"))
    done = moetool("verify", output, check=3)
    assert "root     MISMATCH" in done.stdout


def test_a_record_that_was_edited_is_refused(output, moetool):
    """Without a new seal it is not even read."""
    path = output / CERTIFICATE
    path.write_bytes(path.read_bytes().replace(b"EQUAL", b"equal", 1))
    assert CERTIFICATE in moetool("verify", output, check=3).stderr


def test_a_certificate_without_a_manifest(output, moetool):
    """What another tool wrote has only this: a changed byte and a lost file are found."""
    (output / "moetool-manifest.json").unlink()
    moetool("verify", output, check=0)
    weights = output / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in moetool("verify", output, check=3).stdout
    content[-1] ^= 1
    weights.write_bytes(content)
    (output / "config.json").unlink()
    assert "config.json" in moetool("verify", output).stdout


def test_certify_exports_a_statement(output, tiny_release, moetool, tmp_path):
    """in-toto: the subjects are the output's files, the predicate is the certificate."""
    path = tmp_path / "statement.json"
    moetool("certify", tiny_release, output, "--in-toto", path, check=0)
    found = json.loads(path.read_bytes())
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert {entry["name"] for entry in found["subject"]} >= {"model.safetensors", "config.json"}
    assert all(len(entry["digest"]["sha256"]) == 64 for entry in found["subject"])
    assert found["predicate"]["verdict"] == "EQUAL"


def test_certify_of_another_model_writes_nothing(output, moetool, tmp_path):
    """Exit 3, and the next step."""
    moetool("tiny", tmp_path / "other", "--seed", "1", check=0)
    (output / CERTIFICATE).unlink()
    done = moetool("certify", tmp_path / "other", output, check=3)
    assert "moetool diff" in done.stderr
    assert "DIFFERENT" in done.stdout
    assert not (output / CERTIFICATE).exists()


def test_identity_expects(output, moetool):
    """A root that was published is compared; one that is none is a usage fault."""
    root = json.loads(moetool("identity", output, "--json", check=0).stdout)["root"]
    moetool("identity", output, "--expect", f"sha256:{root}", check=0)
    moetool("identity", output, "--expect", root[::-1], check=3)
    moetool("identity", output, "--expect", "abc", check=2)
    fast = json.loads(moetool("identity", output, "--fast", "--json", check=0).stdout)
    assert (fast["root"], len(fast["fast_root"])) == ("", 32 + 32)


@pytest.fixture
def keys(tmp_path):
    """A pair of keys, and the public one of another."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.key").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)
    return tmp_path


def test_a_signature(output, tiny_release, moetool, keys):
    """Of these files, by this key; a changed file, another key and no signature are told."""
    pytest.importorskip("model_signing", reason="signatures need the sign extra")
    moetool("verify", output, "--verify-signature", keys / "own.pub", check=2)
    moetool("certify", tiny_release, output, "--sign", keys / "own.key", check=0)
    shown = moetool("verify", output, "--verify-signature", keys / "own.pub", check=0).stdout
    assert "signed   MATCH" in shown
    moetool("verify", output, check=0)
    moetool("verify", output, "--verify-signature", keys / "other.pub", check=3)
    (output / "config.json").write_bytes((output / "config.json").read_bytes() + b" ")
    moetool("verify", output, "--verify-signature", keys / "own.pub", check=3)


def test_keys_that_are_none(output, tiny_release, moetool, tmp_path):
    """Told before the work, or with what a key must be."""
    pytest.importorskip("model_signing", reason="signatures need the sign extra")
    moetool("certify", tiny_release, output, "--sign", tmp_path / "no.key", check=2)
    (tmp_path / "bad.key").write_text("no key")
    assert "PEM" in moetool("certify", tiny_release, output, "--sign", tmp_path / "bad.key",
                            check=4).stderr  # fmt: skip
