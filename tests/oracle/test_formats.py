"""Our readers and writers beside those of the field: torch, safetensors, gguf, sentencepiece."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from moetool.formats import create, open_checkpoint
from moetool.formats.pth_writer import PthSink
from moetool.formats.sentencepiece import read_vocabulary
from moetool.tensors import DType, TensorInfo

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch", reason="torch.load is the oracle of .pth")

TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
}


def raw(tensor) -> bytes:
    """The bytes of a tensor, row by row."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist())


def same(path: Path, expected: dict) -> None:
    """Our reader sees the tensors that torch holds: names, order, dtypes, shapes, bytes."""
    with open_checkpoint(path) as checkpoint:
        tensors = checkpoint.catalog.tensors
        assert list(tensors) == list(expected)
        for name, tensor in expected.items():
            assert TORCH[tensors[name].dtype] is tensor.dtype
            assert tensors[name].shape == tuple(tensor.shape)
            assert checkpoint.read(name) == raw(tensor)


def every_type(seed=0):
    """Random bits in every type and several shapes; bytes of a bool are 0 or 1."""
    dice = torch.Generator().manual_seed(seed)
    shapes = ((), (1,), (7,), (3, 5), (2, 3, 4), (0, 4))
    tensors = {}
    for dtype, kind in TORCH.items():
        for shape in shapes:
            numel = TensorInfo("", dtype, shape).nbytes
            bits = torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=dice)
            bits = bits % 2 if dtype is DType.BOOL else bits
            tensors[f"{dtype.label}.{len(shape)}.{numel}"] = bits.view(kind).reshape(shape)
    return tensors


class TestPth:
    """torch.save and torch.load(weights_only=True)."""

    @pytest.mark.parametrize("form", [dict, OrderedDict])
    def test_what_torch_saves_is_read(self, tmp_path, form):
        """Every type and shape."""
        tensors = form(every_type())
        torch.save(tensors, tmp_path / "x.pth")
        same(tmp_path / "x.pth", torch.load(tmp_path / "x.pth", weights_only=True))
        same(tmp_path / "x.pth", tensors)

    def test_views_of_one_storage(self, tmp_path):
        """Slices, rows and the whole share a storage; each is read at its own place."""
        whole = torch.arange(1000, dtype=torch.float32).reshape(10, 100).bfloat16()
        tensors = {"whole": whole, "rows": whole[2:5], "row": whole[7], "again": whole}
        torch.save(tensors, tmp_path / "x.pth")
        assert (tmp_path / "x.pth").stat().st_size < 5000
        same(tmp_path / "x.pth", tensors)

    def test_a_module_and_its_parameters(self, tmp_path):
        """state_dict() with its _metadata, and Parameters pickled as such."""
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        torch.save(module.state_dict(), tmp_path / "x.pth")
        same(tmp_path / "x.pth", module.state_dict())
        parameters = dict(module.named_parameters())
        torch.save(parameters, tmp_path / "y.pth")
        same(tmp_path / "y.pth", parameters)

    def test_a_transposed_view_is_refused_rather_than_misread(self, tmp_path):
        """torch keeps strides; bytes in that order would be another matrix."""
        torch.save({"t": torch.ones(3, 4).t()}, tmp_path / "x.pth")
        with pytest.raises(Exception, match="not stored row by row"):
            open_checkpoint(tmp_path / "x.pth")

    def test_members_beyond_4_gib(self, tmp_path):
        """zip64 as torch writes it: sizes and offsets of 64 bits."""
        path = tmp_path / "x.pth"
        tensors = {
            "big": torch.empty(5 << 30, dtype=torch.uint8),
            "edge": torch.empty((1 << 31) - 1, dtype=torch.bfloat16),
            "small": torch.empty(8),
        }
        with torch.serialization.skip_data():
            torch.save(tensors, path)
        with open_checkpoint(path) as checkpoint:
            found = {name: info.nbytes for name, info in checkpoint.catalog.tensors.items()}
        assert found == {"big": 5 << 30, "edge": (1 << 32) - 2, "small": 32}

    @pytest.mark.parametrize("mmap", [False, True])
    def test_what_we_write_torch_loads(self, tmp_path, mmap):
        """Every type and shape, mapped or not, weights only."""
        expected, path = every_type(1), tmp_path / "consolidated.00.pth"
        kinds = {kind: dtype for dtype, kind in TORCH.items()}
        infos = [TensorInfo(n, kinds[t.dtype], tuple(t.shape)) for n, t in expected.items()]
        sink = create(path, infos, {})
        for name, tensor in expected.items():
            sink.write(name, [raw(tensor)])
        sink.close()
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert list(loaded) == list(expected)
        for name, tensor in expected.items():
            assert loaded[name].dtype is tensor.dtype
            assert raw(loaded[name]) == raw(tensor)
            assert loaded[name].shape == tensor.shape
        same(path, loaded)

    def test_holes_beyond_4_gib_are_zeros_to_torch(self, tmp_path):
        """A sparse file of our writer, mapped by torch."""
        infos = [TensorInfo(n, DType.U8, (n_bytes,)) for n, n_bytes in (("a", 5 << 30), ("b", 9))]
        sink = PthSink(tmp_path / "x.pth", infos)
        for info in infos:
            sink.write_hole(info.name)
        sink.close()
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)
        assert loaded["a"].shape == (5 << 30,)
        assert loaded["a"][-1] == 0
        assert loaded["b"].tolist() == [0] * 9

    def test_the_members_are_those_of_torch(self, tmp_path):
        """Names in torch's order, save the random id that nothing reads."""
        tensors = {"a": torch.ones(3), "b": torch.ones(2)}
        torch.save(tensors, tmp_path / "theirs.pth")
        infos = [TensorInfo(name, DType.F32, tuple(t.shape)) for name, t in tensors.items()]
        sink = PthSink(tmp_path / "ours.pth", infos, root="theirs")
        for name, tensor in tensors.items():
            sink.write(name, [raw(tensor)])
        sink.close()
        theirs, ours = (zipfile.ZipFile(tmp_path / f"{who}.pth") for who in ("theirs", "ours"))
        with theirs, ours:
            names = [name for name in theirs.namelist() if "serialization_id" not in name]
            assert ours.namelist() == names
            for name in names:
                if not name.endswith("data.pkl"):
                    assert ours.read(name) == theirs.read(name)


class TestSafetensors:
    """The safetensors library."""

    def test_what_the_library_saves_is_read(self, tmp_path):
        """Every type and shape, and the metadata."""
        library = pytest.importorskip("safetensors.torch", reason="the oracle of safetensors")
        tensors = every_type(2)
        library.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt", "k": "ü\n"})
        with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
            assert checkpoint.catalog.metadata == {"format": "pt", "k": "ü\n"}
            order = list(checkpoint.catalog.tensors)
        assert set(order) == set(tensors)
        same(tmp_path / "x.safetensors", {name: tensors[name] for name in order})

    def test_what_we_write_the_library_loads(self, tmp_path):
        """Every type and shape, float8 too."""
        library = pytest.importorskip("safetensors.torch", reason="the oracle of safetensors")
        kinds = {kind: dtype for dtype, kind in TORCH.items()}
        kinds |= {torch.float8_e4m3fn: DType.F8_E4M3, torch.float8_e5m2: DType.F8_E5M2}
        expected = every_type(3)
        expected["e4"] = torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn)
        expected["e5"] = torch.arange(8, dtype=torch.uint8).view(torch.float8_e5m2)
        infos = [TensorInfo(n, kinds[t.dtype], tuple(t.shape)) for n, t in expected.items()]
        sink = create(tmp_path / "x.safetensors", infos, {"format": "pt"})
        for name, tensor in expected.items():
            sink.write(name, [raw(tensor)])
        sink.close()
        loaded = library.load_file(tmp_path / "x.safetensors")
        assert set(loaded) == set(expected)
        for name, tensor in expected.items():
            assert loaded[name].dtype is tensor.dtype
            assert loaded[name].shape == tensor.shape
            assert raw(loaded[name]) == raw(tensor)


class TestGguf:
    """The gguf package of llama.cpp."""

    METADATA = {  # noqa: RUF012  # a table
        "general.architecture": ("str", "llama"),
        "x.u32": ("u32", 7),
        "x.i8": ("i8", -7),
        "x.f32": ("f32", 0.25),
        "x.f64": ("f64", 1e-9),
        "x.bool": ("bool", True),
        "x.u64": ("u64", 1 << 40),
        "x.strs": ("arr[str]", ["<unk>", "\u2581the"]),
        "x.floats": ("arr[f32]", [0.5, -2.0]),
        "x.ints": ("arr[i32]", [1, 2, 6]),
    }

    # Never in a file, only between two kernels: 36 bytes in ggml-common.h, 40 in the package.
    UNLIKE = DType.Q8_1

    def test_what_the_package_writes_is_read(self, tmp_path):
        """Key-values of every kind; plain and quantised tensors."""
        gguf = pytest.importorskip("gguf", reason="the oracle of GGUF")
        numpy = pytest.importorskip("numpy", reason="gguf takes numpy arrays")
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        writer.add_uint32("x.u32", 7)
        writer.add_int8("x.i8", -7)
        writer.add_float32("x.f32", 0.25)
        writer.add_float64("x.f64", 1e-9)
        writer.add_bool("x.bool", True)
        writer.add_uint64("x.u64", 1 << 40)
        writer.add_array("x.strs", ["<unk>", "\u2581the"])
        writer.add_array("x.floats", [0.5, -2.0])
        writer.add_array("x.ints", [1, 2, 6])
        plain = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
        blocks = gguf.quants.quantize(
            numpy.linspace(-1, 1, 192, dtype=numpy.float32).reshape(3, 64),
            gguf.GGMLQuantizationType.Q8_0,
        )
        writer.add_tensor("plain", plain)
        writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
            catalog = checkpoint.catalog
            assert catalog.metadata == {key: value for key, (_, value) in self.METADATA.items()}
            assert catalog.tensors["plain"] == TensorInfo("plain", DType.F32, (3, 4))
            assert catalog.tensors["blocks"] == TensorInfo("blocks", DType.Q8_0, (3, 64))
            assert checkpoint.read("plain") == plain.tobytes()
            assert checkpoint.read("blocks") == blocks.tobytes()

    def test_what_we_write_the_package_reads(self, tmp_path):
        """The same values and bytes, in blocks of every type both know."""
        gguf = pytest.importorskip("gguf", reason="the oracle of GGUF")
        kinds = {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}
        stored = [d for d in DType if d.label in kinds and d is not self.UNLIKE]
        infos = [TensorInfo(d.label, d, (2, d.block_size)) for d in stored]
        assert len(infos) > 25
        sink = create(tmp_path / "x.gguf", infos, self.METADATA)
        for index, info in enumerate(infos):
            sink.write(info.name, [bytes([index]) * info.nbytes])
        sink.close()
        reader = gguf.GGUFReader(tmp_path / "x.gguf")
        for key, (_, value) in self.METADATA.items():
            assert reader.fields[key].contents() == value
        assert [tensor.name for tensor in reader.tensors] == [info.name for info in infos]
        for index, (tensor, info) in enumerate(zip(reader.tensors, infos, strict=True)):
            assert tensor.tensor_type == kinds[info.dtype.label]
            assert tuple(reversed(tensor.shape.tolist())) == info.shape
            assert tensor.data.tobytes() == bytes([index]) * info.nbytes

    def test_our_table_of_types_is_theirs(self):
        """Block and type size of every type that both know."""
        gguf = pytest.importorskip("gguf", reason="the oracle of GGUF")
        sizes = {kind.name.lower(): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
        common = [d for d in DType if d.label in sizes and d is not self.UNLIKE]
        ours = {d.label: (d.block_size, d.type_size) for d in common}
        assert ours == {label: sizes[label] for label in ours}
        assert len(ours) > 25


class TestSentencepiece:
    """The sentencepiece library."""

    @staticmethod
    def same_vocabulary(content: bytes) -> None:
        """Pieces, scores, kinds and special ids agree, id by id."""
        library = pytest.importorskip("sentencepiece", reason="the oracle of tokenizer.model")
        theirs = library.SentencePieceProcessor()
        theirs.LoadFromSerializedProto(content)
        ours, ids = read_vocabulary(content), range(theirs.vocab_size())
        assert ours.pieces == tuple(map(theirs.id_to_piece, ids))
        assert ours.scores == tuple(map(theirs.get_score, ids))
        for kind, is_kind in (
            ("unknown", theirs.is_unknown),
            ("control", theirs.is_control),
            ("unused", theirs.is_unused),
            ("byte", theirs.is_byte),
        ):
            assert [k == kind for k in ours.types] == list(map(is_kind, ids))
        found = (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id())
        assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == found

    @pytest.mark.parametrize("model_type", ["bpe", "unigram", "char", "word"])
    @pytest.mark.parametrize("pad_id", [-1, 3])
    def test_a_trained_vocabulary(self, model_type, pad_id):
        """All four kinds of model; flags as they were given to the trainer."""
        library = pytest.importorskip("sentencepiece", reason="the oracle of tokenizer.model")
        text = [f"the quick brown fox {n} jumps over the lazy dog" for n in range(200)]
        out, fallback = io.BytesIO(), model_type in {"bpe", "unigram"}
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=out,
            model_type=model_type,
            vocab_size=320 if fallback else 25,
            hard_vocab_limit=False,
            byte_fallback=fallback,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=model_type != "unigram",
            pad_id=pad_id,
            user_defined_symbols=["[TOOL]"],
            minloglevel=2,
        )
        self.same_vocabulary(out.getvalue())
        vocabulary = read_vocabulary(out.getvalue())
        assert vocabulary.model_type == model_type
        assert vocabulary.byte_fallback == fallback
        assert vocabulary.add_dummy_prefix == (model_type != "unigram")
        assert not vocabulary.remove_extra_whitespaces
        assert not vocabulary.has_charsmap
        assert "user_defined" in vocabulary.types

    def test_the_releases_own_tokenizer(self):
        """mistral-common carries the tokenizer.model of the first release and of later ones."""
        package = pytest.importorskip("mistral_common", reason="carries tokenizer.model")
        files = sorted((Path(package.__file__).parent / "data").glob("*.model*"))
        assert any(file.name == "tokenizer.model.v1" for file in files)
        for file in files:
            self.same_vocabulary(file.read_bytes())
