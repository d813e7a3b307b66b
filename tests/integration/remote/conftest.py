"""A misbehaving hub on this machine, and a network that may reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from service.domain.remote import RemoteAccess
from service.remote.guard import Network
from service.remote.patience import Pace, Patience
from tests.remote_hub import FakeHub

QUICK = Patience(tries=3, first_pause_seconds=0.01, longest_pause_seconds=0.05)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def access(hub: FakeHub) -> RemoteAccess:
    return RemoteAccess(hosts=(hub.url,), hub=hub.url, registry=hub.url, connections=3, stall_seconds=0.4)


@pytest.fixture
def network(access: RemoteAccess) -> Iterator[Network]:
    network = Network(access)
    yield network
    network.close()


@pytest.fixture
def pace() -> Callable[..., Pace]:
    """A pace for small files and little patience."""

    def _pace(**others: object) -> Pace:
        return replace(Pace(connections=3, stall_seconds=0.4, patience=QUICK, piece_bytes=64 * 1024), **others)

    return _pace


@pytest.fixture
def quick() -> Patience:
    return QUICK
