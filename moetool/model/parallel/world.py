"""Where torchrun has put this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.errors import UsageFault

NEEDED = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class World:
    """The number of this process among all ``size``, and among those of this machine.

    ``host`` and ``port`` are those of the store by which the processes find each other.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int


def find_world(environment: Mapping[str, str]) -> World | None:
    """Read what torchrun says; None where this process is alone.

    Raises:
        UsageFault: it is one of several, and yet the rest is not said, or is no number.
    """
    try:
        size = int(environment.get("WORLD_SIZE", "1"))
        if size < 2:  # noqa: PLR2004  # alone
            return None
        missing = [name for name in NEEDED if name not in environment]
        if missing:
            raise UsageFault(
                f"WORLD_SIZE is {size}, and {', '.join(missing)} not set",
                hint="start it with torchrun, or unset WORLD_SIZE",
            )
        rank, local_rank, local_size = (int(environment[name]) for name in NEEDED[:3])
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except ValueError as error:
        raise UsageFault(f"the environment of torchrun is malformed: {error}") from error
    return World(rank, size, local_rank, local_size, host, port)
