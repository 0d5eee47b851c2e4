"""What a fetch leaves behind: where the bytes came from, and which release was fetched last.

DIR/.moetool/release.torrent   the info dict as the swarm gave it
DIR/.moetool/release.json      name, info-hash, magnet, digest of the post, when
DIR/.moetool/digests.json      what the last verification found of each file; SHA-256 and XXH3
                               where it took them, as `moetool verify` does
DIR/.moetool/lock              held while a fetch works on the folder
$MOETOOL_HOME/last.json        else $XDG_STATE_HOME/moetool, else ~/.local/state/moetool
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool import durable
from moetool.durable import write_durably
from moetool.errors import SystemFault
from moetool.files.partial import OUR_FOLDER
from moetool.release.torrent.metainfo import Metainfo, read_torrent
from moetool.release.torrent.selection import select

if TYPE_CHECKING:
    from moetool.release.verify.settle import VerifyReport

MAX_RECORD_NBYTES = 1 << 20
MAX_TORRENT_NBYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a fetched folder came from; ``fetched_at`` is UTC in ISO 8601.

    ``selected`` are the paths of the files that were asked for; None: all of them.
    """

    name: str
    info_hashes: tuple[str, ...]
    magnet: str
    release_md5: str | None = None
    fetched_at: str | None = None
    selected: tuple[str, ...] | None = None


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder that a fetch works in; see `moetool.durable.locked`."""
    return durable.locked(folder / OUR_FOLDER / "lock")


def write_origin(folder: Path, meta: Metainfo, origin: Origin) -> None:
    """Record where the files of ``folder`` come from."""
    write_durably(folder / OUR_FOLDER / "release.torrent", meta.to_torrent())
    write_durably(folder / OUR_FOLDER / "release.json", _json(asdict(origin)))


def read_origin(folder: Path) -> Origin | None:
    """Where a folder came from; None if no fetch of ours made it."""
    table = _read_json(folder / OUR_FOLDER / "release.json")
    try:
        hashes = tuple(str(text) for text in table["info_hashes"])
        some = table.get("selected")
        chosen = None if some is None else tuple(str(path) for path in some)
        return Origin(**{**table, "info_hashes": hashes, "selected": chosen})
    except (KeyError, TypeError):
        return None


def is_unfinished(folder: Path) -> bool:
    """Whether a fetch into a folder has begun and not ended."""
    origin = read_origin(folder)
    return origin is not None and origin.fetched_at is None


def read_recorded_torrent(folder: Path) -> Metainfo | None:
    """The torrent that a fetch recorded in a folder; None if there is none.

    Files that were not asked for are absent in it (see `selection`).

    Raises:
        HostileTorrent: somebody changed it into one that is refused.
    """
    path = folder / OUR_FOLDER / "release.torrent"
    if not path.is_file() or path.stat().st_size > MAX_TORRENT_NBYTES:
        return None
    origin = read_origin(folder)
    return select(read_torrent(path.read_bytes()), origin.selected if origin else None)


def record_digests(folder: Path, report: VerifyReport) -> bool:
    """Keep the digests of a verification in a folder that a fetch of ours made.

    False where the folder cannot be written; that is no reason for a verification to fail.
    """
    files = {
        file.path.relative_to(folder).as_posix(): {
            "nbytes": file.nbytes,
            "word": file.word.value,
            **{digest.algorithm: digest.hex for digest in file.digests},
        }
        for file in report.files
        if file.path.is_relative_to(folder)
    }
    try:
        write_durably(folder / OUR_FOLDER / "digests.json", _json({"files": files}))
    except OSError:
        return False
    return True


def remember_last(folder: Path) -> None:
    """Note the release fetched last, for commands whose PATH is left out."""
    home = _state_folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_durably(home / "last.json", _json({"path": str(folder.absolute())}))
    except OSError as error:
        raise SystemFault(
            f"cannot note the release fetched last: {error.strerror}",
            where=str(home),
            hint="set MOETOOL_HOME to a folder that can be written",
        ) from error


def last_fetched() -> Path | None:
    """The folder of the release fetched last, if it is known and still there."""
    path = _read_json(_state_folder() / "last.json").get("path")
    return Path(path) if isinstance(path, str) and Path(path).is_dir() else None


def _state_folder() -> Path:
    own = os.environ.get("MOETOOL_HOME")
    if own:
        return Path(own)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "moetool"


def _json(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object of ours; empty when it is not there or is not one."""
    try:
        if path.stat().st_size > MAX_RECORD_NBYTES:
            return {}
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
