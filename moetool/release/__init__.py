"""What was published, how to get it, and whether we have it.

magnet      a link as pasted, repaired       metainfo    a torrent's file list, judged
source      link, .torrent or known name     manifest    RELEASE lists, the releases we know
torrent     the swarm (libtorrent)           watch       when a download stands still, and why
fetch       source -> folder, every byte hashed
verify      a list of claims, settled in one read (hashing, coverage)
references  which claims there are, and what they prove
provenance  what a fetch leaves behind
"""

from __future__ import annotations

from moetool.release.provenance import last_fetched
from moetool.release.torrent import seed

__all__ = ["last_fetched", "seed"]
