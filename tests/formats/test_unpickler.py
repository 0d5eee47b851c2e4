"""The allow-list interpreter: a dictionary of tensors, or a refusal that says why."""

from __future__ import annotations

import collections
import pickle

import pytest

from moetool.errors import UnsafePickle
from moetool.formats.unpickler import STORAGE_DTYPES, Storage, StoredTensor, read_state_dict
from moetool.tensors import DType

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nHalfStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
STORED = StoredTensor(Storage("0", DType.F16, 6), 0, (2, 3), (3, 1))


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def test_a_tensor_in_a_dict():
    """Name, storage, offset, shape and stride come out as data."""
    assert read_state_dict(program(b"}X\x01\x00\x00\x00a" + TENSOR + b"s"), "x") == {"a": STORED}


def test_a_parameter_is_its_tensor():
    """_rebuild_parameter adds nothing that is stored."""
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n" + TENSOR + b"\x88ccollections\nOrderedDict\n)R\x87R"
    )
    body = b"}(X\x01\x00\x00\x00p" + parameter + b"u"
    assert read_state_dict(program(body), "x") == {"p": STORED}


def test_the_metadata_of_a_module_state_dict_is_passed_over():
    """state_dict() hangs `_metadata` on its OrderedDict, by BUILD."""
    body = (
        b"ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00a" + TENSOR + b"u"
        b"}X\x09\x00\x00\x00_metadataccollections\nOrderedDict\n)Rsb"
    )
    assert read_state_dict(program(body), "x") == {"a": STORED}


def test_every_storage_type_is_a_dtype():
    """The table and its uses agree."""
    for name, dtype in STORAGE_DTYPES.items():
        swapped = TENSOR.replace(b"HalfStorage", name.encode())
        body = program(b"}X\x01\x00\x00\x00a" + swapped + b"s")
        assert read_state_dict(body, "x")["a"].storage.dtype is dtype


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"cos\nsystem\n(X\x02\x00\x00\x00idtR", r"the global 'os\.system'"),
        (b"cbuiltins\neval\n", r"the global 'builtins\.eval'"),
        (b"ctorch\nload\n", r"the global 'torch\.load'"),
        (b"ctorch\nfloat32\n", r"the global 'torch\.float32'"),
        (b"c__builtin__\n__import__\n", "__import__"),
        (b"c\xff\n\n", "global"),
        (b"cos", "without an end"),
        (b"]", "opcode 0x5d"),
        (b"0", "opcode 0x30"),
        (b"i", "opcode 0x69"),
        (b"o", "opcode 0x6f"),
        (b"\x93", "opcode 0x93"),
        (b"\x81", "opcode 0x81"),
        (b"\x82\x01", "opcode 0x82"),
        (b"B\xff\xff\xff\x7f", "opcode 0x42"),
        (b"X\xff\xff\xff\xff", "ends in the middle"),
        (b"X\x01\x00\x00\x00\xff", "not UTF-8"),
        (b"\x8a\xff" + bytes(255), "more than 64 bits"),
        (b"h\x05", "never stored"),
        (b"j\xff\xff\xff\xff", "never stored"),
        (b"q\x00", "empty stack"),
        (b"(q\x00", "stores a mark"),
        (b"t", "empty stack"),
        (b"s", "empty stack"),
        (b"R", "empty stack"),
        (b"", "one object"),
        (b"}}", "one object"),
        (b"N", "holds a NoneType"),
        (b"K\x05", "holds a int"),
        (b"()", "one object"),
        (b"}K\x01K\x02s", "uses a int as a tensor name"),
        (b"}X\x01\x00\x00\x00aK\x01s", "entry 'a' is a int"),
        (b"}X\x01\x00\x00\x00aNs" + b"X\x01\x00\x00\x00aNs", "the name 'a' twice"),
        (b"}(X\x01\x00\x00\x00au", "no dictionary"),
        (b"NX\x01\x00\x00\x00aNs", "no dictionary"),
        (b"}X\x01\x00\x00\x00aNsX\x01\x00\x00\x00ab", "no dictionary"),
        (b"}}X\x09\x00\x00\x00__class__Nsb", "sets attributes"),
        (b"ccollections\nOrderedDict\nN\x85R", "arguments that torch never gives"),
        (b"ctorch\nFloatStorage\n)R", "arguments that torch never gives"),
        (b"N)R", "calls a NoneType"),
        (b"NQ", "names a storage"),
        (b"(X\x07\x00\x00\x00storageX\x01\x00\x00\x000X\x01\x00\x00\x000NK\x01tQ", "a storage"),
    ],
)
def test_everything_else_is_refused_by_name(body, what):
    """The message says which global, opcode or entry it was."""
    with pytest.raises(UnsafePickle, match=what) as caught:
        read_state_dict(program(body), "x.pth")
    assert caught.value.where == "x.pth"
    assert caught.value.hint


def test_arguments_of_the_wrong_kind_make_no_tensor():
    """Negative, boolean and missing numbers, and shape and stride of different ranks."""
    for old, new in [
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),
        (b"K\x02K\x03\x86", b"\x88K\x03\x86"),
        (b"K\x02K\x03\x86", b"K\x06\x85"),
        (b"K\x02K\x03\x86", b"N"),
        (b"tQK\x00", b"tQJ\xff\xff\xff\xff"),
        (b"K\x06tQ", b"J\xff\xff\xff\xfftQ"),
        (b"K\x06tQ", b"\x88tQ"),
        (b")RtR", b")RNtR"),
    ]:
        assert old in TENSOR
        body = program(b"}X\x01\x00\x00\x00a" + TENSOR.replace(old, new) + b"s")
        with pytest.raises(UnsafePickle):
            read_state_dict(body, "x")


def test_bytes_behind_the_end_are_refused():
    """torch stops reading at STOP; what hides behind it is for another reader."""
    with pytest.raises(UnsafePickle, match="goes on behind its end"):
        read_state_dict(program(b"}") + b"cos\nsystem\n", "x")


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_only_protocol_2_is_read(protocol):
    """Frames and short opcodes of later protocols are for other programs."""
    with pytest.raises(UnsafePickle):
        read_state_dict(pickle.dumps(collections.OrderedDict(), protocol), "x")


def test_an_empty_dictionary_is_one():
    """Python's own pickle of an OrderedDict is understood."""
    assert read_state_dict(pickle.dumps(collections.OrderedDict(), 2), "x") == {}
