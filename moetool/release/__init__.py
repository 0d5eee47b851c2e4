"""What was published, how to get it, and whether we have it.

magnet      a link as pasted, repaired
manifest    RELEASE lists, and the releases we know (data/*.toml)
source      what a user gave: link, .torrent file or known name
torrent/    the file list, judged; the swarm (its session is the one door to it)
verify/     a list of claims, settled in one read; what they prove
hub/        a release from a hub of git repositories (its door is the one to it)
peek/       a release looked into before it is downloaded
fetch       source -> folder, every byte hashed
only        a part of a release: the pieces of chosen tensors, and a record of what is not here
live/       a download that is read while it comes
resume      what an earlier run left and may be kept
pieces      the pieces of a torrent as they lie in a folder, and which are bad
repair/     bad pieces replaced in place, from a copy or the swarm
publish/    a folder -> RELEASE, .torrent, magnet; and the serving of it
provenance  what a fetch leaves behind; the release fetched last
fixture     where the tiny release lies
"""

from __future__ import annotations

from moetool.release.provenance import last_fetched

__all__ = ["last_fetched"]
