"""Long work in the terminal: bars, Ctrl-C that leaves the job running, and servers that go away meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from service.cli.failures import ExitCode
from tests.integration.cli.terminal import Terminal, argv, environment, quantry
from tests.server import MakeServer, Server, free_port

MANY = ("Q4_0", "IQ3_S", "Q5_0", "Q6_K")  # the second takes a second or two, so that the job is seen at work
MORE = ("IQ3_M", "IQ4_XS", "IQ4_NL")  # and these, of a job that is cancelled: it must not end before


def test_bars_move_and_ctrl_c_leaves_the_job_running(
    clean_server: Server, on_terminal: Callable[..., Terminal]
) -> None:
    server = clean_server
    server.add_gloss()
    watching = on_terminal(server.url, "quantize", "gloss", *MANY)
    seen = watching.wait_for("Q6_K")
    watching.type("\x03")
    watching.wait_for("The job goes on", seen)
    watching.wait_for("--cancel", seen)
    assert watching.end() == ExitCode.INTERRUPTED
    job = json.loads(quantry(server.url, "jobs", "--json").stdout)["data"][0]
    assert quantry(server.url, "jobs", job["id"], "--watch").returncode == 0
    assert set(server.names()) == {"gloss:F16", *(f"gloss:{label}" for label in MANY)}


def test_a_job_is_cancelled_and_what_it_finished_stays(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    job = json.loads(quantry(server.url, "quantize", "gloss", *MANY, *MORE, "--detach", "--json").stdout)
    server.wait_for_job(job["id"], lambda now: now["progress"] > 0)
    assert quantry(server.url, "jobs", job["id"], "--cancel").returncode == 0
    ended = server.wait_for_job(job["id"])
    assert ended["status"] == "cancelled"
    followed = quantry(server.url, "jobs", job["id"], "--watch")
    assert followed.returncode == ExitCode.FAILED
    assert "was cancelled" in followed.stderr


def test_a_server_that_is_killed_and_comes_back_ends_no_watching(make_gloss_server: MakeServer) -> None:
    server = make_gloss_server(QUANTRY_PORT=str(free_port()))
    with subprocess.Popen(
        argv("quantize", "gloss", *MANY, "--json"), env=environment(QUANTRY_URL=server.url), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout is not None
        lines = [watching.stdout.readline()]
        while json.loads(lines[-1])["progress"] == 0:
            lines.append(watching.stdout.readline())
        server.kill()
        server.start()
        rest, problems = watching.communicate(timeout=90)
    last = json.loads(rest.splitlines()[-1])
    assert (watching.returncode, last["status"], problems) == (0, "succeeded", "")
    assert len(last["result"]) == len(MANY)


def test_rm_asks_on_a_terminal_and_no_keeps_everything(
    clean_server: Server, on_terminal: Callable[..., Terminal]
) -> None:
    server = clean_server
    server.add_gloss()
    asking = on_terminal(server.url, "rm", "gloss")
    asking.wait_for("gloss:F16")
    asking.wait_for("[y/N]")
    asking.type("n\n")
    assert asking.end() == ExitCode.FAILED
    assert server.names() == ["gloss:F16"]
    asking = on_terminal(server.url, "rm", "gloss")
    asking.wait_for("[y/N]")
    asking.type("y\n")
    assert asking.end() == 0
    assert server.names() == []
