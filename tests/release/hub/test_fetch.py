"""From a hub to a folder: resumed, pinned to a commit, proven or refused."""

from __future__ import annotations

import hashlib
import json
import re
import socket

import pytest

from moetool.errors import (
    DigestMismatch,
    Interrupted,
    LockHeld,
    NetworkFault,
    NoRoomOnDisk,
    OutputExists,
    PlanChanged,
    Refused,
    UsageFault,
)
from moetool.extents import Digest
from moetool.formats.selection import choose
from moetool.release import manifest
from moetool.release.hub import door
from moetool.release.hub import fetch as hub_fetch
from moetool.release.hub.address import parse_address
from moetool.release.hub.door import Hub
from moetool.release.hub.fetch import fetch_from_hub
from moetool.release.hub.listing import read_listing, write_listing
from moetool.release.manifest import HubCopy, Release, ReleaseFile
from moetool.release.provenance import locked
from tests.release.hub.conftest import WANTED
from tests.release.hub.fake import FakeHub, serving

PART = "consolidated.00.pth-split1"


@pytest.fixture
def fetch(tmp_path):
    def start(text="hf:somebody/small-moe", out="got", **more):
        return fetch_from_hub(parse_address(text), choose, tmp_path / out, **more)

    return start


def same(folder, hub):
    return all((folder / name).read_bytes() == hub.files[name] for name in WANTED)


def test_the_checkpoint_comes_with_what_explains_it_and_every_byte_is_covered(hub, fetch, tmp_path):
    stages = []
    report = fetch(on_progress=lambda progress: stages.append(progress.stage))
    assert report.verification.verdict.value == "MATCH"
    assert set(report.files) == WANTED
    assert report.payload == sum(report.files.values()) == sum(len(hub.files[n]) for n in WANTED)
    assert same(tmp_path / "got", hub)
    assert {p.name for p in (tmp_path / "got").iterdir()} == WANTED | {".moetool"}
    assert (report.commit, report.revision) == (hub.commit, None)
    (weights,) = [f for f in report.verification.files if f.path.name == "consolidated.00.pth"]
    assert {c.algorithm: (c.claims, c.matched) for c in weights.coverage} == {
        "sha256": (3, 3), "md5": (1, 1),
    }  # fmt: skip
    record = read_listing(tmp_path / "got")
    assert record.commit == hub.commit
    assert record.fetched_at
    assert set(stages) == {"download", "verify"}


def test_nothing_is_asked_but_the_listing_and_the_files(hub, fetch):
    """No word about this machine, no other route: huggingface_hub has some of its own."""
    fetch()
    assert all(re.fullmatch(r"moetool/\S+; hf_hub/\S+; python/\S+", text) for text in hub.agents)
    paths = {path for _, path, _ in hub.asked}
    assert paths == {f"/api/models/{hub.repository}/revision/main"} | {
        f"/{hub.repository}/resolve/{hub.commit}/{name}" for name in WANTED
    }


def test_a_complete_folder_needs_no_network(hub, fetch):
    fetch()
    hub.asked.clear()
    assert fetch().already_complete
    assert fetch(f"hf:{hub.repository}@{hub.commit}").already_complete
    assert hub.asked == []


@pytest.mark.parametrize("redirected", [False, True])
def test_a_flipped_byte_names_the_file_and_a_second_run_mends_it(hub, fetch, tmp_path, redirected):
    hub.storage = hub.url if redirected else ""
    hub.flipped = PART
    with pytest.raises(DigestMismatch) as caught:
        fetch()
    found = "\n".join(caught.value.findings)
    assert f"#{PART}: sha256" in found
    assert "RELEASE: md5" in found
    assert not (tmp_path / "got").exists()
    hub.flipped, hub.asked[:] = None, []
    report = fetch()
    assert report.verification.verdict.value == "MATCH"
    assert report.payload == len(hub.files[PART])
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked} == {PART}


def test_what_came_before_an_interruption_stays_and_is_gone_on_with(hub, fetch, tmp_path):
    class Stop:
        def __call__(self, progress):
            if progress.bytes_done > 90_000:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        fetch(on_progress=Stop())
    assert caught.value.exit_code == 130
    here = sum(p.stat().st_size for p in (tmp_path / "got.partial").iterdir() if p.is_file())
    assert 50_000 < here <= 100_000
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "got.partial").iterdir() if p.is_file()}
    (begun,) = [size for name, size in sizes.items() if size < len(hub.files[name])]
    assert not (tmp_path / "got").exists()
    hub.asked.clear()
    report = fetch()
    assert report.payload == sum(report.files.values()) - here
    assert hub.ranges == [f"bytes={begun}-"]
    assert same(tmp_path / "got", hub)


def test_a_commit_stays_the_one_when_the_branch_moves_between_two_runs(hub, fetch, tmp_path):
    def stop(progress):
        if progress.bytes_done > 90_000:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fetch(on_progress=stop)
    asked_of = hub.commit
    hub.info = lambda: pytest.fail("the listing was asked for again")
    assert fetch().commit == asked_of


def test_a_connection_that_breaks_again_and_again(hub, fetch, tmp_path):
    hub.breaks_after = 21_000
    report = fetch()
    assert same(tmp_path / "got", hub)
    assert report.payload == sum(report.files.values())
    assert "bytes=20000-" in hub.ranges or "bytes=21000-" in hub.ranges


def test_a_server_that_stops_giving_is_6_and_keeps_what_came(hub, fetch, tmp_path):
    true, hub.content = hub.content, lambda name: true(name)[:49_000]
    with pytest.raises(NetworkFault) as caught:
        fetch()
    assert caught.value.hint
    assert (tmp_path / "got.partial" / "consolidated.00.pth-split0").stat().st_size == 49_000
    hub.content = true
    assert fetch().verification.ok


def test_a_server_without_ranges_gives_it_from_the_start(hub, fetch, tmp_path):
    with pytest.raises(Interrupted):
        fetch(on_progress=_stop_at(90_000))
    hub.ignores_ranges = True
    done = []
    fetch(on_progress=lambda progress: done.append(progress) if progress.stage == "download" else 0)
    assert same(tmp_path / "got", hub)
    assert done[-1].bytes_done == done[-1].bytes_total == sum(len(hub.files[n]) for n in WANTED)


def test_a_server_that_gives_little_at_a_time_is_asked_as_often_as_it_takes(hub, fetch, tmp_path):
    hub.gives_at_most = 7_000
    fetch()
    assert same(tmp_path / "got", hub)
    assert len(hub.ranges) > 20


def _stop_at(nbytes):
    def stop(progress):
        if progress.stage == "download" and progress.bytes_done > nbytes:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("damage", ["flip", "longer", "zeros"])
def test_what_an_earlier_run_left_wrong_comes_anew(hub, fetch, tmp_path, damage):
    """A power cut leaves such; only what was here before is fetched twice."""
    with pytest.raises(Interrupted):
        fetch(on_progress=_stop_at(130_000))
    path = tmp_path / "got.partial" / "consolidated.00.pth-split0"
    good = path.read_bytes()
    path.write_bytes({
        "flip": good[:-1] + bytes([good[-1] ^ 1]), "longer": good + b"x", "zeros": bytes(len(good)),
    }[damage])  # fmt: skip
    hub.asked.clear()
    assert fetch().verification.verdict.value == "MATCH"
    assert same(tmp_path / "got", hub)
    gets = [path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET"]
    assert sorted(set(gets)) == sorted(gets)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_complete_folder_that_was_damaged_since_is_mended(hub, fetch, tmp_path, damage):
    fetch()
    path = tmp_path / "got" / PART
    content = path.read_bytes()
    path.unlink() if damage == "remove" else path.write_bytes(b"\0" + content[1:])
    hub.asked.clear()
    assert fetch().verification.verdict.value == "MATCH"
    assert same(tmp_path / "got", hub)
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked} == {PART}


def test_a_folder_that_was_being_mended_when_the_power_went_is_taken_up(hub, fetch, tmp_path):
    """Some files are back in OUT.partial, some still in OUT: both say from what they are."""
    fetch()
    out, partial = tmp_path / "got", tmp_path / "got.partial"
    write_listing(partial, read_listing(out))
    for name in ("RELEASE", PART):
        (out / name).rename(partial / name)
    hub.asked.clear()
    assert fetch().verification.verdict.value == "MATCH"
    assert same(out, hub)
    assert hub.asked == []


def test_digests_of_the_known_release_count_for_the_whole(hub, fetch, monkeypatch):
    weights = b"".join(hub.files[f"consolidated.00.pth-split{n}"] for n in range(3))

    def known(md5):
        files = (ReleaseFile("consolidated.00.pth", digests=(Digest("md5", md5),)),)
        copies = (HubCopy("Somebody/Small-MoE", "in parts"),)
        release = Release("known-moe", "0" * 40, hub=copies, files=files)
        monkeypatch.setattr(manifest, "known_releases", lambda: (release,))

    known(hashlib.md5(weights).hexdigest())
    report = fetch(out="one")
    assert report.release == "known-moe"
    covers = [c.reference for f in report.verification.files for c in f.coverage]
    assert "known release known-moe" in covers
    known("0" * 32)
    with pytest.raises(DigestMismatch) as caught:
        fetch(out="two")
    assert "known release known-moe: md5" in caught.value.findings[0]


def test_the_digits_of_the_post_count(hub, fetch):
    with pytest.raises(DigestMismatch) as caught:
        fetch(release_md5="0" * 32)
    assert "post: md5" in caught.value.findings[0]


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    with serving(FakeHub(hub.files)) as storage:
        hub.storage = storage.url
        fetch()
        assert {token for _, token in storage.tokens} == {None}
        assert storage.tokens
    assert {token for _, token in hub.tokens} == {"Bearer hf_" + "s" * 34}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"ssssss" not in path.read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "words", "hint"),
    [
        (404, "RepoNotFound", "no such repository", "HF_TOKEN"),
        (401, "", "the hub says 401", "hf auth login"),
        (403, "GatedRepo", "gated", "accept its terms"),
        (404, "RevisionNotFound", "no revision", "leave @"),
        (503, "", "the hub says 503", "try again"),
        (429, "", "the hub says 429", "HF_TOKEN"),
    ],
)
def test_what_the_hub_does_not_give_is_6_with_the_next_step(
    hub, fetch, tmp_path, status, code, words, hint
):
    hub.status, hub.error_code = status, code
    with pytest.raises(NetworkFault, match=words) as caught:
        fetch()
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_is_6(hub, fetch, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(NetworkFault, match="cannot be reached") as caught:
            fetch()
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_hub_without_an_address_is_6(hub, fetch, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NetworkFault, match="no address for the host") as caught:
        fetch()
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_forbidden_network_is_6_and_says_by_whom(hub, fetch, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkFault, match="HF_HUB_OFFLINE"):
        fetch()


@pytest.mark.parametrize(
    "names",
    [
        ["../consolidated.00.pth"],
        ["params.json", "/etc/cron.d/x"],
        ["a/../../b"],
        ["..\\x"],
        ["C:\\x"],
    ],
)
def test_names_that_leave_the_repository_are_refused_even_where_nobody_wants_them(
    hub, fetch, tmp_path, names
):
    hub.files |= dict.fromkeys(names, b"x")
    with pytest.raises(Refused, match="outside of the repository") as caught:
        fetch()
    assert ascii(names[-1]) in caught.value.findings
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.JSON", "tokenizer.json"],
        ["tokenizer\x1b[31m.json"],
        ["tokenizer\u202e.json"],
        ["tokenizer" + "x" * 300],
        ["tokenizere\u0301"],
    ],
)
def test_names_that_clash_or_cannot_be_seen_are_refused(hub, fetch, tmp_path, names):
    hub.files |= dict.fromkeys(names, b"x")
    with pytest.raises(Refused, match="not one to be fetched"):
        fetch()
    assert list(tmp_path.iterdir()) == []


def test_our_own_folder_cannot_be_overwritten(hub, fetch, tmp_path):
    hub.files[".moetool/lock"] = b"x"
    with pytest.raises(Refused, match="not one to be fetched"):
        fetch_from_hub(parse_address("hf:somebody/small-moe"), lambda sizes: sizes, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


GOOD = {"rfilename": "params.json", "size": 2, "blobId": "0" * 40}
WEIGHTS = {"rfilename": "consolidated.00.pth", "size": 10, "blobId": "0" * 40}


@pytest.mark.parametrize(
    "listing",
    [
        {"sha": "main", "siblings": [WEIGHTS]},
        {"sha": None, "siblings": [WEIGHTS]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "size": -1}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "size": "big"}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "size": 1 << 60}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "size": None}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "blobId": None}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "blobId": "x" * 40}]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "size": 90 << 20}]},
        {"sha": "0" * 40, "siblings": [WEIGHTS, WEIGHTS]},
        {"sha": "0" * 40, "siblings": [{**WEIGHTS, "lfs": {"sha256": "1", "size": 10,
                                                           "pointerSize": 1}}]},
        {"sha": "0" * 40, "siblings": [{"size": 3}]},
        {"sha": "0" * 40, "siblings": 5},
        [],
        "what?",
    ],
)  # fmt: skip
def test_a_listing_that_makes_no_sense_is_refused_before_anything_exists(
    hub, fetch, tmp_path, listing
):
    if isinstance(listing, dict):
        listing = {"id": hub.repository, "private": False, "tags": [], "downloads": 0, **listing}
    hub.listing = listing
    with pytest.raises(Refused):
        fetch()
    assert list(tmp_path.iterdir()) == []


def test_storage_of_a_private_network_is_not_asked(hub, fetch):
    hub.storage = "https://10.0.0.1"
    with pytest.raises(Refused, match="private network"):
        fetch()


@pytest.mark.parametrize("url", ["http://192.0.2.1", "ftp://a", "https://u:p@a", "nonsense"])
def test_an_endpoint_that_cannot_be_meant_is_2(hub, fetch, monkeypatch, url):
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(UsageFault) as caught:
        fetch()
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.fixture
def large(hub, monkeypatch):
    """Storage that gives 45,000 bytes at once, of files of up to 60,000."""
    true = Hub.__init__

    def small(self, options):
        true(self, options)
        self._largest = 45_000

    monkeypatch.setattr(Hub, "__init__", small)
    monkeypatch.setattr(door, "RANGE_NBYTES", 40_000)
    hub.at_most = 45_000


def test_larger_files_than_storage_gives_at_once_come_in_ranges(hub, large, fetch, tmp_path):
    report = fetch()
    assert report.payload == sum(report.files.values())
    assert same(tmp_path / "got", hub)
    assert {p.name for p in (tmp_path / "got").iterdir()} == WANTED | {".moetool"}
    assert sorted(hub.ranges) == [
        "bytes=0-39999", "bytes=0-39999", "bytes=40000-49999", "bytes=40000-59999",
    ]  # fmt: skip


def test_a_large_file_goes_on_where_it_was_interrupted(hub, large, fetch, tmp_path):
    """In the middle of a range: what came of it stays, whether the connection or we end it."""
    hub.breaks_after = 30_000
    part, came = tmp_path / "got.partial" / PART, []

    def stop(progress):
        if progress.note == PART and part.stat().st_size >= 30_000:
            raise KeyboardInterrupt
        came.append(progress.bytes_done)

    with pytest.raises(Interrupted):
        fetch(on_progress=stop)
    here, n_asked = part.stat().st_size, len(hub.asked)
    assert here >= 30_000
    report = fetch()
    assert same(tmp_path / "got", hub)
    again = [found for _, path, found in hub.asked[n_asked:] if path.endswith(PART) and found]
    assert again[0].startswith(f"bytes={here}-")
    assert report.payload == sum(report.files.values()) - came[-1]


def test_what_storage_refuses_in_ranges_too_comes_through_the_package(
    hub, large, fetch, tmp_path, monkeypatch
):
    """hf_xet speaks to servers of its own, so the package's own way stands for it here."""
    hub.no_large_files = True

    def whole(repository, path, **more):
        target = more["local_dir"] / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(hub.files[path])
        return str(target)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", whole)
    report = fetch()
    assert report.payload == sum(report.files.values())
    assert same(tmp_path / "got", hub)
    assert {p.name for p in (tmp_path / "got" / ".moetool").iterdir()} == {
        "hub.json", "digests.json",
    }  # fmt: skip


def test_too_little_room_is_refused_before_the_first_byte(hub, fetch, monkeypatch):
    monkeypatch.setattr(hub_fetch, "bytes_free", lambda _: 1000)
    with pytest.raises(NoRoomOnDisk, match="1000 are free"):
        fetch()
    assert not [path for _, path, _ in hub.asked if "resolve" in path]


def test_another_choice_in_the_same_folder_is_7(hub, fetch):
    fetch()
    with pytest.raises(PlanChanged, match=r"begun with --include \(none\)"):
        fetch(include=("*.json",))


def test_a_folder_of_somebody_else_is_not_touched(hub, fetch, tmp_path):
    for name in ("got", "got.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").touch()
        with pytest.raises(OutputExists):
            fetch()
        (tmp_path / name / "thesis.tex").unlink()
        (tmp_path / name).rmdir()
    fetch()
    hub.repository = "somebody/other-moe"
    with pytest.raises(OutputExists, match="somebody/small-moe at c0ffee00"):
        fetch("hf:somebody/other-moe")


def test_a_second_fetch_of_the_same_folder_names_the_first(hub, fetch, tmp_path):
    with locked(tmp_path / "got.partial"), pytest.raises(LockHeld):
        fetch()


def test_a_record_that_somebody_changed_is_refused(hub, fetch, tmp_path):
    fetch()
    path = tmp_path / "got" / ".moetool" / "hub.json"
    table = json.loads(path.read_text())
    table["files"][0]["path"] = "../x"
    path.write_text(json.dumps(table))
    with pytest.raises(Refused):
        fetch()
