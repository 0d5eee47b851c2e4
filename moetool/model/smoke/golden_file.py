"""Golden results in a file: written once, and not believed when read.

A golden file may come from a stranger; what it says is looked at before it is compared with.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.durable import write_durably
from moetool.errors import BadHeader, ReadFailed, Refused
from moetool.formats.output import refusals
from moetool.formats.rules import shown
from moetool.formats.strict_json import MAX_NBYTES, read_object
from moetool.model.device import spelled
from moetool.model.smoke.checks import LayerView
from moetool.model.smoke.fingerprint import Fingerprint
from moetool.model.smoke.golden import BANDS, Golden
from moetool.model.smoke.subject import GEOMETRY
from moetool.reports import plain

if TYPE_CHECKING:
    import torch

    from moetool.arch.args import ModelArgs
    from moetool.model.smoke.text import Text

LARGEST = 1e300  # of a number
LONGEST = 2048  # characters of a string; the flags of a CPU are the longest


class GoldenFile:
    """The golden results in a file, to compare a run with."""

    def __init__(self, path: Path) -> None:
        """Read them.

        Raises:
            ReadFailed: the file cannot be read.
            BadHeader: it is no golden file, or a malformed one.
        """
        self.path = path
        self.golden = parse(_read(path), str(path))

    def fits(self, args: ModelArgs, text: Text, dtype: torch.dtype) -> None:
        """Say before anything is run that another model, text or type was recorded.

        Raises:
            Refused: there is no layer that could be compared.
        """
        golden = self.golden
        found: dict[str, tuple[object, object]] = {
            name: (getattr(args, name), golden.geometry[name])
            for name in GEOMETRY
            if getattr(args, name) != golden.geometry[name]
        }
        if golden.dtype != spelled(dtype):
            found["dtype"] = (spelled(dtype), golden.dtype)
        if (golden.text, golden.n_tokens) != (text.name, len(text)):
            found["text"] = (
                f"{len(text)} tokens of {text.name or 'seeded ids'}",
                f"{golden.n_tokens} tokens of {golden.text or 'seeded ids'}",
            )
        if found:
            findings = tuple(f"{name}: {here}, recorded: {there}" for name, (here, there)
                             in found.items())  # fmt: skip
            raise Refused(
                "the golden results are those of another run: no layer can be compared",
                where=str(self.path),
                findings=findings,
                hint="run it with the --dtype and --quick it was recorded with, or record anew",
            )


def write(path: Path, golden: Golden) -> None:
    """Write a golden file, replacing none.

    Raises:
        OutputExists: there is a file already.
        SystemFault: it cannot be written.
    """
    head = {"schema": golden.schema, "version": golden.version}
    content = json.dumps({**head, **plain(golden)}, indent=2, ensure_ascii=True) + "\n"
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        write_durably(path, content.encode())


def parse(raw: bytes, where: str) -> Golden:
    """Read a golden file's bytes; nothing in them is believed before it was looked at.

    Raises:
        BadHeader: it is no golden file, or a malformed one.
    """
    table = _Table(read_object(raw, where), where)
    if table.text("schema") != Golden.schema or table.count("version") != Golden.version:
        raise BadHeader(f"no {Golden.schema} of version {Golden.version}", where=where)
    geometry, fingerprint = table.table("geometry"), table.table("fingerprint")
    golden = Golden(
        geometry={name: geometry.count(name) for name in GEOMETRY},
        text=table.text("text"),
        n_tokens=table.count("n_tokens"),
        tokens=table.text("tokens"),
        dtype=table.text("dtype"),
        fingerprint=Fingerprint(**{f.name: fingerprint.text(f.name) for f in fields(Fingerprint)}),
        loss=table.number("loss"),
        logits=table.text("logits"),
        layers=tuple(map(_layer, table.tables("layers"))),
    )
    sizes = {len(layer.load) for layer in golden.layers} - {golden.geometry["n_experts"]}
    if golden.dtype not in BANDS or len(golden.layers) != golden.geometry["n_layers"] or sizes:
        raise BadHeader("its layers do not fit its own geometry and type", where=where)
    return golden


def _layer(table: _Table) -> LayerView:
    return LayerView(
        rms_attention=table.number("rms_attention"),
        rms_experts=table.number("rms_experts"),
        load=table.counts("load"),
        digest_attention=table.text("digest_attention"),
        digest_experts=table.text("digest_experts"),
    )


class _Table:
    """A JSON object whose fields are of the kind that is asked for, or it is refused."""

    def __init__(self, value: dict[str, Any], where: str) -> None:
        self._value, self._where = value, where

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > LONGEST:
            raise self._strange(name, "a text")
        return value

    def count(self, name: str) -> int:
        return self._counted(name, self._value.get(name))

    def counts(self, name: str) -> tuple[int, ...]:
        value = self._value.get(name)
        if not isinstance(value, list):
            raise self._strange(name, "a list of counts")
        return tuple(self._counted(name, each) for each in value)

    def number(self, name: str) -> float:
        value = self._value.get(name)
        # NaN and infinity are no JSON, and yet json reads them.
        if (
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not abs(value) < LARGEST
        ):
            raise self._strange(name, "a finite number")
        return float(value)

    def table(self, name: str) -> _Table:
        return self._tabled(name, self._value.get(name))

    def tables(self, name: str) -> list[_Table]:
        value = self._value.get(name)
        if not isinstance(value, list):
            raise self._strange(name, "a list of objects")
        return [self._tabled(name, each) for each in value]

    def _counted(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 <= value < 1 << 53:
            raise self._strange(name, "a count")
        return value

    def _tabled(self, name: str, value: object) -> _Table:
        if not isinstance(value, dict):
            raise self._strange(name, "an object")
        return _Table(value, self._where)

    def _strange(self, name: str, expected: str) -> BadHeader:
        found = shown(self._value.get(name))[:60]
        return BadHeader(f"{name} is {found}, expected {expected}", where=self._where)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NBYTES + 1)
    except OSError as error:
        raise ReadFailed(error.strerror or "cannot be read", where=str(path)) from error
