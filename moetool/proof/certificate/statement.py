"""A certificate as an in-toto statement, for who gathers evidence of many tools.

Source: in-toto/attestation: spec/v1/statement.md. The subjects are the files of the output; the
predicate is the certificate itself. It is not signed: a DSSE envelope, or `--sign`, does that.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moetool.reports import plain

if TYPE_CHECKING:
    from moetool.proof.certificate.certificate import Certificate

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:moetool:certificate:1"


def statement(found: Certificate) -> bytes:
    """The statement as JSON."""
    table = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": entry["sha256"]}}
            for name, entry in found.output.files.items()
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"schema": found.schema, "version": found.version, **plain(found)},
    }
    return (json.dumps(table, indent=1) + "\n").encode()
