"""A rank that fails takes the others along, and says why.

A rank that waits for another one waits inside torch, where no exception reaches it. So a thread of
each rank looks twice a second at the store that the ranks share:

    failed    the first failure: every rank leaves with its exit code
    beat/R    counts on while rank R is alive; the rank behind R looks whether it does
    heard     how many ranks know of the failure: who failed stays until all do, so that rank 0 can
              say the reason before torchrun ends it

What torchrun itself would do (end all processes of a machine when one of them ends) takes half a
minute for a process that waits inside torch, and does not reach other machines.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from moetool.errors import Interrupted, MoetoolError, SystemFault

if TYPE_CHECKING:
    from moetool.model.parallel.world import World

INTERVAL_S = 0.5
SILENCE_S = 60.0  # without a beat: a machine that is off the net, not one that is busy
FAREWELL_S = 3.0  # that a failed rank waits for the others to hear of it


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a rank, as the others hear of it."""

    rank: int
    what: str
    exit_code: int
    hint: str | None = None
    findings: tuple[str, ...] = ()

    @staticmethod
    def of(rank: int, error: BaseException) -> Failure:
        """See an exception as the other ranks need it."""
        if isinstance(error, MoetoolError):
            return Failure(rank, str(error), error.exit_code, error.hint, error.findings)
        if isinstance(error, KeyboardInterrupt):
            return Failure(rank, "interrupted", Interrupted.exit_code)
        code = SystemFault.exit_code if isinstance(error, OSError) else MoetoolError.exit_code
        return Failure(rank, repr(error), code)

    @staticmethod
    def read(text: bytes) -> Failure:
        """Read what `str` wrote."""
        fields = json.loads(text)
        return Failure(**{**fields, "findings": tuple(fields["findings"])})

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    def as_error(self) -> MoetoolError:
        """The failure as an error here, of the branch that has its exit code."""
        what = f"rank {self.rank}: {self.what}"
        for kind in MoetoolError.__subclasses__():
            if kind.exit_code == self.exit_code and kind is not Interrupted:
                return kind(what, hint=self.hint, findings=self.findings)
        if self.exit_code >= Interrupted.exit_code:
            return Interrupted(what, exit_code=self.exit_code, hint=self.hint)
        return MoetoolError(what, hint=self.hint)


class Watch:
    """The thread of one rank; ``tell`` says a failure of another rank where people read it."""

    def __init__(self, world: World, tell: Callable[[MoetoolError], None]) -> None:
        self._world, self._tell = world, tell
        # A connection of its own: one that waits for another rank's key is of no use meanwhile.
        client = dist.TCPStore(  # type: ignore[attr-defined]  # documented all the same
            world.host,
            world.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=SILENCE_S),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"moetool/{attempt}", client
        )
        self._beats = 0
        self._before = (world.rank - 1) % world.size
        self._seen, self._seen_at = b"", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_around, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Where a failure was just seen, the process ends here instead."""
        self._ended.set()
        self._thread.join()

    def fail(self, error: BaseException) -> BaseException:
        """Tell the others; return what to raise here. Rank 0 speaks for all, if it still can."""
        # Ranks that are gone already make torchrun end this one; what it has to say is decided.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stop()
        own = Failure.of(self._world.rank, error)
        first, all_heard = own, False
        with suppress(RuntimeError):  # the store may be gone with its process
            first = self._post(own)
            all_heard = self._wait_until_heard(self._world.size)
        told = first if self._world.rank == 0 or all_heard else own
        atexit.register(_end, told.exit_code)
        if self._world.rank:
            return SystemExit(told.exit_code) if all_heard else error
        return error if told.rank == 0 or told.what == own.what else told.as_error()

    def _post(self, failure: Failure) -> Failure:
        """Write a failure where all look; the first one stays, and is returned."""
        return Failure.read(self._store.compare_set("failed", "", str(failure)))

    def _wait_until_heard(self, n_ranks: int) -> bool:
        """Say that this rank knows, and wait until so many do; whether they all did in time."""
        until = time.monotonic() + FAREWELL_S
        n_heard = self._store.add("heard", 1)
        while n_heard < n_ranks and time.monotonic() < until:
            time.sleep(INTERVAL_S / 5)
            n_heard = self._store.add("heard", 0)
        if self._world.rank == 0:
            time.sleep(INTERVAL_S / 2)  # and until they have seen that all do
        return n_heard >= n_ranks

    def _look_around(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                failure = self._look()
            except RuntimeError:
                failure = Failure(self._world.rank, "lost the others", SystemFault.exit_code)
            if failure and not self._ended.is_set():
                self._leave(failure)

    def _look(self) -> Failure | None:
        self._beats += 1
        self._store.set(f"beat/{self._world.rank}", str(self._beats))
        if self._store.check(["failed"]):
            return Failure.read(self._store.get("failed"))
        key, now = f"beat/{self._before}", time.monotonic()
        seen = self._store.get(key) if self._store.check([key]) else b""
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        if now - self._seen_at > SILENCE_S:
            lost = f"not heard of for {SILENCE_S:.0f} s"
            return self._post(Failure(self._before, lost, SystemFault.exit_code))
        return None

    def _leave(self, failure: Failure) -> None:
        """End this process; its main thread may be waiting inside torch for good."""
        if self._world.rank == 0:
            self._tell(failure.as_error())
        with suppress(RuntimeError):
            # The store may be in rank 0's process, which therefore stays until the others know.
            self._wait_until_heard(self._world.size if self._world.rank == 0 else 0)
        os._exit(failure.exit_code)


def _end(exit_code: int) -> None:
    """End at once when all is said: torch would tear down connections to ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
