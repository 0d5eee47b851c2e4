"""Python imports this first when the folder is on PYTHONPATH: faults from inside the process.

strace can make a system call fail, and cannot let half of a write through or change a bit of a
read. Here the calls of `os` are wrapped, and a call is named as in the strace form: its name, the
path it is about, and its number among the calls of that name on that path.

    FAULTS_ROOTS   folders, joined by ":"; calls on anything else pass untouched
    FAULTS_AT      JSON [call, path, number, action]: short, flip, lost, empty, kill or an errno
    FAULTS_LOG     each call is a JSON line [call, path, number, bytes, offset, fired]
    FAULTS_HALT    "READ WRITE": before and after each call of FAULTS_HALT_AT a line is written to
                   the second descriptor and an answer awaited on the first
    FAULTS_SMALL   JSON {"module:NAME": value}: constants made small, so that 8 MB is a long run
"""

import errno
import fcntl
import importlib
import json
import os
import signal
import threading
from collections import Counter
from contextlib import suppress

ROOTS = tuple(filter(None, os.environ.get("FAULTS_ROOTS", "").split(":")))
AT = json.loads(os.environ.get("FAULTS_AT", "null"))
HALT_AT = os.environ.get("FAULTS_HALT_AT", "").split(",")
HALT = [int(word) for word in os.environ.get("FAULTS_HALT", "").split()]
LOG = os.environ.get("FAULTS_LOG")
CALLS = (
    "pwrite", "pwritev", "write", "pread", "preadv", "fsync", "fdatasync", "ftruncate",
    "rename", "replace", "mkdir",
)  # fmt: skip
TWIN = {"pwritev": "pwrite", "preadv": "pread", "replace": "rename", "fdatasync": "fsync"}

_lock, _halting, _seen = threading.Lock(), threading.Lock(), Counter()
_os = {name: getattr(os, name) for name in (*CALLS, "read")}
_log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if LOG else -1


def _path(first):
    """What a call is about: the path given, or that of the file behind a descriptor."""
    if hasattr(first, "fileno"):
        first = first.fileno()
    return os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)


def _nbytes(name, arguments):
    if name in {"pwrite", "write"}:
        return memoryview(arguments[1]).nbytes
    if name in {"pwritev", "preadv"}:
        return sum(memoryview(buffer).nbytes for buffer in arguments[1])
    return arguments[1] if name == "pread" else 0


def _offset(name, arguments):
    return arguments[2] if name in {"pwrite", "pwritev", "pread", "preadv"} else 0


def _halt(when, name, path):
    if HALT and name in HALT_AT:
        with _halting, suppress(BrokenPipeError):  # nobody listens any more: go on without a halt
            _os["write"](HALT[1], f"{when} {name} {path}\n".encode())
            _os["read"](HALT[0], 1)


def _half(buffers, nbytes):
    """The first half of what lies in buffers, at least a byte of it."""
    left, kept = max(1, nbytes // 2), []
    for buffer in buffers:
        kept.append(memoryview(buffer).cast("B")[:left])
        left -= kept[-1].nbytes
    return [buffer for buffer in kept if buffer.nbytes]


def _flipped(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def _written(name, action, arguments, nbytes):
    """A write that is short, flipped on its way, or said to be done and lost."""
    if action == "lost":
        return nbytes
    fd, content, *rest = arguments
    if name == "pwritev":
        content = _half(content, nbytes) if action == "short" else [_flipped(b"".join(content))]
    else:
        content = _half([content], nbytes)[0] if action == "short" else _flipped(content)
    return _os[name](fd, content, *rest)


def _read(name, action, arguments, nbytes):
    """A read that is short, flipped on its way, or finds the end of the file too early."""
    if action == "empty":
        return b"" if name == "pread" else 0
    fd, wanted, *rest = arguments
    if action == "short":
        half = max(1, nbytes // 2) if name == "pread" else _half(wanted, nbytes)
        return _os[name](fd, half, *rest)
    got = _os[name](*arguments)
    if name == "pread":
        return _flipped(got)
    view = memoryview(wanted[0]).cast("B")
    view[0] ^= 4
    return got


def _disturbed(name, action, arguments, nbytes):
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action in {"short", "flip", "lost", "empty"}:
        change = _read if name in {"pread", "preadv"} else _written
        return change(name, action, arguments, nbytes)
    number = getattr(errno, action)
    raise OSError(number, os.strerror(number))


def _is_at(call, path, number):
    """Whether a call is the one of FAULTS_AT; a file that has ended stays at its end."""
    if not AT or [call, path] != AT[:2]:
        return False
    return number == AT[2] or (AT[3] == "empty" and number > AT[2])


def _wrap(name):
    def call(*arguments, **words):
        path = _path(arguments[0])
        if not path.startswith(ROOTS):
            return _os[name](*arguments, **words)
        with _lock:
            point = [TWIN.get(name, name), path]
            _seen[tuple(point)] += 1
            point.append(_seen[tuple(point)])
        nbytes, fired = _nbytes(name, arguments), _is_at(*point)
        if _log >= 0:
            line = json.dumps([*point, nbytes, _offset(name, arguments), fired])
            _os["write"](_log, f"{line}\n".encode())
        _halt("before", name, path)
        done = (
            _disturbed(name, AT[3], arguments, nbytes) if fired else _os[name](*arguments, **words)
        )
        _halt("after", name, path)
        return done

    return call


def _wrap_flock():
    plain = fcntl.flock

    def flock(file, operation):
        path = _path(file)
        if path.startswith(ROOTS):
            _halt("before", "flock", path)
        return plain(file, operation)

    return flock


if ROOTS:
    for _name in CALLS:
        setattr(os, _name, _wrap(_name))
    fcntl.flock = _wrap_flock()
for _target, _value in json.loads(os.environ.get("FAULTS_SMALL", "{}")).items():
    _name, _, _constant = _target.partition(":")
    _module = importlib.import_module(_name)
    getattr(_module, _constant)  # one that is gone must be heard of: each trial then fails
    setattr(_module, _constant, _value)
