"""What may be written for a repository."""

from __future__ import annotations

import pytest

from moetool.errors import UsageFault
from moetool.release.hub.address import HubAddress, is_address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:a/b", HubAddress("a/b")),
        (" HF:Some-One/mix.v0_1 ", HubAddress("Some-One/mix.v0_1")),
        ("hf:a/b@refs/pr/5", HubAddress("a/b", "refs/pr/5")),
        ("hf:a/b@v0.1", HubAddress("a/b", "v0.1")),
    ],
)
def test_addresses(text, address):
    assert is_address(text)
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b--c", "hf:a/b.git", "hf:a/b@",
     "hf:-a/b", "hf:a/b c", "hf:a/b@x y", "hf:a/b@../c", "hf:ä/b", "hf:a/" + "b" * 200],
)  # fmt: skip
def test_what_cannot_be_meant(text):
    with pytest.raises(UsageFault) as caught:
        parse_address(text)
    assert "hf:OWNER/NAME" in caught.value.hint
