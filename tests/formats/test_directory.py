"""Which files make one checkpoint, opened through the one door `open_checkpoint`."""

from __future__ import annotations

import json
import os
import re

import pytest

from moetool.errors import BadHeader, MoetoolError, ReadFailed, Refused, UsageFault
from moetool.formats import can_hold, create, open_checkpoint, read_part
from moetool.formats.directory import survey_files
from moetool.tensors import DType, TensorInfo


def put(path, *names, **metadata):
    """A file of that format with one-byte tensors of those names."""
    infos = [TensorInfo(name, DType.I8, (1,)) for name in names]
    sink = create(path, infos, metadata)
    for name in names:
        sink.write(name, [name[:1].encode()])
    sink.close()
    return path


def put_index(directory, weight_map, name="model.safetensors.index.json"):
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory / name


def put_split(directory, *parts, stem="m"):
    """A GGUF split of those parts, each a string of one-letter names."""
    total = sum(map(len, parts))
    for number, names in enumerate(parts):
        put(
            directory / f"{stem}-{number + 1:05d}-of-{len(parts):05d}.gguf",
            *names,
            **{
                "split.no": ("u16", number),
                "split.count": ("u16", len(parts)),
                "split.tensors.count": ("i32", total),
            },
        )


def names_of(path):
    with open_checkpoint(path) as checkpoint:
        assert all(
            bytes(checkpoint.read(name)) == name[:1].encode() for name in checkpoint.catalog.tensors
        )
        return set(checkpoint.catalog.tensors), [file.name for file in checkpoint.files]


@pytest.mark.parametrize(
    "file_name",
    [
        "consolidated.00.pth",
        "consolidated.00.pt",
        "consolidated.safetensors",
        "consolidated-00001-of-00001.safetensors",
        "model.safetensors",
        "anything.gguf",
    ],
)
def test_a_directory_with_one_file_of_a_known_form(tmp_path, file_name):
    """The directory and the file name the same checkpoint; side files do not matter."""
    put(tmp_path / file_name, "a", "b")
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    expected = ({"a", "b"}, [file_name])
    assert names_of(tmp_path) == expected
    assert names_of(tmp_path / file_name) == expected
    with open_checkpoint(tmp_path / file_name) as checkpoint:
        assert checkpoint.directory == tmp_path
        assert checkpoint.path == tmp_path / file_name


def test_shards_by_key_are_joined_in_numeric_order(tmp_path):
    """Mistral's hub upload: consolidated.00.pt to 11.pt; claims of all of them are kept."""
    for number in range(12):
        put(tmp_path / f"consolidated.{number:02d}.pt", f"{number % 10}.{number}")
    names, files = names_of(tmp_path)
    assert len(names) == 12
    assert files == [f"consolidated.{number:02d}.pt" for number in range(12)]
    with open_checkpoint(tmp_path) as checkpoint:
        assert {c.extents[0].path.name for c in checkpoint.catalog.claims} == set(files)


def test_raw_shards_need_no_index(tmp_path):
    """consolidated-0000N-of-0000M says itself what is complete."""
    put(tmp_path / "consolidated-00001-of-00002.safetensors", "a", order="first")
    put(tmp_path / "consolidated-00002-of-00002.safetensors", "b", order="second")
    assert names_of(tmp_path)[0] == {"a", "b"}
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.catalog.metadata == {"order": "first"}


def test_an_index_and_its_shards(tmp_path):
    """By the directory and by the index; a shard alone is that shard."""
    put(tmp_path / "model-00001-of-00002.safetensors", "a")
    put(tmp_path / "model-00002-of-00002.safetensors", "b")
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = put_index(tmp_path, {"a": shards[0], "b": shards[1]})
    assert names_of(tmp_path) == names_of(index) == ({"a", "b"}, list(shards))
    assert names_of(tmp_path / shards[1]) == ({"b"}, [shards[1]])


def test_a_split_is_named_by_its_directory_or_its_first_part(tmp_path):
    """As llama.cpp takes it."""
    put_split(tmp_path, "ab", "c", "d")
    expected = {"a", "b", "c", "d"}
    assert names_of(tmp_path)[0] == expected
    assert names_of(tmp_path / "m-00001-of-00003.gguf")[0] == expected
    with pytest.raises(Refused, match="part 2 of a split") as caught:
        open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    assert "m-00001-of-00003.gguf" in caught.value.hint


@pytest.mark.parametrize(
    ("form", "other"),
    [
        ("consolidated.00.pth", "consolidated.safetensors"),
        ("consolidated.00.pth", "consolidated.00.pt"),
        ("model.safetensors", "consolidated.safetensors"),
        ("model.safetensors", "m.gguf"),
        ("a.gguf", "b.gguf"),
    ],
)
def test_two_checkpoints_side_by_side_are_named(tmp_path, form, other):
    """They could be two models; the file decides."""
    put(tmp_path / form, "a")
    put(tmp_path / other, "b")
    with pytest.raises(Refused, match="more than one checkpoint") as caught:
        open_checkpoint(tmp_path)
    assert form in str(caught.value)
    assert other in str(caught.value)
    assert names_of(tmp_path / other)[0] == {"b"}


def test_a_tensor_in_two_files_is_named(tmp_path):
    """A mixture of two uploads."""
    put(tmp_path / "consolidated.00.pth", "a", "b")
    put(tmp_path / "consolidated.01.pth", "b", "c")
    with pytest.raises(BadHeader, match="more than one file") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.findings == ("twice: 'b'",)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (["consolidated.00.pth", "consolidated.02.pth"], "consolidated.01.pth"),
        (["consolidated.01.pt"], "consolidated.00.pt"),
        (
            ["consolidated-00001-of-00002.safetensors"],
            "consolidated-00002-of-00002.safetensors",
        ),
        (["m-00001-of-00002.gguf"], "m-00002-of-00002.gguf"),
    ],
)
def test_a_missing_file_is_named(tmp_path, present, missing):
    """All that is missing is listed."""
    for number, name in enumerate(present):
        put(tmp_path / name, f"{number}")
    with pytest.raises(BadHeader, match="missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.findings == (f"missing: '{missing}'",)


def test_a_first_part_alone_is_missing_the_rest(tmp_path):
    """Given as a file, too."""
    put_split(tmp_path, "a", "b")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(BadHeader, match="missing") as caught:
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")
    assert caught.value.findings == ("missing: 'm-00002-of-00002.gguf'",)


def test_a_missing_shard_of_an_index_is_named(tmp_path):
    """Before anything is opened."""
    put(tmp_path / "model-00001-of-00002.safetensors", "a")
    put_index(
        tmp_path,
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    )
    with pytest.raises(BadHeader, match="missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.findings == ("missing: 'model-00002-of-00002.safetensors'",)


@pytest.mark.parametrize(
    ("weight_map", "finding"),
    [
        ({"a": 1, "b": 2, "c": 2}, "'c': the index says .*00002.*, it is in None"),
        ({"a": 1, "d": 2}, "'b': the index says None"),
        ({"a": 1}, "left over: .*00002"),
        ({"a": 2, "b": 1}, "'a': the index says .*00002.*, it is in .*00001"),
    ],
)
def test_a_stale_index_is_refused(tmp_path, weight_map, finding):
    """A name that is nowhere, a tensor the index does not know, a tensor elsewhere."""
    files = {n: f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    put(tmp_path / files[1], "a")
    put(tmp_path / files[2], "b")
    put_index(tmp_path, {name: files[n] for name, n in weight_map.items()})
    with pytest.raises(BadHeader) as caught:
        open_checkpoint(tmp_path)
    assert any(re.match(finding, line) for line in caught.value.findings)


def test_shards_without_their_index_are_refused(tmp_path):
    """The names do not say which upload they are of."""
    put(tmp_path / "model-00001-of-00002.safetensors", "a")
    with pytest.raises(BadHeader, match=r"shards without model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_a_cut_upload_is_read_as_one_file(tmp_path):
    """Some mirrors cut the 93 GB file; a listing sorts -split10 before -split2."""
    whole = put(tmp_path / "consolidated.00.pth", "a", "b")
    content = whole.read_bytes()
    names = names_of(tmp_path)[0]
    whole.unlink()
    for number in range(12):
        start, stop = (len(content) * n // 12 for n in (number, number + 1))
        (tmp_path / f"consolidated.00.pth-split{number}").write_bytes(content[start:stop])
    for path in (tmp_path, tmp_path / "consolidated.00.pth-split3", whole):
        assert names_of(path)[0] == names
    (tmp_path / "consolidated.00.pth-split10").unlink()
    with pytest.raises(Refused, match="not complete") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.findings == ("missing: consolidated.00.pth-split10",)


def test_a_directory_without_a_checkpoint_says_what_it_holds(tmp_path):
    """An unknown name of a known suffix is offered."""
    with pytest.raises(Refused, match="no checkpoint of a known form"):
        open_checkpoint(tmp_path)
    put(tmp_path / "mine.safetensors", "a")
    with pytest.raises(Refused, match=r"it does hold 'mine\.safetensors'"):
        open_checkpoint(tmp_path)
    assert names_of(tmp_path / "mine.safetensors")[0] == {"a"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".gguf"])
def test_a_file_of_another_name_is_known_by_its_first_bytes(tmp_path, suffix):
    """Mirrors rename files."""
    path = put(tmp_path / f"x{suffix}", "a").rename(tmp_path / "weights.b")
    assert names_of(path)[0] == {"a"}


def test_what_is_no_checkpoint_is_refused(tmp_path):
    """A text, an empty file, a FIFO, a device, a loop of links."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.pth")
    for path in (tmp_path / "text", tmp_path / "empty", tmp_path / "fifo.pth"):
        with pytest.raises(Refused):
            open_checkpoint(path)
    with pytest.raises(Refused):
        open_checkpoint(type(tmp_path)("/dev/zero"))
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    with pytest.raises(ReadFailed):
        open_checkpoint(tmp_path / "loop.pth")


def test_nothing_at_that_path(tmp_path):
    """A typing error is the user's."""
    with pytest.raises(UsageFault, match="no such file"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UsageFault):
        create(tmp_path / "x.bin", [], {})


def test_ranges_of_a_tensor(tmp_path):
    """Reads are lazy, by range, and checked."""
    info = TensorInfo("t", DType.U8, (10,))
    sink = create(tmp_path / "model.safetensors", [info], {})
    sink.write("t", [bytes(range(10))])
    sink.close()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.read("t") == bytes(range(10))
        assert checkpoint.read("t", 3, 5) == b"\x03\x04"
        assert checkpoint.read("t", 10) == b""
        for start, stop in ((-1, 2), (5, 3), (0, 11)):
            with pytest.raises(MoetoolError, match="has no bytes"):
                checkpoint.read("t", start, stop)
        checkpoint.close()


def test_files_are_closed_when_one_is_refused(tmp_path):
    """No descriptor leaks from a refusal."""
    put(tmp_path / "consolidated.00.pth", "a")
    (tmp_path / "consolidated.01.pth").write_bytes(b"garbage")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused):
        open_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def shapes(file_set):
    return [file.name for file in file_set.files], list(file_set.missing)


def test_a_survey_says_what_is_here_and_what_is_not(tmp_path):
    """The numbers, the count in the names, or an index tell which files belong to it."""
    for name in ("consolidated.00.pt", "consolidated.02.pt"):
        put(tmp_path / name, "a")
    here, missing = shapes(survey_files(tmp_path))
    assert (here, missing) == (["consolidated.00.pt", "consolidated.02.pt"], ["consolidated.01.pt"])
    other = tmp_path / "split"
    other.mkdir()
    put_split(other, "a", "b", "c")
    (other / "m-00002-of-00003.gguf").unlink()
    assert shapes(survey_files(other))[1] == ["m-00002-of-00003.gguf"]
    assert shapes(survey_files(other / "m-00001-of-00003.gguf"))[1] == ["m-00002-of-00003.gguf"]
    indexed = tmp_path / "indexed"
    indexed.mkdir()
    put_index(indexed, {"a": "model-00001-of-00002.safetensors",
                        "b": "model-00002-of-00002.safetensors"})  # fmt: skip
    file_set = survey_files(indexed)
    assert shapes(file_set) == ([], sorted(set(file_set.index.values())))


def test_a_survey_counts_files_that_are_promised(tmp_path):
    """A fetch has begun, and nothing of the weights is here."""
    file_set = survey_files(tmp_path, ["consolidated.00.pth", "params.json"])
    assert shapes(file_set) == ([], ["consolidated.00.pth"])
    with pytest.raises(Refused):
        survey_files(tmp_path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf"])
def test_a_header_is_read_of_a_file_whose_data_are_not_here(name, tmp_path):
    """And it says where the data will end; the whole file is refused until then."""
    path = put(tmp_path / name, "a", "b")
    whole = path.read_bytes()
    catalog, end = read_part(path, path.suffix[1:])
    assert end == len(whole)
    path.write_bytes(whole[:-33] if name.endswith("gguf") else whole[:-1])
    assert read_part(path, path.suffix[1:]) == (catalog, end)
    with pytest.raises(Refused):
        open_checkpoint(path)
    path.write_bytes(whole[:20])
    with pytest.raises(Refused):
        read_part(path, path.suffix[1:])


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "gguf"])
@pytest.mark.parametrize("dtype", DType)
def test_what_a_format_says_it_can_hold_it_can(suffix, dtype, tmp_path):
    """Whether a writer takes a type is known before there is a writer."""
    infos = [TensorInfo("a", dtype, (dtype.block_size,))]
    if can_hold(suffix, dtype):
        create(tmp_path / f"x.{suffix}", infos, {})
    else:
        with pytest.raises(MoetoolError):
            create(tmp_path / f"x.{suffix}", infos, {})
