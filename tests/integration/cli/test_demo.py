"""`quantry demo` from nothing, again, and to its end; on a port that is taken; against a server that runs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.cli.demo_models import LEVELS
from service.cli.failures import ExitCode
from tests.integration.cli.terminal import quantry
from tests.server import GLOSS, Server, free_port, until


@pytest.fixture
def demo_settings(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home of its own, a free port, and no SmolLM2 (test_smollm2 has it): a server that was left is ended."""
    settings = {
        "QUANTRY_HOME": str(tmp_path / "home"),
        "QUANTRY_PORT": str(free_port()),
        "QUANTRY_SMOLLM2": str(tmp_path / "absent.gguf"),
        "QUANTRY_DISK_RESERVE_BYTES": str(64 << 20),
    }
    yield settings
    quantry("", "stop-server", **settings)


def test_the_demo_shows_q2_k_get_it_wrong_and_the_second_run_reuses_everything(demo_settings: dict[str, str]) -> None:
    first = quantry("", "demo", **demo_settings)
    assert first.returncode == 0, first.stderr
    assert all(f"gloss:{level}" in first.stdout for level in ("F16", *LEVELS))
    verdicts = [line.split()[:2] for line in first.stdout.splitlines() if line.split()[1:2] in (["right"], ["wrong"])]
    assert verdicts == [["gloss:F16", "right"], ["gloss:Q4_K_M", "right"], ["gloss:Q2_K", "wrong"]]
    assert "scripts/fetch_smollm2.py" in first.stderr

    second = quantry("", "demo", "--json", **demo_settings)
    report = json.loads(second.stdout)
    assert [answer["right"] for answer in report["answers"]] == [True, True, False]
    assert not any("quantized" in step["step"] or "imported" in step["step"] for step in report["steps"])
    assert str(report["pid"]) in first.stdout
    assert report["seconds"] < 60  # two, on a machine that does nothing else

    stopped = quantry("", "stop-server", "--json", **demo_settings)
    assert json.loads(stopped.stdout) == {"stopped": True, "pid": report["pid"]}
    until(lambda: not psutil.pid_exists(report["pid"]))


def test_a_taken_port_is_told_with_the_variable_and_nothing_is_left(demo_settings: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(demo_settings["QUANTRY_PORT"])))
        taken.listen()
        done = quantry("", "demo", **demo_settings)
    assert done.returncode == ExitCode.FAILED
    assert "QUANTRY_PORT" in done.stderr
    assert not (Path(demo_settings["QUANTRY_HOME"]) / "server.json").exists()


def test_without_serving_the_demo_uses_the_server_it_is_given(clean_server: Server) -> None:
    server = clean_server
    done = quantry(
        "", "demo", "--no-serve", "--url", server.url,
        QUANTRY_DEMO_MODELS=str(GLOSS.parent), QUANTRY_SMOLLM2="/nowhere", QUANTRY_HOME=str(server.home / "unused"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(server.names()) == 1 + len(LEVELS)
    assert "stop-server" not in done.stdout
    assert not (server.home / "unused").exists()


def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(demo_settings: dict[str, str]) -> None:
    done = quantry("", "demo", **{**demo_settings, "QUANTRY_DATABASE_URL": "nonsense://x"})
    assert done.returncode == ExitCode.FAILED
    assert "server.log" in done.stderr
