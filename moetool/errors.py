"""Everything that can go wrong, as a tree whose first level is the exit code.

MoetoolError                    1  a bug of ours
├── UsageFault                  2  the command line is wrong
│   └── BadMagnet
├── Mismatch                    3  the data was read and is wrong
│   ├── DigestMismatch
│   └── CheckFailed
├── Refused                     4  malformed, hostile or unsupported input
│   ├── HostileTorrent
│   ├── FormatError
│   │   ├── UnsafePickle
│   │   ├── TruncatedFile
│   │   └── BadHeader
│   ├── ArchError
│   │   ├── UnknownConvention
│   │   └── InconsistentCheckpoint
│   ├── LossyCast
│   └── NotFetched
├── SystemFault                 5  disk full, permission, I/O error, memory, no such device
│   ├── ReadFailed
│   ├── NoRoomOnDisk
│   ├── NotEnoughMemory
│   └── DeviceUnavailable
├── NetworkFault                6  no peers, timeout
│   ├── MetadataTimeout
│   └── Stalled
├── InTheWay                    7  output exists, lock held, source or options changed
│   ├── OutputExists
│   ├── LockHeld
│   ├── SourceChanged
│   └── PlanChanged
└── Interrupted               130  Ctrl-C (143: SIGTERM); state is saved
"""

from __future__ import annotations

from typing import ClassVar


class MoetoolError(Exception):
    """An error a person can act on: what is wrong, where, and the next step.

    ``findings`` holds the single findings where there are several (one line each); they are all
    listed, because a user who repairs one thing at a time starts an 87 GB job once for each.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        findings: tuple[str, ...] = (),
    ) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        self.findings = findings
        super().__init__(f"{where}: {what}" if where else what)


class UsageFault(MoetoolError):
    """The command line asks for something that cannot be meant."""

    exit_code = 2


class BadMagnet(UsageFault):
    """No info-hash can be found in what was given as a magnet link."""


class Mismatch(MoetoolError):
    """The data was read, and it is not what it should be."""

    exit_code = 3


class DigestMismatch(Mismatch):
    """A digest or CRC of bytes differs from the one that was promised."""


class CheckFailed(Mismatch):
    """A check of the values or of the model's behaviour said no."""


class Refused(MoetoolError):
    """The input is malformed, hostile or of a kind that is not supported."""

    exit_code = 4


class HostileTorrent(Refused):
    """A torrent whose file list could write outside its own folder, or deceive about names."""


class FormatError(Refused):
    """A file does not keep to its format."""


class UnsafePickle(FormatError):
    """A pickle asks for more than tensors in dictionaries."""


class TruncatedFile(FormatError):
    """A file ends before the bytes that its own header promises."""


class BadHeader(FormatError):
    """A header, directory or index contradicts the format or itself."""


class ArchError(Refused):
    """The tensors do not make a model that is known."""


class UnknownConvention(ArchError):
    """The names belong to no convention that is known."""


class InconsistentCheckpoint(ArchError):
    """Tensors are missing, extra, doubly named or mis-shaped for the declared hyperparameters."""


class LossyCast(Refused):
    """Values that the type asked for cannot hold, where nobody allowed them to change."""


class NotFetched(Refused):
    """Bytes of a partial release that were never fetched: a hole, which reads as zeros."""


class SystemFault(MoetoolError):
    """The machine said no."""

    exit_code = 5


class ReadFailed(SystemFault):
    """The operating system could not read bytes that should be there."""


class NoRoomOnDisk(SystemFault):
    """The target's file system has less room than the plan needs."""


class NotEnoughMemory(SystemFault):
    """The machine has less memory than the plan needs."""


class DeviceUnavailable(SystemFault):
    """The device asked for is not there; nothing falls back silently."""


class NetworkFault(MoetoolError):
    """The swarm does not give what is needed."""

    exit_code = 6


class MetadataTimeout(NetworkFault):
    """No peer gave the torrent's metadata in time."""


class Stalled(NetworkFault):
    """The download makes no progress, for the reason given."""


class InTheWay(MoetoolError):
    """Something that exists stands where the work would go."""

    exit_code = 7


class OutputExists(InTheWay):
    """The output is already there and would be overwritten."""


class LockHeld(InTheWay):
    """Another process works on the same output."""


class SourceChanged(InTheWay):
    """The source is not what it was when the work on this output began."""


class PlanChanged(InTheWay):
    """The work begun on this output is that of another plan: other options or another version."""


class Interrupted(MoetoolError):
    """A signal ended the work; what was done is kept."""

    exit_code = 130

    def __init__(self, what: str, *, exit_code: int = 130, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = exit_code  # type: ignore[misc]  # 143 when the signal was SIGTERM
