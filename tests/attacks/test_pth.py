"""Hostile .pth files: pickles that would run code, zips that mean two things, bombs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
import zlib

import pytest

from moetool.errors import BadHeader, Refused, UnsafePickle
from moetool.extents import LocalFile
from moetool.formats import open_checkpoint
from moetool.formats.pth import read_catalog
from moetool.formats.pth_writer import PthSink
from moetool.formats.unpickler import read_state_dict
from moetool.tensors import DType, TensorInfo

# Globals of published bypasses of deny-list scanners (picklescan, fickling, modelscan).
GLOBALS = [
    "os system", "posix system", "nt system", "subprocess Popen", "builtins eval",
    "builtins exec", "__builtin__ eval", "builtins getattr", "builtins __import__",
    "builtins compile", "builtins open", "runpy run_path", "pip main", "pip._internal main",
    "pty spawn", "socket create_connection", "webbrowser open", "ctypes CDLL", "code interact",
    "codeop compile_command", "timeit timeit", "cProfile run", "profile run", "pdb run",
    "bdb Bdb.run", "doctest debug_script", "trace Trace.run", "idlelib.run Executive.runcode",
    "torch load", "torch.hub load", "torch.jit load", "torch.storage _load_from_bytes",
    "torch.utils._config_module load_config", "torch.fx.experimental.symbolic_shapes ShapeEnv",
    "torch._dynamo.guards GuardBuilder.get", "torch.utils.collect_env run",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_wrapper_subclass", "torch._utils _import_dotted_name",
    "torch.serialization load", "torch._tensor _rebuild_from_type_v2", "torch UntypedStorage",
    "numpy load", "numpy.testing._private.utils runstring", "numpy.f2py.crackfortran getlincoef",
    "lib2to3.pgen2.pgen ParserGenerator.make_label", "operator attrgetter",
    "operator methodcaller", "functools partial", "functools reduce", "types FunctionType",
    "types CodeType", "importlib import_module", "importlib.util spec_from_file_location",
    "logging.config dictConfig", "shutil rmtree", "collections Counter", "collections deque",
    "collections.OrderedDict fromkeys", "collections OrderedDict.fromkeys",
    "copyreg _reconstructor", "copyreg __newobj__",
    "_pickle loads", "pickle loads", "marshal loads", "asyncio create_subprocess_shell",
    "multiprocessing.util spawnv_passfds", "distutils.file_util write_file",
    "aiohttp.client ClientSession", "uuid _get_command_stdout", "ensurepip _run_pip",
]  # fmt: skip


def tensor(path, *infos):
    infos = infos or (TensorInfo("a.weight", DType.F32, (4, 3)), TensorInfo("b", DType.BF16, (7,)))
    sink = PthSink(path, infos)
    for info in infos:
        sink.write(info.name, [bytes(range(info.nbytes))])
    sink.close()
    return path


def with_pickle(path, content: bytes):
    """A file whose container is in order and whose pickle is hostile."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", bytes(64))
        file.writestr("archive/version", "3\n")
    return path


def refuse_pickle(tmp_path, content: bytes):
    path = with_pickle(tmp_path / "x.pth", content)
    with pytest.raises(UnsafePickle) as caught:
        open_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("name", GLOBALS)
def test_no_global_but_the_allowed_is_even_named(tmp_path, name):
    """Alone, called, as an entry of a good state dict, and through protocol 4's opcode."""
    module, attribute = name.split(" ")
    push = f"c{module}\n{attribute}\n".encode()
    argument = b"X\x04\x00\x00\x00true\x85"
    bodies = (
        push,
        push + argument + b"R",
        b"}X\x01\x00\x00\x00a" + push + argument + b"Rs",
        b"}X\x01\x00\x00\x00aN" + push + argument + b"Rs",
    )
    for body in bodies:
        assert f"{module}.{attribute}" in refuse_pickle(tmp_path, b"\x80\x02" + body + b".")
    stacked = (
        b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c"
        + bytes([len(attribute)]) + attribute.encode() + b"\x93" + argument + b"R."
    )  # fmt: skip
    refuse_pickle(tmp_path, stacked)


class _Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_of_a_real_payload_runs(tmp_path, protocol):
    """The pickle of an object whose loading makes a directory makes none."""
    mark = tmp_path / "was-run"
    for value in (_Payload(mark), {"a": _Payload(mark)}, [_Payload(mark)]):
        refuse_pickle(tmp_path, pickle.dumps(value, protocol))
    assert not mark.exists()
    with pytest.raises(FileExistsError):  # the payload is a live one
        [pickle.loads(pickle.dumps(_Payload(mark), protocol)) for _ in range(2)]


@pytest.mark.parametrize(
    "trick",
    [
        pytest.param(b"\x80\x02ios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00ido0}.", id="OBJ, POP"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n)\x81.", id="NEWOBJ"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        pytest.param(b"\x80\x02Pxyz\n.", id="PERSID"),
        pytest.param(b"\x80\x02}.\x80\x02cos\nsystem\n)R.", id="a second pickle behind"),
        pytest.param(b"\x80\x02\x80\x02}.", id="PROTO twice"),
        pytest.param(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}.", id="an empty frame"),
        pytest.param(b"}.", id="no PROTO"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x02", id="no STOP"),
        pytest.param(b"\x80\x02}2.", id="DUP"),
        pytest.param(b"\x80\x02(}1.", id="POP_MARK"),
        pytest.param(b"\x80\x02}]a.", id="lists"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f.", id="LONG4 of 2 GB"),
        pytest.param(b"\x80\x02I99999999999999999999\n.", id="text numbers"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff.", id="memo 2**32"),
        pytest.param(b"\x80\x02}q\x00h\x00s.", id="itself as its item"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n}b.", id="BUILD of a global"),
        pytest.param(
            b"\x80\x02ccollections\nOrderedDict\nq\x00X\x01\x00\x00\x00aNs.", id="SETITEM, global"
        ),
    ],
)
def test_opcodes_that_hide_things_are_refused(tmp_path, trick):
    """What scanners and loaders have disagreed on is not understood at all."""
    refuse_pickle(tmp_path, trick)


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
    """A cycle is not a tensor; nothing walks it."""
    refuse_pickle(tmp_path, b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")


BOMBS = {
    "nested dicts": b"}X\x01\x00\x00\x00a" * 400_000,
    "nested tuples": b")" + b"\x85" * 1_199_000,
    "marks": b"(" * 1_199_000,
    "doubling tuples": b")q\x00" + b"h\x00h\x00\x86q\x00" * 300_000,
    "empty dicts": b"}" * 1_199_000,
    "filled dicts": b"X\x00\x00\x00\x00q\x00" + b"}h\x00Ns" * 370_000,
    "memo": b"".join(b"}r" + struct.pack("<I", i) for i in range(590_000)),
    "distinct keys": b"}("
    + b"".join(
        b"X\x04\x00\x00\x00" + struct.pack("<I", i & 0x7F7F7F7F) + b"N" for i in range(500_000)
    )
    + b"u",
    "one long text": b"X" + struct.pack("<I", 15 << 20) + b"a" * (15 << 20),
    "operations": b"NN\x86" * 5_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time_and_room(tmp_path, judge, name):
    """Within 5 s and 150 MB, with nothing imported."""
    judge(with_pickle(tmp_path / "x.pth", b"\x80\x02" + BOMBS[name] + b"."))


def test_a_million_members_are_refused_in_time_and_room(tmp_path, judge):
    """A directory of small lies, and one of 100,000 true members."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        for index in range(100_000):
            file.writestr(zipfile.ZipInfo(f"r/data/{index}"), b"")
    judge(path)


def test_a_deflate_bomb_is_refused_unopened(tmp_path, judge):
    """200 MB of zeros in 200 kB."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("r/data.pkl", bytes(200 << 20))
    judge(path)


def test_a_zip_that_two_readers_read_differently_is_refused(tmp_path):
    """torch ignores case, Python does not: one shows a good tensor, the other runs another."""
    path = tensor(tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("consolidated.00/DATA/0", bytes(48))
    with pytest.raises(BadHeader, match="doubled"):
        open_checkpoint(path)


def test_a_second_name_in_an_extra_field_is_refused(tmp_path):
    """Info-ZIP's unicode path gives a member another name for some readers."""
    path = tmp_path / "x.pth"
    info = zipfile.ZipInfo("r/data.pkl")
    name = b"r/other.pkl"
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"r/data.pkl")) + name
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, b"\x80\x02}.")
    with pytest.raises(BadHeader, match="strange extra field 0x7075"):
        open_checkpoint(path)


def test_a_member_out_of_the_folder_is_refused(tmp_path):
    """Nothing is extracted, yet such a file has only one purpose."""
    path = tensor(tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("consolidated.00/../../../etc/cron.d/x", b"* * * * * root id")
    with pytest.raises(BadHeader, match="hostile name"):
        open_checkpoint(path)


def test_names_of_tensors_cannot_reach_the_terminal(tmp_path):
    """Escape sequences, overrides of direction and line breaks are refused and spelled out."""
    for name in (
        "\x1b]0;owned\x07",
        "a\u202eb",
        "a\nb",
        "",
        "x" * 600,
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        raw = name if isinstance(name, bytes) else name.encode()
        body = (
            b"\x80\x02}X" + struct.pack("<I", len(raw)) + raw
            + b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nByteStorage\n"
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x40tQK\x00K\x40\x85K\x01\x85\x89"
            b"ccollections\nOrderedDict\n)RtRs."
        )  # fmt: skip
        with pytest.raises(Refused) as caught:
            open_checkpoint(with_pickle(tmp_path / "x.pth", body))
        assert str(caught.value).isprintable()


def test_storages_that_two_tensors_read_as_two_types_are_refused(tmp_path):
    """torch cannot have written it."""
    kinds = (("FloatStorage", b"K\x10"), ("HalfStorage", b"K\x20"))
    parts = [
        b"X\x01\x00\x00\x00" + bytes([97 + i]) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpu" + count + b"tQK\x00" + count + b"\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtRs"
        for i, (kind, count) in enumerate(kinds)
    ]
    with pytest.raises(BadHeader, match="two types"):
        open_checkpoint(with_pickle(tmp_path / "x.pth", b"\x80\x02}" + b"".join(parts) + b"."))


def test_mutants_of_a_file_are_read_or_refused(tmp_path, survive):
    """2,000 damaged containers; nearly all are noticed before a weight is read."""
    good = tensor(tmp_path / "good.pth").read_bytes()
    path = tmp_path / "x.pth"

    def read(raw):
        path.write_bytes(raw)
        with LocalFile(path) as file:
            catalog = read_catalog(file)
        assert all(e.end <= len(raw) for e in catalog.extents.values())

    assert survive(good, read)["refused"] > 1000


def test_edge_numbers_in_every_place_of_a_zip64_directory(tmp_path):
    """Offsets and sizes of 2**63, 2**64-1, 0 and 1 where a good file has its own."""
    infos = [TensorInfo("a", DType.U8, (5 << 30,)), TensorInfo("b", DType.U8, (3,))]
    path = tmp_path / "x.pth"
    sink = PthSink(path, infos)
    for info in infos:
        sink.write_hole(info.name)
    sink.close()
    with path.open("r+b") as file, LocalFile(path) as source:
        (*_, start) = struct.unpack("<4sQ2H2I4Q", source.pread(source.nbytes - 98, 56))
        tail = source.pread(start, source.nbytes - start)
        assert tail.startswith(b"PK\x01\x02")
        for at in range(len(tail) - 8):
            for edge in (0, 1, 1 << 63, (1 << 64) - 1):
                file.seek(start + at)
                file.write(edge.to_bytes(8, "little"))
                file.flush()
                with contextlib.suppress(Refused):
                    read_catalog(source)
            file.seek(start + at)
            file.write(tail[at : at + 8])


def test_mutants_of_a_pickle_are_read_or_refused(tmp_path, survive):
    """4,000 damaged pickles in containers that are in order."""
    with zipfile.ZipFile(io.BytesIO(tensor(tmp_path / "good.pth").read_bytes())) as file:
        good = file.read("consolidated.00/data.pkl")
    outcomes = survive(good, lambda raw: read_state_dict(raw, "x.pth"), count=4000)
    assert outcomes["refused"] > 3000
