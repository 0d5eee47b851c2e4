"""Write a GGUF file tensor by tensor; the layout is drawn in gguf.py."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError
from moetool.formats.gguf_types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    SCALARS,
    TENSOR_TYPES,
    TEXT,
    padded,
)
from moetool.formats.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from moetool.formats.output import OutputFile
    from moetool.tensors import Buffer, TensorInfo

_VERSION = 3
_TYPE_NUMBERS = {dtype: number for number, dtype in TENSOR_TYPES.items()}


class GgufSink:
    """A GGUF file being written; ``metadata`` maps a key to its type's label and its value.

    Labels: ``u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64 str``, and ``arr[...]`` of them.
    """

    def __init__(
        self,
        path: Path,
        infos: Sequence[TensorInfo],
        metadata: Mapping[str, object],
        into: OutputFile | None = None,
    ) -> None:
        pairs = [_text(key) + _value(value) for key, value in metadata.items()]
        match metadata.get("general.alignment", ("u32", DEFAULT_ALIGNMENT)):
            case "u32", int(alignment):
                self._alignment = alignment
            case _:
                raise MoetoolError("general.alignment is not a u32", where=str(path))
        tensors = _tensor_infos(infos, self._alignment)
        head = MAGIC + struct.pack("<IQQ", _VERSION, len(infos), len(pairs))
        self._output = Output(path, infos, into)
        self._output.append(b"".join((head, *pairs, *tensors)))
        self._pad()

    def write(self, name: str, chunks: Iterable[Buffer]) -> None:
        """Write the bytes of one tensor, in the announced order."""
        self._output.copy(self._output.next_tensor(name), chunks)
        self._pad()

    def close(self) -> None:
        """Flush and sync."""
        self._output.finish()

    def _pad(self) -> None:
        position = self._output.position
        self._output.append(bytes(padded(position, self._alignment) - position))


def _tensor_infos(infos: Sequence[TensorInfo], alignment: int) -> list[bytes]:
    offset, entries, names = 0, [], set()
    for info in infos:
        name = info.name.encode()
        rank = len(info.shape)
        if not 0 < len(name) <= MAX_NAME or rank > MAX_DIMS or info.dtype not in _TYPE_NUMBERS:
            raise MoetoolError(f"{info.name} cannot be named, shaped or typed so in a GGUF file")
        if name in names:
            raise MoetoolError(f"{info.name} was announced twice")
        names.add(name)
        dims = struct.pack(f"<I{rank}Q", rank, *reversed(info.shape))
        entries.append(
            _text(info.name) + dims + struct.pack("<IQ", _TYPE_NUMBERS[info.dtype], offset)
        )
        offset = padded(offset + info.nbytes, alignment)
    return entries


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(labelled: object) -> bytes:
    """A type number and a value; numbers that do not fit their type raise `MoetoolError`."""
    match labelled:
        case str(label), value:
            pass
        case _:
            raise MoetoolError("a GGUF value needs the label of its type")
    element = label.removeprefix("arr[").removesuffix("]")
    if element not in SCALARS and element != "str":
        raise MoetoolError(f"GGUF has no type {label}")
    number = TEXT if element == "str" else SCALARS[element][0]
    if label == element:
        return struct.pack("<I", number) + _items(element, [value])
    if not isinstance(value, (list, tuple)):
        raise MoetoolError(f"{label} needs a list, got a {type(value).__name__}")
    head = struct.pack("<IIQ", ARRAY, number, len(value))
    return head + _items(element, value)


def _items(element: str, values: Sequence[object]) -> bytes:
    if element == "str":
        if not all(isinstance(value, str) for value in values):
            raise MoetoolError("a GGUF text that is no text")
        return b"".join(_text(str(value)) for value in values)
    try:
        return struct.pack(f"<{len(values)}{SCALARS[element][1]}", *values)
    except struct.error as error:
        raise MoetoolError(f"a GGUF value does not fit {element}: {error}") from error
