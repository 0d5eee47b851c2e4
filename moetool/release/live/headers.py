"""What is wanted of a release before anything else: its small files, and the ends of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moetool.release.live.arrivals import LiveFile

if TYPE_CHECKING:
    from pathlib import Path

    from moetool.extents import LocalFile
    from moetool.release.live.arrivals import Arrivals

LARGEST_SMALL = 64 << 20
"""Bytes of a file that is no weights and comes whole: the largest tokenizers have 20 MB."""


def is_small(name: str, nbytes: int, is_weights: Callable[[str], bool]) -> bool:
    """Whether a file comes whole and first: what lies beside weights, and their index."""
    return nbytes <= LARGEST_SMALL and (not is_weights(name) or name.endswith(".index.json"))


def sources_in(
    arrivals: Arrivals, directory: Path, is_weights: Callable[[str], bool]
) -> dict[str, LocalFile]:
    """Have the small files of a folder, and give a source that waits for each file in it, by name.

    The ends of all others are asked for at once: headers lie at one or the other.

    Raises:
        MoetoolError: what ended the download.
    """
    sizes = {
        path: nbytes
        for path, nbytes in arrivals.meta.file_sizes(arrivals.folder).items()
        if path.parent == directory
    }
    small = [path for path, nbytes in sizes.items() if is_small(path.name, nbytes, is_weights)]
    for path in set(sizes).difference(small):
        if is_weights(path.name):
            arrivals.ask(arrivals.covering(path, 0, min(1, sizes[path])))
            arrivals.ask(arrivals.covering(path, max(0, sizes[path] - 1), min(1, sizes[path])))
    arrivals.need([i for path in small for i in arrivals.covering(path, 0, sizes[path])])
    return {path.name: LiveFile(path, nbytes, arrivals) for path, nbytes in sizes.items()}
