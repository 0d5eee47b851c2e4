"""The port on 127.0.0.1, and no other address; where it cannot be had, who has it."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from moetool.errors import SystemFault

ADDRESS = "127.0.0.1"
BACKLOG = 128
LISTENING = "0A"  # Linux: include/net/tcp_states.h: TCP_LISTEN


def listen(port: int) -> socket.socket:
    """Listen on a port; 0 is any that is free.

    Raises:
        SystemFault: it is taken, which names the owner, or may not be had.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        where, what = f"{ADDRESS}:{port}", error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            what = f"the port is taken by {owner_of(port) or 'a program of another user'}"
        raise SystemFault(what, where=where, hint="--port 0 takes one that is free") from error
    return listening


def owner_of(port: int) -> str | None:
    """The program that listens on a port, as ``python3 (pid 4711)``; None where it is not seen."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            for handle in (folder / "fd").iterdir():
                if os.readlink(handle) in sockets:  # noqa: PTH115  # no file, a link's text
                    return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
    return None


def _inodes(port: int) -> list[str]:
    """The sockets that listen on a port, by the numbers of their inodes."""
    found: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            found += [
                row[9]
                for row in rows
                if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port
            ]
    return found
