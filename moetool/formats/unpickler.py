"""An interpreter for the pickles of tensors in a dictionary, and for nothing else.

A pickle is a program for a stack machine. This one has the opcodes that torch.save writes (pickle
protocol 2) and three callables, and the callables are names here, not objects: nothing is
imported, nothing is called, and no other global than those listed can even be pushed. What comes
out is data: a dict whose values are `StoredTensor`.

    collections.OrderedDict ()                      -> a dict
    torch._utils._rebuild_tensor_v2 (storage, ...)  -> StoredTensor
    torch._utils._rebuild_parameter (tensor, ...)   -> that tensor
    torch.*Storage in a persistent id               -> Storage

Limits count operations and bytes, so that no pickle costs more than two seconds.
Sources: pytorch/pytorch: torch/serialization.py, torch/_utils.py; CPython: Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moetool.errors import UnsafePickle
from moetool.formats.rules import shown
from moetool.tensors import DType

STORAGE_DTYPES: Final = {
    "DoubleStorage": DType.F64,
    "FloatStorage": DType.F32,
    "HalfStorage": DType.F16,
    "BFloat16Storage": DType.BF16,
    "LongStorage": DType.I64,
    "IntStorage": DType.I32,
    "ShortStorage": DType.I16,
    "CharStorage": DType.I8,
    "ByteStorage": DType.U8,
    "BoolStorage": DType.BOOL,
}

MAX_PICKLE = 16 << 20
MAX_OPERATIONS = 1_200_000


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as the pickle names it: the zip member's key and what is in it."""

    key: str
    dtype: DType
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage; ``offset`` and ``stride`` count elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """The name of a callable or storage type. It stands for itself; it is never looked up."""

    module: str
    name: str


_ORDERED_DICT = _Global("collections", "OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils", "_rebuild_parameter")
_STORAGES = {_Global("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()}
_ALLOWED = frozenset({_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER, *_STORAGES})


class _Mark:
    """Where a MARK opcode was; a type of its own, so no data can be mistaken for it."""

    __slots__ = ()


_MARK = _Mark()


def read_state_dict(pickle: bytes, where: str) -> dict[str, StoredTensor]:
    """Interpret a pickle that must be one dict of tensors.

    Raises:
        UnsafePickle: it is anything else; the message names the global, opcode or entry.
    """
    if len(pickle) > MAX_PICKLE:
        raise UnsafePickle(f"a pickle of {len(pickle)} bytes, more than {MAX_PICKLE}", where=where)
    machine = _Machine(pickle, where)
    root = machine.run()
    if not isinstance(root, dict):
        raise machine.refused(f"holds a {type(root).__name__}, not a dictionary of tensors")
    tensors: dict[str, StoredTensor] = {}
    for name, value in root.items():
        if not isinstance(value, StoredTensor):
            raise machine.refused(f"entry {shown(name)} is a {type(value).__name__}, not a tensor")
        tensors[name] = value
    return tensors


class _Machine:
    """The stack machine: a stack, a memo and a position in the pickle."""

    __slots__ = ("memo", "pickle", "position", "stack", "where")

    def __init__(self, pickle: bytes, where: str) -> None:
        self.pickle = pickle
        self.where = where
        self.position = 0
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """Run from PROTO to STOP, which must be the last byte; give what is left on the stack."""
        if self.pickle[:2] != b"\x80\x02":
            raise self.refused("is not of protocol 2, which torch.save writes")
        self.position = 2
        for _ in range(MAX_OPERATIONS):
            code = self.take(1)[0]
            if code == _STOP:
                return self._finish()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.refused(f"uses opcode {code:#04x}, which no dictionary of tensors needs")
            try:
                operation(self)
            except IndexError:
                raise self.refused("takes from an empty stack") from None
        raise self.refused(f"takes more than {MAX_OPERATIONS} operations")

    def refused(self, what: str) -> UnsafePickle:
        """The error to raise at the position reached."""
        return UnsafePickle(
            f"data.pkl {what} (near byte {self.position})",
            where=self.where,
            hint="nothing of it was run; ask its maker for safetensors, or for a plain state dict",
        )

    def _finish(self) -> object:
        if self.position != len(self.pickle):
            raise self.refused("goes on behind its end")
        if len(self.stack) != 1:
            raise self.refused("leaves more or less than one object")
        return self.stack[0]

    # -- reading arguments ------------------------------------------------------------------

    def take(self, nbytes: int) -> bytes:
        """Take the next bytes of the pickle."""
        taken = self.pickle[self.position : self.position + nbytes]
        if len(taken) != nbytes:
            raise self.refused("ends in the middle")
        self.position += nbytes
        return taken

    def _line(self) -> str:
        end = self.pickle.find(b"\n", self.position, self.position + 256)
        if end < 0:
            raise self.refused("holds a global name without an end")
        line = self.take(end + 1 - self.position)[:-1]
        if not line.isascii():
            raise self.refused(f"asks for the global {shown(line)}")
        return line.decode("ascii")

    def unsigned(self, nbytes: int) -> int:
        """Take an unsigned little-endian number."""
        return int.from_bytes(self.take(nbytes), "little")

    # -- the stack --------------------------------------------------------------------------

    def push(self, value: object) -> None:
        """Push one object."""
        self.stack.append(value)

    def pop_to_mark(self) -> list[object]:
        """Pop everything above the last MARK, and the MARK."""
        taken: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        taken.reverse()
        return taken

    def tuple_of(self, count: int) -> None:
        """Replace the top ``count`` objects by a tuple of them."""
        if count:
            items = [self.stack.pop() for _ in range(count)]
            self.push(tuple(reversed(items)))
        else:
            self.push(())

    # -- operations that need more than a line ------------------------------------------------

    def push_global(self) -> None:
        """GLOBAL: two lines, module and name; only those of the allow-list."""
        found = _Global(self._line(), self._line())
        if found not in _ALLOWED:
            raise self.refused(f"asks for the global {shown(f'{found.module}.{found.name}')}")
        self.push(found)

    def push_text(self) -> None:
        """BINUNICODE: four bytes of length, then UTF-8."""
        raw = self.take(self.unsigned(4))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise self.refused("holds text that is not UTF-8") from None

    def push_long(self) -> None:
        """LONG1: a little-endian two's complement of up to 255 bytes; 8 are enough here."""
        nbytes = self.unsigned(1)
        if nbytes > 8:  # noqa: PLR2004  # 64 bits
            raise self.refused("holds a number of more than 64 bits")
        self.push(int.from_bytes(self.take(nbytes), "little", signed=True))

    def get(self, index: int) -> None:
        """BINGET, LONG_BINGET: push what was put under that index."""
        if index not in self.memo:
            raise self.refused(f"recalls object {index}, which it never stored")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        """BINPUT, LONG_BINPUT: keep the top of the stack under that index."""
        if self.stack[-1] is _MARK:
            raise self.refused("stores a mark")
        self.memo[index] = self.stack[-1]

    def set_items(self, pairs: list[object]) -> None:
        """SETITEM, SETITEMS: fill the dict on top; keys are text and come once."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise self.refused("sets items of something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise self.refused(f"uses a {type(key).__name__} as a tensor name")
            if key in target:
                raise self.refused(f"holds the name {shown(key)} twice")
            target[key] = value

    def set_item(self) -> None:
        """SETITEM: key and value lie on top of the dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def reduce(self) -> None:
        """REDUCE: one of the three callables, applied to a tuple."""
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Global() as name, () if name == _ORDERED_DICT:
                self.push({})
            case _Global() as name, (StoredTensor() as tensor, bool(), dict()) if (
                name == _REBUILD_PARAMETER
            ):
                self.push(tensor)
            case _Global() as name, (Storage(), *_) if name == _REBUILD_TENSOR:
                self.push(self._tensor(arguments))
            case _Global(module, name), _:
                raise self.refused(f"calls {module}.{name} with arguments that torch never gives")
            case _:
                raise self.refused(f"calls a {type(function).__name__}")

    def _tensor(self, arguments: object) -> StoredTensor:
        match arguments:
            case (Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict()):
                numbers = (offset, *shape, *stride)
                if all(type(number) is int and number >= 0 for number in numbers) and (
                    len(shape) == len(stride)
                ):
                    return StoredTensor(storage, offset, shape, stride)
        raise self.refused("rebuilds a tensor from arguments that torch never gives")

    def storage(self) -> None:
        """BINPERSID: ('storage', type, key, device, numel) names a member of the zip."""
        match self.stack.pop():
            case ("storage", _Global() as kind, str(key), str(), int(numel)) if (
                kind in _STORAGES and numel >= 0 and type(numel) is int
            ):
                self.push(Storage(key, _STORAGES[kind], numel))
            case _:
                raise self.refused("names a storage in a way that torch never does")

    def build(self) -> None:
        """BUILD: state_dict() hangs `_metadata` on its OrderedDict; it says nothing of tensors."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
            raise self.refused("sets the state of something that is no dictionary")
        if state.keys() - {"_metadata"}:
            raise self.refused("sets attributes of a dictionary")


_STOP = ord(".")
_INT = struct.Struct("<i")

_OPERATIONS: Final[dict[int, Callable[[_Machine], None]]] = {
    ord("("): lambda m: m.push(_MARK),
    ord(")"): lambda m: m.push(()),
    ord("}"): lambda m: m.push({}),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.unsigned(1)),
    ord("M"): lambda m: m.push(m.unsigned(2)),
    ord("J"): lambda m: m.push(_INT.unpack(m.take(4))[0]),
    0x8A: _Machine.push_long,
    ord("X"): _Machine.push_text,
    ord("c"): _Machine.push_global,
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("q"): lambda m: m.put(m.unsigned(1)),
    ord("r"): lambda m: m.put(m.unsigned(4)),
    ord("h"): lambda m: m.get(m.unsigned(1)),
    ord("j"): lambda m: m.get(m.unsigned(4)),
    ord("Q"): _Machine.storage,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
}
