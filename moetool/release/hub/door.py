"""The one door to a hub: the listing of a commit, and the bytes of a file, by huggingface_hub.

Its ``hf_hub_download`` throws away what came when a download ends early (issue 4349 there), so
its ``http_get`` is used, which goes on behind the bytes that are here. Storage gives no more than
50 GB in one answer, and larger files in answers to a series of ranges (huggingface/xet-core issue
238). Where it refuses those too, ``hf_hub_download`` and Xet bring the file, which then alone
begins anew.

The token is the one that huggingface_hub finds (HF_TOKEN, ``hf auth login``); it is sent to the
hub alone, never to the storage that the hub leads to, and no message here holds it. What the
package would tell the hub beside the request (other packages, the program around it) is left out.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from moetool import __version__
from moetool.errors import NetworkFault, Refused, UsageFault
from moetool.extents import Digest
from moetool.release.hub.listing import GIT, HubFile, Listing, refuse_escapes
from moetool.release.peek.address import Gate, shown

if TYPE_CHECKING:
    from moetool.release.hub.address import HubAddress

PACKAGE = "moetool[hub]"
RANGE_NBYTES = 4_000_000_000
"""Bytes asked for at once of a file that storage does not give whole."""

TRIES = 3
"""How often a file is asked for without a byte of it coming."""


@dataclass(frozen=True, slots=True)
class HubOptions:
    """``timeout_s`` is for a step of the network; None leaves it to HF_HUB_DOWNLOAD_TIMEOUT."""

    timeout_s: float | None = None


class Hub:
    """A hub that can be asked; ``endpoint`` is HF_ENDPOINT, else huggingface.co."""

    def __init__(self, options: HubOptions) -> None:
        constants = _quiet_constants()
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.timeout_s = options.timeout_s or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        constants.HF_HUB_DOWNLOAD_TIMEOUT = self.timeout_s
        self._largest = constants.MAX_HTTP_DOWNLOAD_SIZE
        # Behind a proxy it is the proxy that looks names up, and it decides where to go.
        self._gate = None if getproxies().keys() & {"http", "https", "all"} else Gate()

    def listing(self, address: HubAddress) -> Listing:
        """The files of the commit that a revision stands for now; not judged yet but for escapes.

        Raises:
            NetworkFault: no answer, no such repository or revision, or it is not for everybody.
            Refused: an answer that makes no sense, or names that leave the repository.
            UsageFault: HF_ENDPOINT is no address of a hub.
        """
        from huggingface_hub import HfApi

        self._judge_endpoint()
        api = HfApi(endpoint=self.endpoint, library_name="moetool", library_version=__version__)
        with _told(self.endpoint, address.repository, address.revision):
            info = api.model_info(
                address.repository,
                revision=address.revision or "main",
                files_metadata=True,
                timeout=self.timeout_s,
            )
            siblings = info.siblings or []
            refuse_escapes((item.rfilename for item in siblings), str(address))
            files = tuple(
                HubFile(
                    item.rfilename,
                    item.lfs.size if item.lfs else item.size,  # type: ignore[arg-type]  # judged
                    Digest("sha256", item.lfs.sha256)
                    if item.lfs
                    else Digest(GIT, item.blob_id or ""),
                )
                for item in siblings
            )
        return Listing(self.endpoint, address.repository, str(info.sha), address.revision, files)

    def get(
        self,
        listing: Listing,
        file: HubFile,
        path: Path,
        scratch: Path,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Bring a file to its size, behind what is here of it.

        ``scratch`` is a folder on the same disk that may be made, and is gone in the end.
        ``on_bytes`` is told of bytes that came, and with a negative number of such that are void.

        Raises:
            NetworkFault: it does not come; what came stays.
            Refused: the hub leads to an address of a private network.
            OSError: the disk said no.
        """
        left = TRIES
        while (here := path.stat().st_size if path.exists() else 0) < file.nbytes:
            try:
                with _told(listing.endpoint, listing.repository, listing.commit):
                    self._get_some(listing, file, path, scratch, on_bytes)
            except NetworkFault:
                came = path.exists() and path.stat().st_size > here
                left = TRIES if came else left - 1
                if not left:
                    raise

    def _get_some(
        self,
        listing: Listing,
        file: HubFile,
        path: Path,
        scratch: Path,
        on_bytes: Callable[[int], None],
    ) -> None:
        """The rest of a file; of a larger one than storage gives at once, some of it."""
        from huggingface_hub.errors import HfHubHTTPError

        if file.nbytes <= self._largest:
            self._get_rest(listing, file, path, file.nbytes, on_bytes)
            return
        here = path.stat().st_size if path.exists() else 0
        try:
            self._get_rest(listing, file, path, min(file.nbytes, here + RANGE_NBYTES), on_bytes)
        except HfHubHTTPError as error:
            if here or error.response.status_code != HTTPStatus.BAD_REQUEST:
                raise
            self._get_whole(listing, file, path, scratch)
            on_bytes(file.nbytes)

    def _get_rest(
        self,
        listing: Listing,
        file: HubFile,
        path: Path,
        end: int,
        on_bytes: Callable[[int], None],
    ) -> None:
        """What lacks of a file up to ``end``."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public

        headers = build_hf_headers(library_name="moetool", library_version=__version__)
        url = hf_hub_url(
            listing.repository, file.path, revision=listing.commit, endpoint=listing.endpoint
        )
        found = get_hf_file_metadata(url, timeout=self.timeout_s, headers=headers)
        self._judge(found.location)
        if urlsplit(found.location)[:2] != urlsplit(listing.endpoint)[:2]:
            headers.pop("authorization", None)
        headers["Accept-Encoding"] = "identity"
        if file.nbytes > self._largest:
            headers["Range"] = f"bytes=0-{end - 1}"  # http_get puts its beginning in
        with path.open("ab") as target:
            http_get(
                found.location,
                _Counted(target, on_bytes),  # type: ignore[arg-type]  # the methods it calls
                resume_size=target.tell(),
                headers=headers,
                expected_size=end,
            )

    def _get_whole(self, listing: Listing, file: HubFile, path: Path, scratch: Path) -> None:
        """A file that storage does not give in ranges: all of it, or nothing stays."""
        from huggingface_hub import hf_hub_download

        if find_spec("hf_xet") is None:
            what = f"a file of {file.nbytes} bytes comes through Xet only"
            raise UsageFault(what, where=file.path, hint="pip install hf_xet")
        try:
            came = hf_hub_download(
                listing.repository,
                file.path,
                revision=listing.commit,
                endpoint=listing.endpoint,
                local_dir=scratch,
                library_name="moetool",
                library_version=__version__,
            )
            Path(came).replace(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _judge_endpoint(self) -> None:
        try:
            if self._gate is not None:
                self._gate.first(self.endpoint)
        except UsageFault as error:
            hint = "set HF_ENDPOINT to the https address of a hub, or unset it"
            raise UsageFault(error.what, where=error.where, hint=hint) from error
        except NetworkFault as error:
            raise NetworkFault(error.what, where=error.where, hint=_UNREACHED) from error

    def _judge(self, location: str) -> None:
        """Refuse storage that only this machine can reach: a server must not send us there."""
        if self._gate is None:
            return
        if not self._gate.home:
            self._judge_endpoint()
        self._gate.beside(location)


class _Counted:
    """A file that says how many bytes are written to it; what huggingface_hub asks of one."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._file, self._on_bytes = file, on_bytes
        self.tell, self.seek = file.tell, file.seek

    def write(self, data: bytes) -> int:
        self._on_bytes(len(data))
        return self._file.write(data)

    def truncate(self) -> int:
        """The server gives it from the start: what was here is void."""
        here = self._file.tell()
        self._on_bytes(here - self._file.seek(0, os.SEEK_END))
        return self._file.truncate(here)


def _quiet_constants() -> Any:  # noqa: ANN401  # a module whose values are set
    """The package's settings, with its own bars, warnings and reports to the hub turned off.

    Raises:
        UsageFault: it is not installed.
    """
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it is public
            disable_progress_bars,
        )
        from huggingface_hub.utils.logging import set_verbosity
    except ImportError as error:
        raise UsageFault(
            "hub repositories need the huggingface_hub package", hint=f"pip install '{PACKAGE}'"
        ) from error
    constants.HF_HUB_DISABLE_TELEMETRY = True
    disable_progress_bars()
    set_verbosity(logging.ERROR)
    return constants


_UNREACHED = "look at the network, HF_ENDPOINT and HTTPS_PROXY, and run the same command again"
_NOT_FOR_ALL = "look at the spelling; for a private one set HF_TOKEN or run: hf auth login"


def _refused_by_status(status: int, where: str) -> NetworkFault:
    denied = status in {401, 403}
    hint = _NOT_FOR_ALL if denied else "try again later; with HF_TOKEN a hub allows more"
    return NetworkFault(f"the hub says {status}", where=where, hint=hint)


@contextmanager
def _told(endpoint: str, repository: str, revision: str | None) -> Iterator[None]:
    """Say in our words why a hub does not give something.

    Raises:
        NetworkFault, Refused: see `Hub`.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its client's
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{shown(endpoint)}/{repository}"
    try:
        yield
    except GatedRepoError as error:
        hint = f"accept its terms at {where}, then set HF_TOKEN or run: hf auth login"
        raise NetworkFault("the repository is gated", where=where, hint=hint) from error
    except RepositoryNotFoundError as error:
        what = "no such repository, or a private one"
        raise NetworkFault(what, where=where, hint=_NOT_FOR_ALL) from error
    except RevisionNotFoundError as error:
        hint = f"leave @{revision} out, or give a branch, a tag or a whole commit"
        raise NetworkFault(f"no revision {revision}", where=where, hint=hint) from error
    except OfflineModeIsEnabled as error:
        hint = "unset HF_HUB_OFFLINE"
        raise NetworkFault("HF_HUB_OFFLINE forbids it", where=where, hint=hint) from error
    except HfHubHTTPError as error:
        raise _refused_by_status(int(error.response.status_code), where) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        what = f"cannot be reached: {type(error).__name__} {ascii(str(error)[:200])[1:-1]}"
        raise NetworkFault(what, where=where, hint=_UNREACHED) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not that of a body that ended early
            raise
        raise NetworkFault("the answer ended early", where=where, hint="try again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"the hub's answer makes no sense: {type(error).__name__}",
            where=where,
            hint="look at HF_ENDPOINT: it may be no hub",
        ) from error
