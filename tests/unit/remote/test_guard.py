"""Where a connection may lead: names are resolved once and checked, and what was checked is what is connected to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import httpcore
import pytest

from service.domain.errors import Forbidden
from service.domain.reach import Place, admit
from service.domain.remote import DEFAULT_HOSTS, RemoteAccess
from service.domain.secrets import Secret
from service.remote.guard import Answer, Dropped, Network
from service.remote.patience import Limiter, Patience
from service.remote.sockets import Guarded


class Wire(httpcore.SyncBackend):
    """Notes what is connected to, and refuses."""

    def __init__(self):
        self.reached = []

    def connect_tcp(self, host, port, *_):
        self.reached.append((host, port))
        raise httpcore.ConnectError("no network in tests")


def guarded(*answers):
    """A backend whose names mean one answer after another."""
    left = list(answers)
    backend = Guarded(lambda host, port: left.pop(0))
    backend._system = Wire()
    return backend


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["169.254.169.254"], ["::1"], ["0.0.0.0"], ["10.0.0.1"], ["::ffff:127.0.0.1"],
     ["8.8.8.8", "192.168.0.1"], ["fe80::1%eth0"], ["64:ff9b::a9fe:a9fe"]],
)  # fmt: skip
def test_a_listed_name_that_means_a_private_address_is_not_connected_to(addresses):
    backend = guarded(addresses)
    with pytest.raises(Forbidden, match="private address"):
        backend.connect_tcp("hf.co", 443)
    assert backend._system.reached == []


def test_a_name_that_changes_its_meaning_is_asked_once_and_connected_to_as_it_was():
    backend = guarded(["8.8.8.8"], ["127.0.0.1"])
    with pytest.raises(httpcore.ConnectError):
        backend.connect_tcp("hf.co", 443)
    assert backend._system.reached == [("8.8.8.8", 443)], "the address, not the name"
    with pytest.raises(Forbidden):
        backend.connect_tcp("hf.co", 443)
    assert len(backend._system.reached) == 1


def test_a_name_that_is_not_known_is_tried_again_later():
    with pytest.raises(httpcore.ConnectError):
        guarded([]).connect_tcp("hf.co", 443)


def test_a_network_resolves_through_the_guard():
    network = Network(RemoteAccess(), resolve=lambda host, port: ["127.0.0.1"])
    with pytest.raises(Forbidden, match="private address"), network.get("https://hf.co/x"):
        pass
    with pytest.raises(Forbidden, match="QUANTRY_PULL_HOSTS"), network.get("http://hf.co/x"):
        pass


def secret_of(network, url):
    return network._secret_for(url, admit(url, (*DEFAULT_HOSTS, "http://huggingface.co")))


def test_the_token_goes_to_the_hubs_own_origin_alone():
    access = RemoteAccess(hub_token=Secret("secret"))
    network = Network(access)
    assert secret_of(network, "https://huggingface.co/x") == {"Authorization": "Bearer secret"}
    for other in ("cdn-lfs.huggingface.co", "hf.co", "registry.ollama.ai"):
        assert secret_of(network, f"https://{other}/x") == {}
    assert secret_of(network, "http://huggingface.co/x") == {}
    assert "secret" not in repr(access)
    assert all("secret" not in pattern for pattern in DEFAULT_HOSTS)


def test_what_a_registry_permits_is_shown_to_what_it_is_for_alone():
    network = Network(RemoteAccess(hub_token=Secret("secret")))
    network.permit("https://registry.ollama.ai/v2/library/m", "Bearer everybody")
    for below in ("manifests/latest", "blobs/sha256:00"):
        told = secret_of(network, f"https://registry.ollama.ai/v2/library/m/{below}")
        assert told == {"Authorization": "Bearer everybody"}
    for beside in ("https://registry.ollama.ai/v2/library/mine/manifests/latest", "https://hf.co/v2/library/m/blobs/x"):
        assert secret_of(network, beside) == {}


def answer(**headers):
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Answer(SimpleNamespace(status=200, headers=named), Place("https", "h", 443, trusted=False))


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": '"abc"'}, '"abc"'),
        ({"etag": 'W/"abc"'}, None),
        ({"etag": "../../x"}, None),
        ({"etag": '"a b"'}, None),
        ({"etag": '"' + "a" * 300 + '"'}, None),
        ({"last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, "Wed, 21 Oct 2015 07:28:00 GMT"),
        ({"etag": 'W/"a"', "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, "Wed, 21 Oct 2015 07:28:00 GMT"),
        ({"last_modified": "x\r\nHost: evil"}, None),
        ({}, None),
    ],
)
def test_only_strong_and_plain_validators_count(headers, validator):
    assert answer(**headers).validator == validator


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("7", 7, 7), ("0", 0, 0), ("99999", 3600, 3600), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text, low, high):
    seconds = answer(retry_after=text).retry_after_seconds
    assert seconds is not None
    assert low <= seconds <= high


@pytest.mark.parametrize(("skew", "wait"), [(0, 90), (-7200, 90), (86400, 90)])
def test_a_retry_after_date_counts_from_the_servers_own_clock(skew, wait):
    moment = datetime.now(UTC) + timedelta(seconds=skew)
    until = moment + timedelta(seconds=wait)
    told = answer(date=format_datetime(moment, usegmt=True), retry_after=format_datetime(until, usegmt=True))
    assert told.retry_after_seconds == wait


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e9", "9" * 30])
def test_a_retry_after_that_is_none_says_nothing(text):
    assert answer(retry_after=text).retry_after_seconds is None


def test_pauses_double_up_to_the_longest_and_heed_the_server():
    patience = Patience(tries=9, first_pause_seconds=1.0, longest_pause_seconds=20.0)
    pauses = [patience.pause_seconds(tries, None) for tries in range(1, 9)]
    assert 0.75 <= pauses[0] <= 1.25
    assert all(pause <= 20.0 for pause in pauses)
    assert pauses[-1] == 20.0
    assert patience.pause_seconds(1, 5.0) == 5.0
    assert patience.pause_seconds(1, 5000.0) == 20.0


def test_a_limiter_keeps_its_pace_whoever_takes():
    now, slept = [0.0], []
    limiter = Limiter(100, clock=lambda: now[0], sleep=slept.append)
    limiter.take(100)
    limiter.take(50)
    assert slept == [1.0, 1.5], "the second waits for the first one's bytes as well"
    now[0] = 10.0
    limiter.take(10)
    assert slept[-1] == pytest.approx(0.1), "what was not used is not saved up"
    assert Limiter(0, sleep=slept.append).take(1 << 40) == 0.0


def test_processes_that_name_one_file_share_its_pace(tmp_path):
    now, slept = [100.0], []
    here, there = (
        Limiter(100, tmp_path / "pace", clock=lambda: now[0], sleep=slept.append) for _ in ("a process", "another")
    )
    here.take(100)
    there.take(100)
    here.take(50)
    assert slept == [1.0, 2.0, 2.5]
    now[0] = 200.0
    there.take(10)
    assert slept[-1] == pytest.approx(0.1)
    Limiter(0, tmp_path / "none").take(1)
    assert not (tmp_path / "none").exists()


def test_a_drop_says_why():
    assert Dropped("it is gone", 3.0).retry_after_seconds == 3.0
