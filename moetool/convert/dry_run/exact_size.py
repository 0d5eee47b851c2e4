"""How large the files of a GGUF will be, to the byte: its writer writes to what only counts.

What a safetensors or .pth file has beside its tensors is a few hundred KB at most; a GGUF carries
the whole vocabulary and pads each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moetool.formats import create

if TYPE_CHECKING:
    from moetool.convert.job import Job
    from moetool.tensors import Buffer

_CHUNK = bytes(1 << 20)


class _Counter:
    """An output file that keeps nothing but its length."""

    def __init__(self) -> None:
        self.nbytes = 0

    def append(self, content: Buffer) -> None:
        self.nbytes += memoryview(content).nbytes

    def skip(self, nbytes: int) -> None:
        self.nbytes += nbytes

    def finish(self) -> None:
        pass


def file_sizes(job: Job) -> Mapping[str, int]:
    """Bytes of each file: all of a GGUF's, those of the tensors of any other.

    Raises:
        InconsistentCheckpoint: the tokenizer beside the source is another model's.
    """
    if job.target.file_format != "gguf":
        return {shard.file_name: shard.nbytes for shard in job.plan.shards}
    sizes = {}
    for shard, metadata in zip(job.plan.shards, job.headers, strict=True):
        counter = _Counter()
        infos = [step.target for step in shard.steps]
        sink = create(job.out / shard.file_name, infos, metadata, counter)
        for info in infos:
            sink.write(info.name, _nothing(info.nbytes))
        sink.close()
        sizes[shard.file_name] = counter.nbytes
    return sizes


def _nothing(nbytes: int) -> Iterator[Buffer]:
    for at in range(0, nbytes, len(_CHUNK)):
        yield memoryview(_CHUNK)[: nbytes - at]
