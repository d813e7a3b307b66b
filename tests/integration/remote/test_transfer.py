"""One file over real sockets from servers that misbehave: what is left is that file, or nothing; never another."""

from __future__ import annotations

import hashlib
import os
import random
import time

import pytest

from service.domain.errors import (
    DigestMismatch,
    DiskFull,
    Forbidden,
    InvalidModel,
    ModelNotFound,
    RemoteFailed,
    RemoteRefused,
)
from service.domain.remote import RemoteFile
from service.remote.guard import Network
from service.remote.patience import Limiter
from service.remote.transfer import fetch
from tests.remote_hub import Fault

DATA = b"GGUF" + random.Random(0).randbytes(900_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
NAME = "x.gguf"


@pytest.fixture
def file(hub):
    hub.files[f"/{NAME}"] = DATA
    return RemoteFile(NAME, f"{hub.url}/{NAME}", len(DATA), DIGEST)


@pytest.fixture
def unlisted(file):
    """The same where nobody says what it will be."""
    return RemoteFile(NAME, file.url, None)


def ignore(done, total):
    pass


def left(path):
    return sorted(os.listdir(path.parent))


def test_a_file_comes_in_parallel_ranges_and_each_byte_once(hub, network, file, pace, tmp_path):
    seen = []
    got = fetch(network, file, tmp_path / "f", pace(), lambda done, total: seen.append((done, total)))
    assert (got.digest, got.size_bytes) == (DIGEST, len(DATA))
    assert (tmp_path / "f").read_bytes() == DATA
    assert hub.sent(NAME) == len(DATA)
    assert len(hub.asked(NAME)) > 10
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(DATA), len(DATA))


def test_a_file_that_nobody_describes_comes_all_the_same(hub, network, unlisted, pace, tmp_path):
    assert fetch(network, unlisted, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert hub.sent(NAME) == len(DATA)


@pytest.mark.parametrize("fault", [Fault.NO_RANGES, Fault.UNKNOWN_LENGTH, Fault.BAD_ETAG])
@pytest.mark.parametrize("described", [True, False])
def test_servers_without_ranges_lengths_or_good_etags_still_give_files(
    hub, network, file, unlisted, pace, tmp_path, fault, described
):
    hub.always[NAME] = fault
    assert fetch(network, file if described else unlisted, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert (tmp_path / "f").read_bytes() == DATA
    assert left(tmp_path / "f") == ["f", "f.ranges"]


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.STALL, Fault.BUSY, Fault.ERROR, Fault.TRICKLE])
def test_a_fault_now_and_then_costs_no_byte_twice(hub, network, file, pace, tmp_path, fault):
    hub.faults[NAME] = [fault, Fault.NONE, fault, Fault.NONE, Fault.NONE, fault]
    assert fetch(network, file, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert hub.sent(NAME) <= len(DATA) + 3 * 64 * 1024, "what was underway is all that may come again"


def test_a_dropped_stream_without_ranges_begins_again(hub, network, unlisted, pace, tmp_path):
    hub.etag = None
    hub.faults[NAME] = [Fault.NO_RANGES]
    hub.always[NAME] = Fault.NO_RANGES
    assert fetch(network, unlisted, tmp_path / "f", pace(), ignore).digest == DIGEST


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.BUSY])
def test_patience_ends(hub, network, file, pace, tmp_path, fault):
    hub.always[NAME] = fault
    began = time.monotonic()
    with pytest.raises(RemoteFailed, match="tried several times"):
        fetch(network, file, tmp_path / "f", pace(), ignore)
    assert time.monotonic() - began < 5


def test_a_server_that_always_stops_short_is_given_up(hub, network, file, pace, tmp_path):
    hub.always[NAME] = Fault.SHORT
    with pytest.raises(RemoteFailed, match="tried several times"):
        fetch(network, file, tmp_path / "f", pace(), ignore)
    hub.always.clear()
    assert fetch(network, file, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert hub.sent(NAME) < 1.2 * len(DATA), "what it did send is used"


@pytest.mark.parametrize("fault", [Fault.WRONG])
def test_wrong_bytes_fail_and_nothing_is_left(hub, network, file, pace, tmp_path, fault):
    hub.always[NAME] = fault
    with pytest.raises(DigestMismatch):
        fetch(network, file, tmp_path / "f", pace(), ignore)
    assert left(tmp_path / "f") == []


@pytest.mark.parametrize("described", [True, False])
def test_an_endless_body_is_cut_off(hub, network, file, unlisted, pace, tmp_path, described):
    hub.always[NAME] = Fault.ENDLESS
    with pytest.raises(DigestMismatch if described else DiskFull):
        fetch(network, file if described else unlisted, tmp_path / "f", pace(limit_bytes=4_000_000), ignore)
    assert not (tmp_path / "f").exists() or (tmp_path / "f").stat().st_size <= 4_000_000 + 65536


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.PRIVATE, Forbidden),
        (Fault.LOOP, RemoteFailed),
        (Fault.GZIP, RemoteFailed),
        (Fault.GATED, RemoteRefused),
        (Fault.GONE, ModelNotFound),
        (Fault.OTHER_RANGE, RemoteFailed),
    ],
)
def test_what_cannot_be_right_is_refused_at_once(hub, network, file, pace, tmp_path, fault, error):
    hub.faults[NAME] = [Fault.NONE]
    hub.always[NAME] = fault
    with pytest.raises(error) as refused:
        fetch(network, file, tmp_path / "f", pace(), ignore)
    assert hub.url not in refused.value.message


def test_a_page_in_place_of_a_file_is_seen_at_its_first_bytes(hub, network, unlisted, pace, tmp_path):
    hub.always[NAME] = Fault.HTML
    with pytest.raises(InvalidModel):
        fetch(network, unlisted, tmp_path / "f", pace(begins_with=b"GGUF"), ignore)
    assert left(tmp_path / "f") == []


def test_a_file_that_is_too_large_is_refused_before_it_comes(hub, network, file, unlisted, pace, tmp_path):
    for wanted in (file, unlisted):
        with pytest.raises(DiskFull):
            fetch(network, wanted, tmp_path / "f", pace(limit_bytes=1000), ignore)
    assert hub.sent(NAME) <= 64 * 1024


def interrupted(hub, file, path, pace):
    """Fetch a good part of the file, then fail."""
    hub.faults[NAME] = [Fault.NONE] * 6
    hub.always[NAME] = Fault.GATED
    network = Network_of(hub)
    with pytest.raises(RemoteRefused):
        fetch(network, file, path, pace(connections=1), ignore)
    network.close()
    hub.always.clear()
    hub.faults.clear()
    return hub.sent(NAME)


def Network_of(hub):
    from service.domain.remote import RemoteAccess

    return Network(RemoteAccess(hosts=(hub.url,), hub=hub.url, registry=hub.url, stall_seconds=0.4))


@pytest.mark.parametrize("described", [True, False])
def test_what_came_before_does_not_come_again(hub, network, file, unlisted, pace, tmp_path, described):
    wanted = file if described else unlisted
    before = interrupted(hub, wanted, tmp_path / "f", pace)
    assert before == 6 * 64 * 1024
    assert fetch(network, wanted, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert hub.sent(NAME) == len(DATA)
    assert fetch(network, wanted, tmp_path / "f", pace(), ignore).digest == DIGEST
    assert hub.sent(NAME) == len(DATA), "a whole file is only read again"


def test_a_file_that_changed_meanwhile_comes_whole(hub, network, unlisted, pace, tmp_path):
    interrupted(hub, unlisted, tmp_path / "f", pace)
    hub.etag = '"two"'
    hub.files[f"/{NAME}"] = b"GGUF" + random.Random(1).randbytes(900_000)
    fetch(network, unlisted, tmp_path / "f", pace(), ignore)
    assert (tmp_path / "f").read_bytes() == hub.files[f"/{NAME}"]


def test_a_damaged_beginning_is_found_and_nothing_is_left_of_it(hub, network, file, pace, tmp_path):
    interrupted(hub, file, tmp_path / "f", pace)
    with (tmp_path / "f").open("r+b") as partial:
        partial.seek(100)
        partial.write(b"rot")
    with pytest.raises(DigestMismatch):
        fetch(network, file, tmp_path / "f", pace(), ignore)
    assert left(tmp_path / "f") == []
    assert fetch(network, file, tmp_path / "f", pace(), ignore).digest == DIGEST


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"what":"x","size":1,"validator":null,"done":[[0,99]]}'])
def test_a_list_of_ranges_that_cannot_be_right_is_not_believed(hub, network, file, pace, tmp_path, garbage):
    interrupted(hub, file, tmp_path / "f", pace)
    (tmp_path / "f.ranges").write_bytes(garbage)
    assert fetch(network, file, tmp_path / "f", pace(), ignore).digest == DIGEST


def test_a_bandwidth_limit_holds_over_all_connections(hub, network, file, pace, tmp_path):
    began = time.monotonic()
    fetch(network, file, tmp_path / "f", pace(limiter=Limiter(1_000_000)), ignore)
    assert 0.7 < time.monotonic() - began < 3


def test_git_files_are_held_to_gits_own_name_for_them(hub, network, pace, tmp_path):
    hub.files["/config.json"] = b"{}\n"
    oid = hashlib.sha1(b"blob 3\0{}\n").hexdigest()
    good = RemoteFile("config.json", f"{hub.url}/config.json", 3, None, oid)
    assert fetch(network, good, tmp_path / "c", pace(), ignore).size_bytes == 3
    bad = RemoteFile("config.json", f"{hub.url}/config.json", 3, None, "0" * 40)
    with pytest.raises(DigestMismatch):
        fetch(network, bad, tmp_path / "d", pace(), ignore)
    assert left(tmp_path / "d") == ["c", "c.ranges"]


def test_an_empty_file_is_a_file(hub, network, pace, tmp_path):
    hub.files["/empty"] = b""
    assert fetch(network, RemoteFile("empty", f"{hub.url}/empty", 0), tmp_path / "e", pace(), ignore).size_bytes == 0
