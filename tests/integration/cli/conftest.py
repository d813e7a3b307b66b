"""Commands on terminals, ended after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.cli.terminal import Terminal


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts commands on terminals; those that still run are ended after the test."""
    started: list[Terminal] = []

    def start(url: str, *arguments: str, **settings: str) -> Terminal:
        started.append(Terminal(url, *arguments, **settings))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()
