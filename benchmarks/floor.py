"""The least that a conversion with every hash on has to do: copy, CRC-32 and SHA-256 of all bytes.

    python benchmarks/floor.py SOURCE TARGET

Two threads, so that two cores are busy: one reads, checks and writes a piece that is still in its
cache, the other hashes it. No journal, no names of tensors, no sync. Buffers are used again.
"""

import hashlib
import mmap
import os
import queue
import sys
import threading
import zlib

PIECE = 256 << 10
AHEAD = 64  # pieces


def main() -> None:
    """Copy a file, and hash what passes."""
    source = os.open(sys.argv[1], os.O_RDONLY)
    target = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[memoryview, int]] = queue.SimpleQueue()
    for _ in range(AHEAD):
        free.put(memoryview(mmap.mmap(-1, PIECE)))

    def hash_all() -> None:
        digest = hashlib.sha256()
        while (item := full.get())[1]:
            digest.update(item[0][: item[1]])
            free.put(item[0])

    thread = threading.Thread(target=hash_all)
    thread.start()
    position, crc = 0, 0
    while got := os.preadv(source, [buffer := free.get()], position):
        crc = zlib.crc32(buffer[:got], crc)
        os.pwrite(target, buffer[:got], position)
        full.put((buffer, got))
        position += got
    full.put((memoryview(b""), 0))
    thread.join()


if __name__ == "__main__":
    main()
